"""The open webhook sink: requests over one pool of connections, and what their answers mean for the batch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

import aiohttp
import msgspec
from yarl import URL

from headrace import __version__, failpoints
from headrace.errors import Fatal, HeadraceError, Permanent, Transient
from headrace.protocols import Batch, Context, Finding, Position, Verdict
from headrace.sinks.webhook import envelope
from headrace.sinks.webhook.answers import failure, unanswered
from headrace.sinks.webhook.envelope import Message
from headrace.sinks.webhook.guard import PublicResolver, check_url
from headrace.sinks.webhook.handshake import Handshake
from headrace.sinks.webhook.settings import WebhookSink
from headrace.sinks.webhook.signature import Signer, message_id, parse_secret
from headrace.sinks.webhook.template import Template, lookup

_READ_AT_MOST: Final = 64 << 10  # of an answer, so that its connection can be used again
_SHOWN: Final = 300
_IDLE: Final = 60.0  # seconds that an unused connection is kept
_decode = msgspec.json.Decoder().decode


@asynccontextmanager
async def open_target(settings: WebhookSink, context: Context) -> AsyncIterator[Target]:
    """The sink with its connections. Raises `Fatal` where the TLS settings cannot be used."""
    tls = await asyncio.to_thread(settings.tls, context.directory)
    guarded = settings.url_from is not None
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0,
            limit_per_host=settings.connections,
            keepalive_timeout=_IDLE,
            ssl=tls,
            resolver=PublicResolver() if guarded else None,
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=settings.timeout),
        auto_decompress=False,
        skip_auto_headers=("Content-Type", "Accept-Encoding"),
        headers={
            "User-Agent": f"headrace/{__version__}",
            **{name: value.get_secret_value() for name, value in settings.headers.items()},
        },
    ) as session:
        yield Target(settings, context, session)


class Target:
    """Delivers each event of a batch as a request of its own, or the whole batch as one.

    Without `ordering = "strict"` the engine puts no two events of one key into a batch, so they may go at once.
    """

    def __init__(self, settings: WebhookSink, context: Context, session: aiohttp.ClientSession) -> None:
        self._settings = settings
        self._context = context
        self._session = session
        self._url = _as_written(settings.url.get_secret_value()) if settings.url else None
        self._message = _message(settings)
        # Waiting for a connection must not count as the target's slowness.
        self._slots = asyncio.Semaphore(settings.connections if self._url else settings.concurrency)
        keys = [parse_secret(secret.get_secret_value()) for secret in settings.secrets]
        self._signer = Signer(keys) if keys else None
        self._handshake = Handshake(settings.handshake) if settings.handshake else None

    async def deliver(self, batch: Batch) -> Verdict:
        if self._handshake and self._url:
            await self._handshake.passed(self._session, self._url, self._context.clock)
        if self._settings.mode == "batch" and self._url:
            await self._send(self._url, envelope.batched(batch.data))
            return Verdict()
        if self._settings.ordering == "strict":
            return await self._in_order(batch)
        return await self._at_once(batch)

    async def diagnose(self) -> AsyncIterator[Finding]:
        """Whether the target answers at all: any status will do."""
        if self._url is None:
            return
        host = self._url.host or ""
        try:
            async with self._session.options(self._url, allow_redirects=False) as response:
                yield Finding("ok", f"{host} answers (HTTP {response.status} to OPTIONS)")
        except (aiohttp.ClientError, OSError) as error:
            found = unanswered(error, host, self._settings.timeout)
            yield Finding("error", found.message, found.hint or "start it, or correct `url`")

    # --- a batch

    async def _in_order(self, batch: Batch) -> Verdict:
        """One after the other; after a failure the later ones are not tried."""
        for index, (position, line) in enumerate(zip(batch.positions, batch.lines, strict=True)):
            error = await self._outcome(line)
            if isinstance(error, Permanent):
                return Verdict(failed={position: str(error)}, skipped=batch.positions[index + 1 :])
            if error is not None:
                return _later(batch.positions[index:], error, {}, alone=index == 0)
        return Verdict()

    async def _at_once(self, batch: Batch) -> Verdict:
        if len(batch) == 1:
            outcomes = [await self._outcome(batch.data)]
        else:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._outcome(line)) for line in batch.lines]
            outcomes = [task.result() for task in tasks]
        found = dict(zip(batch.positions, outcomes, strict=True))
        failed = {position: str(error) for position, error in found.items() if isinstance(error, Permanent)}
        later = [position for position, error in found.items() if error and position not in failed]
        if not later:
            return Verdict(failed=failed)
        error = next((one for one in outcomes if isinstance(one, Fatal)), None) or found[later[0]]
        return _later(later, error or Transient(""), failed, alone=len(later) == len(batch))

    async def _outcome(self, line: bytes) -> HeadraceError | None:
        try:
            async with self._slots:
                if self._url is not None:
                    await self._send(self._url, self._message(line))
                else:
                    await self._send_where_it_says(line)
        except HeadraceError as error:
            return error
        except (ValueError, TypeError, msgspec.MsgspecError) as error:
            return Permanent(f"the event cannot be written as a request: {error}")
        return None

    async def _send_where_it_says(self, line: bytes) -> None:
        """To the address in the event. Its failure is the event's own: other events go elsewhere."""
        url = check_url(lookup(_decode(line), self._settings.url_from or ""))
        try:
            await self._send(url, self._message(line))
        except (Transient, Fatal) as error:
            raise Permanent(error.message) from error

    # --- one request

    async def _send(self, url: URL, message: Message) -> None:
        try:
            try:
                await self._request(url, message)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                # Mostly a kept connection that the target closed just now. Delivery is at least once anyway.
                if isinstance(error, aiohttp.ClientConnectorError):
                    raise
                await self._request(url, message)
        except (aiohttp.ClientError, OSError) as error:
            raise unanswered(error, url.host or "", self._settings.timeout) from error

    async def _request(self, url: URL, message: Message) -> None:
        headers = message.headers
        if self._signer is not None:
            now = int(self._context.clock.time())
            headers = headers | self._signer.headers(message_id(*message.identities), now, message.body)
        failpoints.reach("webhook.before-request")
        method = self._settings.method
        async with self._session.request(
            method, url, data=message.body, headers=headers, allow_redirects=False
        ) as response:
            failpoints.reach("webhook.answered")
            text = await _beginning(response)
            error = failure(response.status, response.headers, text, self._context.clock.time())
        if error is not None:
            raise error


def _as_written(text: str) -> URL:
    """What is encoded already stays as it is: a token in the query may be compared byte by byte."""
    return URL(text, encoded=text.isascii() and " " not in text)


def _message(settings: WebhookSink) -> Callable[[bytes], Message]:
    body = settings.body
    if body is None:
        return envelope.structured if settings.mode == "structured" else envelope.binary
    template = Template(body)
    usual = "text/plain; charset=utf-8" if isinstance(body, str) else envelope.JSON
    content_type = settings.content_type or usual
    return lambda line: envelope.templated(line, template, content_type)


def _later(
    positions: Sequence[Position], error: HeadraceError, failed: Mapping[Position, str], *, alone: bool
) -> Verdict:
    """These come again and spend nothing. Where no other event was settled, the error itself tells the engine."""
    if alone or isinstance(error, Fatal):
        raise error
    return Verdict(failed=failed, skipped=positions)


async def _beginning(response: aiohttp.ClientResponse) -> str:
    """The answer's first characters. The status counts: a body that breaks off changes nothing."""
    found = b""
    try:
        while len(found) < _READ_AT_MOST and (chunk := await response.content.read(_READ_AT_MOST)):
            found += chunk
        if not response.content.at_eof():
            response.close()
    except (aiohttp.ClientError, OSError):
        response.close()
    if response.status < 300 or "Content-Encoding" in response.headers:
        return ""
    text = found[: 4 * _SHOWN].decode("utf-8", "replace")
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:_SHOWN]
