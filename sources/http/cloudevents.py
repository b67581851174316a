"""CloudEvents over HTTP, in binary, structured and batch mode: kept as they are.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from urllib.parse import unquote

import msgspec

from headrace.event import Event
from headrace.sources.http.parcel import Item, identity
from headrace.sources.http.refusal import Refused

STRUCTURED: Final = "application/cloudevents"
LONGEST: Final = 1_024  # characters of an attribute that the journal or a consumer keeps in memory

_NAME: Final = re.compile(r"[a-z0-9]{1,64}")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)
_JSON: Final = re.compile(r"[^/]+/(?:[^;]+\+)?json", re.IGNORECASE)
_REQUIRED: Final = ("id", "source", "type")
_TEXTS: Final = tuple(name for name in Event.__struct_fields__ if name not in {*_REQUIRED, "data", "extensions"})

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST)]


class _Common(msgspec.Struct, forbid_unknown_fields=True):
    """What most events are made of: checked in C, and kept byte for byte."""

    specversion: Literal["1.0"]
    id: Text
    source: Text
    type: Text
    subject: Text | None = None
    time: str | None = None
    dataschema: Text | None = None
    datacontenttype: Text | None = None
    partitionkey: Text | None = None
    sequence: Text | None = None
    traceparent: Text | None = None
    data: Any = None


_common = msgspec.json.Decoder(_Common).decode
_batch = msgspec.json.Decoder(list[msgspec.Raw]).decode


def is_cloudevent(content_type: str, headers: Mapping[str, str]) -> bool:
    """Whether a request is one in any of the three modes."""
    return content_type.startswith(STRUCTURED) or "ce-specversion" in headers


def items(content_type: str, headers: Mapping[str, str], body: bytes) -> list[Item]:
    """The events of a request. Raises `Refused` where one of them is not valid."""
    try:
        if content_type == f"{STRUCTURED}+json":
            return [_structured(body)]
        if content_type == f"{STRUCTURED}-batch+json":
            return _several(body)
        if content_type.startswith(STRUCTURED):
            raise Refused(415, "of the formats of CloudEvents, JSON is taken")
        return [Item.of(_binary(headers, body), named=True)]
    except (ValueError, TypeError, msgspec.MsgspecError) as error:
        raise Refused(400, f"not a CloudEvent: {_plain(error)}") from None
    except RecursionError:
        raise Refused(400, "not a CloudEvent: nested too deeply") from None


def _several(body: bytes) -> list[Item]:
    found = []
    for index, raw in enumerate(_batch(body)):
        try:
            found.append(_structured(raw))
        except (ValueError, TypeError, msgspec.MsgspecError) as error:
            raise ValueError(f"event {index}: {_plain(error)}") from None
    return found


def _structured(text: bytes | msgspec.Raw) -> Item:
    try:
        common = _common(text)
    except msgspec.ValidationError:
        return Item.of(event_of(_object(text)), named=True)
    if common.time is not None:
        _check_time(common.time)
    known = identity(common.source, common.id)
    return Item(_one_line(bytes(text)), common.type, common.partitionkey, identity=known)


def _one_line(text: bytes) -> bytes:
    """Line breaks in JSON stand between tokens only."""
    if b"\n" in text or b"\r" in text:
        text = text.replace(b"\n", b" ").replace(b"\r", b" ").strip()
    return text + b"\n"


def _object(text: bytes | msgspec.Raw) -> dict[str, Any]:
    return msgspec.json.decode(text, type=dict[str, Any])


def event_of(wire: Mapping[str, Any]) -> Event:
    """The event in a JSON object, every attribute checked. Raises `ValueError`."""
    given = {name: value for name, value in wire.items() if value is not None}
    if given.pop("specversion", None) != "1.0":
        raise ValueError('"specversion" must be "1.0"')
    data, encoded = given.pop("data", None), given.pop("data_base64", None)
    for name, value in given.items():
        _check(name, value)
    if missing := [name for name in _REQUIRED if not given.get(name)]:
        raise ValueError(f'"{missing[0]}" is missing or empty')
    known = {name: given.pop(name) for name in (*_REQUIRED, *_TEXTS) if name in given}
    extensions = given if encoded is None else {**given, "data_base64": _base64(encoded, data)}
    return Event(**known, data=data, extensions=extensions)


def _check(name: str, value: Any) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name[:64]!r} is no name of an attribute: lower-case letters and digits")
    if name in _REQUIRED or name in _TEXTS:
        if not isinstance(value, str) or len(value) > LONGEST:
            raise ValueError(f'"{name}" must be a text of at most {LONGEST} characters')
        if name == "time":
            _check_time(value)
    elif not isinstance(value, str | int):  # bool is an int
        raise ValueError(f'"{name}" must be a text, a whole number or a boolean')


def _check_time(text: str) -> None:
    if not _TIME.fullmatch(text):
        raise ValueError('"time" must be RFC 3339')
    try:
        datetime.fromisoformat(text[:19])
    except ValueError:
        raise ValueError('"time" must be RFC 3339') from None


def _base64(text: Any, data: Any) -> str:
    if data is not None:
        raise ValueError('"data" and "data_base64" exclude each other')
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise ValueError('"data_base64" must be base64') from None
    return str(text)


def _binary(headers: Mapping[str, str], body: bytes) -> Event:
    wire: dict[str, Any] = {
        name[3:].lower(): unquote(value, errors="strict")
        for name, value in headers.items()
        if name[:3].lower() == "ce-"
    }
    content_type = headers.get("Content-Type")
    if content_type:
        wire["datacontenttype"] = content_type
    if "data" in wire or "data_base64" in wire:
        raise ValueError("data is the body, not a header")
    if body:
        wire.update(_data(content_type or "application/json", body))
    return event_of(wire)


def _data(content_type: str, body: bytes) -> dict[str, Any]:
    """JSON as a value, text as a text, all else in base64."""
    media = content_type.partition(";")[0].strip().lower()
    if _JSON.fullmatch(media):
        return {"data": msgspec.json.decode(body)}
    if media.startswith("text/"):
        try:
            return {"data": body.decode()}
        except UnicodeDecodeError:
            pass
    return {"data_base64": base64.b64encode(body).decode()}


def _plain(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
