"""A real daemon under malice: thousands of bad requests of all kinds leave no event, and its memory does not grow."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.fixtures.inlet import free_port
from tests.fixtures.killed import Daemon, events_of, until

SETTINGS = """
[sources.hooks]
type = "http"
listen = "127.0.0.1:{port}"
path = "/hooks"
auth = {{ hmac = {{ secret = "shh", header = "X-Sig" }} }}
max_body = "64KiB"
max_connections = 100
idle = "1s"
timeout = "1s"

[sources.open]
type = "http"
listen = "127.0.0.1:{port}"
path = "/open"
max_connections = 100
idle = "1s"

[sinks.audit]
type = "file"
path = "audit.jsonl"
"""
CLOUD = b'{"specversion":"1.0","id":"","source":"s","type":"t"}'
ROUNDS = 400
GROWTH = 12.0  # MB: what allocators keep, not what requests leave


def request(path: bytes, body: bytes = b"", *headers: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = [b"POST " + path + b" HTTP/1.1", b"Host: x", b"Content-Length: %d" % size, *headers]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


BAD = [
    (request(b"/hooks", b"{}"), 401),
    (request(b"/hooks", b"{}", b"X-Sig: ffff"), 401),
    (request(b"/hooks", b"x" * 60_000, b"X-Sig: ffff"), 401),
    (request(b"/hooks", b"", b"X-Sig: ffff", length=1 << 40), 413),
    (request(b"/nowhere", b"{}"), 404),
    (request(b"/open", b"{", b"Content-Type: application/json"), 400),
    (request(b"/open", b"[" * 50_000, b"Content-Type: application/json"), 400),
    (request(b"/open", CLOUD, b"Content-Type: application/cloudevents+json"), 400),
    (request(b"/open", b"[" + CLOUD + b"]", b"Content-Type: application/cloudevents-batch+json"), 400),
    (request(b"/open", b"{}", b"Content-Encoding: gzip"), 415),
    (b"DELETE /open HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    (request(b"/open", b"", b"X: " + b"a" * 20_000), 400),
]

pytestmark = pytest.mark.crash


async def ask(port: int, text: bytes, status: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(text)
        line = await reader.readline()
        assert line.split(b" ")[1:2] == [b"%d" % status], (text[:60], line)
    finally:
        writer.close()


async def slow(port: int) -> None:
    """A client that never finishes; it is cut off."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"POST /open HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        async with asyncio.timeout(10):
            assert await reader.read() == b""
    finally:
        writer.close()


async def abuse(port: int, rounds: int) -> None:
    for _ in range(rounds):
        async with asyncio.TaskGroup() as group:
            for text, status in BAD:
                group.create_task(ask(port, text, status))


async def too_many(port: int) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(90):
            group.create_task(slow(port))


def rss(pid: int) -> float:
    """Resident set size in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_abuse_leaves_nothing(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "headrace.toml").write_text(SETTINGS.format(port=port))
    with Daemon(tmp_path) as daemon:
        until(lambda: daemon.log.count("listening") == 2, "both listen")
        asyncio.run(abuse(port, ROUNDS // 4))
        asyncio.run(too_many(port))
        before = rss(daemon.process.pid)
        asyncio.run(abuse(port, ROUNDS))
        asyncio.run(too_many(port))
        assert rss(daemon.process.pid) - before < GROWTH
        asyncio.run(ask(port, request(b"/open", b"good"), 202))
        until(lambda: len(events_of(tmp_path)) > 0, "the good one is captured")
        assert "Traceback" not in daemon.log
    assert [event["data"]["body"] for event in events_of(tmp_path)] == ["good"]
