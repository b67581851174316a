"""Proofs of where a request comes from, by a shared secret. All comparisons take the same time."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from typing import Final, Protocol

from headrace.protocols import Clock
from headrace.settings import Secret
from headrace.sources.http.refusal import Refused
from headrace.sources.http.settings import Auth, BasicAuth, HmacAuth, listed, webhook_key

_DIGITS: Final = re.compile(r"\d{1,12}", re.ASCII)


class Proof(Protocol):
    """`early` looks at the head alone, so that a stranger's body is not even read. Both raise `Refused`."""

    def early(self, headers: Mapping[str, str]) -> None: ...
    def check(self, headers: Mapping[str, str], body: bytes) -> None: ...


def proof(auth: Auth | None, clock: Clock) -> Proof:
    """The proof that the settings ask for; SNS signs with a certificate and is checked elsewhere."""
    match auth:
        case Auth(bearer=tokens) if tokens is not None:
            found: Proof = Bearer(listed(tokens))
        case Auth(basic=BasicAuth() as basic):
            found = Basic(basic)
        case Auth(standard_webhooks=secrets) if secrets is not None:
            found = StandardWebhooks(listed(secrets), auth.tolerance, clock)
        case Auth(stripe=secrets) if secrets is not None:
            found = Stripe(listed(secrets), auth.tolerance, clock)
        case Auth(github=secrets) if secrets is not None:
            found = Hmac(HmacAuth(secret=secrets, header="X-Hub-Signature-256", prefix="sha256="))
        case Auth(hmac=HmacAuth() as settings):
            found = Hmac(settings)
        case _:
            found = Anyone()
    return found


class Anyone:
    """No proof is asked for."""

    def early(self, headers: Mapping[str, str]) -> None: ...
    def check(self, headers: Mapping[str, str], body: bytes) -> None: ...


class Bearer:
    """A token (RFC 6750)."""

    def __init__(self, tokens: Iterable[Secret]) -> None:
        self._tokens = [_key(token) for token in tokens]

    def early(self, headers: Mapping[str, str]) -> None:
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        given = _bytes(token.strip())
        if scheme.lower() != "bearer" or not _any_equal(given, self._tokens):
            raise Refused(401, "a valid bearer token is needed", {"WWW-Authenticate": "Bearer"})

    def check(self, headers: Mapping[str, str], body: bytes) -> None: ...


class Basic:
    """User and password (RFC 7617)."""

    def __init__(self, settings: BasicAuth) -> None:
        self._pair = _bytes(settings.user) + b":" + _key(settings.password)

    def early(self, headers: Mapping[str, str]) -> None:
        scheme, _, encoded = headers.get("Authorization", "").partition(" ")
        given = _unbase64(encoded.strip()) if scheme.lower() == "basic" else b""
        if not hmac.compare_digest(given, self._pair):
            raise Refused(401, "user and password are needed", {"WWW-Authenticate": 'Basic realm="headrace"'})

    def check(self, headers: Mapping[str, str], body: bytes) -> None: ...


class Hmac:
    """An HMAC of the body in one header, as GitHub sends it."""

    def __init__(self, settings: HmacAuth) -> None:
        self._keys = [_key(secret) for secret in listed(settings.secret)]
        self._settings = settings

    def early(self, headers: Mapping[str, str]) -> None:
        if self._settings.header not in headers:
            raise Refused(401, f"the header {self._settings.header} is missing")

    def check(self, headers: Mapping[str, str], body: bytes) -> None:
        given = _bytes(headers[self._settings.header].strip())
        if not _any_equal(given, [self._expected(key, body) for key in self._keys]):
            raise Refused(401, "the signature does not fit")

    def _expected(self, key: bytes, body: bytes) -> bytes:
        digest = hmac.digest(key, body, self._settings.algorithm)
        encoded = digest.hex().encode() if self._settings.encoding == "hex" else base64.b64encode(digest)
        return _bytes(self._settings.prefix) + encoded


class Stripe:
    """`Stripe-Signature: t=SECONDS,v1=HEX,…`: an HMAC over the timestamp, a dot and the body."""

    def __init__(self, secrets: Iterable[Secret], tolerance: float, clock: Clock) -> None:
        self._keys = [_key(secret) for secret in secrets]
        self._tolerance = tolerance
        self._clock = clock

    def early(self, headers: Mapping[str, str]) -> None:
        _check_time(self._parts(headers)[0], self._tolerance, self._clock)

    def check(self, headers: Mapping[str, str], body: bytes) -> None:
        time, given = self._parts(headers)
        expected = [hmac.new(key, _bytes(time) + b"." + body, hashlib.sha256).hexdigest() for key in self._keys]
        if not any(_any_equal(_bytes(each), map(_bytes, expected)) for each in given):
            raise Refused(401, "the signature does not fit")

    def _parts(self, headers: Mapping[str, str]) -> tuple[str, list[str]]:
        pairs = [part.strip().partition("=") for part in headers.get("Stripe-Signature", "").split(",")]
        time = next((value for key, _, value in pairs if key == "t"), "")
        return time, [value for key, _, value in pairs if key == "v1"]


class StandardWebhooks:
    """https://www.standardwebhooks.com: `v1,BASE64` of an HMAC over id, timestamp and body; several while rotating."""

    def __init__(self, secrets: Iterable[Secret], tolerance: float, clock: Clock) -> None:
        self._keys = [webhook_key(secret) for secret in secrets]
        self._tolerance = tolerance
        self._clock = clock

    def early(self, headers: Mapping[str, str]) -> None:
        missing = [name for name in ("webhook-id", "webhook-timestamp", "webhook-signature") if not headers.get(name)]
        if missing:
            raise Refused(401, f"the header {missing[0]} is missing")
        _check_time(headers["webhook-timestamp"], self._tolerance, self._clock)

    def check(self, headers: Mapping[str, str], body: bytes) -> None:
        signed = _bytes(f"{headers['webhook-id']}.{headers['webhook-timestamp']}.") + body
        expected = [b"v1," + base64.b64encode(hmac.digest(key, signed, "sha256")) for key in self._keys]
        if not any(_any_equal(_bytes(each), expected) for each in headers["webhook-signature"].split()):
            raise Refused(401, "the signature does not fit")


def _check_time(text: str, tolerance: float, clock: Clock) -> None:
    if not _DIGITS.fullmatch(text) or abs(clock.time() - int(text)) > tolerance:
        raise Refused(401, "the timestamp is missing, too old or in the future")


def _any_equal(given: bytes, expected: Iterable[bytes]) -> bool:
    return any([hmac.compare_digest(given, each) for each in expected])  # noqa: C419 -- all of them, in the same time


def _key(secret: Secret) -> bytes:
    return _bytes(secret.get_secret_value())


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
