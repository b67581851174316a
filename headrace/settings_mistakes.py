"""What pydantic finds wrong with a table, as one plain sentence for each key."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from headrace import settings_types as types
from headrace.settings_references import toml_name
from headrace.suggest import did_you_mean, listed
from headrace.toml_lines import KeyPath
from headrace.units import format_duration, format_size, parse_duration

_EXPECTED: Final[Mapping[str, str]] = {
    "string": "a text",
    "path": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "tuple": "a list",
    "list": "a list",
    "set": "a list",
    "frozen": "a list",
    "dict": "a table",
    "mapping": "a table",
    "model": "a table",
    "datetime": "a date and time",
    "date": "a date",
    "time": "a time of day",
}
_EXPECTS: Final = re.compile(r"expected (.*?)((?:, found .*|; did you mean .*)?)")
_CHOICE: Final = re.compile(r"'([^']*)'")
_BOUNDS: Final[Mapping[str, tuple[str, str]]] = {
    "greater_than": ("must be more than", "gt"),
    "greater_than_equal": ("must be at least", "ge"),
    "less_than": ("must be less than", "lt"),
    "less_than_equal": ("must be at most", "le"),
    "multiple_of": ("must be a multiple of", "multiple_of"),
}
_LENGTHS: Final[Mapping[str, tuple[str, str, str]]] = {
    "too_short": ("at least", "min_length", "entries"),
    "too_long": ("at most", "max_length", "entries"),
    "string_too_short": ("at least", "min_length", "characters"),
    "string_too_long": ("at most", "max_length", "characters"),
}


class _Found(NamedTuple):
    """One error, its place cleaned of the names that pydantic gives to the members of unions."""

    path: KeyPath
    unions: tuple[tuple[KeyPath, str], ...]
    error: ErrorDetails


def mistakes(
    model: type[BaseModel], table: Mapping[str, Any], error: ValidationError, left_out: Collection[KeyPath] = ()
) -> dict[KeyPath, str]:
    """A sentence by the path below the table. A missing key's path ends in that key.

    Keys `left_out` were there and could not be filled in: they are not missing, and what a validator says about a
    table around them says nothing.
    """
    around = {path[:length] for path in left_out for length in range(len(path) + 1)}
    found = [one for each in error.errors(include_url=False) for one in _several(_found(table, each))]
    found = [each for each in found if each.path not in around]
    messages: dict[KeyPath, list[str]] = {}
    for each in _closest_members(found):
        path = _blamed(each)
        messages.setdefault(path, []).append(_sentence(each, model, _value(table, path)))
    return {path: _joined(several) for path, several in messages.items()}


def _found(table: Mapping[str, Any], error: ErrorDetails) -> _Found:
    at: Any = table
    path: KeyPath = ()
    unions = []
    absent = error["type"] in {"missing", "extra_forbidden"}
    for index, part in enumerate(error["loc"]):
        if _has(at, part):
            at, path = at[part], (*path, part)
        elif absent and index == len(error["loc"]) - 1:
            path = (*path, part)
        else:
            unions.append((path, str(part)))
    return _Found(path, tuple(unions), error)


def _several(found: _Found) -> list[_Found]:
    """A validator of a whole table may name several mistakes, each at a path below it."""
    if found.error["type"] != "mistakes":
        return [found]
    several: list[_Found] = []
    for below, message in found.error["ctx"]["mistakes"]:
        error = ErrorDetails(type="value_error", loc=(), msg=message, input=None, ctx={"error": message})
        several.append(_Found((*found.path, *below), (), error))
    return several


def _has(at: Any, part: str | int) -> bool:
    if isinstance(at, dict):
        return part in at
    return isinstance(at, list | tuple) and isinstance(part, int) and part < len(at)


def _value(table: Any, path: KeyPath) -> Any:
    for part in path:
        if not _has(table, part):
            return None
        table = table[part]
    return table


def _closest_members(found: list[_Found]) -> list[_Found]:
    """Of each union of tables only the member that fits best; a union of scalars keeps all its members."""
    counts: dict[tuple[KeyPath, str], int] = {}
    deep = set()
    for each in found:
        for union in each.unions[:1]:
            counts[union] = counts.get(union, 0) + 1
            if len(each.path) > len(union[0]):
                deep.add(union)
    best = {place: min((u for u in deep if u[0] == place), key=lambda u: counts[u]) for place, _ in deep}
    return [each for each in found if not each.unions or best.get(each.unions[0][0], each.unions[0]) == each.unions[0]]


def _blamed(found: _Found) -> KeyPath:
    """A model validator may blame a key below its table."""
    if found.error["type"] == "mistake":
        return (*found.path, *found.error["ctx"]["key"].split("."))
    return found.path


def _sentence(found: _Found, model: type[BaseModel], value: Any) -> str:
    kind = found.error["type"]
    if kind == "extra_forbidden":
        return unknown_key(str(found.path[-1]), types.known_keys(model, found.path[:-1]))
    if kind == "missing":
        return "missing, and needed"
    return _refusal(found.error, value)


def _refusal(error: ErrorDetails, value: Any) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in {"value_error", "assertion_error"}:
        return str(context["error"])
    if kind in {"literal_error", "enum"}:
        return _choice(value, _CHOICE.findall(context["expected"]) or [context["expected"]])
    if kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        return f"{words} {_with_unit(context[name], value)}"
    if kind in _LENGTHS:
        words, name, things = _LENGTHS[kind]
        return f"needs {words} {context[name]} {things}"
    return _expected(error, value)


def _expected(error: ErrorDetails, value: Any) -> str:
    expected = _EXPECTED.get(error["type"].partition("_")[0])
    if expected is None or error["type"] == "timezone_aware":
        message = error["msg"].removeprefix("Value error, ").replace("Input should", "must")
        return message[:1].lower() + message[1:]
    return f"expected {expected}, found {toml_name(value)}"


def unknown_key(key: str, known: Iterable[str], *, what: str = "key") -> str:
    """`unknown key; did you mean "tables"?`, or what there is."""
    known = sorted(set(known))
    others = f"; the {what}s here are {listed(known)}" if known else ""
    return f"unknown {what}" + (did_you_mean(key, known) or others)


def _choice(value: Any, choices: list[str]) -> str:
    texts = listed([f'"{choice}"' for choice in choices], "or")
    if not isinstance(value, str):
        return f"expected {texts}, found {toml_name(value)}"
    return f"expected {texts}" + did_you_mean(value, choices)


def _with_unit(bound: float, value: Any) -> str:
    """A bound in the unit that the user wrote: a duration, a size, or a number."""
    if isinstance(value, str):
        return format_duration(bound) if _is_duration(value) else format_size(round(bound))
    return f"{bound:g}"


def _is_duration(text: str) -> bool:
    try:
        parse_duration(text)
    except ValueError:
        return False
    return True


def _joined(messages: list[str]) -> str:
    """Several members of a union refused the value: one sentence says what all of them take."""
    if len(messages) == 1:
        return messages[0]
    parts = [(each, _EXPECTS.fullmatch(each)) for each in dict.fromkeys(messages)]
    takes = [match[1] for _, match in parts if match]
    endings = sorted({match[2] for _, match in parts if match}, key=lambda ending: not ending.startswith(";"))
    expected = [f"expected {listed(dict.fromkeys(takes), 'or')}{endings[0]}"] if takes else []
    return "; ".join([*expected, *(each for each, match in parts if not match)])
