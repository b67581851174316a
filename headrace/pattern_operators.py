"""The tests that a pattern's values stand for: literals and operators, their arguments checked."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_network
from itertools import pairwise
from typing import Any, Final, NamedTuple

from headrace.settings_references import toml_name
from headrace.suggest import did_you_mean, listed

_COMPARISONS: Final = ("=", "<", "<=", ">", ">=")
_BAD_ESCAPE: Final = re.compile(r"(?:[^\\]|\\[*\\])*\\(?:[^*\\]|$)", re.DOTALL)
_WILDCARD_PART: Final = re.compile(r"\\[*\\]|\*|[^*\\]+")


class Test(NamedTuple):
    """One alternative for a value. `argument` is checked, and as the operator's meaning wants it."""

    operator: str
    argument: Any


class Wildcard(NamedTuple):
    """A wildcard's regular expression, and the texts between its asterisks."""

    regex: re.Pattern[str]
    pieces: tuple[str, ...]


class Network(NamedTuple):
    """An address block: its IP version, its first address and its mask."""

    version: int
    first: int
    mask: int


class Refused(Exception):
    """A mistake, at a path below the value that was looked at."""

    def __init__(self, message: str, *path: str | int) -> None:
        super().__init__(message)
        self.message = message
        self.path = path


def read_test(value: Any) -> Test:
    """The test that one entry of a field's list stands for. Raises `Refused`."""
    if not isinstance(value, dict):
        return Test("literal", _scalar(value))
    if len(value) != 1:
        raise Refused(f"expected a table with one operator, found {len(value)} keys" if value else "an empty table")
    ((operator, argument),) = value.items()
    if operator not in OPERATORS:
        known = did_you_mean(operator, OPERATORS) or f"; the operators are {listed(OPERATORS)}"
        raise Refused(f'unknown operator "{operator}"{known}', operator)
    try:
        return OPERATORS[operator](argument)
    except Refused as refused:
        raise Refused(refused.message, operator, *refused.path) from None


def _scalar(value: Any) -> str | int | float | bool | None:
    if isinstance(value, float) and not math.isfinite(value):
        raise Refused("NaN and infinities are texts in events; write them as such")
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list):
        raise Refused("a list inside a list; every entry is one alternative")
    raise Refused(f"expected a text, a number, true or false, found {toml_name(value)}; times are texts in events")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Refused(f"expected a text, found {toml_name(value)}")
    return value


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Refused(f"expected a number, found {toml_name(value)}")
    return value


def _each(value: Any, read: Callable[[Any], Any]) -> Iterable[Any]:
    """What `read` makes of a single value, or of every entry of a list."""
    if not isinstance(value, list):
        return [read(value)]
    if not value:
        raise Refused("an empty list")
    found = []
    for index, one in enumerate(value):
        try:
            found.append(read(one))
        except Refused as refused:
            raise Refused(refused.message, index, *refused.path) from None
    return found


def _affix(operator: str) -> Callable[[Any], Test]:
    def read(value: Any) -> Test:
        if isinstance(value, dict) and value.keys() == {"equals-ignore-case"}:
            return Test(f"{operator}-ignore-case", _text(value["equals-ignore-case"]).casefold())
        return Test(operator, _text(value))

    return read


def _ignore_case(value: Any) -> Test:
    return Test("equals-ignore-case", _text(value).casefold())


def _wildcard(value: Any) -> Test:
    text = _text(value)
    if _BAD_ESCAPE.fullmatch(text) or _BAD_ESCAPE.match(text):
        raise Refused(r'a backslash stands before "*" or another backslash only')
    parts = _WILDCARD_PART.findall(text)
    if any(one == two == "*" for one, two in pairwise(parts)):
        raise Refused('"**" means no more than "*"; write one')
    return Test("wildcard", _compiled(parts))


def _compiled(parts: Sequence[str]) -> Wildcard:
    """Each `*` takes as little as it can and never gives back, so that no text takes long; the last one takes all."""
    pieces = [""]
    for part in parts:
        if part == "*":
            pieces.append("")
        else:
            pieces[-1] += part[-1] if part in {r"\*", r"\\"} else part
    first, *middle = map(re.escape, pieces)
    if not middle:
        return Wildcard(re.compile(first), tuple(pieces))
    *between, last = middle
    regex = re.compile(first + "".join(f"(?>.*?{piece})" for piece in between) + f".*{last}", re.DOTALL)
    return Wildcard(regex, tuple(pieces))


def _anything_but(value: Any) -> Test:
    if isinstance(value, dict):
        return Test("anything-but", _inverted(value))
    found = tuple(_each(value, _scalar))
    if not (all(isinstance(one, str) for one in found) or all(type(one) in {int, float} for one in found)):
        raise Refused("expected texts only or numbers only")
    return Test("anything-but", tuple(Test("literal", one) for one in found))


def _inverted(value: Mapping[str, Any]) -> tuple[Test, ...]:
    if len(value) != 1 or next(iter(value)) not in _INVERTIBLE:
        wrong = next((key for key in value if key not in _INVERTIBLE), "")
        raise Refused(f"expected one of {listed(_INVERTIBLE)}" + did_you_mean(wrong, _INVERTIBLE))
    ((operator, argument),) = value.items()
    try:
        return tuple(_each(argument, OPERATORS[operator]))
    except Refused as refused:
        raise Refused(refused.message, operator, *refused.path) from None


def is_comparison(values: Sequence[Any]) -> bool:
    """Whether these are comparisons of `numeric`."""
    return bool(values) and all(isinstance(value, str) and value in _COMPARISONS for value in values)


def _numeric(value: Any) -> Test:
    if not isinstance(value, list) or len(value) not in {2, 4}:
        raise Refused('expected a list as [">", 0] or [">", 0, "<=", 5]')
    bounds = []
    for index in range(0, len(value), 2):
        if not is_comparison(value[index : index + 1]):
            raise Refused(f"expected one of {' '.join(_COMPARISONS)}, found {value[index]!r}", index)
        try:
            bounds.append((value[index], _number(value[index + 1])))
        except Refused as refused:
            raise Refused(refused.message, index + 1) from None
    if len(bounds) == 2 and not _is_range(*bounds):
        raise Refused("two comparisons are a lower and an upper bound with numbers between them")
    return Test("numeric", tuple(bounds))


def _is_range(one: tuple[str, float], two: tuple[str, float]) -> bool:
    low, high = (one, two) if one[0][0] == ">" else (two, one)
    if low[0][0] != ">" or high[0][0] != "<":
        return False
    return low[1] < high[1] or (low[1] == high[1] and low[0] == ">=" and high[0] == "<=")


def _exists(value: Any) -> Test:
    if not isinstance(value, bool):
        raise Refused(f"expected true or false, found {toml_name(value)}")
    return Test("exists" if value else "absent", None)


def _cidr(value: Any) -> Test:
    try:
        network = ip_network(_text(value), strict=False)
    except ValueError as error:
        raise Refused(f"no address block like 10.0.0.0/24 or 2001:db8::/32: {error}") from None
    return Test("cidr", Network(network.version, int(network.network_address), int(network.netmask)))


OPERATORS: Final[Mapping[str, Callable[[Any], Test]]] = {
    "prefix": _affix("prefix"),
    "suffix": _affix("suffix"),
    "equals-ignore-case": _ignore_case,
    "wildcard": _wildcard,
    "anything-but": _anything_but,
    "numeric": _numeric,
    "exists": _exists,
    "cidr": _cidr,
}
_INVERTIBLE: Final = ("prefix", "suffix", "equals-ignore-case", "wildcard")
