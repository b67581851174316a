"""The grammar of patterns: what is written after `where`, checked and turned into a tree of tests.

Amazon EventBridge's, over the envelope:
https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-create-pattern-operators.html
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from headrace.errors import HeadraceError
from headrace.pattern_operators import OPERATORS, Refused, Test, is_comparison, read_test
from headrace.settings_references import toml_name

Path: TypeAlias = tuple[str | int, ...]

MAX_DEPTH: Final = 32
OR: Final = "$or"
_ATTRIBUTE: Final = re.compile(r"[a-z0-9_]+")


class PatternError(HeadraceError):
    """Every mistake of a pattern: what is wrong, by the path below `where`."""

    def __init__(self, mistakes: Sequence[tuple[Path, str]]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("; ".join(f"{_dotted(path)}: {message}" for path, message in mistakes))


def _dotted(path: Path) -> str:
    return "where" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)


class Leaf(NamedTuple):
    """The alternatives for one field."""

    tests: tuple[Test, ...]


class Fields(NamedTuple):
    """Fields that must all match, and `$or` lists of which one entry must match each."""

    fields: Mapping[str, Node]
    choices: tuple[tuple[Fields, ...], ...] = ()


Node: TypeAlias = Leaf | Fields


def load(value: Any) -> dict[str, Any]:
    """A pattern as a table: a table itself, or a JSON text pasted from elsewhere. Raises `PatternError`."""
    if isinstance(value, str):
        try:
            value = json.loads(value, object_pairs_hook=_unique, parse_constant=_no_constant)
        except json.JSONDecodeError as error:
            message = f"not JSON: line {error.lineno} column {error.colno}: {error.msg[:1].lower()}{error.msg[1:]}"
            raise PatternError([((), message)]) from error
        except ValueError as error:
            raise PatternError([((), f"not JSON: {error}")]) from error
        except RecursionError as error:
            raise PatternError([((), "nested too deeply")]) from error
        if not isinstance(value, dict):
            raise PatternError([((), f"expected a JSON object, found {toml_name(value)}")])
    if not isinstance(value, dict):
        raise PatternError([((), f"expected a table or a JSON text, found {toml_name(value)}")])
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'the key "{twice}" stands there twice')
    return table


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def parse(table: Mapping[str, Any]) -> Fields:
    """The tree of a pattern. Raises `PatternError` with all mistakes."""
    parser = _Parser()
    tree = parser.fields(table, ())
    for name in table:
        if name != OR and not _ATTRIBUTE.fullmatch(name):
            hint = "its names have lower-case letters and digits only; the payload is below data"
            parser.mistakes.append(((name,), f"no attribute of the envelope; {hint}"))
    if parser.mistakes:
        raise PatternError(parser.mistakes)
    return tree


class _Parser:
    def __init__(self) -> None:
        self.mistakes: list[tuple[Path, str]] = []

    def _refuse(self, path: Path, message: str) -> None:
        self.mistakes.append((path, message))

    def fields(self, table: Mapping[str, Any], path: Path) -> Fields:
        if not table:
            self._refuse(path, "an empty pattern; leave it out to get everything")
        if len(path) > MAX_DEPTH:
            self._refuse(path, f"nested deeper than {MAX_DEPTH}")
            return Fields({})
        choices = (self._choices(table[OR], (*path, OR)),) if OR in table else ()
        nodes = {name: self._node(name, value, (*path, name)) for name, value in table.items() if name != OR}
        return Fields(nodes, choices)

    def _choices(self, value: Any, path: Path) -> tuple[Fields, ...]:
        if not isinstance(value, list) or len(value) < 2 or not all(isinstance(one, dict) for one in value):
            self._refuse(path, "expected a list of two tables or more")
            return ()
        return tuple(self.fields(one, (*path, index)) for index, one in enumerate(value))

    def _node(self, name: str, value: Any, path: Path) -> Node:
        if _looks_like_operator(name, value, top=len(path) == 1):
            hint = f"[{{ {name} = … }}] for the operator, {name} = […] for a field of that name"
            self._refuse(path, f'"{name}" stands where a field is named: write {hint}')
        if isinstance(value, dict):
            return self.fields(value, path)
        if not isinstance(value, list):
            return Leaf(self._tests(value, path))
        if not value:
            self._refuse(path, "an empty list matches nothing")
        return Leaf(tuple(test for index, one in enumerate(value) for test in self._tests(one, (*path, index))))

    def _tests(self, value: Any, path: Path) -> tuple[Test, ...]:
        try:
            return (read_test(value),)
        except Refused as refused:
            self._refuse((*path, *refused.path), refused.message)
            return ()


def _looks_like_operator(name: str, value: Any, *, top: bool) -> bool:
    """A test that was written without its list: as a field's name it would never match, and say nothing."""
    if top or name not in OPERATORS:
        return False
    if name == "numeric":
        return not isinstance(value, list) or is_comparison(value[:1])
    return name == "anything-but" or not isinstance(value, list)
