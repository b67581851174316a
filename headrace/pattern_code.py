"""A pattern's tree as Python code: one expression over a decoded row, so that a test costs no call.

A row is an instance of a generated `msgspec.Struct` that has only the fields which patterns name. Nothing of the user's
enters the code: names of fields are encoded, and every constant is a variable.

Semantics, for a value that stands at a field:

- a leaf: a scalar or null is tested; of a list every scalar in it, also in lists within; an object is no leaf, so the
  field counts as absent, as does an empty list.
- a table of fields: an object is tested; of a list one entry must match as a whole, or, where the table matches an
  object without any field (`exists = false`), all entries. Everything else is an object without any field.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from headrace.pattern_operators import Network, Test
from headrace.pattern_syntax import Fields, Leaf, Node

SCALARS: Final = frozenset({str, int, float, bool, type(None)})
STRUCT: Final = type(msgspec.Struct)
_MISSING: Final = msgspec.UNSET

Row = Any
Select = Callable[[Sequence[Row] | Mapping[int, Row], Sequence[int]], list[int]]


class Compiled(NamedTuple):
    """The same test in two forms: for one row, and for the rows at some indices."""

    match: Callable[[Row], bool]
    select: Select


def field_name(key: str) -> str:
    """The name of a key's field in a row: an identifier, another one for each key."""
    return f"f{key}" if key.isascii() and key.isidentifier() else "x" + key.encode("utf-8", "surrogatepass").hex()


def compile_tree(tree: Fields) -> Compiled:
    """The predicate of a pattern."""
    code = _Code()
    test = code.object(tree, "row", _any_object(tree))
    source = (
        f"def match(row):\n return bool({test})\n"
        f"def select(rows, indices):\n"
        f" found = []\n add = found.append\n"
        f" for index in indices:\n"
        f"  row = rows[index]\n"
        f"  if {test}: add(index)\n"
        f" return found\n"
    )
    names = dict(code.constants)
    exec(source, names)  # noqa: S102 - generated from the tree alone; what the user wrote is in variables
    return Compiled(names["match"], names["select"])


class _Code:
    """Expressions and the constants they use."""

    def __init__(self) -> None:
        self.constants: dict[str, Any] = {"STRUCT": STRUCT, "SCALARS": SCALARS}
        self._values = 0

    def _constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name

    def object(self, tree: Fields, value: str, other: Callable[[Any], bool]) -> str:
        """Whether the value at an expression (evaluated once) matches."""
        self._values += 1
        name = f"v{self._values}"
        slow = self._constant(other)
        return f"({self._body(tree, name)} if ({name} := {value}).__class__.__class__ is STRUCT else {slow}({name}))"

    def _body(self, tree: Fields, name: str) -> str:
        parts = [self._field(key, node, name) for key, node in sorted(tree.fields.items(), key=_cost)]
        parts += ["(" + " or ".join(self._body(one, name) for one in choice) + ")" for choice in tree.choices]
        return "(" + " and ".join(parts) + ")" if parts else "True"

    def _field(self, key: str, node: Node, of: str) -> str:
        value = f"{of}.{field_name(key)}"
        if isinstance(node, Fields):
            return self.object(node, value, _any_object(node))
        return self._leaf(node, value)

    def _leaf(self, leaf: Leaf, value: str) -> str:
        self._values += 1
        name = f"v{self._values}"
        texts = all(_texts_only(test) for test in leaf.tests)
        absent = any(test.operator == "absent" for test in leaf.tests)
        other = self._constant(any_leaf(leaf))
        kind = f"({name} := {value}).__class__"
        test = self.tests(leaf.tests, name)
        rest = f"{other}({name})" if absent or not texts else f"{name}.__class__ is list and {other}({name})"
        return f"({test} if {kind} {'is str' if texts else 'in SCALARS'} else {rest})"

    def tests(self, tests: Sequence[Test], name: str) -> str:
        """Whether one of the tests holds for a scalar; a text, where all are about texts only."""
        texts = all(_texts_only(test) for test in tests)
        literals = [test.argument for test in tests if test.operator == "literal"]
        parts = [*self._literals(literals, name)]
        for operator in ("prefix", "suffix"):
            affixes = tuple(test.argument for test in tests if test.operator == operator)
            if affixes:
                call = f"{name}.{'startswith' if operator == 'prefix' else 'endswith'}({self._constant(affixes)})"
                parts.append(call if texts else f"({name}.__class__ is str and {call})")
        parts += [self._test(test, name) for test in tests if test.operator in _SINGLE]
        return "(" + " or ".join(parts) + ")" if parts else "False"

    def _literals(self, literals: Sequence[Any], name: str) -> Iterator[str]:
        plain = frozenset(one for one in literals if one is not None and not isinstance(one, bool))
        if plain:
            among = f"{name} in {self._constant(plain)}"
            yield f"({name}.__class__ is not bool and {among})" if plain & {0, 1} else among
        yield from (f"{name} is {one}" for one in (None, True, False) if any(each is one for each in literals))

    def _test(self, test: Test, name: str) -> str:
        if test.operator == "exists":
            return "True"
        if test.operator == "anything-but":
            inner = self.tests(test.argument, name)
            if not any(_texts_only(each) and each.operator != "literal" for each in test.argument):
                return f"(not {inner})"
            return f"({name}.__class__ is not str or not {inner})"
        if test.operator == "numeric":
            bounds = " and ".join(
                f"{name} {'==' if operator == '=' else operator} {self._constant(bound)}"
                for operator, bound in test.argument
            )
            return f"(({name}.__class__ is int or {name}.__class__ is float) and {bounds})"
        return f"({name}.__class__ is str and {self._text_test(test, name)})"

    def _text_test(self, test: Test, name: str) -> str:
        if test.operator == "wildcard":
            return f"{self._constant(test.argument.regex.fullmatch)}({name}) is not None"
        if test.operator == "cidr":
            return f"{self._constant(_within(test.argument))}({name})"
        argument = self._constant(test.argument)
        return f"{name}.casefold(){_FOLDED[test.operator].format(argument)}"


_FAMILY: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_FOLDED: Final[Mapping[str, str]] = {
    "equals-ignore-case": " == {}",
    "prefix-ignore-case": ".startswith({})",
    "suffix-ignore-case": ".endswith({})",
}
_SINGLE: Final = frozenset({"exists", "anything-but", "numeric", "wildcard", "cidr", *_FOLDED})
_TEXT_OPERATORS: Final = frozenset({"prefix", "suffix", "wildcard", "cidr", "absent", *_FOLDED})


def _texts_only(test: Test) -> bool:
    """Whether it holds for texts alone (or, among scalars, for none)."""
    return test.operator in _TEXT_OPERATORS or (test.operator == "literal" and isinstance(test.argument, str))


def _cost(field: tuple[str, Node]) -> tuple[bool, bool]:
    """What is tested first: leaves before tables."""
    return isinstance(field[1], Fields), field[0] == "data"


def address(text: str) -> tuple[int, int] | None:
    """The IP version and the number of an address; None where the text is none."""
    version = 6 if ":" in text else 4
    try:
        return version, int.from_bytes(socket.inet_pton(_FAMILY[version], text), "big")
    except (OSError, ValueError):  # no address; ValueError: NUL or a lone surrogate inside
        return None


def _within(network: Network) -> Callable[[str], bool]:
    version, first, mask = network

    def within(text: str) -> bool:
        found = address(text)
        return found is not None and found[0] == version and found[1] & mask == first

    return within


# --- the same for values that are no row: lists, and lines that were decoded as plain Python ---


def any_object(tree: Fields) -> Callable[[Any], bool]:
    """The table's test for any value: a dict, a list, anything."""
    fields = [(key, any_object(node) if isinstance(node, Fields) else any_leaf(node)) for key, node in _sorted(tree)]
    choices = [[any_object(one) for one in choice] for choice in tree.choices]

    def on_object(table: Mapping[str, Any]) -> bool:
        return all(test(table.get(key, _MISSING)) for key, test in fields) and all(
            any(one(table) for one in choice) for choice in choices
        )

    needs_all = on_object({})

    def on_any(value: Any) -> bool:
        if isinstance(value, dict):
            return on_object(value)
        if isinstance(value, list) and value:
            return all(map(on_any, value)) if needs_all else any(map(on_any, value))
        return needs_all

    return on_any


_any_object = any_object


def _sorted(tree: Fields) -> list[tuple[str, Node]]:
    return sorted(tree.fields.items(), key=_cost)


def any_leaf(leaf: Leaf) -> Callable[[Any], bool]:
    """The leaf's test for any value."""
    code = _Code()
    test = code.tests(leaf.tests, "value")
    names = dict(code.constants)
    guard = "value.__class__ is str and " if all(_texts_only(each) for each in leaf.tests) else ""
    scalar = eval(f"lambda value: {guard}{test}", names)  # noqa: S307 - as in `compile_tree`
    absent = any(each.operator == "absent" for each in leaf.tests)

    def on_any(value: Any) -> bool:
        scalars = list(_scalars(value))
        return any(map(scalar, scalars)) if scalars else absent

    return on_any


def _scalars(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for one in value:
            yield from _scalars(one)
    elif value.__class__ in SCALARS:
        yield value
