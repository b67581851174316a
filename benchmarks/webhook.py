"""Requests and events per second that the webhook sink delivers: `make bench-webhook`.

The receiver is a minimal HTTP server in a process of its own: it reads each request whole and answers 204. The sink
runs alone in this process, on one loop and one pool of connections.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.report import report
from headrace.protocols import Batch
from headrace.sinks.webhook import WebhookSink
from headrace.testing import make_batch, make_context
from headrace.testing.sink import an_event

SECONDS = 3.0
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Receiver(asyncio.Protocol):
    """Answers each request once its body is there."""

    def connection_made(self, transport: Any) -> None:
        self.transport, self.buffer, self.missing = transport, b"", 0

    def data_received(self, data: bytes) -> None:
        if self.missing:
            taken = min(self.missing, len(data))
            self.missing -= taken
            data = data[taken:]
            if not self.missing:
                self.transport.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head, self.buffer = self.buffer[:end].lower(), self.buffer[end + 4 :]
            at = head.index(b"content-length:")
            self.missing = int(head[at + 15 :].partition(b"\r\n")[0])
            taken = min(self.missing, len(self.buffer))
            self.missing, self.buffer = self.missing - taken, self.buffer[taken:]
            if self.missing:
                return
            self.transport.write(b"HTTP/1.1 204 No Content\r\n\r\n")


def serve(ready: Connection) -> None:
    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Receiver, "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def receiver() -> Iterator[str]:
    here, there = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}/hook"
    finally:
        process.terminate()
        process.join()


async def rate(url: str, batch: Batch, deliveries: int, **options: Any) -> int:
    """Events per second with so many deliveries at once."""
    settings = WebhookSink.model_validate({"url": url, "connections": 32, **options})
    with tempfile.TemporaryDirectory() as folder:
        async with settings.open(make_context(Path(folder))) as sink:
            end = time.perf_counter() + SECONDS

            async def deliver() -> int:
                count = 0
                while time.perf_counter() < end:
                    await sink.deliver(batch)
                    count += len(batch)
                return count

            start = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(deliver()) for _ in range(deliveries)]
            return round(sum(task.result() for task in tasks) / (time.perf_counter() - start))


def main() -> None:
    logging.disable()
    one = make_batch([an_event(0, "x" * 200)])
    many = make_batch([an_event(number, "x" * 200) for number in range(500)])
    with receiver() as url:
        figures = {
            "bytes per event": len(one.data),
            "binary, requests/s": asyncio.run(rate(url, one, 16)),
            "binary and signed, requests/s": asyncio.run(rate(url, one, 16, secrets=[SECRET])),
            "structured, requests/s": asyncio.run(rate(url, one, 16, mode="structured")),
            "batches of 500, events/s": asyncio.run(rate(url, many, 4, mode="batch")),
            "batches of 500 and signed, events/s": asyncio.run(rate(url, many, 4, mode="batch", secrets=[SECRET])),
        }
    report("webhook", figures)


if __name__ == "__main__":
    main()
