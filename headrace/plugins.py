"""The only reader of entry points: which adapters are installed, loaded one at a time when asked for.

Built-in and third-party adapters register alike, in the groups `headrace.sources`, `headrace.sinks` and
`headrace.contracts`. Each entry point names a settings class.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib.metadata import Distribution, EntryPoint, EntryPoints, entry_points
from types import MappingProxyType
from typing import Final, Literal, Protocol, TypeAlias, overload

from headrace.errors import HeadraceError
from headrace.settings import HandlerSettings, SinkSettings, SourceSettings
from headrace.suggest import did_you_mean, listed

Adapter: TypeAlias = SourceSettings | SinkSettings | HandlerSettings
Group: TypeAlias = Literal["headrace.sources", "headrace.sinks", "headrace.contracts"]

BASES: Final[Mapping[Group, type[Adapter]]] = MappingProxyType(
    {
        "headrace.sources": SourceSettings,
        "headrace.sinks": SinkSettings,
        "headrace.contracts": HandlerSettings,
    }
)
NOUNS: Final[Mapping[Group, str]] = MappingProxyType(
    {
        "headrace.sources": "source type",
        "headrace.sinks": "sink type",
        "headrace.contracts": "contract",
    }
)
_EXTRA: Final = re.compile(r"""\bextra\s*==\s*["']([^"']+)["']""")
_REQUIREMENT_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")


class PluginError(HeadraceError):
    """An adapter that is unknown, offered twice, not installed completely, or no adapter."""


class Finder(Protocol):
    """Where settings classes come from."""

    def names(self, group: Group) -> list[str]:
        """What is installed, sorted; nothing is loaded."""

    def find(self, group: Group, name: str) -> type[Adapter]:
        """The settings class. Raises `PluginError`."""


class Plugins:
    """The adapters of a set of entry points, by default of everything installed."""

    def __init__(self, points: Iterable[EntryPoint] | None = None) -> None:
        self._given = None if points is None else EntryPoints(points)

    @cached_property
    def _points(self) -> dict[Group, EntryPoints]:
        every = entry_points() if self._given is None else self._given
        return {group: every.select(group=group) for group in BASES}

    def names(self, group: Group) -> list[str]:
        """What is installed, sorted; nothing is loaded."""
        return sorted(self._points[group].names)

    def find(self, group: Group, name: str) -> type[Adapter]:
        """The settings class that the entry point names, its module imported now. Raises `PluginError`."""
        return _checked(self._only(group, name))

    def _only(self, group: Group, name: str) -> EntryPoint:
        found = list(self._points[group].select(name=name))
        if not found:
            raise PluginError(f'unknown {NOUNS[group]} "{name}"' + self._known(group, name))
        if len(found) > 1:
            offers = listed(sorted(_distribution(point) for point in found))
            raise PluginError(f'{NOUNS[group]} "{name}" is offered by {offers}; uninstall one of them')
        return found[0]

    def _known(self, group: Group, name: str) -> str:
        names = self.names(group)
        return did_you_mean(name, names) or f"; installed: {listed(names)}"


@overload
def find(group: Literal["headrace.sources"], name: str) -> type[SourceSettings]: ...
@overload
def find(group: Literal["headrace.sinks"], name: str) -> type[SinkSettings]: ...
@overload
def find(group: Literal["headrace.contracts"], name: str) -> type[HandlerSettings]: ...
def find(group: Group, name: str) -> type[Adapter]:
    """The settings class of an installed adapter. Raises `PluginError`."""
    return Plugins().find(group, name)


def names(group: Group) -> list[str]:
    """The adapters installed, sorted; nothing is loaded."""
    return Plugins().names(group)


def _checked(point: EntryPoint) -> type[Adapter]:
    base = BASES[_group(point)]
    loaded = _load(point)
    if isinstance(loaded, type) and issubclass(loaded, base) and loaded is not base:
        return loaded
    raise PluginError(
        f'{_title(point)} is unusable: "{point.value}" is no class derived from '
        f"headrace.settings.{base.__name__}; tell its author"
    )


def _load(point: EntryPoint) -> object:
    try:
        return point.load()
    except ModuleNotFoundError as error:
        raise PluginError(f"{_title(point)} {_missing_module(point, error.name or '')}") from None
    except ImportError as error:  # there, but it cannot start: a library it needs is not
        hint = f"; run: pip install '{package}'" if (package := _package(point, error.name or "")) else ""
        raise PluginError(f"{_title(point)} cannot be loaded: {error}{hint}") from None
    except Exception as error:  # noqa: BLE001 - a plug-in may fail in any way when imported; the user gets one line
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise PluginError(f"{_title(point)} cannot be loaded: {reason}") from None


def _missing_module(point: EntryPoint, module: str) -> str:
    """What to install. A package's name is never guessed from a module's: anyone may own it."""
    if module == point.module or point.module.startswith(f"{module}."):
        return f'is not installed completely: no module "{module}"'
    package = _package(point, module)
    if package is None:
        return f'needs the Python module "{module}", which is not installed'
    return f"needs more than is installed; run: pip install '{package}'"


def _package(point: EntryPoint, module: str) -> str | None:
    extra = _extra(point, module)
    return None if extra is None else f"{_distribution(point)}[{extra}]"


def _extra(point: EntryPoint, module: str) -> str | None:
    """The extra that brings the module: the one named by the entry point, or for its name, or by its contents."""
    if point.extras:
        return str(point.extras[0])
    if point.dist is None:
        return None
    extras = point.dist.metadata.get_all("Provides-Extra") or []
    if point.name in extras:
        return point.name
    return next(iter(_extras_requiring(point.dist, module)), None)


def _extras_requiring(distribution: Distribution, module: str) -> list[str]:
    wanted = _normal(module.partition(".")[0])
    return [
        found[1]
        for requirement in distribution.requires or ()
        if (found := _EXTRA.search(requirement)) and _normal(_leading_name(requirement)) == wanted
    ]


def _leading_name(requirement: str) -> str:
    found = _REQUIREMENT_NAME.match(requirement)
    return found[0] if found else ""


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _group(point: EntryPoint) -> Group:
    return next(group for group in BASES if group == point.group)


def _title(point: EntryPoint) -> str:
    return f'{NOUNS[_group(point)]} "{point.name}" of {_distribution(point)}'


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.module.partition(".")[0]
