"""`headrace demo`, whole and interrupted."""

import signal
import subprocess
import sys
from pathlib import Path

from headrace.demo.watch import tree_of
from tests.fixtures.daemon import PATIENCE, environment, headrace


def test_it_shows_that_nothing_is_lost_and_leaves_nothing(tmp_path: Path) -> None:
    done = headrace("demo", "--seconds", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for part in ("created ", "modified ", "moved ", "deleted ", "kill -9", "ms later", "audit line 1"):
        assert part in done.stdout
    assert "nothing was lost" in done.stdout
    assert "none twice" in done.stdout
    assert list(tmp_path.iterdir()) == []


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


def test_ctrl_c_ends_it_with_the_summary(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "headrace", "demo", "--seconds", "120"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True, bufsize=1
    ) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "audit line 2" in line:
                demo.send_signal(signal.SIGINT)
                break
        rest = demo.stdout.read()
        assert demo.wait(PATIENCE) == 0
    assert "nothing was lost" in rest
    assert list(tmp_path.iterdir()) == []
