"""Notification records of S3 and of servers like it, as hints. They come by listening and by queues.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple
from urllib.parse import unquote_plus

import msgspec

from headrace.sources.objects.entry import LOOSE, MARKER, Entry, Place, milliseconds, version_text

# Raw keys on its listen stream; everyone else, and its own targets too, percent-encode them.
RAW_KEYS: Final = "minio:s3"

CREATED: Final = "s3:ObjectCreated:"
MARKED: Final = ("s3:ObjectRemoved:DeleteMarkerCreated", "s3:LifecycleExpiration:DeleteMarkerCreated")
REMOVED: Final = ("s3:ObjectRemoved:Delete", "s3:LifecycleExpiration:Delete", "s3:LifecycleDelMarkerExpiration:Delete")
ALL_REMOVED: Final = "s3:ObjectRemoved:DeleteAllVersions"
# Of what is there already: tags, retention and legal hold come as creations from MinIO.
ATTRIBUTES: Final = frozenset(
    CREATED + it for it in ("PutTagging", "DeleteTagging", "PutRetention", "PutLegalHold", "PutAcl")
)


class Hint(NamedTuple):
    """What a record says. `entry` is what is there now, None where something was removed.

    `time` in ms since 1970 orders the writes of one server's object; `ordered`: hints come in the order of the writes,
    as far as the server itself keeps it.
    """

    name: str
    place: Place
    entry: Entry | None
    sequencer: str
    time: int
    metadata: Mapping[str, str] | None
    ordered: bool


class _Bucket(msgspec.Struct):
    name: str = ""


class _Object(msgspec.Struct, rename="camel"):
    key: str = ""
    version_id: str | None = None
    size: int | None = None
    e_tag: str | None = None
    sequencer: str = ""
    user_metadata: dict[str, str] | None = None


class _S3(msgspec.Struct):
    bucket: _Bucket = msgspec.field(default_factory=_Bucket)
    object: _Object = msgspec.field(default_factory=_Object)


class Record(msgspec.Struct, rename="camel"):
    """One record, with the fields that matter."""

    event_name: str = ""
    event_source: str = ""
    event_time: str = ""
    s3: _S3 = msgspec.field(default_factory=_S3)


class Message(msgspec.Struct, rename="pascal"):
    """What a line or a queue's message holds: records, or nothing where it only shows that the sender lives."""

    records: list[Record] | None = None
    event: str | None = None  # "s3:TestEvent", sent when a queue is set up


_decode = msgspec.json.Decoder(Message).decode


def parse(text: bytes | str) -> Sequence[Record]:
    """The records of a line or message. Raises `ValueError` where it is none."""
    try:
        return _decode(text).records or ()
    except msgspec.MsgspecError as error:
        raise ValueError(f"no notification: {error}") from error


def hint_of(record: Record) -> Hint | None:
    """What a record says about an object, or None where it is about something else."""
    name = record.event_name
    if not name.startswith("s3:"):  # AWS leaves it out in records
        name = f"s3:{name}"
    raw = record.event_source == RAW_KEYS
    found = record.s3.object
    if not found.key or name in ATTRIBUTES:
        return None
    key = found.key if raw else unquote_plus(found.key)
    time = _time(record, found.sequencer) if raw else _moment(record.event_time)
    return Hint(
        name,
        Place(record.s3.bucket.name, key, version_text(found.version_id)),
        _entry(name, found, time, raw=raw),
        found.sequencer,
        time,
        found.user_metadata,
        raw,
    )


def _entry(name: str, found: _Object, time: int, *, raw: bool) -> Entry | None:
    flags = 0 if raw else LOOSE
    sequencer = "" if raw else found.sequencer
    if name.startswith(CREATED):
        return Entry(flags, time, found.size or 0, (found.e_tag or "").strip('"'), sequencer)
    if name in MARKED:
        return Entry(flags | MARKER | LOOSE, time, 0, "", sequencer)
    return None


def _time(record: Record, sequencer: str) -> int:
    """MinIO's sequencer is the write's time in hexadecimal ns, and its listings have that time in ms."""
    try:
        return int(sequencer, 16) // 1_000_000
    except ValueError:
        return _moment(record.event_time)


def _moment(text: str) -> int:
    try:
        return milliseconds(datetime.fromisoformat(text))
    except (ValueError, TypeError):  # absent, or without its offset
        return 0


def precedes(one: str, other: str) -> bool:
    """Whether a sequencer is earlier than another of the same key: hexadecimal, the shorter padded on the right."""
    length = max(len(one), len(other))
    return one.ljust(length, "0").upper() < other.ljust(length, "0").upper()
