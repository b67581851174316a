"""The listen stream's bytes as lines: pure, whatever pieces they arrive in.

A line is one JSON object. Keepalives are blank, `{}` or `{"Records":null}`. A last line that was cut is never given.
"""

from __future__ import annotations

from typing import Final

from headrace.errors import Transient

LONGEST: Final = 1 << 20  # bytes of a line; a key has at most 1 KiB, its metadata 2 KiB


class LineReader:
    """Feed it what arrives; it keeps an unfinished line until its rest comes."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that this chunk completes, without blanks around them, blank ones left out.

        Raises `Transient` where a line grows beyond any notification.
        """
        head, newline, tail = chunk.rpartition(b"\n")
        if not newline:
            self._keep(tail)
            return []
        whole = b"".join((*self._parts, head))
        self._parts, self._size = [], 0
        self._keep(tail)
        return [line for it in whole.split(b"\n") if (line := it.strip())]

    def _keep(self, part: bytes) -> None:
        if part:
            self._parts.append(part)
            self._size += len(part)
        if self._size > LONGEST:
            raise Transient("the listen stream has a line of more than 1 MiB", hint="is a proxy in between?")

    @property
    def unfinished(self) -> bool:
        """Whether the stream, where it ended here, ended within a line."""
        return any(part.strip() for part in self._parts)
