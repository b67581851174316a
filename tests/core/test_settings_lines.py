"""The map from TOML path to line, compared with what tomli reads."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.toml_lines import KeyPath, dotted, key_lines, line_of

_SCALARS = (
    "1",
    "-1.5e3",
    "true",
    "1979-05-27 07:32:00Z",
    '"a # b = [ { \\" \\\\"',
    "'c:\\ # [x]'",
    '""',
    "''",
    '"""\n# no = comment\n[no.header]\n"quoted"\\\n  x""""',
    "'''\n[neither]\nit''s = 1\n''''",
    '"""a\\"""b"""""',
)
_BREAKS = st.sampled_from(("", " ", "\n", "\n  # ] , }\n"))


class _Document:
    """Writes a TOML document of random form; every key is used once, so that its line is known by its text."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.numbers = itertools.count()
        self.written: dict[str, str] = {}

    def key(self) -> str:
        """A key as it is written."""
        number = next(self.numbers)
        name, text = self.draw(
            st.sampled_from(
                (
                    (f"key-{number}_", f"key-{number}_"),
                    (f"a.b #{number}=", f'"a.b #{number}="'),
                    (f"'ä\"[{number}]", f'"\'ä\\"[{number}]"'),
                    (f"c\\{number}]", f"'c\\{number}]'"),
                )
            )
        )
        self.written[name] = text
        return text

    def dotted(self, most: int = 3) -> str:
        dot = self.draw(st.sampled_from((".", " . ")))
        return dot.join(self.key() for _ in range(self.draw(st.integers(1, most))))

    def value(self, depth: int = 0) -> str:
        kind = self.draw(st.integers(0, 5 if depth < 3 else 3))
        if kind == 4:
            items = [self.draw(_BREAKS) + self.value(depth + 1) + self.draw(_BREAKS) for _ in range(self.size())]
            return (
                "["
                + ",".join(items)
                + self.draw(st.sampled_from(("", "," if items else "")))
                + self.draw(_BREAKS)
                + "]"
            )
        if kind == 5:
            return "{ " + ", ".join(self.pair(depth + 1) for _ in range(self.size())) + " }"
        return self.draw(st.sampled_from(_SCALARS))

    def size(self) -> int:
        return self.draw(st.integers(0, 3))

    def pair(self, depth: int = 0) -> str:
        return f"{self.dotted()} = {self.value(depth)}"

    def pairs(self) -> str:
        end = self.draw(st.sampled_from(("\n", "  # = [c]\n", "\n\n")))
        return "".join(self.pair() + end for _ in range(self.size()))

    def sections(self, prefix: str, depth: int = 0) -> str:
        text = ""
        for _ in range(self.size() if depth < 2 else 0):
            name = prefix + self.dotted(2)
            if self.draw(st.booleans()):
                text += f"[ {name} ]\n" + self.pairs() + self.sections(f"{name}.", depth + 1)
            else:
                for _ in range(self.draw(st.integers(1, 2))):
                    text += f"[[{name}]] # ]]\n" + self.pairs() + self.sections(f"{name}.", depth + 1)
        return text


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[str, str]]:
    document = _Document(draw)
    text = document.pairs() + document.sections("")
    return text, document.written


def paths(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield (*path, key)
        yield from paths(below, (*path, key))


@given(documents(), st.sampled_from(("\n", "\r\n")))
@settings(max_examples=300, deadline=None)
def test_every_path_of_tomli_has_a_line_that_contains_its_key(document: tuple[str, dict[str, str]], end: str) -> None:
    text, written = document
    found = key_lines(text.replace("\n", end))
    rows = text.split("\n")
    expected = set(paths(tomli.loads(text)))
    assert set(found) == expected
    for path, line in found.items():
        if isinstance(path[-1], str):
            assert written[path[-1]] in rows[line - 1]


def test_lines_of_every_form() -> None:
    text = (
        "a.b = 1\n"  # 1
        "list = [ # no\n"  # 2
        "  1,\n"  # 3
        "  { x = 2 },\n"  # 4
        "]\n"  # 5
        "[t.inner]\n"  # 6
        'text = """\n[t]\n"""\n'  # 7-9
        "[t]\n"  # 10
        "[[many]]\n"  # 11
        "[[many]]\n"  # 12
        "[many.below]\n"  # 13
    )
    found = key_lines(text)
    assert found["a", "b"] == 1
    assert (found["list",], found["list", 0], found["list", 1, "x"]) == (2, 3, 4)
    assert (found["t", "inner"], found["t", "inner", "text"], found["t",]) == (6, 7, 10)
    assert (found["many",], found["many", 0], found["many", 1], found["many", 1, "below"]) == (11, 11, 12, 13)
    assert line_of(found, ("t", "inner", "absent", 0)) == 6
    assert line_of(found, ("absent",)) is None


def test_paths_are_written_as_toml_writes_them() -> None:
    assert dotted(("sources", "orders", "tables", 0)) == "sources.orders.tables[0]"
    assert dotted(("a b", "", 'c"')) == '"a b"."".' + '"c\\""'
