"""The commands without a daemon, how `run` begins and ends, and every message for a mistake: one line, one code."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headrace.cli.app import COMMANDS
from tests.fixtures.daemon import PATIENCE, environment, headrace, running, start, until

HEAVY = ("aiohttp", "pydantic", "msgspec", "lz4", "watchdog", "structlog", "rich", "asyncio", "http", "tomli")
SINK = '[sinks.audit]\ntype = "file"\npath = "audit.jsonl"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with what `init` writes."""
    done = headrace("init", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return tmp_path


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line of talk of a command that ended so."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


# Starting fast.


@pytest.mark.parametrize("args", [["--help"], ["--version"]])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    code = f"""
import sys
from headrace.cli.app import run
assert run({args!r}) == 0
heavy = {{name for name in sys.modules if name.split(".")[0] in {HEAVY!r} or name.startswith("headrace.settings")}}
print(sorted(heavy), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert done.stderr.strip() == "[]"


def test_help_names_every_command(tmp_path: Path) -> None:
    said = headrace("--help", cwd=tmp_path).stdout
    assert all(f"  {name} " in said for name in COMMANDS)
    for name in COMMANDS:
        assert headrace(name, "--help", cwd=tmp_path).returncode == 0


def test_a_command_that_does_not_exist(tmp_path: Path) -> None:
    done = headrace("stats", cwd=tmp_path)
    assert done.returncode == 2
    assert 'no command "stats"; did you mean "status"?' in done.stderr
    assert "Traceback" not in done.stderr


# The settings file.


@pytest.mark.parametrize("command", ["run", "check", "status", "reload", "tail"])
def test_no_settings_file(tmp_path: Path, command: str) -> None:
    named = one_line(headrace(command, "-c", "nothing.toml", cwd=tmp_path), 78)
    assert named.startswith("no settings file: looked for nothing.toml")


def test_every_command_takes_the_file_before_and_after(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    file = str(folder / "headrace.toml")
    for args in (["-c", file, "check"], ["check", "-c", file], ["check", "--config", file]):
        assert headrace(*args, cwd=elsewhere).returncode == 0
    assert headrace("check", cwd=elsewhere, env={"HEADRACE_CONFIG": file}).returncode == 0
    assert headrace("-c", "nothing", "check", "-c", file, cwd=elsewhere).returncode == 0


@pytest.mark.parametrize("command", ["run", "check"])
def test_all_mistakes_at_once(tmp_path: Path, command: str) -> None:
    (tmp_path / "headrace.toml").write_text(
        '[sources.inbox]\ntype = "filesystem"\npaht = "inbox"\n[sinks.audit]\ntype = "file"\npath = 3\n'
        '[handlers.a]\nfunction = { env = "NOT_SET" }\n'
    )
    done = headrace(command, cwd=tmp_path)
    assert done.returncode == 78
    assert done.stdout == ""
    assert 'headrace.toml:3: sources.inbox.paht: unknown key; did you mean "path"?' in done.stderr
    assert "headrace.toml:6: sinks.audit.path: " in done.stderr
    assert "NOT_SET" in done.stderr or "function" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_level(folder: Path) -> None:
    assert "unknown level" in one_line(headrace("run", "--log-level", "loud", cwd=folder), 78)
    assert "$HEADRACE_LOG" in one_line(headrace("run", cwd=folder, env={"HEADRACE_LOG": "loud"}), 78)


# init and check.


def test_what_init_writes_passes_check_and_runs(folder: Path) -> None:
    assert headrace("check", cwd=folder).stderr == "headrace.toml: no problems; 1 source, 1 handler, 1 sink\n"
    with running(folder, (folder / "headrace.toml").read_text()) as daemon:
        (folder / "inbox" / "a.csv").write_text("1")
        daemon.wait_until(lambda told: all(each["delivered"] for each in told["consumers"]))
        assert "created a.csv" in daemon.log
        assert stat.S_IMODE((folder / "headrace-data").stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "audit.jsonl").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["headrace.toml", "handlers.py"])
def test_init_overwrites_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / name).write_text("mine")
    assert f"there/{name} exists" in one_line(headrace("init", "there", cwd=tmp_path), 1)
    assert [path.name for path in (tmp_path / "there").iterdir()] == [name]
    assert (tmp_path / "there" / name).read_text() == "mine"


@pytest.mark.parametrize(
    ("function", "code", "said"),
    [
        ("gone.py:f", "", "gone.py does not exist"),
        ("h.py:f", "", "f"),
        ("h.py:f", "import nothing_of_this_name", "nothing_of_this_name"),
        ("h.py:f", "def f(:", "h.py:1: SyntaxError"),
        ("h.py:f", "raise RuntimeError('at import')", "at import"),
        ("h.py:f", "raise SystemExit(3)", "h.py"),
        ("h.py:f", "import os; os._exit(3)", "worker"),
        ("h.py:f", "import os; os.write(1, bytes(range(256))); raise ValueError('b')", "ValueError"),
    ],
)
def test_check_tries_the_handlers(tmp_path: Path, function: str, code: str, said: str) -> None:
    (tmp_path / "h.py").write_text(code)
    (tmp_path / "headrace.toml").write_text(
        f'[sources.inbox]\ntype = "filesystem"\npath = "gone"\n[handlers.mine]\nfunction = "{function}"\n'
    )
    done = headrace("check", cwd=tmp_path)
    path, handler = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (78, "")
    assert path == f"headrace.toml:3: sources.inbox.path: {tmp_path}/gone does not exist"
    assert handler.startswith("headrace.toml:5: handlers.mine.function: ")
    assert said in handler


def test_check_looks_at_the_data_directory(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    (tmp_path / "headrace.toml").write_text('[daemon]\ndata_dir = "data/below"\n')
    said = one_line(headrace("check", cwd=tmp_path), 78)
    assert said == f"headrace.toml:2: daemon.data_dir: {tmp_path}/data is no folder"


def test_check_connects_to_sources(folder: Path) -> None:
    done = headrace("check", "--connect", cwd=folder)
    assert done.returncode == 0
    assert "no problems" in done.stderr
    assert not (folder / "audit.jsonl").exists()


def test_schemas(folder: Path) -> None:
    assert json.loads(headrace("schema", cwd=folder).stdout)["title"] == "Headrace settings"
    found = json.loads(headrace("schema", "events", cwd=folder).stdout)
    urn = "urn:headrace:schema:filesystem.created:1"
    assert urn in found
    assert json.loads(headrace("schema", urn, cwd=folder).stdout) == found[urn]
    assert "no schema" in one_line(headrace("schema", "nothing", cwd=folder), 1)


# Nobody there.


@pytest.mark.parametrize(
    "args",
    [
        ["status"],
        ["reload"],
        ["tail"],
        ["pause", "audit"],
        ["resume", "audit"],
        ["backfill", "orders", "public.*"],
        ["dead-letters", "list"],
        ["dead-letters", "redrive", "audit", "--all"],
        ["consumer", "forget", "audit"],
        ["consumer", "rename", "a", "b"],
    ],
)
def test_no_daemon(folder: Path, args: list[str]) -> None:
    said = one_line(headrace(*args, cwd=folder), 69)
    assert said == f"headrace: no daemon runs on {folder}/headrace-data; start it with: headrace run -c headrace.toml"


def test_a_journal_that_is_not_there(folder: Path) -> None:
    assert "holds no journal" in one_line(headrace("journal", "verify", cwd=folder), 1)


def test_a_daemon_is_found_whatever_else_stands_in_the_file(folder: Path) -> None:
    with running(folder, (folder / "headrace.toml").read_text()) as daemon:
        with (folder / "headrace.toml").open("a") as file:
            file.write('[sinks.unfinished]\ntype = "fi"\n')
        assert daemon.run("status").returncode == 0


# The data directory.


def test_a_data_directory_in_use(folder: Path) -> None:
    with running(folder, (folder / "headrace.toml").read_text()) as daemon:
        said = headrace("run", cwd=folder)
        assert said.returncode == 70
        assert f"is in use by another daemon (process {daemon.process.pid})" in said.stderr.splitlines()[-1]
        assert daemon.run("status").returncode == 0


def test_a_data_directory_that_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_text(SINK)
    tmp_path.chmod(0o555)
    for command, code in (("run", 70), ("check", 78)):
        done = headrace(command, cwd=tmp_path, prefix=without_power())
        assert done.returncode == code, done.stderr
        assert "Permission denied" in done.stderr or "is not writable" in done.stderr
        assert "Traceback" not in done.stderr
        assert code == 78 or len(done.stderr.splitlines()) == 1
    tmp_path.chmod(0o755)


def without_power() -> list[str]:
    """What takes from root the capability to write anywhere."""
    if os.getuid():
        return []
    command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    if not shutil.which("setpriv") or subprocess.run([*command, "true"], check=False).returncode:
        pytest.skip("as root this needs setpriv: apt install util-linux")
    return command


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs here: needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_at_start(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        (disk / "filler").write_bytes(bytes(60 << 10))
        (tmp_path / "headrace.toml").write_text('[daemon]\ndata_dir = "disk/data"\n')
        done = headrace("run", cwd=tmp_path)
        assert done.returncode == 70, done.stderr
        last = done.stderr.splitlines()[-1]
        assert "the disk is full" in last or "No space left" in last
        assert "Traceback" not in done.stderr


def test_a_journal_that_is_none(folder: Path) -> None:
    (folder / "headrace-data").mkdir()
    (folder / "headrace-data" / "journal.db").write_bytes(b"no database" * 1000)
    said = one_line(headrace("run", cwd=folder), 70)
    assert "journal" in said


# Ending.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains(folder: Path, number: int) -> None:
    with running(folder, (folder / "headrace.toml").read_text()) as daemon:
        (folder / "inbox" / "a").write_text("a")
        daemon.wait_until(lambda told: all(each["delivered"] for each in told["consumers"]))
        assert daemon.stop(number) == 0
        assert not (folder / "headrace-data" / "control.sock").exists()
        assert json.loads(daemon.log.splitlines()[-1])["event"] == "stopped"


def test_the_second_signal_does_not_wait(folder: Path) -> None:
    (folder / "handlers.py").write_text(
        "import pathlib, time\ndef on_change(event):\n    pathlib.Path('begun').touch()\n    time.sleep(60)\n"
    )
    settings = (folder / "headrace.toml").read_text().replace("[daemon]", '[daemon]\ngrace = "5m"')
    with running(folder, settings) as daemon:
        (folder / "inbox" / "a").write_text("a")
        until((folder / "begun").exists)
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_until(lambda told: told["state"] == "stopping")
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(PATIENCE) == 130
        assert "Traceback" not in daemon.log


def test_a_killed_daemon_leaves_nothing_in_the_way(folder: Path) -> None:
    with running(folder, (folder / "headrace.toml").read_text()) as daemon:
        daemon.kill()
        assert (folder / "headrace-data" / "control.sock").exists()
        assert headrace("status", cwd=folder).returncode == 69
        daemon.start()
        daemon.ready()
        assert headrace("status", cwd=folder).returncode == 0


def test_a_data_directory_with_a_long_name(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    with running(folder, SINK) as daemon:
        assert daemon.run("status").returncode == 0


def test_the_idle_daemon_is_small(folder: Path) -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc")
    daemon = start(folder, (folder / "headrace.toml").read_text())
    try:
        daemon.ready()
        told = Path(f"/proc/{daemon.process.pid}/status").read_text()
        (line,) = (each for each in told.splitlines() if each.startswith("VmRSS"))
        assert int(line.split()[1]) < 80 * 1024
    finally:
        daemon.kill()
