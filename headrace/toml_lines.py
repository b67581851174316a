"""On which line each key of a TOML 1.0 document stands; no TOML library tells.

The document must be one that `tomli` has accepted: nothing is checked here again.
https://toml.io/en/v1.0.0
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping
from typing import Final, TypeAlias

import tomli

KeyPath: TypeAlias = tuple[str | int, ...]
"""Keys and, below arrays, indices from 0: `("sources", "orders", "tables", 0)`."""

_SPACE: Final = re.compile(r"[ \t]*")
_BLANK: Final = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_KEY: Final = re.compile(r"""[A-Za-z0-9_-]+|"(?:\\.|[^"\\])*"|'[^']*'""")
_DOT: Final = re.compile(r"[ \t]*\.[ \t]*")
_EQUALS: Final = re.compile(r"[ \t]*=[ \t]*")
_STRING: Final = re.compile(
    r'''"""(?:\\.|[^\\])*?"""(?:""|")?'''
    r"""|\'{3}.*?\'{3}(?:''|')?"""
    r"""|"(?:\\.|[^"\\])*"|'[^']*'""",
    re.DOTALL,
)
_BARE: Final = re.compile(r"[^,\]}#\n]+")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line, from 1, of every key and array element.

    A table stands at its own header, where it has none at the first key or header that implies it.
    """
    return _Scanner(text.replace("\r\n", "\n")).document()


def line_of(lines: Mapping[KeyPath, int], path: KeyPath) -> int | None:
    """The line of `path`, or of the nearest table around it; None for a key missing at the top."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path)


def dotted(path: KeyPath) -> str:
    """`sources.orders.tables[0]`; keys are quoted where TOML wants it."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{_written(part)}"
    return text.removeprefix(".")


def _written(key: str) -> str:
    if _BARE_KEY.fullmatch(key):
        return key
    return '"' + key.translate({34: '\\"', 92: "\\\\", **{n: f"\\u{n:04x}" for n in range(32)}}) + '"'


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._newlines = [found.start() for found in re.finditer("\n", text)]
        self._lines: dict[KeyPath, int] = {}
        self._elements: dict[KeyPath, int] = {}  # of arrays of tables

    def document(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        while self._next(_BLANK):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)
        return self._lines

    def _next(self, pattern: re.Pattern[str]) -> bool:
        """Skip what matches; False at the end of the document."""
        if found := pattern.match(self._text, self._at):
            self._at = found.end()
        return self._at < len(self._text)

    def _skips(self, literal: str) -> bool:
        found = self._text.startswith(literal, self._at)
        if found:
            self._at += len(literal)
        return found

    def _line(self) -> int:
        return bisect_left(self._newlines, self._at) + 1

    def _header(self) -> KeyPath:
        line = self._line()
        array = self._skips("[[") or not self._skips("[")
        *parents, name = self._keys()
        path = (*self._parent(parents, line), name)
        if array:
            path = self._element(path, line)
        self._lines[path] = line
        self._skips("]]" if array else "]")
        return path

    def _parent(self, names: list[str], line: int) -> KeyPath:
        """The table that these keys of a header lead to: in an array of tables, its last one."""
        path: KeyPath = ()
        for name in names:
            path = (*path, name)
            self._lines.setdefault(path, line)
            if path in self._elements:
                path = (*path, self._elements[path] - 1)
        return path

    def _element(self, array: KeyPath, line: int) -> KeyPath:
        self._lines.setdefault(array, line)
        index = self._elements.get(array, 0)
        self._elements[array] = index + 1
        return (*array, index)

    def _keys(self) -> list[str]:
        self._next(_SPACE)
        keys = [self._key()]
        while _DOT.match(self._text, self._at):
            self._next(_DOT)
            keys.append(self._key())
        self._next(_SPACE)
        return keys

    def _key(self) -> str:
        start = self._at
        self._next(_KEY)
        text = self._text[start : self._at]
        if text[0] not in "\"'":
            return text
        unquoted = tomli.loads(f"key = {text}")["key"] if "\\" in text else text[1:-1]
        return str(unquoted)

    def _pair(self, path: KeyPath) -> None:
        line = self._line()
        for name in self._keys():
            path = (*path, name)
            self._lines.setdefault(path, line)
        self._next(_EQUALS)
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        if self._skips("["):
            self._array(path)
        elif self._skips("{"):
            self._inline_table(path)
        else:
            self._next(_STRING if self._text[self._at] in "\"'" else _BARE)

    def _array(self, path: KeyPath) -> None:
        index = 0
        while self._next(_BLANK) and not self._skips("]"):
            self._lines[*path, index] = self._line()
            self._value((*path, index))
            self._next(_BLANK)
            self._skips(",")
            index += 1

    def _inline_table(self, path: KeyPath) -> None:
        while self._next(_SPACE) and not self._skips("}"):
            self._pair(path)
            self._next(_SPACE)
            self._skips(",")
