"""Runs a bucket source against a real server, and rebuilds the buckets from its events."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from minio import Minio

from headrace.errors import HeadraceError
from headrace.event import Event
from headrace.settings import SourceSettings
from headrace.sources.minio import MinioSource
from headrace.sources.s3 import S3Source
from headrace.tasks import cause
from headrace.testing import MemoryCapture, RecordingLog, make_context
from headrace.testing.leaks import eventually
from tests.fixtures.s3 import S3Server, server

COMPARED = "compared with the buckets"
MARKED = "s3:ObjectRemoved:DeleteMarkerCreated"


@dataclass
class Run:
    """A bucket of a server, the settings of the source, and what was captured over all runs so far."""

    folder: Path
    server: S3Server
    bucket: str
    options: dict[str, Any] = field(default_factory=dict)
    capture: MemoryCapture = field(default_factory=MemoryCapture)
    log: RecordingLog = field(default_factory=RecordingLog)
    kind: Callable[[dict[str, Any]], SourceSettings] = MinioSource.model_validate

    def __post_init__(self) -> None:
        self.client = self.server.client()

    def settings(self) -> SourceSettings:
        return self.kind(minio_table(self.server, self.bucket) | self.options)

    @asynccontextmanager
    async def running(self, capture: MemoryCapture | None = None) -> AsyncIterator[None]:
        """The source runs, and has compared once, while the context is entered."""
        self.capture = capture or self.capture.survivor()
        compared = self.told(COMPARED)
        async with (
            self.settings().open(make_context(self.folder, log=self.log)) as source,
            asyncio.TaskGroup() as group,
        ):
            task = group.create_task(source.run(self.capture))
            await until(lambda: self.told(COMPARED) > compared or self.capture.crashed.is_set())
            try:
                yield
            finally:
                task.cancel()

    def told(self, event: str) -> int:
        return sum(it[1] == event for it in self.log.records)

    def put(self, key: str, text: str = "x", **options: Any) -> None:
        data = text.encode()
        self.client.put_object(self.bucket, key, BytesIO(data), len(data), **options)

    @property
    def events(self) -> list[Event]:
        return self.capture.events

    @property
    def short(self) -> list[tuple[str, str | None]]:
        return [(name(it), it.subject) for it in self.capture.events]

    async def sees(self, *expected: tuple[str, str]) -> None:
        """Exactly these events have come, once the last of them has."""
        await until(lambda: len(self.short) >= len(expected))
        assert self.short == list(expected)

    async def agrees(self, seconds: float = 20.0) -> None:
        """The bucket rebuilt from the events becomes equal to the bucket."""
        versions = has_versions(self.events)
        there = current(self.client, [self.bucket]) if not versions else every_version(self.client, [self.bucket])
        again: Callable[[Iterable[Any]], Any] = rebuilt_versions if versions else rebuilt
        try:
            await until(lambda: again(map(as_dict, self.events)) == there, seconds)
        except AssertionError:
            assert again(map(as_dict, self.events)) == there
        ids = [event.id for event in self.events]
        assert len(set(ids)) == len(ids)


def minio_table(server: S3Server, bucket: str) -> dict[str, Any]:
    return {
        "type": "minio",
        "endpoint": server.endpoint,
        "bucket": bucket,
        "access_key": server.access_key,
        "secret_key": server.secret_key,
    }


def settings_of(table: dict[str, Any]) -> MinioSource | S3Source:
    return (MinioSource if table["type"] == "minio" else S3Source).model_validate(table)


def failure(folder: Path, **changes: Any) -> HeadraceError:
    """What the source ends with."""
    table = minio_table(server(), changes.get("bucket") or server().bucket()) | changes
    table = {key: value for key, value in table.items() if value is not None}

    async def run() -> HeadraceError:
        try:
            async with settings_of(table).open(make_context(folder)) as source, asyncio.timeout(20):
                await source.run(MemoryCapture())
        except (HeadraceError, BaseExceptionGroup) as error:
            found = cause(error)
            assert isinstance(found, HeadraceError), repr(found)
            return found
        raise AssertionError("it runs")

    return asyncio.run(run())


async def until(condition: Callable[[], bool], deadline: float = 20.0) -> None:
    """Returns once the condition holds. Raises `AssertionError` after `deadline` seconds."""
    await eventually(condition, "the condition", deadline)


def name(event: Event) -> str:
    return event.type.rpartition(".")[2]


def as_dict(event: Event) -> dict[str, Any]:
    return {"type": event.type, "data": event.data}


def has_versions(events: Iterable[Event]) -> bool:
    return any("versionId" in event.data for event in events)


def rebuilt(events: Iterable[dict[str, Any]]) -> dict[tuple[str, str], tuple[int, str]]:
    """Bucket and key to size and ETag, applying the events one by one."""
    found: dict[tuple[str, str], tuple[int, str]] = {}
    for event in events:
        data = event["data"]
        key = (data["bucket"], data["key"])
        if event["type"].endswith(".created"):
            found[key] = (data["size"], data["etag"])
        else:
            assert key in found, f"deleted, and was not there: {key}"
            del found[key]
    return found


def rebuilt_versions(events: Iterable[dict[str, Any]]) -> dict[tuple[str, str, str], str]:
    """Bucket, key and version to ETag, `marker` for a delete marker. Each comes once, and goes once."""
    found: dict[tuple[str, str, str], str] = {}
    for event in events:
        data = event["data"]
        key = (data["bucket"], data["key"], data.get("versionId", "null"))
        marks = data["eventName"] == MARKED
        if event["type"].endswith(".created") or marks:
            assert key not in found or key[2] == "null", f"told twice: {key}"
            found[key] = "marker" if marks else data["etag"]
        else:
            assert key in found, f"deleted, and was not there: {key}"
            del found[key]
    return found


def require_each_version_once(events: Iterable[dict[str, Any]]) -> None:
    """Each version and delete marker with an id of its own came once, and went at most once."""
    times: Counter[tuple[str, ...]] = Counter()
    for event in events:
        data = event["data"]
        if "versionId" in data:
            comes = event["type"].endswith(".created") or data["eventName"] == MARKED
            times["comes" if comes else "goes", data["bucket"], data["key"], data["versionId"]] += 1
    repeated = [what for what, number in times.items() if number > 1]
    assert not repeated, f"told more than once: {repeated}"


def current(client: Minio, buckets: Iterable[str]) -> dict[tuple[str, str], tuple[int, str]]:
    return {
        (bucket, it.object_name or ""): (it.size or 0, it.etag or "")
        for bucket in buckets
        for it in client.list_objects(bucket, recursive=True)
    }


def every_version(client: Minio, buckets: Iterable[str]) -> dict[tuple[str, str, str], str]:
    return {
        (bucket, it.object_name or "", it.version_id or "null"): "marker" if it.is_delete_marker else it.etag or ""
        for bucket in buckets
        for it in client.list_objects(bucket, recursive=True, include_version=True)
    }
