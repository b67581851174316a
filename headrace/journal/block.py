"""The codec of the journal's unit: a block of up to 2,000 events of one source, as compressed JSON lines.

A stored block has three parts. The *head* says what is in it, the *index* has one entry per event, the *body* is the
lines. Head and index are enough to skip, to order and to count; the body is decoded at most once for all consumers.

    head   magic "HRB", version, codec, count, first, appended, until, sizes and checksums, kinds, special
    index  count x u32 length of the line, count x u32 key hash, count x u8 kind
    body   the lines, each with its newline, as one LZ4 block

Lines may share texts that are known only after they were compressed, as those of a transaction share what its commit
tells. The head then holds the texts, and the body a mark for each: the n-th control character stands for the n-th text.
JSON has no control characters but white space, so no line holds another one. The index has the lengths of whole lines.

All integers are little-endian. A later version is refused, never guessed at; an earlier one is read for ever.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Final, NamedTuple, Self
from zlib import crc32

import lz4.block
import msgspec

from headrace.errors import Fatal
from headrace.event import Event, key_hash

BLOCK_EVENTS: Final = 2_000
BLOCK_BYTES: Final = 1 << 20
VERSION: Final = 2  # that of a block without shared texts is 1
MARKS: Final = tuple(bytes((it,)) for it in range(1, 32) if it not in b"\t\n\r")  # of the shared texts

_LZ4: Final = 1
_MAGIC: Final = b"HRB"
# magic, version, codec, count, first, appended, until, raw size, body size, body checksum, index checksum, extras size
_HEAD: Final = struct.Struct("<3sBBIQddIIIII")
_CHECK: Final = struct.Struct("<I")
_KINDS_IN_A_BLOCK: Final = 256


class CorruptBlock(Fatal):
    """A block whose checksum fails, or that no version of this codec wrote."""

    def __init__(self, first: int, why: str) -> None:
        super().__init__(
            f"journal block at {first} is damaged: {why}",
            hint="`headrace journal verify` lists all damage; `headrace journal skip` records the gap and goes on",
        )
        self.first = first
        self.why = why


class Kind(NamedTuple):
    """What consumers choose by: the source's name in the settings and the event's type."""

    source: str
    type: str


class Special(NamedTuple):
    """What orders an event beyond its own key: the hash of its previous key (or 0), and its barrier (or None)."""

    previous: int
    barrier: str | None


@dataclass(frozen=True, slots=True)
class Lines:
    """Encoded events of one source, as a fast source hands them over: no object per event.

    `data` holds the lines, each with its newline; `lengths` (u32) their bytes with it; `types` the distinct types and
    `kinds` one index into them per event; `keys` (u32) one `key_hash` per event; `special` the few that need it.
    """

    data: bytes
    lengths: array[int]
    types: tuple[str, ...]
    kinds: bytes
    keys: array[int]
    special: Mapping[int, Special] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lengths)

    def singly(self) -> list[bytes]:
        """Each line for itself."""
        return [self.data[start:end] for start, end in pairwise([0, *accumulate(self.lengths)])]

    @classmethod
    def of(cls, events: Sequence[Event], seed: int, lines: Sequence[bytes] | None = None) -> Self:
        """The same from typed events; `seed` is the source's `source_seed`, `lines` the events encoded already."""
        encoded = [event.line() for event in events] if lines is None else lines
        types: dict[str, int] = {}
        kinds = [types.setdefault(event.type, len(types)) for event in events]
        if len(types) > _KINDS_IN_A_BLOCK:
            raise ValueError(f"more than {_KINDS_IN_A_BLOCK} types in one block")
        special = {
            index: Special(key_hash(seed, event.previouskey), event.barrier)
            for index, event in enumerate(events)
            if event.previouskey is not None or event.barrier is not None
        }
        return cls(
            b"".join(encoded),
            array("I", map(len, encoded)),
            tuple(types),
            bytes(kinds),
            array("I", [key_hash(seed, event.partitionkey) for event in events]),
            special,
        )


@dataclass(frozen=True, slots=True)
class SealedBlock:
    """A block ready to be stored; only its place in the journal and its append time are still to come.

    `raw_size` is that of the lines, `packed_size` that of the decompressed body: less, where marks stand for `shared`.
    """

    count: int
    raw_size: int
    kinds: tuple[Kind, ...]
    index: bytes
    special: bytes
    body: bytes
    body_check: int
    packed_size: int
    shared: tuple[bytes, ...] = ()

    def __len__(self) -> int:
        return self.count

    @property
    def size(self) -> int:
        return len(self.index) + len(self.body) + len(self.special) + _HEAD.size

    @property
    def lengths(self) -> array[int]:
        """Bytes of each line."""
        return _u32(self.index[: 4 * self.count])

    def sharing(self, texts: Sequence[bytes], lengths: array[int]) -> SealedBlock:
        """The same lines with texts for their marks; `lengths`: of each line with its texts."""
        index = _little(lengths) + self.index[4 * self.count :]
        return replace(self, raw_size=sum(lengths), index=index, shared=tuple(texts))

    def head(self, first: int, appended: float, until: float) -> bytes:
        """The head of a block whose first event has position `first`; the append times are seconds since 1970."""
        version, shared = (VERSION, (self.packed_size, self.shared)) if self.shared else (1, ())
        extras = _pack_extras((self.kinds, self.special, *shared))
        sizes = (self.raw_size, len(self.body), self.body_check, crc32(self.index), len(extras))
        head = _HEAD.pack(_MAGIC, version, _LZ4, self.count, first, appended, until, *sizes) + extras
        return head + _CHECK.pack(crc32(head))

    def lines(self) -> Lines:
        """What was sealed, for the few that are to be changed."""
        block = Block(self.head(0, 0, 0), self.index, self.body)
        types = tuple(kind.type for kind in self.kinds)
        return Lines(block.data, block.lengths, types, block.kind_of, block.keys, block.special)


def filled(data: bytes, texts: Sequence[bytes]) -> bytes:
    """Lines with the texts that their marks stand for."""
    for mark, text in zip(MARKS, texts, strict=False):
        data = data.replace(mark, text)
    return data


_pack_extras = msgspec.msgpack.Encoder().encode
_unpack_extras = msgspec.msgpack.Decoder(tuple[tuple[Kind, ...], bytes]).decode
_unpack_shared = msgspec.msgpack.Decoder(tuple[tuple[Kind, ...], bytes, int, tuple[bytes, ...]]).decode
_pack_special = msgspec.msgpack.Encoder().encode
_unpack_special = msgspec.msgpack.Decoder(dict[int, Special]).decode


def seal(source: str, lines: Lines) -> SealedBlock:
    """Compress one block's worth of lines of one source. Releases the interpreter lock while it compresses."""
    kinds = tuple(Kind(source, type_) for type_ in lines.types)
    return _sealed(kinds, lines.lengths, lines.keys, lines.kinds, lines.special, lines.data)


def _sealed(
    kinds: tuple[Kind, ...],
    lengths: array[int],
    keys: array[int],
    kind_of: bytes,
    special: Mapping[int, Special],
    data: bytes,
) -> SealedBlock:
    body = lz4.block.compress(data, store_size=False)
    index = _little(lengths) + _little(keys) + kind_of
    packed = _pack_special(special) if special else b""
    return SealedBlock(len(lengths), len(data), kinds, index, packed, body, crc32(body), len(data))


def _little(values: array[int]) -> bytes:
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return values.tobytes()


def _u32(data: bytes) -> array[int]:
    values = array("I", data)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def cut(lines: Lines) -> Iterator[Lines]:
    """Lines in portions that each fit a block; an event larger than a block stands alone."""
    if len(lines) <= BLOCK_EVENTS and len(lines.data) <= BLOCK_BYTES:
        if len(lines):
            yield lines
        return
    ends = [0, *accumulate(lines.lengths)]
    start = 0
    while start < len(lines):
        stop = start + 1
        last = min(len(lines), start + BLOCK_EVENTS)
        while stop < last and ends[stop + 1] - ends[start] <= BLOCK_BYTES:
            stop += 1
        yield _slice(lines, start, stop, ends)
        start = stop


def _slice(lines: Lines, start: int, stop: int, ends: Sequence[int]) -> Lines:
    special = {index - start: it for index, it in lines.special.items() if start <= index < stop}
    data = lines.data[ends[start] : ends[stop]]
    part = slice(start, stop)
    return Lines(data, lines.lengths[part], lines.types, lines.kinds[part], lines.keys[part], special)


class Block:
    """A stored block. Positions are `first` to `end - 1`, one per event; `appended` and `until` bound the append times.

    Attributes come from the head; index and lines are decoded on first use and kept.
    """

    def __init__(self, head: bytes, index: bytes, body: bytes | None) -> None:
        """`index` and `body` may be left out (`b""`, None) where only the head is wanted. Raises `CorruptBlock`."""
        (self.count, self.first, self.appended, self.until, self._raw_size, version, extras) = self._open(head)
        self._packed_size, self._shared = self._raw_size, tuple[bytes, ...]()
        if version == 1:
            self.kinds, self._special = _unpack_extras(extras)
        else:
            self.kinds, self._special, self._packed_size, self._shared = _unpack_shared(extras)
        self._index = index
        self._body = body

    def _open(self, head: bytes) -> tuple[int, int, float, float, int, int, bytes]:
        if len(head) < _HEAD.size + _CHECK.size or crc32(head[:-4]) != _CHECK.unpack(head[-4:])[0]:
            raise CorruptBlock(-1, "the checksum of its head fails")
        fields = _HEAD.unpack_from(head)
        magic, version, codec, count, first, appended, until, raw_size, self._body_size, *checks, size = fields
        if magic != _MAGIC or version > VERSION or codec != _LZ4:
            raise CorruptBlock(first, f"it has format {version} codec {codec}; this program reads up to {VERSION}")
        self._body_check, self._index_check = checks
        return count, first, appended, until, raw_size, version, head[_HEAD.size : _HEAD.size + size]

    @property
    def end(self) -> int:
        return self.first + self.count

    @property
    def raw_size(self) -> int:
        """Bytes of the lines, decoded."""
        return self._raw_size

    def verify(self) -> None:
        """Decode everything. Raises `CorruptBlock`."""
        if len(self.lengths) != self.count or sum(self.lengths) != len(self.data):
            raise CorruptBlock(self.first, "its index does not fit its lines")

    @cached_property
    def _columns(self) -> tuple[array[int], array[int], bytes]:
        if crc32(self._index) != self._index_check or len(self._index) != 9 * self.count:
            raise CorruptBlock(self.first, "the checksum of its index fails")
        four = 4 * self.count
        return _u32(self._index[:four]), _u32(self._index[four : 2 * four]), self._index[2 * four :]

    @property
    def lengths(self) -> array[int]:
        return self._columns[0]

    @property
    def keys(self) -> array[int]:
        """One key hash per event; 0 where the event has no key."""
        return self._columns[1]

    @property
    def kind_of(self) -> bytes:
        """One index into `kinds` per event."""
        return self._columns[2]

    @cached_property
    def special(self) -> dict[int, Special]:
        return _unpack_special(self._special) if self._special else {}

    @cached_property
    def data(self) -> bytes:
        """All lines, each with its newline."""
        if self._body is None or len(self._body) != self._body_size or crc32(self._body) != self._body_check:
            raise CorruptBlock(self.first, "the checksum of its body fails")
        try:
            data: bytes = lz4.block.decompress(self._body, uncompressed_size=self._packed_size)
        except lz4.block.LZ4BlockError as error:
            raise CorruptBlock(self.first, str(error)) from error
        return filled(data, self._shared)

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *accumulate(self.lengths)]

    @cached_property
    def lines(self) -> list[bytes]:
        return [self.data[start:end] for start, end in pairwise(self._starts)]

    def line(self, index: int) -> bytes:
        return self.data[self._starts[index] : self._starts[index + 1]]

    def span(self, start: int, stop: int) -> bytes:
        """The lines of the events from index `start` up to `stop`, joined."""
        return self.data[self._starts[start] : self._starts[stop]]


def merge(blocks: Sequence[Block]) -> SealedBlock:
    """Neighbouring blocks as one, every event at its old position. They may come from several sources."""
    kinds: dict[Kind, int] = {}
    kind_of = bytearray()
    special: dict[int, Special] = {}
    lengths, keys = array("I"), array("I")
    for block in blocks:
        special.update({len(lengths) + index: it for index, it in block.special.items()})
        local = bytes(kinds.setdefault(kind, len(kinds)) for kind in block.kinds)
        kind_of += block.kind_of.translate(local.ljust(_KINDS_IN_A_BLOCK, b"\0"))
        lengths += block.lengths
        keys += block.keys
    return _sealed(tuple(kinds), lengths, keys, bytes(kind_of), special, b"".join(b.data for b in blocks))
