"""Listens to MinIO and RustFS: `GET /BUCKET?events=…`, signed by the SDK, read without ever waiting for the journal.

minio-py's own iterator is not used: it reads some 350 events/s, connects again without a word, and cannot be cancelled.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from typing import Final

import aiohttp
from yarl import URL

from headrace.errors import HeadraceError, Transient
from headrace.protocols import Logger
from headrace.sources.objects.errors import BucketMissing, cannot_listen, not_s3, refused, unreachable
from headrace.sources.objects.hints import Hints
from headrace.sources.objects.lines import LineReader
from headrace.sources.objects.records import Hint, Record, hint_of, parse
from headrace.sources.objects.request import Server, refusal

PING: Final = 1  # seconds between keepalives; the server's answer begins with the first
SILENCE: Final = 10.0  # seconds without a keepalive, after which the connection counts as dead
HEADERS: Final = 5.0  # seconds without any answer, after which the server counts as one that holds back
PATIENCE: Final = 600.0  # seconds without a byte from such a server: its 4 KiB fill with 17 bytes a second
AGAIN: Final = 5.0  # seconds between looks for a bucket that is not there
SHORT: Final = 1.0  # seconds: a connection that lived no longer is not made again at once
EVENTS: Final = ("s3:ObjectCreated:*", "s3:ObjectRemoved:*", "s3:LifecycleDelMarkerExpiration:Delete")
HELD_BACK: Final = "a regression of MinIO builds since 2025-10-24, mended in its forks: use another build"
BUCKETS: Final = ("s3:BucketCreated:*",)


class Connection:
    """How to listen to a server."""

    def __init__(self, server: Server, tls: ssl.SSLContext | None) -> None:
        self.endpoint = server.endpoint
        self._server = server
        self._tls = tls

    @asynccontextmanager
    async def get(self, bucket: str, query: Sequence[tuple[str, str]]) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to a signed request. Raises `Transient` or `Fatal` where it is no success."""
        url = self._server.url(bucket, query)
        headers = self._server.headers(url)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE, sock_read=None)
        connector = aiohttp.TCPConnector(ssl=self._tls if self._tls is not None else True, force_close=True)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session,
                session.get(URL(url, encoded=True), headers=headers, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    raise self._error(response.status, await response.text(errors="replace"), bucket)
                yield response
        except aiohttp.ClientPayloadError as error:
            raise Transient("the listen stream was cut") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise unreachable(self.endpoint, error) from error

    def _error(self, status: int, body: str, bucket: str) -> HeadraceError:
        code, message = refusal(body)
        if code in {"NotImplemented", "MethodNotAllowed", "InvalidArgument"} or (status in {400, 501} and not code):
            return cannot_listen(self.endpoint)
        what = "s3:ListenBucketNotification" if bucket else "s3:ListenNotification"
        return refused(code or str(status), message, what=what, endpoint=self.endpoint, bucket=bucket)


class Listener:
    """One stream of one bucket, or of all of the server (`bucket` empty). A bucket that is missing is waited for."""

    def __init__(self, connection: Connection, bucket: str, log: Logger, *, prefix: str = "", suffix: str = "") -> None:
        self._connection = connection
        self._bucket = bucket
        self._log = log
        events = EVENTS if bucket else (*EVENTS, *BUCKETS)
        self._query = [("events", it) for it in events] + [("ping", str(PING)), ("prefix", prefix), ("suffix", suffix)]

    def describe(self) -> str:
        """What it means that this works."""
        return f'bucket "{self._bucket}" can be listened to' if self._bucket else "all buckets can be listened to"

    async def run(self, hints: Hints) -> None:
        while True:
            hints.expect(self)
            began = monotonic()
            try:
                await self.listen(hints)
            except BucketMissing:
                hints.absent(self)
                await asyncio.sleep(AGAIN)
            except Transient as error:
                if monotonic() - began < SHORT:
                    raise
                self._log.info("the listen stream broke; connecting again", bucket=self._bucket, reason=error.message)

    async def listen(self, hints: Hints) -> None:
        """Until the stream ends, which is an error whatever its reason."""
        reader = LineReader()
        timer = asyncio.get_running_loop().call_later(HEADERS, self._held_back, hints)
        try:
            async with asyncio.timeout(PATIENCE) as silence:
                async with self._connection.get(self._bucket, self._query) as response:
                    timer.cancel()
                    hints.arrived(self)
                    await self._read(response, reader, hints, silence)
        except TimeoutError as error:
            raise Transient("the listen stream fell silent") from error
        finally:
            timer.cancel()
        raise Transient("the server closed the listen stream" + (" within a line" if reader.unfinished else ""))

    async def _read(
        self, response: aiohttp.ClientResponse, reader: LineReader, hints: Hints, silence: asyncio.Timeout
    ) -> None:
        loop, patience = asyncio.get_running_loop(), PATIENCE if self in hints.held_back else SILENCE
        silence.reschedule(loop.time() + patience)
        first = (await response.content.readany()).lstrip()
        if first.startswith(b"<"):  # a server that ignores `events` lists the bucket
            html = first[:14].lower().startswith((b"<html", b"<!doctype html"))
            raise not_s3(self._connection.endpoint, "a web page") if html else cannot_listen(self._connection.endpoint)
        self._take(reader.feed(first), hints)
        while chunk := await response.content.readany():
            silence.reschedule(loop.time() + patience)
            if lines := reader.feed(chunk):
                self._take(lines, hints)

    def _held_back(self, hints: Hints) -> None:
        """No answer, not even a keepalive: what is told comes when the server's buffer is full."""
        if self not in hints.held_back:
            self._log.warning("the server holds notifications back; the buckets are compared instead", hint=HELD_BACK)
        hints.held_back.add(self)
        hints.arrived(self)

    def _take(self, lines: Sequence[bytes], hints: Hints) -> None:
        found: list[Hint] = []
        for line in lines:
            try:
                found += [hint for record in parse(line) if (hint := self._hint(record, hints))]
            except ValueError as error:
                self._log.warning("a notification could not be read; the buckets are compared", error=str(error))
                hints.want_listing()
        if found:
            hints.put(found)

    def _hint(self, record: Record, hints: Hints) -> Hint | None:
        if record.event_name.startswith("s3:BucketCreated"):
            hints.want_listing()
        return hint_of(record)


class Listeners:
    """All streams of a source: one per named bucket, or one for the server where buckets are found by pattern."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = listeners

    async def run(self, hints: Hints) -> None:
        for listener in self._listeners:
            hints.expect(listener)
        hints.arrived(self)
        async with asyncio.TaskGroup() as group:
            for listener in self._listeners:
                group.create_task(listener.run(hints), name="listen")
