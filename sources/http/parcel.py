"""Events on their way from a request to the journal: encoded once, in the request."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

from headrace.event import Event, key_hash
from headrace.journal.block import Lines, Special

ID_BYTES: Final = 16
TYPES: Final = 256  # different types in one append


class Item(NamedTuple):
    """One event as its line. `identity` stands for its caller's (`source`, `id`); None where Headrace gave the id."""

    line: bytes
    type: str
    key: str | None = None
    previous: str | None = None
    barrier: str | None = None
    identity: bytes | None = None

    @classmethod
    def of(cls, event: Event, *, named: bool) -> Item:
        """`named`: the id is the caller's. Raises `ValueError` where the event is not JSON."""
        known = identity(event.source, event.id) if named else None
        return cls(event.line(), event.type, event.partitionkey, event.previouskey, event.barrier, known)


def identity(source: str, id_: str) -> bytes:
    """128 bits for a (`source`, `id`)."""
    text = f"{len(source)}:{source}{id_}".encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=ID_BYTES).digest()


def lines_of(items: Sequence[Item], seed: int) -> Lines:
    """The items as the journal takes them; `seed` is the source's `source_seed`."""
    types: dict[str, int] = {}
    kinds = bytes([types.setdefault(item.type, len(types)) for item in items])
    special = {
        index: Special(key_hash(seed, item.previous), item.barrier)
        for index, item in enumerate(items)
        if item.previous is not None or item.barrier is not None
    }
    keys = array("I", [key_hash(seed, item.key) for item in items])
    lengths = array("I", [len(item.line) for item in items])
    return Lines(b"".join([item.line for item in items]), lengths, tuple(types), kinds, keys, special)
