"""How the text of a Postgres type becomes JSON. Exact for every type: whatever JSON cannot carry stays text.

The texts are those of a connection with `SETTINGS`. Integers are JSON numbers, also beyond 2^53; so are floats, but
their NaN and infinities are strings; `numeric` is a string; `json` is itself, where a JSON reader takes it; arrays,
ranges, composites and everything else are strings as Postgres writes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import Enum
from hashlib import sha256
from types import MappingProxyType
from typing import Final

import msgspec

from headrace.event import encode_key

SETTINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "client_encoding": "UTF8",
        "datestyle": "ISO",
        "intervalstyle": "iso_8601",
        "timezone": "UTC",
        "extra_float_digits": "1",
        "bytea_output": "hex",
        "statement_timeout": "0",
        "lock_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
    }
)
"""What decides how the server writes values as text, and lets a long COPY end; set on every connection."""


class Kind(Enum):
    """How a text becomes JSON."""

    NUMBER = "number"  # as it is
    FLOAT = "float"  # as it is, unless NaN or infinite
    BOOL = "bool"
    PLAIN = "plain"  # quoted; holds nothing that JSON escapes
    BYTES = "bytes"  # quoted; one backslash at its start
    TEXT = "text"
    JSON = "json"
    HASHED = "hashed"  # the SHA-256 of the text, in hexadecimal


_BUILT_IN: Final[Mapping[Kind, tuple[int, ...]]] = MappingProxyType(
    {
        Kind.BOOL: (16,),
        Kind.BYTES: (17,),
        Kind.NUMBER: (20, 21, 23, 26),  # int8, int2, int4, oid
        Kind.FLOAT: (700, 701),
        Kind.JSON: (114, 3802),
        # date, time, timestamp, timestamptz, interval, timetz, bit, varbit, numeric, uuid, macaddr, inet, cidr, pg_lsn
        Kind.PLAIN: (1082, 1083, 1114, 1184, 1186, 1266, 1560, 1562, 1700, 2950, 829, 869, 650, 3220),
    }
)
_KINDS: Final[Mapping[int, Kind]] = MappingProxyType({oid: kind for kind, oids in _BUILT_IN.items() for oid in oids})
_BUILT_IN_NAMES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "bool": 16,
        "bytea": 17,
        "int8": 20,
        "int2": 21,
        "int4": 23,
        "oid": 26,
        "float4": 700,
        "float8": 701,
        "json": 114,
        "jsonb": 3802,
        "date": 1082,
        "time": 1083,
        "timestamp": 1114,
        "timestamptz": 1184,
        "interval": 1186,
        "timetz": 1266,
        "bit": 1560,
        "varbit": 1562,
        "numeric": 1700,
        "uuid": 2950,
        "macaddr": 829,
        "inet": 869,
        "cidr": 650,
        "pg_lsn": 3220,
    }
)


def kind_of(oid: int, base: tuple[str, str] | None = None) -> Kind:
    """The kind of a type. `base`: schema and name that the server gave for one that is not built in."""
    if base is not None and base[0] in {"", "pg_catalog"}:
        oid = _BUILT_IN_NAMES.get(base[1], oid)
    return _KINDS.get(oid, Kind.TEXT)


class Unparsed(ValueError):
    """A `json` that JSON readers refuse."""


_encode: Final = msgspec.json.Encoder().encode
_NOT_QUITE: Final = re.compile(rb"[\r\n\x7f-\xff]|\\u|[0-9]{16}|[eE][+-]?[0-9]{2}")
_DEEP: Final = 100
_ROOM: Final = (b"[" * 50, b"]" * 50)  # a reader meets the value inside an event, not at the top
_WHITE: Final = bytes.maketrans(b"\r\n", b"  ")


def json_text(value: bytes) -> bytes:
    """The same JSON on one line. Raises `Unparsed` where readers would refuse it.

    Postgres takes raw newlines between tokens, lone surrogates, numbers beyond a double and any nesting.
    """
    if _NOT_QUITE.search(value) is None and value.count(b"[") + value.count(b"{") < _DEEP:
        return value
    value = value.translate(_WHITE)
    try:
        msgspec.json.decode(_ROOM[0] + value + _ROOM[1])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Unparsed(str(error)) from error
    return value


def quoted_text(value: bytes) -> bytes:
    """A text as a JSON string. Bytes that are not UTF-8 (a database in SQL_ASCII) raise `Unparsed`."""
    try:
        return _encode(value.decode())
    except UnicodeDecodeError as error:
        raise Unparsed(str(error)) from error


def as_string(value: bytes) -> bytes:
    """Any value as a JSON string; what is not UTF-8 is shown by backslash escapes."""
    return _encode(value.decode("utf-8", "backslashreplace"))


def hashed(value: bytes) -> bytes:
    """What a hashed column shows."""
    return sha256(value).hexdigest().encode()


TO_JSON: Final[Mapping[Kind, Callable[[bytes], bytes]]] = MappingProxyType(
    {
        Kind.NUMBER: lambda value: value,
        Kind.FLOAT: lambda value: value if value[-1] < 58 else b'"%b"' % value,  # the last character is a digit
        Kind.BOOL: lambda value: b"true" if value == b"t" else b"false",
        Kind.PLAIN: lambda value: b'"%b"' % value,
        Kind.BYTES: lambda value: b'"\\%b"' % value,
        Kind.TEXT: quoted_text,
        Kind.JSON: json_text,
        Kind.HASHED: lambda value: b'"%b"' % hashed(value),
    }
)


def key_part(value: bytes | None) -> bytes:
    """A value as a part of a partition key: percent-encoded, so that parts joined by `/` stay apart."""
    if value is not None and value.isalnum():
        return value
    return encode_key([value]).encode("utf-8", "surrogatepass")


def in_json(key: bytes) -> bytes:
    """A percent-encoded key between the quotes of a JSON string; control characters are gone already."""
    return key.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
