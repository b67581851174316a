"""HTTP ingest with an fsync before every answer, through a real daemon: `make bench-http`.

One client process with 64 connections over loopback, each with one request under way; the clock runs from the write of
a request to the last byte of its answer, and an answer is 202, which says that the events are durable. Three kinds of
request: any JSON, a CloudEvent with an id of its own (so the window of known ids is at work), and batches of 100 of
them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from benchmarks.report import report

SETTINGS = """
[sources.hooks]
type = "http"
listen = "127.0.0.1:{port}"
path = "/hooks"
"""
ORDER = {
    "order": 4711,
    "customer": "somebody@example.org",
    "total": "129.90",
    "currency": "EUR",
    "lines": [{"sku": "A-100", "count": 2}, {"sku": "B-200", "count": 1}],
}
BATCH = 100
numbers = count()
run_id = random.randbytes(4).hex()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def daemon(house: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    (house / "headrace.toml").write_text(SETTINGS.format(port=port))
    with (house / "daemon.log").open("wb") as log:
        command = [sys.executable, "-m", "headrace", "run", "-c", str(house / "headrace.toml")]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(lambda: b"listening" in (house / "daemon.log").read_bytes())
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("the daemon did not get there in time")
        time.sleep(0.02)


def request(media: str, body: bytes) -> bytes:
    head = f"POST /hooks HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


PLAIN = request("application/json", json.dumps(ORDER).encode())
EVENT = json.dumps(
    {
        "specversion": "1.0",
        "id": "NUMBER",
        "source": "https://shop.example/orders",
        "type": "com.example.order.placed",
        "subject": "4711",
        "time": "2026-01-31T06:00:00Z",
        "partitionkey": "4711",
        "datacontenttype": "application/json",
        "data": ORDER,
    }
).encode()


def plain() -> bytes:
    return PLAIN


def event() -> bytes:
    return request("application/cloudevents+json", new_event())


def new_event() -> bytes:
    return EVENT.replace(b"NUMBER", f"{run_id}-{next(numbers):09}".encode())


def batch() -> bytes:
    body = b"[" + b",".join(new_event() for _ in range(BATCH)) + b"]"
    return request("application/cloudevents-batch+json", body)


class Client(asyncio.Protocol):
    """One connection: a request, its answer, the next."""

    def __init__(self, make: Callable[[], bytes], end: float) -> None:
        self.latencies: list[float] = []
        self.closed = asyncio.get_running_loop().create_future()
        self._make = make
        self._end = end
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def _send(self) -> None:
        text = self._make()
        self._at = time.perf_counter()
        self._transport.write(text)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if not self._answer.endswith(b"\r\n\r\n"):
            return
        if not self._answer.startswith(b"HTTP/1.1 202"):
            raise SystemExit(self._answer.decode())
        now = time.perf_counter()
        self.latencies.append(now - self._at)
        self._answer = b""
        if now < self._end:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set_result(None)


async def load(port: int, make: Callable[[], bytes], connections: int, seconds: float) -> list[float]:
    """Seconds from request to answer, sorted."""
    loop = asyncio.get_running_loop()
    end = time.perf_counter() + seconds
    clients = [
        (await loop.create_connection(lambda: Client(make, end), "127.0.0.1", port))[1] for _ in range(connections)
    ]
    await asyncio.gather(*(client.closed for client in clients))
    return sorted(latency for client in clients for latency in client.latencies)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss(pid: int) -> float:
    """Resident set size in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(port: int, pid: int, name: str, make: Callable[[], bytes], options: argparse.Namespace) -> dict[str, float]:
    before = cpu_seconds(pid)
    found = asyncio.run(load(port, make, options.connections, options.seconds))
    used = cpu_seconds(pid) - before
    size = BATCH if make is batch else 1
    figures = {f"{name}: requests per second": round(len(found) / options.seconds)}
    if size > 1:
        figures[f"{name}: events per second"] = round(len(found) * size / options.seconds)
    figures |= {
        f"{name}: p50 ms": round(found[len(found) // 2] * 1e3, 1),
        f"{name}: p99 ms": round(found[len(found) * 99 // 100] * 1e3, 1),
        f"{name}: daemon's CPU per event, microseconds": round(used / len(found) / size * 1e6, 1),
    }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--folder", help="where the journal lies during the measurement; default: a temporary folder")
    options = parser.parse_args()
    port = free_port()
    figures: dict[str, float | int | str] = {"connections": options.connections}
    temporary = tempfile.TemporaryDirectory(prefix="headrace-bench-", dir=options.folder)
    with temporary as folder, daemon(Path(folder), port) as process:
        for name, make in (("JSON", plain), ("CloudEvents", event), ("batches of 100", batch)):
            figures |= measure(port, process.pid, name, make, options)
        figures["daemon's RSS at the end, MB"] = round(rss(process.pid), 1)
    figures["load average"] = round(os.getloadavg()[0], 1)
    report("http", figures)


if __name__ == "__main__":
    main()
