"""What the stream makes of changes, against live servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adapters.postgres.kit import capture
from tests.fixtures.postgres import Database

pytestmark = pytest.mark.postgres
TABLE = "CREATE TABLE t (a int PRIMARY KEY, b text)"


def test_inserts_updates_and_deletes(database: Database, tmp_path: Path) -> None:
    events = capture(
        *(database, tmp_path),
        *("INSERT INTO t VALUES (1, 'x'), (2, NULL)", "UPDATE t SET b = 'y' WHERE a = 1", "DELETE FROM t WHERE a = 2"),
        before=[TABLE],
        count=4,
    )
    assert [event.type.rpartition(".")[2] for event in events] == ["insert", "insert", "update", "delete"]
    first, second, third, last = (event.data for event in events)
    assert first["after"] == {"a": 1, "b": "x"}
    assert (second["key"], second["after"], second["tx"]["ordinal"]) == ({"a": 2}, {"a": 2, "b": None}, 2)
    assert (first["tx"]["last"], second["tx"]["last"]) == (False, True)
    assert (third["before"], third["after"]) == (None, {"a": 1, "b": "y"})
    assert (last["before"], last["after"], last["key"]) == ({"a": 2}, None, {"a": 2})
    assert [event.partitionkey for event in events] == ["public.t/1", "public.t/2", "public.t/1", "public.t/2"]
    assert {event.subject for event in events} == {"public.t"}
