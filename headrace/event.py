"""The envelope: CloudEvents 1.0, structured JSON, one event to a line, on disk and on the wire.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final
from zlib import crc32

import msgspec

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
EARLIEST: Final = "0001-01-01T00:00:00.000000Z"
LATEST: Final = "9999-12-31T23:59:59.999999Z"
NULL_PART: Final = "%-"  # no percent-encoding looks like this, so a null differs from every text


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One change. `id` is unique within `source`; the same change keeps its id however often it is delivered.

    `partitionkey` orders; `previouskey` is there only where a change renames its key, and the event then counts for
    both; `barrier` is a prefix of keys: the event waits for all earlier events under it, later ones wait for the event.
    `time` is the origin's, RFC 3339 in UTC. `sequence` sorts as text within one source.
    `extensions` are further CloudEvents attributes, kept as they came.
    """

    id: str
    source: str
    type: str
    subject: str | None = None
    time: str | None = None
    dataschema: str | None = None
    datacontenttype: str | None = None
    partitionkey: str | None = None
    previouskey: str | None = None
    barrier: str | None = None
    sequence: str | None = None
    traceparent: str | None = None
    data: Any = None
    extensions: dict[str, Any] = {}

    def line(self) -> bytes:
        """The event as one line of JSON with its newline. Raises `ValueError` where `data` is not JSON."""
        wire: dict[str, Any] = {"specversion": "1.0"}
        for name in _ATTRIBUTES:
            value = getattr(self, name)
            if value is not None:
                wire[name] = value
        wire.update(self.extensions)
        if self.data is not None:
            wire["data"] = self.data
        try:
            return _encode(wire) + b"\n"
        except (TypeError, msgspec.MsgspecError) as error:
            raise ValueError(f"event {self.id}: {error}") from error

    @classmethod
    def parse(cls, line: bytes | str) -> Event:
        """The event in a line. Raises `ValueError` where it is not a CloudEvent of version 1."""
        try:
            wire = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise ValueError(f"not a CloudEvent: {error}") from error
        if wire.pop("specversion", None) != "1.0":
            raise ValueError('not a CloudEvent: "specversion" must be "1.0"')
        known = {name: wire.pop(name) for name in _FIELDS if name in wire}
        try:
            return msgspec.convert({**known, "extensions": wire}, cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"not a CloudEvent: {error}") from error


_FIELDS: Final = tuple(name for name in Event.__struct_fields__ if name != "extensions")
_ATTRIBUTES: Final = tuple(name for name in _FIELDS if name != "data")
_encode = msgspec.json.Encoder().encode

_SPECIAL = re.compile(r"[%\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
_SPECIAL_IN_PART = re.compile(r"[%/\x00-\x1f\x7f-\x9f\ud800-\udfff]+")


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for char in match.group() for byte in _to_bytes(char))


def _to_bytes(char: str) -> bytes:
    """The bytes behind a character: an undecodable byte itself, else its UTF-8, also where it is a lone surrogate."""
    undecodable = "\udc80" <= char <= "\udcff"
    return char.encode("utf-8", "surrogateescape" if undecodable else "surrogatepass")


def encode_text(text: str | bytes) -> str:
    """`text` with `%`, control characters and bytes that are not UTF-8 percent-encoded, and nothing else.

    Injective over bytes: percent-decoding gives the bytes back. For `subject`, `data.path` and keys of one part.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    return _SPECIAL.sub(_percent, text)


def encode_key(parts: Sequence[str | bytes | None]) -> str:
    """A composite key: each part encoded with its `/` as well, joined by `/`. Injective over lists of one or more."""
    if not parts:
        raise ValueError("a key has at least one part")
    return "/".join(NULL_PART if part is None else _encode_part(part) for part in parts)


def _encode_part(part: str | bytes) -> str:
    if isinstance(part, bytes):
        part = part.decode("utf-8", "surrogateescape")
    return _SPECIAL_IN_PART.sub(_percent, part)


def source_seed(name: str) -> int:
    """What `key_hash` starts from: keys of different sources never order each other."""
    return crc32(name.encode() + b"\0")


def key_hash(seed: int, key: str | None) -> int:
    """32 bits of a partition key, never 0; 0 stands for "no key, no order".

    Two keys of one hash are ordered as if they were one, which costs parallelism and never order.
    """
    return 0 if key is None else crc32(key.encode("utf-8", "surrogatepass"), seed) or 1


def rfc3339(nanoseconds: int) -> str:
    """Nanoseconds since 1970 as RFC 3339 in UTC, microseconds kept. Years outside 1 to 9999 are clamped."""
    seconds, microseconds = divmod(nanoseconds // 1000, 1_000_000)
    if (second := _second(seconds)) is None:
        return LATEST if nanoseconds > 0 else EARLIEST
    return f"{second}.{microseconds:06}Z"


@lru_cache(1_000)
def _second(seconds: int) -> str | None:
    """RFC 3339 up to the second; None outside years 1 to 9999. Cached: what happens in a burst shares few seconds."""
    try:
        return (EPOCH + timedelta(seconds=seconds)).isoformat(timespec="seconds").removesuffix("+00:00")
    except OverflowError:
        return None


def event_name(type_: str) -> str:
    """The EVENT in `on = ["SOURCE.EVENT"]`: the last segment of a type."""
    return type_.rpartition(".")[2]


def lines_of(events: Iterable[Event]) -> bytes:
    """Several events as JSON lines."""
    return b"".join(event.line() for event in events)
