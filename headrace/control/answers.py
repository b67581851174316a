"""How the control interface answers: JSON, and errors as `{error, hint, kind}`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from typing import Any, Final, TypeAlias

import msgspec
from aiohttp import web

from headrace.control.reloading import Reloader
from headrace.daemon import Daemon
from headrace.errors import Fatal, HeadraceError, Permanent, SettingsError, Transient
from headrace.tasks import cause

DAEMON: Final = web.AppKey("daemon", Daemon)
RELOADER: Final = web.AppKey("reloader", Reloader)

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

_encode: Final = msgspec.json.Encoder(enc_hook=str).encode


def answer(body: Any, status: int = 200) -> web.Response:
    """The body as JSON; what JSON cannot hold as text."""
    return web.Response(body=_encode(body) + b"\n", status=status, content_type="application/json")


async def stream(request: web.Request, lines: AsyncIterator[bytes]) -> web.StreamResponse:
    """JSON lines as they come, no faster than the other side reads; then the word `end`, or what went wrong."""
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    try:
        async for data in lines:
            await response.write(data)
        await response.write(word("end"))
    except ConnectionError:
        return response
    except Exception as error:  # noqa: BLE001 -- as in `errors`, but the status is sent already
        await response.write(word("error", **described(refusal(error, request.app[DAEMON], request.path))))
    return response


def word(kind: str, **fields: Any) -> bytes:
    """A line of the server's own in a stream."""
    return _encode({"control": kind, **fields}) + b"\n"


def described(error: HeadraceError) -> dict[str, Any]:
    """An error as it crosses the socket; mistakes in the settings one by one."""
    told: dict[str, Any] = {"error": error.message, "hint": error.hint, "kind": _kind(error)}
    if isinstance(error, SettingsError):
        told["problems"] = [asdict(problem) for problem in error.problems]
    return told


def _kind(error: HeadraceError) -> str:
    match error:
        case SettingsError():
            return "settings"
        case Permanent():
            return "permanent"
        case Transient():
            return "transient"
        case Fatal():
            return "fatal"
    return "error"


def _status(error: HeadraceError) -> int:
    match error:
        case SettingsError() | Permanent():
            return 400
        case Transient():
            return 503
    return 500


def refusal(error: BaseException, daemon: Daemon, what: str) -> HeadraceError:
    """The error to show; one that nobody foresaw is logged with its traceback."""
    found = cause(error)
    if isinstance(found, HeadraceError):
        return found
    daemon.log.error("control request failed unexpectedly", request=what, exc_info=found)
    return HeadraceError(f"{type(found).__name__}: {found}", hint="the daemon's log has the details")


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The boundary of every request: no failure of one reaches the daemon."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return answer({"error": f"{request.path}: {error.reason}", "hint": "", "kind": "error"}, error.status)
    except ConnectionError:
        raise
    except Exception as error:  # noqa: BLE001 -- a request may fail in any way and must not end the daemon
        shown = refusal(error, request.app[DAEMON], request.path)
        return answer(described(shown), _status(shown))


async def body_of(request: web.Request, *names: str) -> list[Any]:
    """These fields of the request's JSON. Raises `Permanent`."""
    try:
        body = msgspec.json.decode(await request.read(), type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise Permanent(f"not a JSON object: {error}") from error
    if missing := [name for name in names if name not in body]:
        raise Permanent(f"the request lacks {missing[0]}")
    return [body[name] for name in names]


def settled(daemon: Daemon) -> Daemon:
    """The daemon, where it may be changed. Raises `Transient` while it starts or stops."""
    if not daemon.up:
        raise Transient("the daemon stops" if daemon.stopping else "the daemon is still starting", hint="try again")
    return daemon
