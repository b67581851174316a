"""What a reload finds changed."""

from __future__ import annotations

from pathlib import Path

from headrace.settings_changes import Names, changed
from tests.core.settings_adapters import loaded

BASE = (
    '[sources.a]\ntype = "clock"\n[sources.b]\ntype = "shop"\ndsn = { env = "DSN", default = "db://x" }\n'
    '[sinks.s]\ntype = "audit"\npath = "p"\n[sinks.t]\ntype = "audit"\npath = "p"\n'
)


def test_the_same_file_changes_nothing(tmp_path: Path) -> None:
    assert not changed(loaded(tmp_path, BASE), loaded(tmp_path, BASE + "# a comment\n"))


def test_names_and_tables_that_differ(tmp_path: Path) -> None:
    after = (
        '[daemon]\ngrace = "1s"\n[journal]\nretention = "1d"\n[sources.b]\ntype = "shop"\ndsn = "db://y"\n'
        '[sources.c]\ntype = "clock"\n[handlers.s]\nfunction = "f.py:f"\n[sinks.u]\ntype = "audit"\npath = "p"\n'
    )
    found = changed(loaded(tmp_path, BASE), loaded(tmp_path, after))
    assert found.sources == Names(added=frozenset("c"), removed=frozenset("a"), changed=frozenset("b"))
    assert found.consumers == Names(added=frozenset("u"), removed=frozenset("t"), changed=frozenset("s"))
    assert found.daemon
    assert found.journal


def test_a_value_from_elsewhere_counts(tmp_path: Path) -> None:
    found = changed(loaded(tmp_path, BASE), loaded(tmp_path, BASE, DSN="db://z"))
    assert found.sources.changed == {"b"}
    assert not any((found.consumers, found.daemon, found.journal))


def test_another_folder_changes_everything(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    found = changed(loaded(tmp_path, BASE), loaded(tmp_path / "other", BASE))
    assert found.sources.changed == {"a", "b"}
    assert found.consumers.changed == {"s", "t"}
    assert found.daemon
