"""The webhook sink keeps what every sink must, in each of its modes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import msgspec
import pytest
from aiohttp import web

from headrace.event import Event
from headrace.settings import SinkSettings
from headrace.sinks.webhook import WebhookSink
from headrace.testing import SinkConformance
from tests.adapters.webhook_fixture import Request, accept, receiver


class TestStructured(SinkConformance):
    """One request per event, one after the other."""

    options: ClassVar[dict[str, Any]] = {"mode": "structured", "ordering": "strict"}

    @pytest.fixture(autouse=True)
    def _receiving(self) -> Iterator[None]:
        with receiver() as self.receiver:
            yield

    def settings(self, tmp_path: Path) -> SinkSettings:
        return WebhookSink.model_validate({"url": self.receiver.url, "timeout": "5s", **self.options})

    def lines(self, request: Request) -> list[bytes]:
        return [request.body]

    def delivered(self, tmp_path: Path) -> list[bytes]:
        return [line for request in self.receiver.requests for line in self.lines(request)]

    @contextmanager
    def outage(self, tmp_path: Path) -> Iterator[None]:
        before, requests = self.receiver.answer, self.receiver.requests
        self.receiver.requests = []
        self.receiver.answer = lambda _: web.Response(status=503)
        try:
            yield
        finally:
            self.receiver.answer, self.receiver.requests = before, requests

    def test_answers_are_taken(self) -> None:
        assert self.receiver.answer is accept


class TestBinary(TestStructured):
    """Attributes in headers: the event is put together again from them."""

    options: ClassVar[dict[str, Any]] = {"ordering": "strict"}

    def lines(self, request: Request) -> list[bytes]:
        prefix = "ce-"
        attributes: dict[str, Any] = {
            name.lower().removeprefix(prefix): unquote(value, errors="strict")
            for name, value in request.headers.items()
            if name.lower().startswith(prefix)
        }
        assert attributes.pop("specversion") == "1.0"
        return [Event(data=json.loads(request.body), **attributes).line()]


class TestBatch(TestStructured):
    """A whole batch as one request."""

    options: ClassVar[dict[str, Any]] = {"mode": "batch"}

    def lines(self, request: Request) -> list[bytes]:
        return [bytes(raw) for raw in msgspec.json.decode(request.body, type=list[msgspec.Raw])]
