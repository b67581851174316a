"""What is in a file: its fingerprint for the row, its text for the event."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, Literal

from headrace.sources.filesystem.entry import ROW_SIZE, is_file, unpack, untouched
from headrace.sources.filesystem.finished import OPEN

_BLOCK: Final = 1 << 18
_DIGEST: Final = 16


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read of one file: `digest` of all of it, `data` for the event. Empty where it was not to be had."""

    digest: bytes = b""
    data: Mapping[str, Any] | None = None


NOTHING: Final = Reading()


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads what the settings ask for; `limit` is the most bytes of content that an event may carry."""

    fingerprint: bool
    content: Literal["never", "text", "base64"]
    limit: int
    pack: Callable[[os.stat_result], bytes]

    @property
    def reads(self) -> bool:
        return self.fingerprint or self.content != "never"

    def read(self, path: bytes, expected: bytes) -> Reading:
        """Of the file that `expected` describes; nothing of one that is another, or that changed while it was read."""
        if not is_file(expected):
            return NOTHING
        small = unpack(expected).size <= self.limit
        if not self.fingerprint and not small:
            return Reading(data={"oversize": ["content"]})
        try:
            digest, kept = self._read(path, expected, keep=small and self.content != "never")
        except OSError:
            return NOTHING
        return Reading(digest if self.fingerprint else b"", self._data(kept))

    def _read(self, path: bytes, expected: bytes, *, keep: bool) -> tuple[bytes, bytes | None]:
        """Digest and content. Raises `OSError` where it is not what was expected."""
        descriptor = os.open(path, OPEN)
        try:
            if not untouched(self.pack(os.fstat(descriptor)), expected):
                raise FileNotFoundError
            digest, kept = blake2b(digest_size=_DIGEST), bytearray()
            for block in _blocks(descriptor):
                digest.update(block)
                if keep:
                    kept += block
            if not untouched(self.pack(os.fstat(descriptor)), expected):
                raise FileNotFoundError
            return digest.digest(), bytes(kept) if keep else None
        finally:
            os.close(descriptor)

    def _data(self, content: bytes | None) -> Mapping[str, Any] | None:
        if self.content == "never":
            return None
        if content is None:
            return {"oversize": ["content"]}
        if self.content == "text":
            try:
                return {"content": content.decode()}
            except UnicodeDecodeError:
                pass
        return {"content_base64": b64encode(content).decode()}


def _blocks(descriptor: int) -> Iterator[bytes]:
    while block := os.read(descriptor, _BLOCK):
        yield block


def digest_of(row: bytes) -> bytes:
    """The fingerprint that a row keeps, if it keeps one."""
    return row[ROW_SIZE:]
