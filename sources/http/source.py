"""The source: requests to one path, checked, captured, and answered once they are durable."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from math import ceil
from typing import Any, Final

import msgspec
from aiohttp import web

from headrace.errors import Fatal, Transient
from headrace.protocols import Capture, Context, Finding
from headrace.sources.http import cloudevents, plain
from headrace.sources.http.committer import Committer
from headrace.sources.http.listener import Listeners, Terms
from headrace.sources.http.parcel import TYPES, Item
from headrace.sources.http.refusal import Refused, accepted, busy
from headrace.sources.http.settings import HttpSource
from headrace.sources.http.signatures import proof
from headrace.sources.http.sns import Fetch, Sns
from headrace.sources.http.window import Window
from headrace.units import is_loopback, parse_address

IN_HAND: Final = 64 << 20  # bytes of bodies read and not yet durable, beyond which requests are told to come again
ID_HEADERS: Final[Mapping[str, str]] = {"standard_webhooks": "webhook-id", "github": "X-GitHub-Delivery"}
LONGEST_ID: Final = 256


class Http:
    """One path of one listener. Also `Diagnoses` and `Describes`."""

    def __init__(self, settings: HttpSource, context: Context, fetch: Fetch | None = None) -> None:
        self._settings = settings
        self._context = context
        self._terms = Terms.of(settings, context.directory)
        self._proof = proof(settings.auth, context.clock)
        sns = settings.auth.sns if settings.auth else None
        self._sns = Sns(sns, context.log, fetch) if sns else None
        self._stripe = settings.auth is not None and settings.auth.stripe is not None
        self._id_header = settings.id_header or ID_HEADERS.get(settings.auth.kind if settings.auth else "")
        self._bucket = Bucket(settings.rate, settings.burst)
        self._in_hand = 0
        self._committer: Committer | None = None

    def schemas(self) -> Mapping[str, Mapping[str, Any]]:
        return {plain.SCHEMA: plain.REQUEST_SCHEMA}

    async def diagnose(self) -> AsyncIterator[Finding]:
        host, _ = parse_address(self._settings.listen)
        yield await self._reachable()
        if self._settings.auth is None and not is_loopback(host):
            yield Finding("warning", "anyone who reaches this address may post events", "set auth")
        if self._settings.auth is not None and self._settings.tls is None and not is_loopback(host):
            yield Finding("warning", "secrets and bodies travel in the clear", "set tls, or put a proxy before it")

    async def _reachable(self) -> Finding:
        """Whether the address can be listened on; one in use may well be ours, in the running daemon."""
        scheme = "https" if self._settings.tls else "http"
        address = f"{scheme}://{self._settings.listen}{self._settings.path}"
        try:
            async with Listeners.here().shared(self._settings.listen, self._terms, self._context.log):
                return Finding("ok", f"can listen on {address}")
        except Transient as error:
            return Finding("warning", error.message, "nothing, where the daemon that runs is what listens there")
        except Fatal as error:
            return Finding("error", error.message, error.hint)

    async def run(self, out: Capture) -> None:
        """Listens until cancelled. Raises `Transient` or `Fatal` where the address cannot be listened on."""
        settings, clock = self._settings, self._context.clock
        window = await Window.load(out.state, settings.window.time, settings.window.max, clock.time())
        self._committer = Committer(self._context.name, out, window, clock, settings.accept)
        try:
            async with self._mounted():
                self._context.log.info("listening", listen=settings.listen, path=settings.path)
                await self._committer.run()
        finally:
            self._committer = None

    @asynccontextmanager
    async def _mounted(self) -> AsyncIterator[None]:
        path = self._settings.path
        async with Listeners.here().shared(self._settings.listen, self._terms, self._context.log) as listener:
            listener.mount(path, self.handle)
            try:
                yield
            finally:
                listener.unmount(path)

    # One request.

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer to a request: 202 once its events are durable."""
        try:
            if request.method == "OPTIONS":
                return self._handshake(request)
            self._admit(request)
            await self._capture(request)
        except Refused as refused:
            return refused.response()
        return accepted(request)

    def _handshake(self, request: web.BaseRequest) -> web.Response:
        """https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/http-webhook.md#4-abuse-protection."""
        headers = {"Allow": ", ".join((*self._settings.methods, "OPTIONS"))}
        origin = request.headers.get("WebHook-Request-Origin")
        allowed = self._settings.origins
        if origin and ("*" in allowed or origin in allowed):
            headers["WebHook-Allowed-Origin"] = plain.printable(origin)
            headers["WebHook-Allowed-Rate"] = str(int(self._settings.rate * 60) or 1) if self._settings.rate else "*"
        return web.Response(status=200, headers=headers)

    def _admit(self, request: web.BaseRequest) -> None:
        """All that can be refused by the head alone."""
        if request.method not in self._settings.methods:
            allow = ", ".join((*self._settings.methods, "OPTIONS"))
            raise Refused(405, f"{request.method} is not taken here", {"Allow": allow})
        self._proof.early(request.headers)
        if self._committer is None:
            raise busy("this source is not running just now", 5)
        if wait := self._bucket.take(asyncio.get_running_loop().time()):
            raise Refused(429, "too many requests", {"Retry-After": str(max(1, ceil(wait)))})
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Refused(415, "a compressed body is not taken")
        self._fitting(request.content_length or 0)

    async def _capture(self, request: web.BaseRequest) -> None:
        held = 0
        try:
            body = await self._body(request)
            held = len(body)
            self._in_hand += held
            self._proof.check(request.headers, body)
            items = await self._items(request, body)
            if items:
                await self._commit(items)
        finally:
            self._in_hand -= held

    async def _commit(self, items: Sequence[Item]) -> None:
        if self._committer is None:
            raise busy("this source is not running just now", 5)
        await self._committer.commit(items)

    async def _body(self, request: web.BaseRequest) -> bytes:
        if self._in_hand + (request.content_length or 0) > IN_HAND:
            raise busy("too much is in hand just now")
        if request.content.is_eof():
            body = request.content.read_nowait()
            self._fitting(len(body))
            return body
        await self._continue(request)
        try:
            async with asyncio.timeout(self._settings.timeout):
                return await self._read(request)
        except TimeoutError:
            raise Refused(408, "the request took too long") from None

    async def _read(self, request: web.BaseRequest) -> bytes:
        body = bytearray()
        try:
            async for chunk in request.content.iter_any():
                body += chunk
                self._fitting(len(body))
                if self._in_hand + len(body) > IN_HAND:
                    raise busy("too much is in hand just now")
        except (web.HTTPException, web.RequestPayloadError) as error:
            raise Refused(400, "the body is not valid HTTP") from error
        return bytes(body)

    def _fitting(self, size: int) -> None:
        if size > self._settings.max_body:
            raise Refused(413, f"the body is larger than {self._settings.max_body} bytes")

    async def _continue(self, request: web.BaseRequest) -> None:
        expect = request.headers.get("Expect", "").lower()
        if expect == "100-continue" and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif expect and expect != "100-continue":
            raise Refused(417, "unknown expectation")

    async def _items(self, request: web.BaseRequest, body: bytes) -> list[Item]:
        """The events of a request; none for a message that is only about a subscription."""
        content_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if self._sns is not None:
            id_ = await self._sns.notification(body)
            return [] if id_ is None else [self._plain(request, body, id_, "application/json")]
        if cloudevents.is_cloudevent(content_type, request.headers):
            return _countable(cloudevents.items(content_type, request.headers, body))
        return [self._plain(request, body, self._id(request, body))]

    def _plain(self, request: web.BaseRequest, body: bytes, id_: str | None, media: str | None = None) -> Item:
        source, now = self._context.source, self._context.clock.time()
        event = plain.event_of(request, body, source=source, id_=id_, now=now, media=media)
        try:
            return Item.of(event, named=id_ is not None)
        except ValueError:
            raise Refused(400, "the request holds what JSON cannot") from None

    def _id(self, request: web.BaseRequest, body: bytes) -> str | None:
        """The caller's id; where it gives none, a repetition cannot be told from another request."""
        if self._stripe and self._settings.id_header is None:
            return _id_within(body)
        given = request.headers.get(self._id_header or "Idempotency-Key")
        if given and len(given) > LONGEST_ID:
            raise Refused(400, f"the id is longer than {LONGEST_ID} characters")
        return plain.printable(given) if given else None


class _Identified(msgspec.Struct):
    id: str = ""


def _id_within(body: bytes) -> str | None:
    """Stripe's events carry their id in the body, where it is signed."""
    try:
        return msgspec.json.decode(body, type=_Identified).id[:LONGEST_ID] or None
    except (ValueError, RecursionError, msgspec.MsgspecError):
        return None


def _countable(items: list[Item]) -> list[Item]:
    if len(items) > TYPES and len({item.type for item in items}) > TYPES:
        raise Refused(413, f"more than {TYPES} types in one batch")
    return items


class Bucket:
    """A token bucket: `rate` requests a second, `burst` at once."""

    def __init__(self, rate: float | None, burst: int | None) -> None:
        self._rate = rate
        self._burst = float(burst or max(1.0, rate or 1.0))
        self._tokens = self._burst
        self._at = 0.0

    def take(self, now: float) -> float:
        """Take a token; returns 0, or the seconds until there is one."""
        if self._rate is None:
            return 0.0
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1.0:
            return (1.0 - self._tokens) / self._rate
        self._tokens -= 1.0
        return 0.0
