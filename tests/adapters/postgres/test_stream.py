"""What the stream makes of changes, against live servers."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from headrace.event import Event
from headrace.sources.postgres.schemas import schemas
from tests.adapters.postgres.kit import capture
from tests.fixtures.postgres import Database, wait_for

pytestmark = pytest.mark.postgres
TABLE = "CREATE TABLE t (a int PRIMARY KEY, b text)"
APART = ["CREATE TABLE t (a int PRIMARY KEY, n int, b text)", "ALTER TABLE t ALTER b SET STORAGE EXTERNAL"]


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


def names(events: list[Event]) -> list[str]:
    return [event.type.rpartition(".")[2] for event in events]


def test_a_key_change_carries_both_keys(database: Database, tmp_path: Path) -> None:
    [_, event] = capture(
        *(database, tmp_path, "INSERT INTO t VALUES (1, 'x')", "UPDATE t SET a = 2"), before=[TABLE], count=2
    )
    assert (event.partitionkey, event.previouskey) == ("public.t/2", "public.t/1")
    assert (event.data["before"], event.data["after"]) == ({"a": 1}, {"a": 2, "b": "x"})


def test_toast_values_that_were_not_sent_are_named(database: Database, tmp_path: Path) -> None:
    statements = ["INSERT INTO t VALUES (1, 0, repeat('x', 10000))", "UPDATE t SET n = 1", "UPDATE t SET a = 2"]
    events = capture(database, tmp_path, *statements, before=APART, count=3)
    assert events[0].data["after"]["b"] == "x" * 10_000
    assert [event.data["unchanged"] for event in events[1:]] == [["b"], ["b"]]
    assert events[2].data["after"] == {"a": 2, "n": 1}


def test_full_identity_gives_the_whole_old_row(database: Database, tmp_path: Path) -> None:
    make = [*APART, "ALTER TABLE t REPLICA IDENTITY FULL"]
    statements = ["INSERT INTO t VALUES (1, 0, repeat('x', 10000))", "UPDATE t SET n = 1", "DELETE FROM t"]
    events = capture(database, tmp_path, *statements, before=make, count=3)
    assert events[1].data["before"] == {"a": 1, "n": 0, "b": "x" * 10_000}
    assert events[1].data["after"] == {"a": 1, "n": 1, "b": "x" * 10_000}
    assert events[2].data["before"]["n"] == 1
    assert {event.partitionkey for event in events} == {"public.t/1"}


def test_an_index_as_identity_is_the_key(database: Database, tmp_path: Path) -> None:
    make = [
        "CREATE TABLE t (a int PRIMARY KEY, email text NOT NULL)",
        "CREATE UNIQUE INDEX by_email ON t (email)",
        "ALTER TABLE t REPLICA IDENTITY USING INDEX by_email",
    ]
    events = capture(*(database, tmp_path, "INSERT INTO t VALUES (1, 'a/b%c')", "DELETE FROM t"), before=make, count=2)
    assert [event.partitionkey for event in events] == ["public.t/a%2Fb%25c"] * 2
    assert events[1].data["key"] == {"email": "a/b%c"}


def test_truncate_is_a_barrier_for_each_table(database: Database, tmp_path: Path) -> None:
    make = [TABLE, "CREATE TABLE u (a int PRIMARY KEY)"]
    events = capture(database, tmp_path, "TRUNCATE t, u", before=make, count=2)
    assert names(events) == ["truncate", "truncate"]
    assert [event.barrier for event in events] == ["public.t/", "public.u/"]
    assert [event.data["tx"]["ordinal"] for event in events] == [1, 2]


ALTER = "ALTER TABLE t ADD c int DEFAULT 7, ALTER b TYPE varchar(9)"


def test_ddl_in_mid_stream_decodes_right_before_and_after(database: Database, tmp_path: Path) -> None:
    statements = [
        "INSERT INTO t VALUES (1, 'x')",
        f"BEGIN; INSERT INTO t VALUES (2, 'y'); {ALTER}; INSERT INTO t VALUES (3, 'z', 8); COMMIT",
        "ALTER TABLE t DROP b",
        "INSERT INTO t VALUES (4, 9)",
    ]
    events = capture(database, tmp_path, *statements, before=[TABLE], count=6)
    rows = [event.data["after"] for event in events if event.type.endswith("insert")]
    assert rows == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}, {"a": 3, "b": "z", "c": 8}, {"a": 4, "c": 9}]
    changes = [event for event in events if event.type.endswith("schema")]
    assert [(e.data["added"], e.data["removed"], e.data["retyped"]) for e in changes] == [
        (["c"], [], ["b"]),
        ([], ["b"], []),
    ]
    assert {event.barrier for event in changes} == {"public.t/"}
    assert [event.sequence for event in events] == sorted(event.sequence or "" for event in events)


def test_logical_messages_are_events(database: Database, tmp_path: Path) -> None:
    statements = [
        "SELECT pg_logical_emit_message(true, 'outbox', '{\"a\":1}')",
        "BEGIN; SELECT pg_logical_emit_message(false, 'now', 'x'); ROLLBACK",
        "BEGIN; SELECT pg_logical_emit_message(true, 'never', 'x'); ROLLBACK",
        "SELECT pg_logical_emit_message(true, 'private', 'x')",
        "SELECT pg_logical_emit_message(true, 'outbox', '\\xff'::bytea)",
    ]
    events = capture(database, tmp_path, *statements, before=[TABLE], count=3, messages=["outbox", "now"])
    assert [(event.subject, event.data["transactional"]) for event in events] == [
        *[("outbox", True), ("now", False), ("outbox", True)],
    ]
    assert [event.data.get("content") for event in events] == ['{"a":1}', "x", None]
    assert events[2].data["content_base64"] == "/w=="


def test_partitions_are_told_of_as_their_root(database: Database, tmp_path: Path) -> None:
    make = [
        "CREATE TABLE t (a int PRIMARY KEY) PARTITION BY RANGE (a)",
        "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10)",
    ]
    [event] = capture(database, tmp_path, "INSERT INTO t VALUES (5)", before=make, count=1)
    assert (event.subject, event.partitionkey) == ("public.t", "public.t/5")


BIG = [
    "BEGIN",
    "INSERT INTO t SELECT g, repeat('x', 100) FROM generate_series(1, 3000) g",
    *["SAVEPOINT s", "INSERT INTO t SELECT g, 'undone' FROM generate_series(10001, 13000) g", "ROLLBACK TO s"],
    "INSERT INTO t SELECT g, repeat('y', 100) FROM generate_series(20001, 23000) g",
    "COMMIT",
]


@pytest.mark.parametrize("streaming", [True, False])
def test_a_big_transaction_with_an_undone_part(database: Database, tmp_path: Path, streaming: bool) -> None:
    memory = f"ALTER DATABASE {database.name} SET logical_decoding_work_mem = '64kB'"
    events = capture(
        *(database, tmp_path, "; ".join(BIG), "INSERT INTO t VALUES (0, '')"),
        before=[TABLE, memory],
        count=6001,
        streaming=streaming,
    )
    keys = [event.data["key"]["a"] for event in events]
    assert keys == [*range(1, 3001), *range(20001, 23001), 0]
    assert [event.data["tx"]["ordinal"] for event in events[:6000]] == list(range(1, 6001))
    assert [event.data["tx"]["ordinal"] for event in events if event.data["tx"]["last"]] == [6000, 1]
    counted = f"SELECT stream_txns FROM pg_stat_replication_slots WHERE slot_name = '{database.name}'"
    if streaming:
        wait_for(lambda: database.execute(counted) > [(0,)])
    else:
        assert database.execute(counted) == [(0,)]


def test_one_aborted_row_does_not_count_under_protocol_1_or_2(database: Database, tmp_path: Path) -> None:
    # In its transaction the row is aborted by an error inside a block, which is a sub-transaction too.
    block = (
        "DO $$ BEGIN INSERT INTO t VALUES (1, 'kept'); "
        "BEGIN INSERT INTO t VALUES (2, 'gone'); INSERT INTO t VALUES (1, 'twice'); EXCEPTION WHEN others THEN END; "
        "INSERT INTO t VALUES (3, 'kept'); END $$"
    )
    events = capture(database, tmp_path, block, before=[TABLE], count=2)
    assert [(event.data["key"]["a"], event.data["tx"]["ordinal"]) for event in events] == [(1, 1), (3, 2)]


def test_events_are_as_their_schemas_say(database: Database, tmp_path: Path) -> None:
    changes = [
        "INSERT INTO t VALUES (2, 'x')",
        "UPDATE t SET a = 3 WHERE a = 2",
        "DELETE FROM t WHERE a = 3",
        "SELECT pg_logical_emit_message(true, 'outbox', 'x')",
        "SELECT pg_logical_emit_message(false, 'outbox', '\\xff'::bytea), pg_current_xact_id()",
        "ALTER TABLE t ADD c int",
        "UPDATE t SET c = 1",
        "TRUNCATE t",
    ]
    before = [TABLE, "INSERT INTO t VALUES (1, 'there')"]
    events = capture(database, tmp_path, *changes, before=before, count=9, snapshot="initial")
    kinds = {event.data["op"] for event in events}
    assert kinds == {"read", "insert", "update", "delete", "message", "schema", "truncate"}
    for event in events:
        jsonschema.validate(event.data, schemas()[event.dataschema or ""], jsonschema.Draft4Validator)
