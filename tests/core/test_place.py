"""The data directory: private, local, and of one daemon."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.errors import Fatal
from headrace.journal import place
from headrace.journal.place import claim, file_system
from tests.fixtures.users import unprivileged


def test_it_is_made_private_with_its_parents(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with claim(folder) as claimed:
        assert claimed == folder
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / "lock").read_text() == f"{os.getpid()}\n"
    with claim(folder):  # free again
        pass


def test_it_is_made_private_where_it_was_open(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with claim(tmp_path):
        assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_a_second_daemon_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    with claim(tmp_path):
        program = f"from pathlib import Path; from headrace.journal.place import claim; claim(Path({str(tmp_path)!r}))"
        done = subprocess.run(
            [sys.executable, "-c", f"{program}.__enter__()"], capture_output=True, text=True, check=False, timeout=30
        )
    assert f"is in use by another daemon (process {os.getpid()})" in done.stderr


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    program = (
        "import os, signal; from pathlib import Path; from headrace.journal.place import claim\n"
        f"with claim(Path({str(tmp_path)!r})): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program], check=False, timeout=30)
    with claim(tmp_path):
        pass


def test_what_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(Fatal, match="set \\[daemon\\] data_dir"), claim(path):
            pass


def test_a_folder_that_is_not_writable_is_refused() -> None:
    with unprivileged() as folder:
        folder.chmod(0o500)
        with pytest.raises(Fatal, match="Permission denied"), claim(folder / "data"):
            pass
        folder.chmod(0o700)


MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/root rw
30 22 0:40 / /mnt rw - nfs4 server:/export rw
31 30 0:41 / /mnt/local rw - ext4 /dev/sdb rw
32 22 0:42 / /with\\040blank\\134slash rw shared:1 - fuse.sshfs host: rw
33 22 0:43 / /caf\u00e9 rw - cifs //server/share rw
34 22 0:44 / /twice rw - ext4 /dev/sdc rw
35 22 0:45 / /twice rw - nfs server:/x rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home", "ext4"),
        ("/mnt/data", "nfs4"),
        ("/mnt/local/data", "ext4"),
        ("/mntdata", "ext4"),
        ("/with blank\\slash/x", "fuse.sshfs"),
        ("/caf\u00e9/x", "cifs"),
        ("/twice", "nfs"),
    ],
)
def test_the_file_system_of_a_path(tmp_path: Path, path: str, kind: str) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_bytes(os.fsencode(MOUNTS))
    assert file_system(Path(path), mounts) == kind


def test_a_system_that_does_not_tell(tmp_path: Path) -> None:
    assert file_system(tmp_path, tmp_path / "no such file") == ""


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "file_system", lambda _: "nfs4")
    with pytest.raises(Fatal, match=r"network file system \(nfs4\).*local disk"), claim(tmp_path):
        pass
