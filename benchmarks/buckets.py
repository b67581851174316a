"""Buckets: latency of a put, the listener against the server and against a replayed stream, comparing 200,000 objects.

`make bench-buckets`. A real MinIO, as the tests find it; the replayed stream comes from a socket that holds recorded
lines, which is faster than any server writes them. minio-py's own reader reads the same stream in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from benchmarks.report import report
from tests.fixtures.s3 import LocalMinio, S3Server, private_server

SETTINGS = """
[sources.uploads]
type = "minio"
endpoint = "{endpoint}"
bucket = "{bucket}"
access_key = "{access_key}"
secret_key = "{secret_key}"
snapshot = "{snapshot}"

[handlers.stamp]
function = "stamp.py:stamp"
on = ["uploads.created"]
"""
HANDLER = """
import os, time
out = os.open("calls.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def stamp(event):
    os.write(out, f"{time.time_ns()} {event['data']['recovered']} {event['subject']}\\n".encode())
"""
COMPARED = b"compared with the buckets"


class House:
    """A folder with settings and a daemon."""

    def __init__(self, folder: Path, server: S3Server, bucket: str, *, snapshot: str = "never", handler: bool = True):
        self.folder = folder
        folder.mkdir()
        text = SETTINGS.format(
            endpoint=server.endpoint,
            bucket=bucket,
            access_key=server.access_key,
            secret_key=server.secret_key,
            snapshot=snapshot,
        )
        (folder / "headrace.toml").write_text(text if handler else text.partition("[handlers")[0])
        (folder / "stamp.py").write_text(HANDLER)

    @contextmanager
    def daemon(self) -> Iterator[subprocess.Popen[bytes]]:
        with (self.folder / "daemon.log").open("ab") as log:
            command = [sys.executable, "-m", "headrace", "run", "-c", str(self.folder / "headrace.toml")]
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)

    def compared(self) -> list[dict[str, Any]]:
        """The log's lines about comparisons."""
        lines = (self.folder / "daemon.log").read_bytes().splitlines()
        return [json.loads(line) for line in lines if COMPARED in line]


def wait_for(condition: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("the daemon did not get there in time")
        time.sleep(0.02)


# Latency


def latency(folder: Path, server: S3Server, rate: int, seconds: float) -> dict[str, float]:
    """Milliseconds from the end of a put to the call of the function."""
    bucket = server.bucket()
    house = House(folder / "latency", server, bucket)
    done: dict[str, int] = {}
    with house.daemon(), server.connected() as client, ThreadPoolExecutor(4) as pool:
        wait_for(house.compared)

        def put(key: str) -> None:
            client.put_object(bucket, key, BytesIO(b"x" * 100), 100)
            done[key] = time.time_ns()

        for number in range(50):
            put(f"warm-{number}")
        start = time.monotonic()
        for number in range(int(rate * seconds)):
            time.sleep(max(start + number / rate - time.monotonic(), 0))
            pool.submit(put, f"key-{number}")
        calls = house.folder / "calls.log"
        wanted = 50 + int(rate * seconds)
        wait_for(lambda: calls.exists() and calls.read_bytes().count(b"\n") >= wanted)
        rows = [line.split(" ") for line in calls.read_text().splitlines()]
    found = sorted((int(at) - done[key]) / 1e6 for at, _, key in rows if key.startswith("key-"))
    return {
        f"put to function at {rate} puts/s, p50 ms": round(found[len(found) // 2], 2),
        f"put to function at {rate} puts/s, p99 ms": round(found[len(found) * 99 // 100], 2),
    }


# The listener


def flood(folder: Path, server: S3Server, seconds: float) -> dict[str, float]:
    """As many puts as four clients manage: what the listener told of them live."""
    bucket = server.bucket()
    house = House(folder / "flood", server, bucket)
    counts = [0] * 4

    def put(number: int) -> None:
        with server.connected() as client:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                client.put_object(bucket, f"{number}/{counts[number]}", BytesIO(b"x"), 1)
                counts[number] += 1

    with house.daemon():
        wait_for(house.compared)
        began = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(put, range(4)))
        took = time.monotonic() - began
        calls = house.folder / "calls.log"
        wait_for(lambda: calls.exists() and calls.read_bytes().count(b"\n") >= sum(counts))
        live = calls.read_bytes().count(b" False ")
    return {
        "puts/s of four clients": round(sum(counts) / took),
        "of their puts told live, %": round(100 * live / sum(counts), 1),
    }


LINE = (
    '{"Records":[{"eventVersion":"2.0","eventSource":"minio:s3","awsRegion":"","eventTime":"2026-01-02T03:04:05.678Z",'
    '"eventName":"s3:ObjectCreated:Put","userIdentity":{"principalId":"headrace"},"requestParameters":{"principalId":'
    '"headrace","region":"","sourceIPAddress":"127.0.0.1"},"responseElements":{"x-amz-id-2":"9276352a61fee6a4846f92d2'
    '37c4d353038476914cac3fbbd8b684d219144121","x-amz-request-id":"18EA387B9A0B2C9D","x-minio-deployment-id":"5f0c8b4c'
    '-6d5d-4a9c-9b5a-0f8f8f8f8f8f","x-minio-origin-endpoint":"http://127.0.0.1:9000"},"s3":{"s3SchemaVersion":"1.0",'
    '"configurationId":"Config","bucket":{"name":"uploads","ownerIdentity":{"principalId":"headrace"},"arn":"arn:aws:'
    's3:::uploads"},"object":{"key":"incoming/2026/01/02/photo-%07d.jpg","size":%d,"eTag":"9dd4e461268c8034f5c8564e1'
    '55c67a6","contentType":"application/octet-stream","userMetadata":{"content-type":"application/octet-stream"},'
    '"sequencer":"%X"}},"source":{"host":"127.0.0.1","port":"","userAgent":"MinIO (Linux; x86_64) minio-py/7.2.20"}}]}'
    "\n"
)
HEADER = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


@contextmanager
def replayed(count: int) -> Iterator[str]:
    """An endpoint that answers every request with `count` recorded notifications, and then waits."""
    now = time.time_ns()
    body = b"".join((LINE % (number, number, now + number * 1000)).encode() for number in range(count))
    program = (
        "import socket, sys, threading\n"
        "body = open(sys.argv[1], 'rb').read()\n"
        "listening = socket.create_server(('127.0.0.1', 0))\n"
        "print(listening.getsockname()[1], flush=True)\n"
        "def serve(s):\n"
        "    s.recv(65536)\n"
        "    try:\n        s.sendall(body)\n        s.recv(1)\n"
        "    except OSError: pass\n"
        "while True: threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()\n"
    )
    with tempfile.NamedTemporaryFile() as file:
        file.write(HEADER + body)
        file.flush()
        process = subprocess.Popen([sys.executable, "-c", program, file.name], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


async def into_journal(folder: Path, host: str, count: int) -> float:
    """Events/s from the stream into a durable journal, by the source's own parts."""
    from minio.credentials.providers import StaticProvider

    from headrace.capture import JournalPort, SourceCapture
    from headrace.clock import SystemClock
    from headrace.inventory import Inventory
    from headrace.journal.space import Limits
    from headrace.journal.sqlite import open_journal
    from headrace.sources.objects.events import Events
    from headrace.sources.objects.hints import Hints
    from headrace.sources.objects.keeper import Keeper
    from headrace.sources.objects.listen import Connection, Listener
    from headrace.sources.objects.request import Server
    from headrace.sources.objects.scope import Scope
    from headrace.testing import RecordingLog

    log = RecordingLog()
    data = folder / "replay"
    data.mkdir()
    async with open_journal(data, Limits(3600.0, 10 << 30), log) as journal:
        capture = SourceCapture(JournalPort(journal, "uploads"), "uploads", 1 << 20)
        inventory = await Inventory.open(capture)
        scope = Scope(["uploads"])
        store: Any = None  # nothing here needs a look
        events = Events("headrace:uploads")
        keeper = Keeper(inventory, store, events, scope, SystemClock(), metadata=False, finds_versions=True)
        keeper.versioned["uploads"] = False
        hints = Hints(limit=count + 1)
        connection = Connection(Server(f"http://{host}", "us-east-1", StaticProvider("a", "b")), None)
        done = 0
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(Listener(connection, "uploads", log).run(hints))
            while done < count:
                hints.woken.clear()
                taken = hints.take(500)
                if taken.hints:
                    await keeper.follow(taken.hints)
                    done += len(taken.hints)
                else:
                    await hints.woken.wait()
            await inventory.settle()
            took = time.monotonic() - began
            task.cancel()
        await capture.drain()
    return count / took


def by_minio_py(host: str, seconds: float) -> float:
    """Events/s that the SDK's own iterator gives from the same stream."""
    from minio import Minio

    client = Minio(host, "a", "b", secure=False, region="us-east-1")
    found, began = 0, time.monotonic()
    with client.listen_bucket_notification("uploads", events=("s3:ObjectCreated:*",)) as events:
        for _ in events:
            found += 1
            if time.monotonic() - began > seconds:
                break
    return found / (time.monotonic() - began)


def listener(folder: Path, count: int) -> dict[str, float]:
    with replayed(count) as host:
        ours = asyncio.run(into_journal(folder, host, count))
        theirs = by_minio_py(host, 5)
    return {
        "replayed listen stream into the journal, events/s": round(ours),
        "minio-py's own reader, nothing stored, events/s": round(theirs),
    }


# Comparing


def fill(server: LocalMinio, bucket: str, count: int) -> None:
    """Objects by tar snapshots: MinIO unpacks them itself, a thousand to a request."""
    from minio.commonconfig import SnowballObject

    def upload(start: int) -> None:
        with server.connected() as client:
            names = [f"{number % 50:02}/object-{number:07}" for number in range(start, min(start + 1000, count))]
            client.upload_snowball_objects(bucket, [SnowballObject(it, data=BytesIO(b"x"), length=1) for it in names])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(upload, range(0, count, 1000)))


def comparing(folder: Path, server: LocalMinio, count: int) -> dict[str, float]:
    bucket = server.bucket()
    fill(server, bucket, count)
    house = House(folder / "comparing", server, bucket, snapshot="initial", handler=False)
    with house.daemon() as process:
        wait_for(lambda: len(house.compared()) >= 1, 300)
        first_peak = peak(process.pid)
    with house.daemon() as process:
        wait_for(lambda: len(house.compared()) >= 2, 300)
        second_peak = peak(process.pid)
    first, second = house.compared()
    program = (
        "import sys, time\nfrom minio import Minio\n"
        "c = Minio(sys.argv[1], sys.argv[2], sys.argv[3], secure=False, region='us-east-1')\n"
        "t = time.monotonic()\nn = sum(1 for _ in c.list_objects(sys.argv[4], recursive=True))\n"
        "print(n, time.monotonic() - t)\n"
    )
    arguments = [sys.executable, "-c", program, server.host, server.access_key, server.secret_key, bucket]
    found, bare = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split()
    return {
        "objects": int(found),
        "bare listing with the same SDK, s": round(float(bare), 2),
        "first comparison, an event for each, s": first["seconds"],
        "its peak memory, all processes, MB": round(first_peak),
        "comparison of the unchanged bucket, s": second["seconds"],
        "events from it": second["changes"],
        "peak memory of the unchanged comparison, all processes, MB": round(second_peak),
        "unchanged comparison / bare listing": round(second["seconds"] / float(bare), 2),
        "first comparison / bare listing": round(first["seconds"] / float(bare), 2),
    }


def peak(pid: int) -> float:
    """Peak resident size in MB, of a process and all below it."""
    status = Path(f"/proc/{pid}/status").read_text()
    below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024 + sum(peak(int(it)) for it in below)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--objects", type=int, default=200_000)
    parser.add_argument("--part", choices=["latency", "flood", "listener", "comparing"], help="only this, not kept")
    options = parser.parse_args()
    # In memory where there is such a folder: on a disk, filling a bucket with 200,000 objects takes half an hour.
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    temporary = partial(tempfile.TemporaryDirectory, prefix="headrace-bench-")
    with temporary() as name, temporary(dir=memory) as disk:
        folder = Path(name)
        server = private_server(Path(disk))
        parts = {
            "latency": lambda: latency(folder, server, options.rate, options.seconds),
            "flood": lambda: flood(folder, server, options.seconds / 2),
            "listener": lambda: listener(folder, options.events),
            "comparing": lambda: comparing(folder, server, options.objects),
        }
        try:
            found = {
                key: value
                for part, run in parts.items()
                if options.part in {None, part}
                for key, value in run().items()
            }
        finally:
            server.kill()
    if options.part:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        report("buckets", found)


if __name__ == "__main__":
    main()
