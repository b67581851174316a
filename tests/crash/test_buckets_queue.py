"""Killed between journal and queue: a message comes again, and changes nothing."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest

from tests.fixtures.killed import Daemon, events_of, until
from tests.fixtures.moto import moto

pytestmark = [pytest.mark.s3, pytest.mark.crash]

SETTINGS = """
[sources.uploads]
type = "s3"
endpoint = "{endpoint}"
region = "us-east-1"
bucket = "{bucket}"
queue = "{queue}"
access_key = "{access_key}"
secret_key = "{secret_key}"

[sinks.audit]
type = "file"
path = "audit.jsonl"
start = "earliest"
"""
KEYS = [f"key-{number}" for number in range(20)]


def test_a_message_is_deleted_after_its_events_are_durable(tmp_path: Path) -> None:
    """The source is a child of the daemon: it dies before the deletion, and is started again to die there again."""
    server = moto()
    bucket, queue = server.bucket(), server.queue()
    server.notify(bucket, queue)
    text = SETTINGS.format(
        endpoint=server.endpoint,
        bucket=bucket,
        queue=queue,
        access_key=server.access_key,
        secret_key=server.secret_key,
    )
    (tmp_path / "headrace.toml").write_text(text)
    with Daemon(tmp_path) as first:
        until(lambda: "compared with the buckets" in first.log, "the first listing")
        until(lambda: server.waiting(queue) == 0, "the queue's test message is gone")
    with Daemon(tmp_path, "objects.before-delete") as dying:
        until(lambda: "compared with the buckets" in dying.log, "the second listing")
        with server.connected() as client:
            for key in KEYS:
                client.put_object(bucket, key, BytesIO(b"x"), 1)
        until(lambda: dying.log.count("will try again") >= 2, "the source died twice")
        until(lambda: len(events_of(tmp_path)) >= len(KEYS), "every event, by message or by listing")
        dying.kill()
    assert any(not event["data"]["recovered"] for event in events_of(tmp_path)), "a message was believed"
    assert server.waiting(queue) == len(KEYS), "nobody got to the deletion"
    with Daemon(tmp_path):
        until(lambda: server.waiting(queue) == 0, "the queue is empty")
    assert sorted(event["subject"] for event in events_of(tmp_path)) == sorted(KEYS)
