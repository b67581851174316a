"""What a reload has to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from headrace.settings import Config, Settings


@dataclass(frozen=True, slots=True)
class Names:
    """Names by what became of them."""

    added: frozenset[str]
    removed: frozenset[str]
    changed: frozenset[str]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


@dataclass(frozen=True, slots=True)
class Changes:
    """The difference between two settings; false where there is none.

    A value that was filled in counts like one that is written out. `daemon` and `journal` tell that the
    table differs.
    """

    sources: Names
    consumers: Names
    daemon: bool
    journal: bool

    def __bool__(self) -> bool:
        return bool(self.sources or self.consumers or self.daemon or self.journal)


def changed(old: Config, new: Config) -> Changes:
    """What differs. In another folder everything does, for relative paths lead elsewhere."""
    moved = old.directory != new.directory
    return Changes(
        sources=_names(old.sources, new.sources, moved=moved),
        consumers=_names(old.consumers, new.consumers, moved=moved),
        daemon=moved or old.daemon != new.daemon,
        journal=old.journal != new.journal,
    )


def _names(old: Mapping[str, Settings], new: Mapping[str, Settings], *, moved: bool) -> Names:
    return Names(
        added=frozenset(new.keys() - old.keys()),
        removed=frozenset(old.keys() - new.keys()),
        changed=frozenset(name for name in old.keys() & new.keys() if moved or old[name] != new[name]),
    )
