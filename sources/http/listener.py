"""Listening addresses: one server for each, shared by the sources that name it, and closed with the last of them."""

from __future__ import annotations

import asyncio
import errno
import logging
import ssl
from asyncio import AbstractEventLoop
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler, RequestPayloadError

from headrace.errors import Fatal, Transient
from headrace.protocols import Logger
from headrace.sources.http.refusal import Refused, busy
from headrace.sources.http.settings import HttpSource
from headrace.units import parse_address

Handler: TypeAlias = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

LEFT: Final = 60.0  # seconds for which the path of a source that stopped answers "later", not "unknown"
GRACE: Final = 2.0  # seconds for requests in hand when the last source leaves
LINGER: Final = 1.0  # seconds of reading on after a refusal, so that the client sees the answer
BUFFER: Final = 32 << 10  # bytes read ahead for each connection
TOO_MANY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)


class Terms(NamedTuple):
    """What belongs to the address, and so must be the same in all sources that share it."""

    cert: Path | None
    key: Path | None
    max_connections: int
    idle: float

    @classmethod
    def of(cls, settings: HttpSource, directory: Path) -> Terms:
        tls = settings.tls
        cert, key = (directory / tls.cert, directory / tls.key) if tls else (None, None)
        return cls(cert, key, settings.max_connections, settings.idle)


class _Log(logging.Logger):
    """What aiohttp has to say: a fault of ours is told, one of a client's is its answer alone."""

    def __init__(self, log: Logger) -> None:
        super().__init__(__name__)
        self._told = log

    def exception(self, msg: object, *args: object, exc_info: Any = True, **_: Any) -> None:
        if not isinstance(exc_info, HttpProcessingError | RequestPayloadError):
            self._told.error("a request failed unexpectedly", what=str(msg) % args, exc_info=exc_info)


class _Server(web.Server):
    """A server that turns away connections beyond a number."""

    def __init__(self, handler: Handler, terms: Terms, log: Logger) -> None:
        # `idle` also ends a connection that never completes the head of a request.
        super().__init__(
            handler,
            access_log=None,
            logger=_Log(log),
            auto_decompress=False,
            keepalive_timeout=terms.idle,
            lingering_time=LINGER,
            read_bufsize=BUFFER,
        )
        self._max = terms.max_connections
        # aiohttp's own list keeps a connection that has gone until its handler ends.
        self._live: set[RequestHandler] = set()

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        if len(self._live) >= self._max:
            transport.write(TOO_MANY)
            handler.force_close()
        else:
            self._live.add(handler)
            super().connection_made(handler, transport)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        self._live.discard(handler)
        super().connection_lost(handler, exc)


class Listener:
    """One address. `mount` gives a path to a source; the most specific path gets a request."""

    def __init__(self, address: str, terms: Terms, log: Logger) -> None:
        self.address = address
        self.terms = terms
        self.users = 0
        self._log = log
        self._routes: dict[str, Handler] = {}
        self._left: dict[str, float] = {}
        self._server = _Server(self._dispatch, terms, log)
        self._socket: asyncio.Server | None = None

    async def open(self) -> None:
        host, port = parse_address(self.address)
        loop = asyncio.get_running_loop()
        context = renewing(self.terms, self._log)
        patience = self.terms.idle if context else None
        try:
            self._socket = await loop.create_server(
                self._server, host, port, ssl=context, ssl_handshake_timeout=patience, backlog=512
            )
        except OSError as error:
            raise _cannot_listen(self.address, error) from error

    async def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._server.pre_shutdown()
        await self._server.shutdown(GRACE)

    def mount(self, path: str, handler: Handler) -> None:
        if path in self._routes:
            raise Fatal(f"{self.address}{path} belongs to another source", hint="give each source a path of its own")
        self._routes[path] = handler
        self._left.pop(path, None)

    def unmount(self, path: str) -> None:
        del self._routes[path]
        self._left[path] = asyncio.get_running_loop().time() + LEFT

    async def _dispatch(self, request: web.BaseRequest) -> web.StreamResponse:
        handler = self._handler(request.path)
        if handler is None:
            return self._unknown(request.path).response()
        return await handler(request)

    def _handler(self, path: str) -> Handler | None:
        return self._routes.get(path) or next(
            (self._routes[route] for route in _covering(path) if route in self._routes), None
        )

    def _unknown(self, path: str) -> Refused:
        now = asyncio.get_running_loop().time()
        if any(self._left.get(route, 0.0) > now for route in (path, *_covering(path))):
            return busy("this source is not running just now", 5)
        return Refused(404, "no source here")


def _covering(path: str) -> list[str]:
    """The routes with `/*` that take a path, the most specific first."""
    parts = path.split("/")
    return ["/".join(parts[:length]) + "/*" for length in range(len(parts) - 1, 0, -1)]


def tls_context(terms: Terms) -> ssl.SSLContext | None:
    """The certificate loaded; None without one. Raises `Fatal`."""
    if terms.cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(terms.cert, terms.key)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or error.strerror or error
        raise Fatal(f"{terms.cert} and {terms.key}: {reason}", hint="PEM files of a certificate and its key") from None
    return context


def renewing(terms: Terms, log: Logger) -> ssl.SSLContext | None:
    """As `tls_context`; the files are read again when they have changed, for the connections after the next."""
    context = tls_context(terms)
    if context is None:
        return None
    seen = _stamps(terms)

    def look(_connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        nonlocal seen
        found = _stamps(terms)
        if found == seen:
            return
        seen = found
        try:
            tls_context(terms)  # into another context first: half of a pair must not replace what works
            context.load_cert_chain(str(terms.cert), terms.key)
        except Fatal as error:
            log.warning("the renewed certificate cannot be used; the old one stays", error=str(error))
        else:
            log.info("certificate renewed", cert=str(terms.cert))

    context.sni_callback = look  # called at every handshake, with or without a name
    return context


def _stamps(terms: Terms) -> list[int]:
    """When the files were last changed; 0 for one that is not there."""
    return [path.stat().st_mtime_ns if path and path.exists() else 0 for path in (terms.cert, terms.key)]


def _cannot_listen(address: str, error: OSError) -> Fatal | Transient:
    if error.errno in {errno.EACCES, errno.EPERM}:
        return Fatal(f"{address}: not permitted", hint="a port above 1023, or the capability CAP_NET_BIND_SERVICE")
    if error.errno == errno.EADDRINUSE:
        return Transient(f"{address} is in use", hint="another program listens there: `ss -ltnp` names it")
    return Transient(f"{address}: {error.strerror or error}")


class Listeners:
    """The addresses that are open in one event loop, by address, each with the number of its users."""

    def __init__(self) -> None:
        self._open: dict[str, Listener] = {}
        self._changing = asyncio.Lock()

    @classmethod
    def here(cls) -> Listeners:
        """Those of the running loop: a daemon has one."""
        return _listeners.setdefault(asyncio.get_running_loop(), cls())

    @asynccontextmanager
    async def shared(self, address: str, terms: Terms, log: Logger) -> AsyncIterator[Listener]:
        """The listener of an address, opened by its first user and closed by its last.

        Raises `Fatal` where another source uses the address on other terms.
        """
        async with self._changing:
            listener = self._open.get(address)
            if listener is None:
                listener = Listener(address, terms, log)
                await listener.open()
                self._open[address] = listener
            elif listener.terms != terms:
                raise Fatal(
                    f"{address} is shared with a source that has another tls, idle or max_connections",
                    hint="give them the same, or addresses of their own",
                )
            listener.users += 1
        try:
            yield listener
        finally:
            listener.users -= 1
            if not listener.users:
                del self._open[address]
                await listener.close()


_listeners: Final[WeakKeyDictionary[AbstractEventLoop, Listeners]] = WeakKeyDictionary()
