"""The server that all other tests of this folder trust."""

from __future__ import annotations

import signal

import pytest

from tests.fixtures.postgres import Database

pytestmark = pytest.mark.postgres


def test_it_decodes_and_survives_a_crash(database: Database) -> None:
    assert database.execute("SHOW wal_level") == [("logical",)]
    database.execute("CREATE TABLE t (a int)", "INSERT INTO t VALUES (1)")
    database.server.restart(signal.SIGQUIT)
    assert database.execute("TABLE t") == [(1,)]
