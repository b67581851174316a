"""A table to read beside the stream, as the state of the source keeps it."""

from __future__ import annotations

from typing import Final

import msgspec

from headrace.progress import Progress, finished
from headrace.protocols import Write
from headrace.sources.postgres.relations import Relation
from headrace.sources.postgres.types import Kind

REQUEST: Final = b"backfill/"


class Request(msgspec.Struct, frozen=True, array_like=True):
    """A table to read. `after`: the key of the last row that was read; `finished`: only rows to read again are left."""

    oid: int
    name: str
    run: str
    after: list[bytes] | None = None
    finished: bool = False

    @property
    def key(self) -> bytes:
        """Of its row in the state."""
        return REQUEST + b"%d" % self.oid

    def write(self) -> Write:
        return Write(self.key, msgspec.msgpack.encode(self))

    def accepted(self) -> list[Write]:
        """It is wanted, and shown as such."""
        return [self.write(), Progress(0).write(self.name)]

    def ended(self) -> list[Write]:
        return [Write(self.key, None), finished(self.name)]


def readable(relation: Relation) -> bool:
    """Whether it has a key to read it by, which may be kept as progress."""
    return bool(relation.key) and all(field.kind is not Kind.HASHED for field in relation.key)
