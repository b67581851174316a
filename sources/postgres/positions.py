"""Where the capture stands, and what it keeps of that in the journal's state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from headrace.protocols import State, Write

POSITION: Final = b"position"
IDENTITY: Final = b"identity"
SLOT: Final = b"slot"
RELATION: Final = b"relation/"
PAGE: Final = 1_000


class Position(msgspec.Struct, frozen=True, array_like=True):
    """The last event that is in the journal, or the transaction without any that was last seen.

    `lsn` and `ordinal` order the events: the commit LSN of a transaction, or a message's own LSN with ordinal 0.
    `complete`: all of the transaction is in the journal. `xid` and `time` tell a server that went back, which has other
    transactions at the same LSNs. `end`: everything before this LSN is captured, and may be acknowledged.
    """

    epoch: int
    lsn: int = 0
    ordinal: int = 0
    complete: bool = True
    xid: int = 0
    time: int = 0
    end: int = 0

    def write(self) -> Write:
        return Write(POSITION, _encode(self))

    def skips(self, lsn: int) -> int:
        """How many ordinals of the transaction with this commit LSN are in the journal already: all of them is -1."""
        if lsn < self.lsn or (lsn == self.lsn and self.complete):
            return -1
        return self.ordinal if lsn == self.lsn else 0


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """Which server and database the positions belong to."""

    system: str
    timeline: int
    database: str

    def write(self) -> Write:
        return Write(IDENTITY, _encode(self))


class SlotState(msgspec.Struct, frozen=True, array_like=True):
    """What is known of our slot. Not `ready`: an intent, the slot may or may not be there.

    `start` is its consistent point: everything committed before belongs to the snapshot. `snapshot`: that of the rows
    that were there is wanted, and `snapshot_done` tells whether it is complete.
    """

    name: str
    nonce: str
    epoch: int
    ready: bool = False
    start: int = 0
    snapshot: bool = False
    snapshot_done: bool = False

    def write(self) -> Write:
        return Write(SLOT, _encode(self))


class KnownRelation(msgspec.Struct, frozen=True, array_like=True):
    """The columns of a table as its last events had them."""

    digest: str
    columns: list[dict[str, Any]]

    def write(self, oid: int) -> Write:
        return Write(RELATION + b"%d" % oid, _encode(self))


_encode = msgspec.msgpack.Encoder().encode


async def position(state: State, epoch: int) -> Position:
    """Where to go on; the beginning of `epoch` where nothing of it is known."""
    data = await state.get(POSITION)
    found = msgspec.msgpack.decode(data, type=Position) if data else Position(epoch)
    return found if found.epoch >= epoch else Position(epoch)


async def identity(state: State) -> Identity | None:
    """The server that the positions belong to."""
    data = await state.get(IDENTITY)
    return msgspec.msgpack.decode(data, type=Identity) if data else None


async def slot(state: State) -> SlotState | None:
    """What is known of our slot."""
    data = await state.get(SLOT)
    return msgspec.msgpack.decode(data, type=SlotState) if data else None


async def relations(state: State) -> Mapping[int, KnownRelation]:
    """All tables that had events, by their oid."""
    found: dict[int, KnownRelation] = {}
    after: bytes | None = None
    while rows := await state.scan(RELATION, after, PAGE):
        for key, value in rows:
            found[int(key[len(RELATION) :])] = msgspec.msgpack.decode(value, type=KnownRelation)
        after = rows[-1][0]
    return found
