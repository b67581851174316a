"""Who may read over TCP: `[daemon] admin`.

A web page in a browser on this machine must not be able to: `Host` must be the address (else a name that was pointed
to it would do, DNS rebinding), and `Origin`, where there is one, must be the same.
"""

from __future__ import annotations

import hmac
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware

from headrace.control.answers import Handler, answer
from headrace.settings import DaemonSettings
from headrace.units import is_loopback


def guard(settings: DaemonSettings) -> Middleware:
    """A middleware that lets through what may read, and answers 401 or 403 to the rest."""
    token = settings.admin_token.get_secret_value() if settings.admin_token else ""
    host = settings.admin_address[0] if settings.admin_address else ""

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        asked = _host(f"//{request.host}")
        origin = request.headers.get("Origin")
        if is_loopback(host) and not (asked == host or is_loopback(asked)):
            return answer(_refused(f'Host "{asked}" is not this daemon'), 403)
        if origin is not None and _host(origin) != asked:
            return answer(_refused(f'Origin "{origin}" is not this daemon'), 403)
        if token and not _has(request, token):
            return answer(_refused("a bearer token is needed: [daemon] admin_token"), 401)
        return await handler(request)

    return guarded


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _has(request: web.Request, token: str) -> bool:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), token.encode())


def _refused(why: str) -> dict[str, Any]:
    return {"error": why, "hint": "", "kind": "error"}
