"""HTTP under fire: what was answered 202 is in the journal, once, however often the daemon is killed."""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.fixtures.inlet import free_port
from tests.fixtures.killed import Daemon, events_of, until

SETTINGS = """
[sources.hooks]
type = "http"
listen = "127.0.0.1:{port}"
path = "/hooks"

[sinks.audit]
type = "file"
path = "audit.jsonl"
start = "earliest"
"""
KILLS = 50
SENDERS = 8
FAILPOINTS = ["capture.before-append", "journal.before-commit", "journal.after-commit", "http.before-answer"]

pytestmark = pytest.mark.crash


class Senders:
    """Clients that post on their own connections, keep what was answered 202, and repeat what was not answered."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(SENDERS)]
        self.accepted: list[str] = []
        self.repeated = 0

    def __enter__(self) -> Senders:  # noqa: PYI034 -- no subclasses
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        count = 0
        while not self._stop.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
            try:
                connection.connect()
                connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while not self._stop.is_set():
                    self._post(connection, f"{number}-{count}")
                    count += 1
            except (OSError, http.client.HTTPException):
                self.repeated += 1
                self._stop.wait(0.02)
            finally:
                connection.close()

    def _post(self, connection: http.client.HTTPConnection, id_: str) -> None:
        connection.request("POST", "/hooks", b'{"n": 1}', {"Idempotency-Key": id_, "Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        if answer.status != 202:
            raise ConnectionError(answer.status)
        self.accepted.append(id_)


@pytest.fixture
def port(tmp_path: Path) -> int:
    found = free_port()
    (tmp_path / "headrace.toml").write_text(SETTINGS.format(port=found))
    return found


def check(house: Path, senders: Senders) -> None:
    """Let a last daemon finish; compare."""
    accepted = set(senders.accepted)

    def all_there() -> bool:
        return accepted <= {event["id"] for event in events_of(house)}

    with Daemon(house):
        until(all_there, "every request that was answered 202 is in the audit file")
    times = Counter(event["id"] for event in events_of(house))
    assert max(times.values()) == 1
    # A request that was durable and not answered at the very end may be there as well: one for each sender.
    assert len(times) - len(accepted) <= SENDERS


def test_random_kills(tmp_path: Path, port: int) -> None:
    chance = random.Random(7)
    with Senders(port) as senders:
        for _ in range(KILLS):
            with Daemon(tmp_path) as daemon:
                before = len(senders.accepted)
                until(lambda: len(senders.accepted) > before, "requests are taken")  # noqa: B023 -- called at once
                time.sleep(chance.uniform(0, 0.3))
                daemon.kill()
    assert len(senders.accepted) > KILLS
    assert senders.repeated > 0
    check(tmp_path, senders)


@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_kills_at_every_boundary(tmp_path: Path, port: int, failpoint: str) -> None:
    with Senders(port) as senders:
        for times in (1, 2, 30):
            with Daemon(tmp_path, f"{failpoint}:{times}") as daemon:
                until(lambda: daemon.dead, f"killed at {failpoint}")
    check(tmp_path, senders)
