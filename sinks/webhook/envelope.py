"""CloudEvents on HTTP: how an event becomes a request's headers and body.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
"""

from __future__ import annotations

import base64
import re
from typing import Any, Final, NamedTuple

import msgspec

from headrace.sinks.webhook.template import Template

STRUCTURED: Final = "application/cloudevents+json; charset=utf-8"
BATCHED: Final = "application/cloudevents-batch+json; charset=utf-8"
JSON: Final = "application/json"

_JSON_TYPE: Final = re.compile(r"[^/;]+/(?:[^;]+\+)?json\s*(?:;.*)?", re.IGNORECASE)
# Section 3.1.3.2: a space, quotes, percent signs and all that is not printable ASCII.
_ENCODED: Final = re.compile(r'[^!#$&-~]|[%"]')
_PLAIN: Final = re.compile(rb'"[!#-$&-\[\]-~]*"')
_NOT_HEADERS: Final = frozenset({"data", "data_base64", "datacontenttype"})


class Message(NamedTuple):
    """What is sent for an event, or for a batch of them. `identities` name the events."""

    headers: dict[str, str]
    body: bytes
    identities: tuple[str, ...]


class _Identity(msgspec.Struct):
    id: str
    source: str


_identity = msgspec.json.Decoder(_Identity).decode
_identities = msgspec.json.Decoder(_Identity).decode_lines
_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode = msgspec.json.Decoder().decode


def structured(line: bytes) -> Message:
    """The line as it is."""
    return Message({"Content-Type": STRUCTURED}, line.rstrip(b"\n"), (_name(_identity(line)),))


def batched(lines: bytes) -> Message:
    """Lines, each with its newline, as one JSON array: no line has a newline within."""
    body = b"[" + lines[:-1].replace(b"\n", b",") + b"]"
    return Message({"Content-Type": BATCHED}, body, tuple(map(_name, _identities(lines))))


def binary(line: bytes) -> Message:
    """Attributes as `ce-` headers, the data as the body."""
    wire = _raw(line)
    headers = {f"ce-{name}": _header(bytes(raw)) for name, raw in wire.items() if name not in _NOT_HEADERS}
    content_type = _text(wire.get("datacontenttype"))
    body = _body(wire, content_type)
    if body or content_type:
        headers["Content-Type"] = content_type or JSON
    return Message(headers, body, (f"{_text(wire.get('source'))}\0{_text(wire.get('id'))}",))


def templated(line: bytes, template: Template, content_type: str) -> Message:
    """What the target understands."""
    event = _decode(line)
    return Message({"Content-Type": content_type}, template.fill(event), (f"{event['source']}\0{event['id']}",))


def _name(identity: _Identity) -> str:
    return f"{identity.source}\0{identity.id}"


def _text(raw: msgspec.Raw | None) -> str:
    return "" if raw is None else str(_decode(raw))


def _header(raw: bytes) -> str:
    if _PLAIN.fullmatch(raw):
        return raw[1:-1].decode("ascii")
    value: Any = _decode(raw)
    text = value if isinstance(value, str) else raw.decode()
    return _ENCODED.sub(_percent, text)


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass"))


def _body(wire: dict[str, msgspec.Raw], content_type: str) -> bytes:
    """JSON data as it stands in the line; a text of another type as its characters."""
    if "data_base64" in wire:
        return base64.b64decode(_text(wire["data_base64"]), validate=True)
    if "data" not in wire:
        return b""
    raw = bytes(wire["data"])
    if content_type and not _JSON_TYPE.fullmatch(content_type) and raw.startswith(b'"'):
        return str(_decode(raw)).encode("utf-8", "surrogatepass")
    return raw
