"""What an answer, or the want of one, means: which failures are the event's and which the target's."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

import aiohttp

from headrace.errors import Fatal, HeadraceError, Permanent, Transient
from headrace.sinks.webhook.guard import Forbidden

_MOVED: Final = frozenset({301, 308})
_BUSY: Final = frozenset({408, 423, 425, 429})
_CHECK: Final[Mapping[int, str]] = {
    401: "check the credentials in `headers`, or the signing secret",
    402: "the target wants to be paid",
    404: "check the path of `url`",
    405: "check `method` and the path of `url`",
    407: "a proxy in between wants credentials",
}
"""Answers that every event would get: the target is not as the settings say, and nothing is spent."""


def failure(status: int, headers: Mapping[str, str], text: str, now: float) -> HeadraceError | None:
    """None for 2xx. `text` is the beginning of the answer's body, `now` in seconds since 1970."""
    if 200 <= status < 300:
        return None
    if status < 400:
        return _redirect(status, headers)
    said = f"HTTP {status}" + (f": {text}" if text else "")
    if status == 410:
        return Fatal(said, hint="the target is gone for good; remove the sink, or correct `url` and resume it")
    if status in _CHECK:
        return Transient(said, hint=_CHECK[status], retry_after=retry_after(headers, now))
    if status >= 500 or status in _BUSY:
        return Transient(said, retry_after=retry_after(headers, now))
    return Permanent(said)


def _redirect(status: int, headers: Mapping[str, str]) -> HeadraceError:
    """Never followed: it would lead events and credentials elsewhere."""
    place = headers.get("Location", "")[:200]
    said = f"HTTP {status}: a redirect" + (f" to {place}" if place else "")
    kind = Fatal if status in _MOVED else Transient
    return kind(said, hint="redirects are not followed; correct `url`")


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait, from `Retry-After` as a number or a date; None where it says neither."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, IndexError, TypeError):
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.fromtimestamp(now, UTC)).total_seconds())


def unanswered(error: Exception, host: str, timeout: float) -> HeadraceError:
    """For a request that got no answer. Nothing of the error's own text: it may hold the URL, which may be secret."""
    if isinstance(error, TimeoutError):
        return Transient(f"{host} did not answer within {timeout:g} s")
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        return Transient(f"{host}: TLS failed: {_tls(error)}", hint="`ca` names the file of a private authority")
    if isinstance(error, aiohttp.ClientConnectorError):
        if isinstance(error.os_error, Forbidden):
            return Permanent(str(error.os_error))
        return Transient(f"cannot connect to {host}: {error.os_error.strerror or 'the name is not known'}")
    if isinstance(error, aiohttp.InvalidURL):
        return Fatal(f"{host} is no name or address of a host", hint="correct `url`")
    return Transient(f"{host} broke the connection ({type(error).__name__})")


def _tls(error: aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = error.certificate_error
        return getattr(reason, "verify_message", "") or "the certificate is not valid"
    reason = error.os_error
    return (isinstance(reason, ssl.SSLError) and reason.reason) or "the handshake failed"
