"""How far a source is with what is there already: rows of its state, shown by `status`, that survive a restart."""

from __future__ import annotations

from typing import Any, Final, Protocol

import msgspec

from headrace.protocols import State, Write

PREFIX: Final = b"progress/"
_MOST: Final = 1_000  # shown


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """`done` of `total`, which is an estimate or not known."""

    done: int
    total: int | None = None

    def write(self, what: str) -> Write:
        """`what` is being read: a table, say."""
        return Write(PREFIX + what.encode(), msgspec.msgpack.encode(self))

    @classmethod
    def parse(cls, value: bytes) -> Progress:
        return msgspec.msgpack.decode(value, type=cls)

    @classmethod
    async def of(cls, state: State, what: str) -> Progress:
        """How far it was before."""
        value = await state.get(PREFIX + what.encode())
        return cls.parse(value) if value else cls(0)


def finished(what: str) -> Write:
    """Nothing of it is left to read."""
    return Write(PREFIX + what.encode(), None)


class _Scans(Protocol):
    async def scan(self, space: str, prefix: bytes, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]: ...


async def progress(store: _Scans, space: str) -> list[dict[str, Any]]:
    """What a source is reading, as `status` tells it."""
    found = []
    for key, value in await store.scan(space, PREFIX, None, _MOST):
        at = Progress.parse(value)
        found.append({"what": key[len(PREFIX) :].decode(), "done": at.done, "total": at.total})
    return found
