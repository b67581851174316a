"""The `s3` source: listing of MinIO, moto and versitygw on a schedule, notifications from a queue of moto's."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.sources.s3 import S3Source
from tests.adapters.bucket_runs import COMPARED, Run, until
from tests.fixtures.moto import MotoServer, moto
from tests.fixtures.s3 import S3Server, server
from tests.fixtures.versity import versity

pytestmark = pytest.mark.s3


def s3_run(tmp_path: Path, found: S3Server, **options: Any) -> Run:
    versioned = options.pop("versioned", False)
    table = {"type": "s3", "relist": "1s", "region": "us-east-1"} | options
    return Run(tmp_path, found, found.bucket(versioned=versioned), table, kind=S3Source.model_validate)


@pytest.mark.parametrize(
    ("started", "versioned"),
    [
        pytest.param(server, False, id="minio"),
        pytest.param(server, True, id="minio-versioned"),
        pytest.param(moto, False, id="moto"),
        pytest.param(moto, True, id="moto-versioned"),
        # Not its versions: minio-py, which reads the truth here, cannot read the times of its delete markers.
        pytest.param(versity, False, id="versitygw"),
    ],
)
def test_listing_finds_every_change(tmp_path: Path, started: Callable[[], S3Server], *, versioned: bool) -> None:
    run = s3_run(tmp_path, started(), versioned=versioned)

    async def body() -> None:
        async with run.running():
            for key in ("a", "b", "c d+é%/x"):
                run.put(key)
            await run.agrees()
        run.client.remove_object(run.bucket, "a")
        run.put("b", "other")
        async with run.running():
            await run.agrees()
            run.put("e")
            await until(lambda: run.capture.has("e"))
            before = len(run.events)
            compared = run.told(COMPARED)
            await until(lambda: run.told(COMPARED) >= compared + 2)
            assert len(run.events) == before
        assert all(event.data["recovered"] for event in run.events)

    asyncio.run(body())


def test_more_versions_than_a_page_holds(tmp_path: Path) -> None:
    run = s3_run(tmp_path, server(), versioned=True, snapshot="initial")
    for number in range(1100):
        run.put("many", str(number))
    for number in range(30):
        run.put(f"n{number}")
        run.client.remove_object(run.bucket, f"n{number}")

    async def body() -> None:
        async with run.running():
            await run.agrees()
        minio = Run(tmp_path, run.server, run.bucket, {"snapshot": "initial"})
        async with minio.running():
            await minio.agrees()
        assert len(minio.events) == len(run.events) == 1160

    asyncio.run(body())


@pytest.fixture
def queued(tmp_path: Path) -> Run:
    found = moto()
    queue = found.queue()
    run = s3_run(tmp_path, found, queue=queue, relist="1h")
    found.notify(run.bucket, queue)
    return run


def queue_of(run: Run) -> tuple[MotoServer, str]:
    assert isinstance(run.server, MotoServer)
    return run.server, run.options["queue"]


def test_notifications_come_by_queue_and_leave_it(queued: Run) -> None:
    run = queued
    found, queue = queue_of(run)

    async def body() -> None:
        async with run.running():
            for number in range(30):
                run.put(f"key {number}+ü")
            run.client.remove_object(run.bucket, "key 3+ü")
            await run.agrees()
            await until(lambda: found.waiting(queue) == 0)
            told = len(run.events)
            assert told in {29, 31}, "what came and went before the first look may be told, or not"
        run.put("while it was down")
        async with run.running():
            await run.agrees()
            await until(lambda: found.waiting(queue) == 0)
        assert len(run.events) == told + 1

    asyncio.run(body())


def message(run: Run, key: str, **other: Any) -> str:
    found = {"key": key, "size": 1, "eTag": "9dd4e461268c8034f5c8564e155c67a6", "sequencer": "0055"}
    record = {
        "eventSource": "aws:s3",
        "eventName": "ObjectCreated:Put",
        "eventTime": time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime()),
        "s3": {"bucket": {"name": run.bucket}, "object": found},
    }
    return json.dumps({"Records": [record | other]})


def test_what_is_repeated_late_or_wrong_changes_nothing(queued: Run) -> None:
    run = queued
    found, queue = queue_of(run)

    def send(body: str) -> None:
        found.sqs("SendMessage", QueueUrl=queue, MessageBody=body)

    async def body() -> None:
        async with run.running():
            run.put("a")
            await run.agrees()
            send(json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": run.bucket}))
            send(message(run, "a"))
            send(message(run, "never+there", eventTime="2020-01-01T00:00:00.000Z"))
            send(json.dumps({"Type": "Notification", "Message": message(run, "a")}))
            send(message(run, "a", eventName="ObjectRemoved:Delete"))
            await until(lambda: found.waiting(queue) == 0)
            assert run.short == [("created", "a")]
            send("nonsense")
            run.put("b")
            await until(lambda: run.capture.has("b"))
            await until(lambda: found.waiting(queue) == 1)

    asyncio.run(body())


def test_a_message_is_deleted_only_when_its_events_are_durable(queued: Run) -> None:
    from headrace.testing import MemoryCapture, SimulatedCrash

    run = queued
    found, queue = queue_of(run)

    async def body() -> None:
        async with run.running():
            pass
        run.put("a")
        crashing = run.capture.survivor(crash=SimulatedCrash(1, "before"))
        async with run.running(crashing):
            await until(crashing.crashed.is_set)
        assert isinstance(crashing, MemoryCapture)
        assert found.waiting(queue) == 1
        run.capture = crashing
        async with run.running():
            await run.agrees()
            await until(lambda: found.waiting(queue) == 0)
        assert run.short == [("created", "a")]

    asyncio.run(body())


def test_a_real_daemon_runs_it_in_a_process_of_its_own(tmp_path: Path) -> None:
    found = server()
    bucket = found.bucket()
    (tmp_path / "headrace.toml").write_text(f"""
[sources.uploads]
type = "s3"
endpoint = "{found.endpoint}"
bucket = "{bucket}"
access_key = "{found.access_key}"
secret_key = "{found.secret_key}"
snapshot = "initial"
relist = "1s"

[sinks.audit]
type = "file"
path = "audit.jsonl"
start = "earliest"
""")
    from io import BytesIO

    from tests.fixtures.s3 import until as eventually

    with found.connected() as client:
        client.put_object(bucket, "a", BytesIO(b"x"), 1)
    audit = tmp_path / "audit.jsonl"
    command = [sys.executable, "-m", "headrace", "run", "-c", str(tmp_path / "headrace.toml")]
    with (tmp_path / "daemon.log").open("wb") as log:
        daemon = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        eventually(lambda: audit.exists() and audit.read_bytes().count(b"\n") == 1, "the event is there")
    finally:
        daemon.terminate()
        code = daemon.wait(30)
    assert code == 0, (tmp_path / "daemon.log").read_text()
