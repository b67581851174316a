"""The control socket by itself."""

import stat
from pathlib import Path

import pytest

from headrace.control.client import Client
from headrace.control.socket import NAME, connect, listen
from headrace.errors import Fatal, HeadraceError, NotRunning


def talk(folder: Path) -> None:
    with listen(folder) as server, connect(folder) as client:
        server.settimeout(5)
        there, _ = server.accept()
        with there:
            client.sendall(b"x")
            assert there.recv(1) == b"x"


def test_it_is_private_and_replaces_what_a_killed_daemon_left(tmp_path: Path) -> None:
    listen(tmp_path).close()
    assert (tmp_path / NAME).exists()
    talk(tmp_path)
    assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o600


def test_a_path_longer_than_a_socket_may_have(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    if not Path("/proc/self/fd").is_dir():
        with pytest.raises(Fatal, match="longer than"):
            listen(folder)
        return
    talk(folder)


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match="no daemon runs on"):
        Client(tmp_path).get("/status")
    listen(tmp_path).close()
    with pytest.raises(NotRunning):
        Client(tmp_path).get("/status")


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HeadraceError):
        Client(tmp_path / "file").get("/status")
    with pytest.raises(Fatal, match="control socket"):
        listen(tmp_path / "file")
