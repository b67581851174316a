"""Asking the daemon, with the standard library alone: a command starts in the time that Python needs.

Answers are JSON, streams are JSON lines. A line that starts with `{"control":` is the server's own word in a stream:
`end`, without which the stream was cut off, or `error`; others are given to the caller.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from headrace.control.socket import connect
from headrace.errors import Fatal, HeadraceError, NotRunning, Permanent, Problem, SettingsError, Transient

WORD: Final = b'{"control":'
KINDS: Final[Mapping[str, type[HeadraceError]]] = {"permanent": Permanent, "transient": Transient, "fatal": Fatal}


class Client:
    """The daemon of one data directory. Every call raises `NotRunning` where none answers, or what the daemon said."""

    def __init__(self, data_dir: Path, hint: str = "") -> None:
        self._data_dir = data_dir
        self._hint = hint

    def get(self, path: str, **query: object) -> Any:
        return json.loads(self._open("GET", path, query).read())

    def post(self, path: str, **body: object) -> Any:
        return json.loads(self._open("POST", path, {}, body).read())

    def lines(self, path: str, **query: object) -> Iterator[bytes]:
        """A stream, line by line as they come; the server waits while nobody asks for the next."""
        response = self._open("GET", path, query)
        try:
            for line in response:
                word = json.loads(line) if line.startswith(WORD) else {}
                if word.get("control") == "end":
                    return
                if word.get("control") == "error":
                    raise error_of(word)
                yield line
        except (OSError, HTTPException) as error:
            raise self._ended() from error
        raise self._ended()

    def _ended(self) -> NotRunning:
        return NotRunning("the daemon ended", hint=self._hint)

    def _open(
        self, method: str, path: str, query: Mapping[str, object], body: Mapping[str, object] | None = None
    ) -> HTTPResponse:
        asked = {key: value for key, value in query.items() if value is not None}
        connection = _Connection(self._data_dir)
        try:
            target = f"{path}?{urlencode(asked, doseq=True)}" if asked else path
            connection.request(method, target, json.dumps(body) if body is not None else None, {"Connection": "close"})
            response = connection.getresponse()
        except PermissionError as error:
            hint = "run this as the daemon's user"
            raise HeadraceError(f"control socket in {self._data_dir}: permission denied", hint=hint) from error
        except (OSError, HTTPException) as error:
            raise NotRunning(f"no daemon runs on {self._data_dir}", hint=self._hint) from error
        if response.status != 200:
            raise error_of(_answer(response))
        return response


def error_of(answer: Mapping[str, Any]) -> HeadraceError:
    """What the daemon answered, as the error that it was there."""
    if answer.get("kind") == "settings":
        return SettingsError([Problem(**problem) for problem in answer["problems"]])
    kind = KINDS.get(answer.get("kind", ""), HeadraceError)
    return kind(str(answer.get("error")), hint=str(answer.get("hint", "")))


def _answer(response: HTTPResponse) -> Mapping[str, Any]:
    try:
        answer: Mapping[str, Any] = json.loads(response.read())
    except ValueError:
        return {"error": f"the daemon answered {response.status} {response.reason}"}
    return answer


class _Connection(HTTPConnection):
    """HTTP over the control socket."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__("headrace")
        self._data_dir = data_dir
        self.sock: socket.socket

    def connect(self) -> None:
        self.sock = connect(self._data_dir)
