"""The `[sinks.NAME]` table with `type = "webhook"`."""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator
from yarl import URL

from headrace.errors import Fatal
from headrace.protocols import Context, Sink
from headrace.settings import Secret, SinkSettings, mistake
from headrace.sinks.webhook.signature import parse_secret
from headrace.sinks.webhook.template import Template

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OURS: Final = frozenset({"content-length", "transfer-encoding", "connection", "host", "content-type", "expect"})
_OUR_PREFIXES: Final = ("ce-", "webhook-")


def _url(secret: Secret) -> Secret:
    """An http(s) address; the message quotes nothing of it, as it may hold a token."""
    try:
        url = URL(secret.get_secret_value())
        valid = url.scheme in {"http", "https"} and bool(url.host) and url.port is not None
    except ValueError:
        valid = False
        url = URL()
    if not valid:
        raise ValueError("must be an address that starts with http:// or https://")
    if url.user or url.password:
        raise ValueError("must not hold a user and password: write them into headers, as Authorization")
    return secret


def _signing(secret: Secret) -> Secret:
    parse_secret(secret.get_secret_value())
    return secret


class WebhookSink(SinkSettings):
    """`type = "webhook"`: each event, or each batch of them, is one HTTP request to `url`.

    `mode` says how an event is written (CloudEvents over HTTP); `body` replaces that for targets that speak no
    CloudEvents. `secrets` sign by Standard Webhooks, with every secret that is listed. `connections` bounds the
    requests at once to a host. `url_from` names the field of the event that holds the address, instead of `url`.
    """

    own_timeout: ClassVar[bool] = True

    type: Literal["webhook"] = "webhook"
    url: Annotated[Secret, AfterValidator(_url)] | None = None
    url_from: str | None = None
    method: Literal["POST", "PUT", "PATCH"] = "POST"
    mode: Literal["binary", "structured", "batch"] = "binary"
    body: str | dict[str, Any] | None = None
    content_type: str | None = None
    headers: dict[str, Secret] = Field(default_factory=dict)
    secrets: tuple[Annotated[Secret, AfterValidator(_signing)], ...] = ()
    handshake: str | None = Field(None, min_length=1)
    ca: Path | None = None
    connections: int = Field(16, ge=1, le=1_000)
    concurrency: int = Field(16, ge=1, le=1_000)

    @field_validator("headers")
    @classmethod
    def _sendable(cls, headers: dict[str, Secret]) -> dict[str, Secret]:
        for name, value in headers.items():
            if not _TOKEN.fullmatch(name):
                raise ValueError(f'"{name}" is no name of a header')
            if name.lower() in _OURS or name.lower().startswith(_OUR_PREFIXES):
                raise ValueError(f'"{name}" is written by Headrace itself')
            if not all(" " <= char != "\x7f" or char == "\t" for char in value.get_secret_value()):
                raise ValueError(f'the value of "{name}" has a control character')
        return headers

    @field_validator("body")
    @classmethod
    def _fillable(cls, body: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        if body is not None:
            Template(body)
        return body

    @field_validator("content_type", "handshake")
    @classmethod
    def _printable(cls, text: str | None) -> str | None:
        if text is not None and not (text.isascii() and text.isprintable()):
            raise ValueError("must be printable ASCII")
        return text

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.url is None) == (self.url_from is None):
            raise mistake("url", "needed, or url_from instead" if self.url is None else "stands beside url_from")
        if self.body is not None and self.mode == "batch":
            raise mistake("body", "makes one body of one event, and mode is batch")
        if self.content_type is not None and self.body is None:
            raise mistake("content_type", "belongs to body, which is not there")
        return self

    @model_validator(mode="after")
    def _not_led_astray(self) -> Self:
        """Where an event says where to, nothing secret goes along."""
        if self.url_from is not None:
            for key in ("headers", "handshake"):
                if getattr(self, key):
                    raise mistake(key, "would go to whatever address an event names; url_from does without")
            if self.mode == "batch":
                raise mistake("mode", "a batch has one address, and url_from one for each event")
        return self

    def problems(self, directory: Path) -> Mapping[str, str]:
        try:
            self.tls(directory)
        except Fatal as error:
            return {"ca": str(error)}
        return {}

    def tls(self, directory: Path) -> ssl.SSLContext:
        """Certificates are always verified, against the system's authorities and those in `ca`. Raises `Fatal`."""
        context = ssl.create_default_context()
        if self.ca is not None:
            try:
                context.load_verify_locations(directory / self.ca)
            except (OSError, ssl.SSLError) as error:
                reason = "it holds no certificate" if isinstance(error, ssl.SSLError) else error.strerror
                raise Fatal(f"cannot read {self.ca}: {reason}", hint="a PEM file of certificates") from error
        return context

    def open(self, context: Context) -> AbstractAsyncContextManager[Sink]:
        return self._open(context)

    @asynccontextmanager
    async def _open(self, context: Context) -> AsyncIterator[Sink]:
        from headrace.sinks.webhook.target import open_target  # aiohttp, only where it is used

        async with open_target(self, context) as target:
            yield target
