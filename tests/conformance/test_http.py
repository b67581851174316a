"""The HTTP source keeps what every source must. Its origin is a sender that repeats what was not answered 202."""

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue

from headrace.settings import SourceSettings
from headrace.sources.http import HttpSource
from headrace.testing import SourceConformance
from tests.fixtures.inlet import free_port


class Sender:
    """Posts in the order of the calls, each until it is answered 202, as the senders of webhooks do."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._queue: Queue[str | None] = Queue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def send(self, path: str, id_: str) -> None:
        self._queue.put(f"{path} {id_}")

    def close(self) -> None:
        self._closed.set()
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (what := self._queue.get()) is not None:
            while not self._closed.is_set() and not self._taken(*what.split(" ")):
                self._closed.wait(0.02)

    def _taken(self, path: str, id_: str) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=2)
        try:
            connection.request("POST", path, b"{}", {"Idempotency-Key": id_, "Content-Type": "application/json"})
            return connection.getresponse().status == 202
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


class TestHttpSource(SourceConformance):
    """A change is a request with an id of its own."""

    def setup_method(self) -> None:
        self._port = free_port()
        self._sender = Sender(self._port)
        self._again = 0

    def teardown_method(self) -> None:
        self._sender.close()

    def settings(self, tmp_path: Path) -> SourceSettings:
        listen = f"127.0.0.1:{self._port}"
        return HttpSource.model_validate({"type": "http", "listen": listen, "path": "/*", "accept": "500ms"})

    def change(self, tmp_path: Path, number: int) -> str:
        self._sender.send(f"/{number}", f"{tmp_path.name}-{number}")
        return f"/{number}"

    def change_again(self, tmp_path: Path, number: int) -> None:
        self._again += 1
        self._sender.send(f"/{number}", f"{tmp_path.name}-{number}-again-{self._again}")

    @contextmanager
    def outage(self, tmp_path: Path) -> Iterator[None]:
        """Another program has the address."""
        with socket.create_server(("127.0.0.1", self._port)):
            yield
