"""`headrace doctor`: what it finds around the daemon, without one."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from headrace import diagnosis
from headrace.journal.schema import APPLICATION_ID
from headrace.journal.sqlite import FILE
from headrace.protocols import Finding
from tests.fixtures.daemon import headrace, running

SETTINGS = '[sources.inbox]\ntype = "filesystem"\npath = "inbox"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    (tmp_path / "headrace.toml").write_text(SETTINGS)
    return tmp_path


def levels(found: list[Finding]) -> list[str]:
    return [finding.level for finding in found]


def test_nothing_is_wrong(folder: Path) -> None:
    done = headrace("doctor", cwd=folder)
    assert "ok       headrace: SQLite" in done.stdout
    assert "ok       headrace: no journal yet" in done.stdout
    assert "error" not in done.stdout
    assert done.returncode == 0
    assert not (folder / "headrace-data").exists()


def test_json(folder: Path) -> None:
    found = json.loads(headrace("doctor", "--json", cwd=folder).stdout)
    assert {frozenset(each) for each in found} == {frozenset({"part", "level", "what", "remedy"})}


def test_while_the_daemon_runs(folder: Path) -> None:
    with running(folder, SETTINGS) as daemon:
        done = daemon.run("doctor")
    assert "ok       headrace: journal of format" in done.stdout


def test_what_is_not_there_is_an_error(folder: Path) -> None:
    (folder / "inbox").rmdir()
    done = headrace("doctor", cwd=folder)
    assert f"error    inbox: {folder}/inbox is not there" in done.stdout
    assert done.returncode == 1


def test_settings_that_are_wrong(folder: Path) -> None:
    (folder / "headrace.toml").write_text("[sources.inbox]\n")
    assert headrace("doctor", cwd=folder).returncode == 78


def test_sqlite() -> None:
    assert diagnosis.sqlite_version((3, 36, 0)).level == "error"
    assert "leave the file alone" in diagnosis.sqlite_version((3, 40, 1)).what
    assert diagnosis.sqlite_version((3, 51, 3)) == Finding("ok", "SQLite 3.51.3")


def test_a_file_that_is_no_journal(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_bytes(b"no database" * 100)
    assert levels(list(diagnosis.journal(path))) == ["error"]
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE other (n)")
    [finding] = diagnosis.journal(path)
    assert "is no journal" in finding.what


def test_a_journal_of_a_newer_version(tmp_path: Path) -> None:
    path = tmp_path / FILE
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA application_id={APPLICATION_ID}")
        db.execute("PRAGMA user_version=99")
    [finding] = diagnosis.journal(path)
    assert "newer Headrace" in finding.what


def test_data_directory_of_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, level in {"nfs4": "error", "tmpfs": "warning", "ext4": "ok"}.items():
        monkeypatch.setattr(diagnosis, "file_system", lambda path, kind=kind: kind)
        assert next(diagnosis.data_dir(tmp_path / "data")).level == level
