"""Values from elsewhere: `{ env = "NAME", default = … }` and `{ file = "…" }` in place of any scalar.

They are filled in after parsing, so no value can change the structure of the file. Such a table is a
reference exactly where the settings class takes a scalar and no table with these keys: the payload of
a cron source may hold `{ file = "…" }` as a table of its own, and nothing in it is replaced.

- `env`: the variable's text. Where it is not set, `default`, else a mistake; set and empty is set.
- `file`: the file's text, UTF-8 of at most 1 MiB, line breaks at its end removed. A relative path
  starts at the settings file's folder.

A text from elsewhere is read as the number or boolean that the class asks for; a text written in the
settings file itself is not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, Final, NoReturn

from pydantic import SecretBytes, SecretStr

from headrace import settings_types as types
from headrace.suggest import did_you_mean
from headrace.toml_lines import KeyPath

_SHAPES: Final = ({"env"}, {"env", "default"}, {"file"})
_MAX_FILE: Final = 1 << 20
_INTEGER: Final = re.compile(r"[+-]?\d+", re.ASCII)
_BOOLEANS: Final = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
_NAMES: Final[Mapping[type, str]] = {bool: "true or false", int: "a whole number", float: "a number"}
_TOML_NAMES: Final[Mapping[type, str]] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    dict: "a table",
    list: "a list",
    datetime: "a date and time",
    date: "a date",
    time: "a time of day",
    type(None): "null",
}


def toml_name(value: object) -> str:
    """What the user wrote, in words: "a list"."""
    return _TOML_NAMES.get(type(value), "something else")


class _Unfilled(Exception):
    """No value: the mistake is recorded, and the key left out."""


class References:
    """Fills one table in. `mistakes` says, by path below it, what could not be; such keys are left out.

    `foreign` has the texts that came from elsewhere, by path; `secrets` all texts of secret keys.
    """

    def __init__(self, directory: Path, environ: Mapping[str, str]) -> None:
        self._directory = directory
        self._environ = environ
        self.mistakes: dict[KeyPath, str] = {}
        self.foreign: dict[KeyPath, str] = {}
        self.secrets: set[str] = set()

    def fill(self, annotation: Any, table: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of the table with its references replaced."""
        filled = self._value(annotation, dict(table), ())
        return filled if isinstance(filled, dict) else {}

    def _value(self, annotation: Any, value: Any, path: KeyPath) -> Any:
        if isinstance(value, dict) and path and self._is_reference(annotation, value, path):
            value = self._typed(annotation, self._resolved(value, path), path)
        elif isinstance(value, dict):
            return self._table(annotation, value, path)
        elif isinstance(value, list):
            return self._list(annotation, value, path)
        self._check_kind(annotation, value, path)
        if isinstance(value, str) and _is_secret(annotation):
            self.secrets.add(value)
        return value

    def _table(self, annotation: Any, table: dict[str, Any], path: KeyPath) -> dict[str, Any]:
        filled = {}
        for key, value in table.items():
            try:
                filled[key] = self._value(types.child(annotation, key), value, (*path, key))
            except _Unfilled:
                continue
        return filled

    def _list(self, annotation: Any, values: list[Any], path: KeyPath) -> list[Any]:
        """All elements, or none: leaving one out would move the others."""
        filled = []
        for index, value in enumerate(values):
            try:
                filled.append(self._value(types.child(annotation, index), value, (*path, index)))
            except _Unfilled:
                continue
        if len(filled) < len(values):
            raise _Unfilled
        return filled

    def _is_reference(self, annotation: Any, table: dict[str, Any], path: KeyPath) -> bool:
        if types.is_table_of(annotation, table) or not types.takes_scalar(annotation):
            return False
        if table.keys() in _SHAPES:
            return True
        if table.keys() & {"env", "file"}:
            self._misshapen(table, path)
        return False

    def _misshapen(self, table: dict[str, Any], path: KeyPath) -> None:
        extra = sorted(table.keys() - {"env", "default"} if "env" in table else table.keys() - {"file"})
        known = ["default"] if "env" in table else []
        self._fail((*path, extra[0]), "unknown key" + (did_you_mean(extra[0], known) or _FORMS))

    def _resolved(self, reference: dict[str, Any], path: KeyPath) -> Any:
        key = "file" if "file" in reference else "env"
        if not isinstance(reference[key], str) or not reference[key]:
            self._fail(
                (*path, key), f"expected a text, found {toml_name(reference[key])}" if reference[key] else "is empty"
            )
        if key == "file":
            return self._text_of(reference[key], path)
        if reference[key] in self._environ:
            return self._foreign(self._environ[reference[key]], path)
        if "default" not in reference:
            self._fail(path, f"the environment variable {reference[key]} is not set")
        if isinstance(reference["default"], dict | list):
            self._fail((*path, "default"), f"expected a single value, found {toml_name(reference['default'])}")
        return reference["default"]

    def _text_of(self, name: str, path: KeyPath) -> str:
        try:
            with (self._directory / name).open("rb") as file:
                content = file.read(_MAX_FILE + 1)
            text = content.decode()
        except OSError as error:
            self._fail(path, f'cannot read the file "{name}": {error.strerror}')
        except ValueError:
            self._fail(path, f'cannot read the file "{name}": it is not UTF-8 text')
        if len(content) > _MAX_FILE:
            self._fail(path, f'cannot read the file "{name}": it is larger than 1 MiB')
        return self._foreign(text.rstrip("\r\n"), path)

    def _foreign(self, text: str, path: KeyPath) -> str:
        self.foreign[path] = text
        return text

    def _typed(self, annotation: Any, value: Any, path: KeyPath) -> Any:
        """A text from elsewhere as what the class asks for."""
        wanted = types.plain_scalars(annotation)
        if not wanted or path not in self.foreign:
            return value
        read = next(
            (read for kind in _NAMES if kind in wanted and (read := _read(kind, value.strip())) is not None), None
        )
        if read is None:
            self._fail(path, f"expected {_expected(wanted)}, and the text filled in is not that")
        return read

    def _check_kind(self, annotation: Any, value: Any, path: KeyPath) -> None:
        """Pydantic would take `"5"` or `true` for 5."""
        wanted = types.plain_scalars(annotation)
        accepted = wanted | ({int} if float in wanted else set())
        if wanted and type(value) not in accepted:
            self._fail(path, f"expected {_expected(wanted)}, found {toml_name(value)}")

    def _fail(self, path: KeyPath, message: str) -> NoReturn:
        self.mistakes[path] = message
        raise _Unfilled


_FORMS: Final = '; a value from elsewhere is { env = "NAME" }, { env = "NAME", default = … } or { file = "…" }'


def _expected(wanted: frozenset[type]) -> str:
    return " or ".join(name for kind, name in _NAMES.items() if kind in wanted)


def _read(kind: type, text: str) -> bool | int | float | None:
    if kind is bool:
        return _BOOLEANS.get(text.lower())
    if kind is int:
        return int(text) if _INTEGER.fullmatch(text) and len(text) < 40 else None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _is_secret(annotation: Any) -> bool:
    kinds = (each.type for each in types.alternatives(annotation))
    return any(isinstance(kind, type) and issubclass(kind, SecretStr | SecretBytes) for kind in kinds)
