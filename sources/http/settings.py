"""The `[sources.NAME]` table of `type = "http"`."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from headrace.protocols import Context, Source
from headrace.settings import Address, Duration, Secret, Settings, Size, SourceSettings, mistake

_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_TOPIC: Final = re.compile(r"arn:aws[a-z-]*:sns:[a-z0-9-]+:\d{12}:[A-Za-z0-9_.-]+")


def _path(text: str) -> str:
    if not text.startswith("/") or re.search(r"[?#\s]|\*.", text) or ("*" in text and not text.endswith("/*")):
        raise ValueError('must start with "/"; "/hooks/*" takes everything below /hooks')
    return text


def _header(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise ValueError("is no name of a header")
    return text


def _method(text: str) -> str:
    if not _TOKEN.fullmatch(text) or text != text.upper():
        raise ValueError('must be a method such as "POST"')
    if text == "OPTIONS":
        raise ValueError("OPTIONS is answered by Headrace: it is the handshake of CloudEvents")
    return text


def _webhook_secret(secret: Secret) -> Secret:
    """Standard Webhooks: `whsec_` and at least 24 bytes in base64."""
    try:
        key = webhook_key(secret)
    except (binascii.Error, ValueError):
        raise ValueError('must be "whsec_" followed by base64') from None
    if len(key) < 24:
        raise ValueError("is too short: Standard Webhooks asks for at least 24 bytes")
    return secret


def _topic(text: str) -> str:
    if not _TOPIC.fullmatch(text):
        raise ValueError('must be the ARN of a topic, such as "arn:aws:sns:eu-west-1:123456789012:uploads"')
    return text


def webhook_key(secret: Secret) -> bytes:
    """The bytes of a Standard Webhooks secret."""
    return base64.b64decode(secret.get_secret_value().removeprefix("whsec_"), validate=True)


Header = Annotated[str, AfterValidator(_header)]
Filled = Annotated[Secret, Field(min_length=1)]
Secrets = Filled | Annotated[tuple[Filled, ...], Field(min_length=1)]
"""One secret, or several while one replaces another: any of them is taken."""
WebhookSecret = Annotated[Filled, AfterValidator(_webhook_secret)]


def listed(secrets: Secrets) -> tuple[Secret, ...]:
    """One secret or several, as several."""
    return secrets if isinstance(secrets, tuple) else (secrets,)


class HmacAuth(Settings):
    """An HMAC of the body in a header: `prefix` and the digest in `encoding`."""

    secret: Secrets
    header: Header
    algorithm: Literal["sha256", "sha512", "sha1"] = "sha256"
    encoding: Literal["hex", "base64"] = "hex"
    prefix: str = ""


class BasicAuth(Settings):
    """User and password (RFC 7617)."""

    user: str
    password: Filled


class SnsAuth(Settings):
    """Messages of Amazon SNS, signed, from these topics only: anyone may have a topic of his own.

    `confirm`: a subscription's confirmation is answered by visiting its address.
    """

    topics: tuple[Annotated[str, AfterValidator(_topic)], ...] = Field(min_length=1)
    confirm: bool = True


class Auth(Settings):
    """How a request proves where it comes from: one of these. `tolerance`: how old a signed timestamp may be."""

    standard_webhooks: WebhookSecret | Annotated[tuple[WebhookSecret, ...], Field(min_length=1)] | None = None
    github: Secrets | None = None
    stripe: Secrets | None = None
    hmac: HmacAuth | None = None
    sns: SnsAuth | None = None
    bearer: Secrets | None = None
    basic: BasicAuth | None = None
    tolerance: Duration = Field(300.0, ge=1)

    @property
    def kind(self) -> str:
        """The key that is given."""
        return next(key for key in _KINDS if getattr(self, key) is not None)

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [key for key in _KINDS if getattr(self, key) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise mistake(given[-1] if given else _KINDS[0], f"give one of {', '.join(_KINDS)}, not {found}")
        return self


_KINDS: Final = tuple(key for key in Auth.model_fields if key != "tolerance")


class Tls(Settings):
    """PEM files: the certificate with its chain, and its private key."""

    cert: Path
    key: Path


class Window(Settings):
    """How long, and for how many ids at most, a repeated id is known. At least `max` ids, or all of `time`."""

    time: Duration = Field(86_400.0, ge=1)
    max: int = Field(500_000, ge=1_000, le=50_000_000)


class HttpSource(SourceSettings):
    """An address that takes requests. Several sources may share one `listen`, and differ by `path`.

    A request is answered 202 once its events are durable. CloudEvents are kept as they are; any other request becomes a
    `headrace.http.request`. A repeated id (of a CloudEvent, its `source` and `id`; else the text of `id_header`, for
    which `auth` has a default) is captured once within `window`. `path = "/hooks/*"` takes everything below. `timeout`
    is for reading a request, `idle` for a connection between two, `accept` for the journal to take the events.
    `max_connections`, `idle` and `tls` belong to `listen`, and are the same in all its sources.
    """

    type: Literal["http"]
    listen: Address
    path: Annotated[str, AfterValidator(_path)] = "/"
    methods: tuple[Annotated[str, AfterValidator(_method)], ...] = Field(("POST",), min_length=1)
    auth: Auth | None = None
    tls: Tls | None = None
    max_body: Size = Field(1 << 20, ge=1, le=256 << 20)
    rate: float | None = Field(None, gt=0)
    burst: int | None = Field(None, ge=1)
    id_header: Header | None = None
    window: Window = Window()
    timeout: Duration = Field(10.0, gt=0)
    accept: Duration = Field(5.0, gt=0)
    idle: Duration = Field(30.0, gt=0)
    max_connections: int = Field(1_000, ge=1)
    origins: tuple[str, ...] = ("*",)

    @model_validator(mode="after")
    def _burst_of_rate(self) -> Self:
        if self.burst is not None and self.rate is None:
            raise mistake("burst", 'goes with "rate" only')
        return self

    def problems(self, directory: Path) -> Mapping[str, str]:
        files = {"tls.cert": self.tls.cert, "tls.key": self.tls.key} if self.tls else {}
        return {
            key: f"{directory / path} does not exist" for key, path in files.items() if not (directory / path).is_file()
        }

    def conflicts(self, earlier: Mapping[str, SourceSettings]) -> Mapping[str, str]:
        """Sources that share `listen` differ by `path`, and agree in what belongs to the address."""
        found: dict[str, str] = {}
        for name, other in earlier.items():
            if isinstance(other, HttpSource) and other.listen == self.listen:
                if other.path == self.path:
                    found["path"] = f'"{name}" has this path at the same address'
                for key in ("tls", "idle", "max_connections"):
                    if getattr(other, key) != getattr(self, key):
                        found[key] = f'must be the same as in "{name}", which shares the address'
        return found

    def open(self, context: Context) -> AbstractAsyncContextManager[Source]:
        return _opened(self, context)


@asynccontextmanager
async def _opened(settings: HttpSource, context: Context) -> AsyncIterator[Source]:
    from headrace.sources.http.source import Http  # aiohttp is loaded only where it is used

    yield Http(settings, context)
