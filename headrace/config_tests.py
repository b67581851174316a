"""Tests of the settings, written in TOML: an event, and the consumers that it must reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import tomli
from pydantic import Field, ValidationError

from headrace.errors import Problem, SettingsError
from headrace.event import Event
from headrace.routing import routes
from headrace.settings import Config, Settings
from headrace.settings_mistakes import mistakes
from headrace.suggest import closest, listed
from headrace.toml_lines import KeyPath, dotted, key_lines, line_of


class ConfigTest(Settings):
    """A `[[test]]`: `event` from `source` reaches exactly the consumers in `reaches`.

    Of the event's attributes only `type` is needed; `event` may also be a text, the JSON of a whole event.
    """

    name: str = ""
    source: str
    event: dict[str, Any] | str
    reaches: tuple[str, ...]


class _File(Settings):
    test: tuple[ConfigTest, ...] = Field(min_length=1)


class Result(NamedTuple):
    """`wrong` is empty where the test passed; else what was not as expected, a line for each consumer."""

    name: str
    wrong: Sequence[str]


def run(file: Path, config: Config) -> list[Result]:
    """The results of all tests in a file. Raises `SettingsError` where it is not one."""
    tests, lines = _read(file)
    problems = [*_unknown_names(file, tests, lines, config)]
    encoded = []
    for index, test in enumerate(tests):
        try:
            encoded.append(_line(test, config))
        except (ValueError, TypeError) as error:
            problems.append(_problem(file, lines, ("test", index, "event"), str(error)))
    if problems:
        raise SettingsError(problems)
    return [_result(index, test, line, config) for index, (test, line) in enumerate(zip(tests, encoded, strict=True))]


def _read(file: Path) -> tuple[Sequence[ConfigTest], dict[KeyPath, int]]:
    try:
        text = file.read_bytes().decode()
        document, lines = tomli.loads(text), key_lines(text)
    except OSError as error:
        raise SettingsError([Problem(str(file), None, "", f"cannot be read: {error.strerror}")]) from error
    except tomli.TOMLDecodeError as error:
        message = f"not valid TOML 1.0: column {error.colno}: {error.msg}"
        raise SettingsError([Problem(str(file), error.lineno, "", message)]) from error
    except ValueError as error:
        raise SettingsError([Problem(str(file), None, "", "is not UTF-8 text")]) from error
    try:
        return _File.model_validate(document).test, lines
    except ValidationError as error:
        found = mistakes(_File, document, error)
        raise SettingsError([_problem(file, lines, path, message) for path, message in found.items()]) from error


def _problem(file: Path, lines: dict[KeyPath, int], path: KeyPath, message: str) -> Problem:
    return Problem(str(file), line_of(lines, path), dotted(path), message)


def _unknown_names(file: Path, tests: Sequence[ConfigTest], lines: dict[KeyPath, int], config: Config) -> list[Problem]:
    problems = []
    for index, test in enumerate(tests):
        named: list[tuple[KeyPath, str, Mapping[str, Any]]] = [(("test", index, "source"), test.source, config.sources)]
        named += [(("test", index, "reaches", at), name, config.consumers) for at, name in enumerate(test.reaches)]
        for path, name, known in named:
            if name not in known:
                meant = closest(name, known)
                hint = f'; did you mean "{meant}"?' if meant else f"; there are {listed(known)}"
                problems.append(_problem(file, lines, path, f'the settings have no "{name}"{hint}'))
    return problems


def _line(test: ConfigTest, config: Config) -> bytes:
    if isinstance(test.event, str):
        return Event.parse(test.event).line()
    wire = {"specversion": "1.0", "id": "test", "source": config.daemon.origin + test.source, **test.event}
    return Event.parse(msgspec.json.encode(wire)).line()


def _result(index: int, test: ConfigTest, line: bytes, config: Config) -> Result:
    wrong = []
    for route in routes(config, line, test.source):
        if route.reached and route.consumer not in test.reaches:
            wrong.append(f"reaches {route.consumer}, and should not")
        elif not route.reached and route.consumer in test.reaches:
            wrong.append(f"does not reach {route.consumer}: {route.why_not}")
    return Result(test.name or f"test {index + 1}", wrong)
