"""The settings file: found, parsed, filled in and checked. Every mistake is shown at once, with its line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import tomli
from pydantic import ValidationError

from headrace.errors import Problem, SettingsError
from headrace.plugins import Adapter, Finder, Group, PluginError, Plugins
from headrace.settings import (
    Config,
    ConsumerSettings,
    DaemonSettings,
    HandlerSettings,
    JournalSettings,
    Settings,
    SinkSettings,
    SourceSettings,
)
from headrace.settings_mistakes import mistakes, unknown_key
from headrace.settings_references import References, toml_name
from headrace.suggest import closest, did_you_mean, listed
from headrace.toml_lines import KeyPath, dotted, key_lines, line_of

Table = dict[str, Any]
AnySettings = TypeVar("AnySettings", bound=Settings)

VARIABLE: Final = "HEADRACE_CONFIG"
PLACES: Final = (Path("headrace.toml"), Path("/etc/headrace/headrace.toml"))
NAME: Final = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}"
"""What a source, handler or sink may be called: it becomes part of folders, slots and the event's `source`."""

_NAME: Final = re.compile(NAME)
_GROUPS: Final[Mapping[str, Group]] = {
    "sources": "headrace.sources",
    "handlers": "headrace.contracts",
    "sinks": "headrace.sinks",
}
_TOP: Final = ("daemon", "journal", *_GROUPS)
_BY_KEY: Final = ("function", "command")  # handlers whose contract follows from a key


def locate(option: str | None, environ: Mapping[str, str]) -> Path:
    """The settings file: `-c FILE`, `$HEADRACE_CONFIG`, `./headrace.toml`, `/etc/headrace/headrace.toml`.

    What is named must be there; only where nothing is named the next place is tried. Raises `SettingsError`.
    """
    named = option or environ.get(VARIABLE)
    places = (Path(named),) if named else PLACES
    for place in places:
        if not _absent(place):
            return place
    looked = listed(map(str, places)) + ("" if option or not named else f", as {VARIABLE} says")
    raise _nowhere(f"looked for {looked}; `headrace init` writes a starter")


def load(path: Path, environ: Mapping[str, str], *, plugins: Finder | None = None, strict: bool = False) -> Config:
    """The settings in a file, whole and checked. Raises `SettingsError` with all mistakes; none quotes a secret.

    `strict` also asks every adapter for its `problems()`, which look outside the file.
    """
    reader = _Reader(path, environ, plugins or Plugins())
    config = reader.config(strict=strict)
    if config is None:
        raise SettingsError(reader.problems)
    return config


def _nowhere(message: str) -> SettingsError:
    return SettingsError([Problem("no settings file", None, "", message)])


def _absent(place: Path) -> bool:
    """False as well where it cannot be told: reading it then says why."""
    try:
        place.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


class _Reader:
    """One reading of one file. It holds the secrets, so it has no readable `repr`."""

    def __init__(self, path: Path, environ: Mapping[str, str], plugins: Finder) -> None:
        self.problems: list[Problem] = []
        self._file = path
        self._directory = path.absolute().parent
        self._environ = environ
        self._plugins = plugins
        self._lines: Mapping[KeyPath, int] = {}
        self._document: Table = {}
        self._classes: dict[str, type[Adapter]] = {}
        self._references: dict[KeyPath, References] = {}

    def config(self, *, strict: bool) -> Config | None:
        if not self._parse():
            return None
        self._check_top()
        config = self._typed()
        self._check_unique_names()
        self._check_on(config.consumers)
        self._check_together(config.sources)
        if strict:
            self._look_outside(config)
        return None if self.problems else config

    def _typed(self) -> Config:
        """Everything that could be typed; it is whole only where no problem was added."""
        return Config(
            file=self._file.absolute(),
            daemon=self._checked(DaemonSettings, self._table("daemon"), ("daemon",)) or DaemonSettings(),
            journal=self._checked(JournalSettings, self._table("journal"), ("journal",)) or JournalSettings(),
            sources=cast("dict[str, SourceSettings]", self._adapters("sources")),
            handlers=cast("dict[str, HandlerSettings]", self._adapters("handlers")),
            sinks=cast("dict[str, SinkSettings]", self._adapters("sinks")),
        )

    def _add(self, path: KeyPath, message: str) -> None:
        line = line_of(self._lines, path)
        self.problems.append(Problem(str(self._file), line, dotted(path), " ".join(message.split())))

    def _add_scrubbed(self, table: KeyPath, below: KeyPath, message: str) -> None:
        """What an adapter says about its table."""
        self._add((*table, *below), _scrubbed(message, below, self._references[table]))

    def _parse(self) -> bool:
        try:
            text = self._file.read_bytes().decode()
            self._document, self._lines = tomli.loads(text), key_lines(text)
        except OSError as error:
            self._refuse(None, f"cannot be read: {error.strerror}")
        except UnicodeDecodeError as error:
            self._refuse(error.object.count(b"\n", 0, error.start) + 1, "is not UTF-8 text")
        except tomli.TOMLDecodeError as error:
            self._refuse(error.lineno, f"not valid TOML 1.0: column {error.colno}: {_lowered(error.msg)}")
        except RecursionError:
            self._refuse(None, "lists and tables are nested too deeply")
        return not self.problems

    def _refuse(self, line: int | None, message: str) -> None:
        self.problems.append(Problem(str(self._file), line, "", message))

    def _check_top(self) -> None:
        for key in self._document.keys() - set(_TOP):
            self._add((key,), unknown_key(key, _TOP, what="table"))

    def _table(self, *path: str) -> Table:
        """The table at this path, empty where there is none or something else stands there."""
        at = self._document
        for key in path:
            at = at.get(key, {})
            if not isinstance(at, dict):
                self._add(path, f"expected a table, found {toml_name(at)}")
                return {}
        return at

    def _adapters(self, section: str) -> dict[str, Adapter]:
        found = {name: self._adapter(section, name) for name in self._table(section)}
        return {name: adapter for name, adapter in found.items() if adapter is not None}

    def _adapter(self, section: str, name: str) -> Adapter | None:
        path = (section, name)
        if not _NAME.fullmatch(name):
            self._add(path, "a name has letters, digits, _ and -, at most 64, and does not start with -")
        before = len(self.problems)
        table = self._table(*path)
        kind = self._kind(section, table, path) if len(self.problems) == before else None
        return None if kind is None else self._built(section, table, path, kind)

    def _built(self, section: str, table: Table, path: KeyPath, kind: str) -> Adapter | None:
        key = "contract" if section == "handlers" else "type"
        try:
            settings = self._plugins.find(_GROUPS[section], kind)
        except PluginError as error:
            self._add((*path, key), str(error))
            return None
        self._classes[str(path[1])] = settings
        return self._checked(settings, {**table, key: kind}, path)

    def _kind(self, section: str, table: Table, path: KeyPath) -> str | None:
        """Which entry point the table asks for. It is written out: the other keys depend on it."""
        key = "contract" if section == "handlers" else "type"
        implied = next((name for name in _BY_KEY if name in table), None) if section == "handlers" else None
        kind = table.get(key, implied)
        if isinstance(kind, str):
            return kind
        if kind is not None:
            self._add((*path, key), f"expected a text, found {toml_name(kind)}")
        elif section == "handlers":
            self._add(path, _no_contract(table))
        else:
            kinds = listed(self._plugins.names(_GROUPS[section]), "or")
            self._add((*path, key), f"missing, and needed: {kinds}")
        return None

    def _checked(self, settings: type[AnySettings], table: Table, path: KeyPath) -> AnySettings | None:
        """The table filled in and typed, or None and the problems."""
        references = self._references[path] = References(self._directory, self._environ)
        filled = references.fill(settings, table)
        found = dict(references.mistakes)
        try:
            checked = settings.model_validate(filled)
        except ValidationError as error:
            found |= mistakes(settings, filled, error, references.mistakes)
            checked = None
        for below, message in found.items():
            self._add_scrubbed(path, below, message)
        return None if found else checked

    def _check_unique_names(self) -> None:
        """A name stands for one thing in `on`, in `pause` and in the journal."""
        first: dict[str, str] = {}
        for section in _GROUPS:
            entries = self._document.get(section)
            for name in entries if isinstance(entries, dict) else ():
                if name in first:
                    other = dotted((first[name], name))
                    self._add(
                        (section, name), f"the name is taken by [{other}] on line {self._lines[first[name], name]}"
                    )
                first.setdefault(name, section)

    def _check_on(self, consumers: Mapping[str, ConsumerSettings]) -> None:
        for name, consumer in consumers.items():
            section = "handlers" if isinstance(consumer, HandlerSettings) else "sinks"
            if consumer.on == ():
                self._add((section, name, "on"), "an empty list asks for nothing; without the key it is everything")
            for index, wanted in enumerate(consumer.on or ()):
                if message := self._unknown_choice(wanted):
                    self._add((section, name, "on", index), message)

    def _unknown_choice(self, wanted: str) -> str:
        """What is wrong with a SOURCE or SOURCE.EVENT; empty where nothing is."""
        source, dot, event = wanted.partition(".")
        entries = self._document.get("sources")
        sources = list(entries) if isinstance(entries, dict) else []
        if source not in sources:
            known = did_you_mean(source, sources) or f"; the sources are {listed(sources)}"
            return f'unknown source "{source}"{known}'
        settings = self._classes.get(source)
        events = settings.events if settings and issubclass(settings, SourceSettings) else None
        if not dot or events is None or event in events:
            return ""
        known = did_you_mean(wanted, [f"{source}.{each}" for each in events])
        return f'source "{source}" has no event "{event}"' + (known or f"; it has {listed(sorted(events))}")

    def _check_together(self, sources: Mapping[str, SourceSettings]) -> None:
        earlier: dict[str, SourceSettings] = {}
        for name, settings in sources.items():
            for key, message in settings.conflicts(earlier).items():
                self._add_scrubbed(("sources", name), tuple(key.split(".")), message)
            earlier[name] = settings

    def _look_outside(self, config: Config) -> None:
        for section in _GROUPS:
            for name, settings in getattr(config, section).items():
                for key, message in settings.problems(config.directory).items():
                    self._add_scrubbed((section, name), tuple(filter(None, key.split("."))), message)


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:]


def _no_contract(table: Table) -> str:
    message = 'needs one of the keys "function", "command" and "contract"'
    meant = {key: found for key in table if (found := closest(key, [*_BY_KEY, "contract"]))}
    return message + "".join(f'; did you mean "{right}" by "{key}"?' for key, right in meant.items())


def _scrubbed(message: str, path: KeyPath, references: References) -> str:
    """A validator's message may quote the value: of what came from elsewhere, and of secrets, nothing is shown."""
    foreign = {text for key, text in references.foreign.items() if key[: len(path)] == path or path[: len(key)] == key}
    for text in sorted(filter(None, references.secrets | foreign), key=len, reverse=True):
        for form in (text, repr(text)[1:-1]):
            message = message.replace(form, "***")
    return message
