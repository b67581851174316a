"""Any request as an event: `headrace.http.request`."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec
from aiohttp import web

from headrace.event import Event, encode_text, rfc3339
from headrace.sources.http.refusal import Refused

SCHEMA: Final = "urn:headrace:schema:http.request:1"
TYPE: Final = "headrace.http.request"
SECRETS: Final = frozenset({"authorization", "proxy-authorization", "cookie"})  # they prove, and say nothing
FIELDS: Final = 1_000  # parameters of a query

_TEXT: Final = frozenset(
    {"application/x-www-form-urlencoded", "application/xml", "application/javascript", "application/yaml"}
)


def event_of(
    request: web.BaseRequest, body: bytes, *, source: str, id_: str | None, now: float, media: str | None = None
) -> Event:
    """The event of a request that is no CloudEvent. Raises `Refused` where the body is not what its type says.

    `media` is given where the body is known to be something else than its type says.
    """
    path = encode_text(request.path)
    data = {
        "method": request.method,
        "path": path,
        "query": _query(text) if (text := request.rel_url.raw_query_string) else {},
        "headers": headers(request.headers),
        **_body(media or request.headers.get("Content-Type") or "", body),
    }
    return Event(
        id=id_ or uuid7(),
        source=source,
        type=TYPE,
        subject=path,
        time=rfc3339(int(now * 1e9)),
        dataschema=SCHEMA,
        datacontenttype="application/json",
        traceparent=request.headers.get("traceparent"),
        data=data,
    )


def _query(text: str) -> dict[str, list[str]]:
    try:
        return parse_qs(text, keep_blank_values=True, max_num_fields=FIELDS)
    except ValueError:
        raise Refused(400, f"more than {FIELDS} parameters in the query") from None


def headers(given: Mapping[str, str]) -> dict[str, str]:
    """Names in lower case, several of one name joined; without those that hold secrets."""
    found: dict[str, str] = {}
    for name, value in given.items():
        low = name.lower()
        if low not in SECRETS:
            text = printable(value)
            found[low] = f"{found[low]}, {text}" if low in found else text
    return found


def printable(text: str) -> str:
    """A header's text; bytes that are not UTF-8 are read as Latin-1, as HTTP once had it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape").decode("latin-1")
    return text


def _body(content_type: str, body: bytes) -> dict[str, Any]:
    media, _, parameters = content_type.lower().partition(";")
    media = media.strip()
    if not body:
        return {"body": None}
    if media == "application/json" or media.endswith("+json"):
        return {"body": _json(body)}
    if media.startswith("text/") or media.endswith("+xml") or media in _TEXT or not media:
        text = _text(body, parameters)
        if text is not None:
            return {"body": text}
    return {"body_base64": base64.b64encode(body).decode()}


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (ValueError, msgspec.MsgspecError) as error:
        raise Refused(400, f"the body is not valid JSON: {str(error)[:200]}") from None
    except RecursionError:
        raise Refused(400, "the body is nested too deeply") from None


def _text(body: bytes, parameters: str) -> str | None:
    charset = next((part.partition("=")[2].strip(' "') for part in parameters.split(";") if "charset=" in part), "")
    try:
        text = body.decode(charset or "utf-8")
    except (UnicodeError, LookupError, ValueError):
        return None
    return None if "\0" in text else text


class _Randomness:
    """Random bytes, taken from the system a page at a time: a call for each event costs more than all the rest."""

    def __init__(self) -> None:
        self._page = b""

    def take(self, count: int) -> bytes:
        if len(self._page) < count:
            self._page = os.urandom(4096)
        taken, self._page = self._page[:count], self._page[count:]
        return taken


_randomness = _Randomness()


def uuid7() -> str:
    """A UUID of version 7 (RFC 9562): milliseconds, then randomness."""
    value = (time.time_ns() // 1_000_000 << 80) | int.from_bytes(_randomness.take(10))
    value = (value & ~(0xF << 76)) | (7 << 76)
    text = f"{(value & ~(3 << 62)) | (2 << 62):032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


REQUEST_SCHEMA: Final[Mapping[str, Any]] = {
    "$schema": "http://json-schema.org/draft-04/schema#",
    "id": SCHEMA,
    "type": "object",
    "properties": {
        "method": {"type": "string"},
        "path": {"type": "string", "description": "decoded; % and control characters percent-encoded"},
        "query": {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}},
        "headers": {"type": "object", "additionalProperties": {"type": "string"}},
        "body": {"description": "the value where it is JSON, the text where it is text, null where there is none"},
        "body_base64": {"type": "string", "description": "instead of body, where it is neither"},
    },
    "required": ["method", "path", "query", "headers"],
}
