"""Messages of Amazon SNS: the signature checked, subscriptions confirmed.

https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message.html
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import ip_address
from typing import Any, Final, TypeAlias

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult

from headrace.errors import Fatal
from headrace.protocols import Logger
from headrace.sources.http.refusal import Refused, busy
from headrace.sources.http.settings import SnsAuth

Fetch: TypeAlias = Callable[[str], Awaitable[bytes]]
"""Get a public HTTPS address. Raises `OSError` where that does not work."""

CERTIFICATES: Final = 16  # kept; AWS uses one for each region at a time
LARGEST: Final = 64 << 10  # bytes of an answer
PATIENCE: Final = 5.0

_HOST: Final = r"https://sns\.[a-z0-9-]+\.amazonaws\.com(?:\.cn)?"
_CERTIFICATE: Final = re.compile(_HOST + r"/SimpleNotificationService-[A-Za-z0-9]+\.pem")
_CONFIRMATION: Final = re.compile(_HOST + r"/\?[A-Za-z0-9%&=:._~+-]+")
_SIGNED: Final[Mapping[str, tuple[str, ...]]] = {
    "Notification": ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"),
    "SubscriptionConfirmation": ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"),
    "UnsubscribeConfirmation": ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"),
}


class Sns:
    """Takes messages of the topics in the settings. Raises `Fatal` where the library for certificates is missing."""

    def __init__(self, settings: SnsAuth, log: Logger, fetch: Fetch | None = None) -> None:
        try:
            import cryptography  # noqa: F401 -- only to say early that it is missing
        except ModuleNotFoundError:
            raise Fatal("signatures of SNS need a library", hint="pip install 'headrace[sns]'") from None
        self._settings = settings
        self._log = log
        self._fetch = fetch or fetch_public
        self._certificates: dict[str, bytes] = {}

    async def notification(self, body: bytes) -> str | None:
        """The `MessageId` of a notification; None for a message that is about the subscription, dealt with here."""
        message = _message(body)
        if message.get("TopicArn") not in self._settings.topics:
            raise Refused(403, "this topic is not taken here")
        await self._check(message)
        if message["Type"] == "Notification":
            return str(message["MessageId"])
        if message["Type"] == "SubscriptionConfirmation":
            await self._confirm(message)
        else:
            self._log.warning("a subscription was ended", topic=message["TopicArn"])
        return None

    async def _check(self, message: Mapping[str, str]) -> None:
        url = message.get("SigningCertURL", "")
        if not _CERTIFICATE.fullmatch(url):
            raise Refused(401, "the certificate's address is not one of AWS")
        certificate = self._certificates.get(url) or await self._get(url)
        if not fits(certificate, message):
            raise Refused(401, "the signature does not fit")
        if len(self._certificates) >= CERTIFICATES:
            self._certificates.clear()
        self._certificates[url] = certificate

    async def _get(self, url: str) -> bytes:
        try:
            return await self._fetch(url)
        except OSError as error:
            raise busy(f"SNS does not answer: {error}", 5) from error

    async def _confirm(self, message: Mapping[str, str]) -> None:
        url = message.get("SubscribeURL", "")
        if not self._settings.confirm:
            self._log.warning("a subscription waits for you: visit the address", topic=message["TopicArn"], url=url)
        elif not _CONFIRMATION.fullmatch(url):
            raise Refused(401, "the confirmation's address is not one of AWS")
        else:
            await self._get(url)
            self._log.info("subscription confirmed", topic=message["TopicArn"])


def _message(body: bytes) -> dict[str, str]:
    try:
        wire = msgspec.json.decode(body, type=dict[str, Any])
    except (ValueError, RecursionError, msgspec.MsgspecError):
        raise Refused(400, "not a message of SNS") from None
    message = {name: value for name, value in wire.items() if isinstance(value, str)}
    signed = _SIGNED.get(message.get("Type", ""))
    if signed is None or any(name not in message for name in signed if name != "Subject"):
        raise Refused(400, "not a message of SNS")
    return message


def fits(certificate: bytes, message: Mapping[str, str]) -> bool:
    """Whether the message was signed by the owner of a certificate (PEM)."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    algorithm = {"1": hashes.SHA1(), "2": hashes.SHA256()}.get(message.get("SignatureVersion", ""))  # noqa: S303 -- AWS's
    try:
        key = x509.load_pem_x509_certificate(certificate).public_key()
        signature = base64.b64decode(message.get("Signature", ""), validate=True)
        if algorithm is None or not isinstance(key, RSAPublicKey):
            return False
        key.verify(signature, signed_text(message), PKCS1v15(), algorithm)
    except (InvalidSignature, ValueError, binascii.Error):
        return False
    return True


def signed_text(message: Mapping[str, str]) -> bytes:
    """What SNS signs: names and values on lines of their own."""
    names = (name for name in _SIGNED[message["Type"]] if name in message)
    return "".join(f"{name}\n{message[name]}\n" for name in names).encode()


class PublicResolver(AbstractResolver):
    """Resolves a name once, and only to public addresses: the connection then goes to an address that was checked."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
        results = []
        for kind, _, proto, _, address in found:
            if not ip_address(address[0]).is_global:
                raise OSError(f"{host} leads to an address that is not public")
            result = ResolveResult(
                hostname=host, host=str(address[0]), port=port, family=kind, proto=proto, flags=socket.AI_NUMERICHOST
            )
            results.append(result)
        return results

    async def close(self) -> None: ...


async def fetch_public(url: str) -> bytes:
    """GET over HTTPS, no redirects, public addresses only. Raises `OSError`."""
    connector = TCPConnector(resolver=PublicResolver(), use_dns_cache=False)
    timeout = ClientTimeout(total=PATIENCE)
    try:
        async with (
            ClientSession(connector=connector, timeout=timeout, trust_env=False) as session,
            session.get(url, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise OSError(f"it answers {answer.status}")
            return await answer.content.read(LARGEST)
    except (ClientError, TimeoutError) as error:
        raise OSError(str(getattr(error, "os_error", error)) or type(error).__name__) from error
