"""Paths below the root as bytes, as keys of rows, and which of them are visible."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

ROWS: Final = b"f\0"
GONE: Final = b"g\0"  # keys that the running listing did not meet, to be confirmed at its end

_PIECES: Final = re.compile(r"\[[!^]?\]?[^\]/]*\]|.", re.DOTALL)  # a set such as [!a-z], or one character
_NEVER: Final = r"(?!)"


def key_of(path: bytes) -> bytes:
    r"""The row's key. `/` becomes `\0`, which no name holds and which sorts first: byte order is depth-first order."""
    return ROWS + path.replace(b"/", b"\0")


def path_of(key: bytes) -> bytes:
    """The path of a row's key."""
    return key[len(ROWS) :].replace(b"\0", b"/")


def below(path: bytes) -> bytes:
    """The prefix of the keys of everything in the directory; `b""` is the root."""
    return key_of(path) + b"\0" if path else ROWS


def problem(pattern: str) -> str:
    """Why a text is no pattern, or `""`."""
    if not pattern.strip("/"):
        return "an empty pattern"
    if "//" in pattern or ".." in pattern.split("/"):
        return f'"{pattern}": patterns are relative to the root, without ".." or empty parts'
    return ""


class Visibility:
    """Which paths have events. An excluded directory hides all that is below; `include` chooses among the rest.

    In a pattern `*`, `?` and `[…]` stay within one part of the path; `**` as a part stands for any number of parts.
    `own` is Headrace's own folder, where it lies below the root: never looked at.
    """

    def __init__(self, include: Sequence[str], exclude: Sequence[str], own: bytes | None = None) -> None:
        self.all = not exclude and set(include) <= {"**"} and own is None
        self._own = own
        self._include = _compiled([_regex(it) for it in include or ("**",)])
        self._exclude = _compiled([_regex(it) + "(?:/.*)?" for it in exclude])
        self._closed = _compiled([_regex(_directory(it)) + "(?:/.*)?" for it in exclude])

    def shows(self, path: bytes) -> bool:
        """Whether changes of this path are events."""
        if self.all:
            return True
        text = path.decode("utf-8", "surrogateescape")
        return self._include(text) is not None and self._exclude(text) is None and not self._is_own(path)

    def enters(self, directory: bytes) -> bool:
        """Whether anything in the directory can be visible."""
        if self.all or not directory:
            return True
        return self._closed(directory.decode("utf-8", "surrogateescape")) is None and not self._is_own(directory)

    def _is_own(self, path: bytes) -> bool:
        return self._own is not None and (path == self._own or path.startswith(self._own + b"/"))


def _compiled(patterns: Sequence[str]) -> Callable[[str], re.Match[str] | None]:
    return re.compile("|".join(f"(?:{it})" for it in patterns) or _NEVER, re.DOTALL).fullmatch


def _directory(pattern: str) -> str:
    """What hides a directory itself, of a pattern that hides all that is in it."""
    return pattern.rstrip("/").removesuffix("/**")


def _regex(pattern: str) -> str:
    parts = pattern.strip("/").split("/")
    heads = ["(?:[^/]+/)*" if part == "**" else _part(part) + "/" for part in parts[:-1]]
    return "".join(heads) + (".+" if parts[-1] == "**" else _part(parts[-1]))


def _part(part: str) -> str:
    return "".join(_piece(it) for it in _PIECES.findall(part))


def _piece(piece: str) -> str:
    if piece == "*":
        return "[^/]*"
    if piece == "?":
        return "[^/]"
    if len(piece) == 1:
        return re.escape(piece)
    body = piece[1:-1].replace("\\", "\\\\").replace("[", "\\[")
    if body[0] == "!":
        return f"[^/{body[1:]}]"
    return f"[\\^{body[1:]}]" if body[0] == "^" else f"[{body}]"
