"""Expiry by lifecycle rules: a real MinIO that looks for what has expired every second."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from minio.commonconfig import Filter
from minio.lifecycleconfig import Expiration, LifecycleConfig, Rule

from tests.adapters.bucket_runs import MARKED, Run, until
from tests.fixtures.s3 import S3Server, private_server

pytestmark = pytest.mark.s3

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
KEYS = ["a", "b", "c"]


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder = tmp_path_factory.mktemp("lifecycle")
    given = private_server(folder, MINIO_SCANNER_SPEED="fastest", MINIO_SCANNER_CYCLE="1s")
    yield given
    given.kill()


def expire(run: Run) -> None:
    """Everything in the bucket is overdue."""
    rule = Rule("Enabled", rule_filter=Filter(prefix=""), rule_id="all", expiration=Expiration(date=LONG_AGO))
    run.client.set_bucket_lifecycle(run.bucket, LifecycleConfig([rule]))


@pytest.mark.parametrize("versioned", [False, True], ids=["unversioned", "versioned"])
def test_expiry_is_a_deletion(tmp_path: Path, prompt: S3Server, *, versioned: bool) -> None:
    """Of a versioned bucket's objects the expiry makes delete markers, which MinIO tells of as of removals."""
    run = Run(tmp_path, prompt, prompt.bucket(versioned=versioned))

    async def body() -> None:
        async with run.running():
            for key in KEYS:
                run.put(key)
            await until(lambda: len(run.events) == 3)
            expire(run)
            await until(lambda: len(run.events) == 6, 60)
            await run.agrees()
        assert sorted(run.short[3:]) == [("deleted", key) for key in KEYS]
        assert all(("deleteMarker" in event.data) == versioned for event in run.events[3:])
        if versioned:
            assert {event.data["eventName"] for event in run.events[3:]} == {MARKED}
        assert all(event.time is not None and event.time > "2026" for event in run.events)

    asyncio.run(body())


@pytest.mark.parametrize("versioned", [False, True], ids=["unversioned", "versioned"])
def test_expiry_while_nobody_listened_is_recovered(tmp_path: Path, prompt: S3Server, *, versioned: bool) -> None:
    run = Run(tmp_path, prompt, prompt.bucket(versioned=versioned))

    def expired() -> bool:
        """Where versions count, a listing without them hides what is only overdue."""
        found = list(run.client.list_objects(run.bucket, include_version=versioned))
        return sum(bool(it.is_delete_marker) for it in found) == len(KEYS) if versioned else not found

    async def body() -> None:
        async with run.running():
            for key in KEYS:
                run.put(key)
            await until(lambda: len(run.events) == 3)
        expire(run)
        await until(expired, 60)
        async with run.running():
            await until(lambda: len(run.events) == 6, 60)
            await run.agrees()
        assert sorted(run.short[3:]) == [("deleted", key) for key in KEYS]

    asyncio.run(body())


def test_expiry_of_a_marker_with_nothing_below_it(tmp_path: Path, prompt: S3Server) -> None:
    run = Run(tmp_path, prompt, prompt.bucket(versioned=True))
    rule = Rule(
        "Enabled",
        rule_filter=Filter(prefix=""),
        rule_id="markers",
        expiration=Expiration(expired_object_delete_marker=True),
    )

    async def body() -> None:
        async with run.running():
            run.put("a")
            await until(lambda: len(run.events) == 1)
            run.client.remove_object(run.bucket, "a")
            run.client.remove_object(run.bucket, "a", version_id=run.events[0].data["versionId"])
            await until(lambda: len(run.events) == 3)
            run.client.set_bucket_lifecycle(run.bucket, LifecycleConfig([rule]))
            await until(lambda: len(run.events) == 4, 60)
            await run.agrees()
        assert run.short[3] == ("deleted", "a")
        assert run.events[3].data["deleteMarker"]
        assert run.events[3].data["eventName"] != MARKED

    asyncio.run(body())
