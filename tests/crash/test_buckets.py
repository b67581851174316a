"""Buckets under fire: clients write while daemon, connection and server die, and the bucket must come out right."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.adapters.bucket_runs import (
    current,
    every_version,
    rebuilt,
    rebuilt_versions,
    require_each_version_once,
)
from tests.fixtures.bucket_churn import BucketChurn
from tests.fixtures.s3 import ACCESS_KEY, SECRET_KEY, LocalMinio, private_server, until
from tests.fixtures.tcp_proxy import TcpProxy

pytestmark = [pytest.mark.s3, pytest.mark.crash]


class Storm(NamedTuple):
    """How much is done to a bucket; `life` is how many seconds a daemon lives, `calm` how long nothing goes wrong."""

    operations: int
    kills: int
    restarts: int
    life: tuple[float, float]
    calm: tuple[float, float]


SHORT = Storm(1_000, 4, 2, (1.5, 3.0), (0.3, 1.0))
FULL = Storm(20_000, 30, 4, (3.0, 7.0), (1.0, 4.0))
SETTINGS = """
[sources.uploads]
type = "minio"
endpoint = "http://{host}"
bucket = "uploads"
access_key = "{access_key}"
secret_key = "{secret_key}"
snapshot = "initial"

[sinks.audit]
type = "file"
path = "audit.jsonl"
start = "earliest"
"""
FAILPOINTS = ["inventory.append", "inventory.submitted", "objects.page", "objects.swept", "objects.compared"]
ONCE_A_RUN = {"objects.page", "objects.swept", "objects.compared"}


@pytest.fixture(scope="module")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalMinio]:
    server = private_server(tmp_path_factory.mktemp("minio"))
    yield server
    server.kill()


class House:
    """A settings file, its daemon and its audit file."""

    def __init__(self, folder: Path, host: str, bucket: str) -> None:
        self.folder = folder
        text = SETTINGS.format(host=host, access_key=ACCESS_KEY, secret_key=SECRET_KEY)
        (folder / "headrace.toml").write_text(text.replace('"uploads"', f'"{bucket}"'))

    def daemon(self, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "headrace", "run", "-c", str(self.folder / "headrace.toml")]
        with (self.folder / "daemon.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **(environment or {})})

    @property
    def lives(self) -> int:
        """How many daemons ran so far."""
        log = self.folder / "daemon.log"
        return log.read_bytes().count(b'"event": "running"') if log.exists() else 0

    def events(self) -> list[dict[str, Any]]:
        file = self.folder / "audit.jsonl"
        return [json.loads(line) for line in file.read_bytes().splitlines()] if file.exists() else []

    def begin(self) -> None:
        """A first daemon captures something and is killed."""
        daemon = self.daemon()
        until(lambda: bool(self.events()), "something is captured")
        daemon.kill()
        daemon.wait()

    def listens(self) -> None:
        """A daemon in calm is told of something, and is killed."""
        daemon = self.daemon()
        until(lambda: any(not event["data"]["recovered"] for event in self.events()), "something is told live", 60)
        daemon.kill()
        daemon.wait()

    def settles(self, what: Callable[[list[dict[str, Any]]], Any], expected: Any) -> None:
        """A last daemon catches up, and its audit file gives what is expected."""
        daemon = self.daemon()
        try:
            until(lambda: what(self.events()) == expected, "the rebuilt bucket equals the bucket", 90)
        except AssertionError:
            found = what(self.events())
            differing = {it: (found.get(it), expected.get(it)) for it in found.keys() ^ expected.keys()}
            differing |= {it: (found[it], expected[it]) for it in found.keys() & expected if found[it] != expected[it]}
            raise AssertionError(f"{len(differing)} differ: {dict(list(differing.items())[:5])}") from None
        finally:
            daemon.terminate()
            daemon.wait(30)

    def check(self) -> None:
        """No gap and no repeated line in the audit file."""
        events = self.events()
        assert [int(event["sequence"]) for event in events] == list(range(1, len(events) + 1))
        assert len({event["id"] for event in events}) == len(events)


@pytest.mark.parametrize("versioned", [False, True], ids=["unversioned", "versioned"])
@pytest.mark.parametrize("storm", [SHORT, pytest.param(FULL, marks=pytest.mark.long)], ids=["short", "full"])
def test_killed_cut_and_restarted_the_bucket_comes_out_right(
    tmp_path: Path, minio: LocalMinio, storm: Storm, *, versioned: bool
) -> None:
    bucket = minio.bucket(versioned=versioned)
    chance = random.Random(11)
    with TcpProxy(minio.host) as proxy:
        house = House(tmp_path, proxy.host, bucket)
        with BucketChurn(minio, bucket, 11, versioned=versioned) as churn:
            for number in range(storm.kills):
                live_and_die(house, proxy, storm, chance)
                if number % (storm.kills // storm.restarts) == 1:
                    minio.kill() if chance.random() < 0.5 else minio.stop()
                    minio.start()
            until(lambda: churn.operations >= storm.operations, "the clients did enough", 300)
        proxy.delay = 0.0
        if versioned:
            house.settles(rebuilt_versions, every_version(minio.client(), [bucket]))
            require_each_version_once(house.events())
        else:
            house.settles(rebuilt, current(minio.client(), [bucket]))
        house.check()
    live = sum(not event["data"]["recovered"] for event in house.events())
    sys.stdout.write(f"{churn.operations} operations, {len(house.events())} events, {live} of them live\n")


def live_and_die(house: House, proxy: TcpProxy, storm: Storm, chance: random.Random) -> None:
    lives = house.lives
    daemon = house.daemon()
    until(lambda: house.lives > lives, "the daemon runs", 60)
    end = time.monotonic() + chance.uniform(*storm.life)
    while time.monotonic() < end:
        time.sleep(chance.uniform(*storm.calm))  # the moments of mishaps are the random input
        proxy.misbehave(chance)
    daemon.kill()
    daemon.wait()


@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_killed_at_each_boundary_the_bucket_comes_out_right(tmp_path: Path, minio: LocalMinio, failpoint: str) -> None:
    bucket = minio.bucket()
    house = House(tmp_path, minio.host, bucket)
    with BucketChurn(minio, bucket, 5, versioned=False) as churn:
        house.begin()
        for times in (1, 1) if failpoint in ONCE_A_RUN else (1, 9):
            enough = churn.operations + 50
            until(lambda enough=enough: churn.operations > enough, "the clients changed things while it was down")  # type: ignore[misc]
            daemon = house.daemon({"HEADRACE_FAILPOINT": f"{failpoint}:{times}"})
            assert daemon.wait(60) == -9, f"{failpoint} was never reached {times} times"
    house.settles(rebuilt, current(minio.client(), [bucket]))
    house.check()


@pytest.fixture(autouse=True)
def _show_log(tmp_path: Path) -> Iterator[None]:
    yield
    log = tmp_path / "daemon.log"
    sys.stdout.write(log.read_text()[-4000:] if log.exists() else "")
