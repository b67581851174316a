"""Proofs of where a request comes from: the right one is taken, every other is 401 and leaves no event."""

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from pydantic import ValidationError

from headrace.errors import Fatal
from headrace.sources.http import HttpSource
from headrace.sources.http.sns import PublicResolver, fetch_public, signed_text
from headrace.testing import FakeClock
from tests.fixtures.inlet import Inlet

BODY = b'{"test": 2432232314}'
WHSEC = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLw0Sxx/8Kq9r"
OTHER = "whsec_" + base64.b64encode(b"another secret of enough length").decode()
NOW = 1_614_265_330
TOPIC = "arn:aws:sns:eu-west-1:123456789012:uploads"


def standard(secret: str = WHSEC, *, id_: str = "msg_1", at: int = NOW, body: bytes = BODY) -> dict[str, str]:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, f"{id_}.{at}.".encode() + body, "sha256")
    signature = "v1," + base64.b64encode(digest).decode()
    return {"webhook-id": id_, "webhook-timestamp": str(at), "webhook-signature": signature}


def stripe(secret: str = "whsec_stripe", *, at: int = NOW, body: bytes = BODY) -> dict[str, str]:
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return {"Stripe-Signature": f"t={at},v1={digest},v0=ffff"}


def github(secret: str, body: bytes = BODY) -> dict[str, str]:
    return {"X-Hub-Signature-256": "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}


def basic(pair: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


CUSTOM = {"secret": "shh", "header": "X-Sig", "algorithm": "sha512", "encoding": "base64"}
CUSTOM_SIGNATURE = {"X-Sig": base64.b64encode(hmac.digest(b"shh", BODY, "sha512")).decode()}

CASES: list[tuple[dict[str, Any], list[dict[str, str]], list[dict[str, str]]]] = [
    (
        {"standard_webhooks": [OTHER, WHSEC]},
        [
            standard(),
            standard(OTHER, id_="msg_2"),
            standard(id_="msg_3", at=NOW - 299),
            {**standard(id_="msg_4"), "webhook-signature": "v1a,xx " + standard(id_="msg_4")["webhook-signature"]},
        ],
        [
            {},
            {**standard(), "webhook-signature": "v1,AAAA"},
            {**standard(), "webhook-id": "msg_9"},
            standard("whsec_" + base64.b64encode(b"x" * 24).decode()),
            standard(at=NOW - 301),
            standard(at=NOW + 301),
            {**standard(), "webhook-timestamp": "-1"},
            {**standard(), "webhook-timestamp": "\uff19\uff19"},
            {**standard(), "webhook-timestamp": "9" * 400},
            {**standard(), "webhook-signature": "\xff\xfe"},
            standard(body=b"another body"),
        ],
    ),
    ({"github": "It's a Secret"}, [github("It's a Secret")], [{}, github("other"), {"X-Hub-Signature-256": "sha256="}]),
    (
        {"stripe": "whsec_stripe"},
        [stripe()],
        [
            {},
            stripe("no"),
            stripe(at=NOW - 301),
            {"Stripe-Signature": "t=,v1="},
            {"Stripe-Signature": f"t={NOW}"},
            {"Stripe-Signature": "é" * 50},
        ],
    ),
    ({"hmac": CUSTOM}, [CUSTOM_SIGNATURE], [{}, {"X-Sig": "AAAA"}, {"X-Sig": ""}]),
    (
        {"bearer": ["one", "two"]},
        [{"Authorization": "Bearer one"}, {"Authorization": "bearer two"}],
        [{}, {"Authorization": "Bearer three"}, {"Authorization": "Basic one"}, {"Authorization": "Bearer "}],
    ),
    (
        {"basic": {"user": "me", "password": "pass:word"}},
        [basic("me:pass:word")],
        [{}, basic("me:no"), basic(""), {"Authorization": "Basic %%%"}, {"Authorization": "Basic"}],
    ),
]


@pytest.mark.parametrize(("auth", "right", "wrong"), CASES, ids=[next(iter(auth)) for auth, _, _ in CASES])
def test_proofs(tmp_path: Path, auth: dict[str, Any], right: list[dict[str, str]], wrong: list[dict[str, str]]) -> None:
    async def run() -> None:
        inlet = Inlet(tmp_path, auth=auth)
        inlet.clock = FakeClock(NOW)
        async with inlet.running():
            for headers in wrong:
                status, words, _ = await inlet.request("POST", BODY, headers=headers)
                assert (status, bool(words)) == (401, True), headers
            assert inlet.events == []
            for headers in right:
                assert await inlet.post(BODY, headers) == 202, headers
        assert len(inlet.events) == len(right)

    asyncio.run(run())


def test_published_vectors(tmp_path: Path) -> None:
    """The examples of GitHub's documentation."""

    async def run() -> None:
        inlet = Inlet(tmp_path, auth={"github": "It's a Secret to Everybody"})
        signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
        async with inlet.running():
            headers = {"X-Hub-Signature-256": signature, "Content-Type": "text/plain"}
            assert await inlet.post(b"Hello, World!", headers) == 202
            assert await inlet.post(b"Hello, World?", headers) == 401

    asyncio.run(run())


def test_the_signed_id_is_captured_once(tmp_path: Path) -> None:
    async def run() -> list[str]:
        inlet = Inlet(tmp_path, auth={"standard_webhooks": WHSEC})
        inlet.clock = FakeClock(NOW)
        async with inlet.running():
            for _ in range(3):
                assert await inlet.post(BODY, standard()) == 202
        inlet.options["auth"] = {"stripe": "whsec_stripe"}
        body = b'{"id": "evt_1", "type": "charge.succeeded"}'
        async with inlet.running():
            for _ in range(2):
                assert await inlet.post(body, stripe(body=body)) == 202
        inlet.options["auth"] = {"github": "s"}
        async with inlet.running():
            for _ in range(2):
                assert await inlet.post(BODY, github("s") | {"X-GitHub-Delivery": "72d3162e"}) == 202
        return [event.id for event in inlet.events]

    assert asyncio.run(run()) == ["msg_1", "evt_1", "72d3162e"]


def test_a_stranger_is_refused_before_its_body_is_read(tmp_path: Path) -> None:
    async def run() -> None:
        inlet = Inlet(tmp_path, auth={"bearer": "one"})
        async with inlet.running():
            head = b"POST /hooks HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
            assert (await inlet.raw(head)).startswith(b"HTTP/1.1 401")

    asyncio.run(run())


# SNS.


def certificate(key: RSAPrivateKey, name: str = "sns.amazonaws.com") -> bytes:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    built = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    built = built.serial_number(1).not_valid_before(datetime.now(UTC) - timedelta(days=1))
    built = built.not_valid_after(datetime.now(UTC) + timedelta(days=1))
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    signed = built.add_extension(alternative, critical=False).sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


class Amazon:
    """Signs as SNS does, and serves certificate and confirmation."""

    url = "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-0123abcd.pem"

    def __init__(self) -> None:
        self.key = generate_private_key(65_537, 2_048)
        self.fetched: list[str] = []
        self.away = False

    async def fetch(self, url: str) -> bytes:
        if self.away:
            raise OSError("no route to host")
        self.fetched.append(url)
        return certificate(self.key) if url.endswith(".pem") else b"<ok/>"

    def message(self, version: str = "2", **fields: str) -> dict[str, str]:
        message = {
            "Type": "Notification",
            "MessageId": "m-1",
            "TopicArn": TOPIC,
            "Message": "hello",
            "Timestamp": "2026-01-31T06:00:00.000Z",
            "SignatureVersion": version,
            "SigningCertURL": self.url,
            **fields,
        }
        algorithm = hashes.SHA256() if version == "2" else hashes.SHA1()
        signature = self.key.sign(signed_text(message), PKCS1v15(), algorithm)
        return {**message, "Signature": base64.b64encode(signature).decode()}


def sns(tmp_path: Path, talk: Callable[[Inlet, Amazon], Any], **options: Any) -> tuple[Inlet, Amazon]:
    amazon = Amazon()
    inlet = Inlet(tmp_path, auth={"sns": {"topics": [TOPIC], **options}}, fetch=amazon.fetch)

    async def run() -> None:
        async with inlet.running():
            await talk(inlet, amazon)

    asyncio.run(run())
    return inlet, amazon


async def tell(inlet: Inlet, message: Any) -> int:
    return await inlet.post(json.dumps(message), {"Content-Type": "text/plain; charset=UTF-8"})


def test_sns_notifications(tmp_path: Path) -> None:
    async def talk(inlet: Inlet, amazon: Amazon) -> None:
        first = amazon.message(Subject="Hi")
        assert await tell(inlet, first) == 202
        assert await tell(inlet, first) == 202
        assert await tell(inlet, amazon.message("1", MessageId="m-2")) == 202
        assert amazon.fetched == [Amazon.url]

    inlet, _ = sns(tmp_path, talk)
    assert [event.id for event in inlet.events] == ["m-1", "m-2"]
    assert inlet.events[0].data["body"]["Subject"] == "Hi"


def test_sns_forgeries(tmp_path: Path) -> None:
    async def talk(inlet: Inlet, amazon: Amazon) -> None:
        good = amazon.message()
        assert await tell(inlet, {**good, "Message": "changed"}) == 401
        assert await tell(inlet, {**good, "Signature": "AAAA"}) == 401
        assert await tell(inlet, {**good, "SignatureVersion": "3"}) == 401
        assert await tell(inlet, Amazon().message()) == 401
        for url in (
            "http://sns.eu-west-1.amazonaws.com/SimpleNotificationService-1.pem",
            "https://sns.eu-west-1.amazonaws.com.evil.example/SimpleNotificationService-1.pem",
            "https://evil.example/sns.eu-west-1.amazonaws.com/SimpleNotificationService-1.pem",
            "https://bucket.s3.amazonaws.com/SimpleNotificationService-1.pem",
            "https://sns.eu-west-1.amazonaws.com@evil.example/SimpleNotificationService-1.pem",
            "https://169.254.169.254/SimpleNotificationService-1.pem",
        ):
            assert await tell(inlet, {**good, "SigningCertURL": url}) == 401
        assert await tell(inlet, amazon.message(TopicArn=TOPIC + "2")) == 403
        nonsense: list[Any] = ["x", [], {}, {"Type": "Notification"}, {"Type": "Other", "TopicArn": TOPIC}]
        for message in nonsense:
            assert await tell(inlet, message) == 400
        assert set(amazon.fetched) <= {Amazon.url}

    inlet, _ = sns(tmp_path, talk)
    assert inlet.events == []


def test_sns_subscriptions(tmp_path: Path) -> None:
    visit = "https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription&TopicArn=x&Token=abc"

    async def talk(inlet: Inlet, amazon: Amazon) -> None:
        asked = {"Type": "SubscriptionConfirmation", "Token": "abc"}
        assert await tell(inlet, amazon.message(**asked, SubscribeURL=visit)) == 202
        assert await tell(inlet, amazon.message(**asked, SubscribeURL="https://10.0.0.1/?x=1")) == 401
        ended = {**asked, "Type": "UnsubscribeConfirmation"}
        assert await tell(inlet, amazon.message(**ended, SubscribeURL=visit)) == 202

    inlet, amazon = sns(tmp_path, talk)
    assert (inlet.events, amazon.fetched) == ([], [Amazon.url, visit])


def test_sns_away_is_503(tmp_path: Path) -> None:
    async def talk(inlet: Inlet, amazon: Amazon) -> None:
        amazon.away = True
        assert await tell(inlet, amazon.message()) == 503
        amazon.away = False
        assert await tell(inlet, amazon.message()) == 202

    sns(tmp_path, talk)


def test_addresses_from_messages_lead_to_public_places_only() -> None:
    async def run() -> None:
        with pytest.raises(OSError, match="not public"):
            await PublicResolver().resolve("localhost", 443)
        with pytest.raises(OSError, match="not public"):
            await fetch_public("https://localhost:1/")

    asyncio.run(run())


# TLS.


def write_pair(folder: Path) -> ssl.SSLContext:
    """A new key and its certificate; returns who trusts it."""
    key = generate_private_key(65_537, 2_048)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*form))
    (folder / "cert.pem").write_bytes(certificate(key, "127.0.0.1"))
    return ssl.create_default_context(cafile=folder / "cert.pem")


def test_tls(tmp_path: Path) -> None:
    trust = write_pair(tmp_path)

    async def run() -> None:
        inlet = Inlet(tmp_path, tls={"cert": "cert.pem", "key": "key.pem"})
        async with inlet.running():
            assert (await inlet.request("POST", b"{}", scheme="https", ssl=trust))[0] == 202
            with pytest.raises(aiohttp.ClientError):
                await inlet.request("POST", b"{}")
        inlet.options["tls"] = {"cert": "cert.pem", "key": "cert.pem"}
        with pytest.raises(Fatal, match=r"cert\.pem"):
            async with inlet.running():
                pass

    asyncio.run(run())


def test_a_renewed_certificate_is_read(tmp_path: Path) -> None:
    old = write_pair(tmp_path)

    async def run() -> None:
        inlet = Inlet(tmp_path, tls={"cert": "cert.pem", "key": "key.pem"})
        async with inlet.running():
            whole = (tmp_path / "cert.pem").read_bytes()
            (tmp_path / "cert.pem").write_bytes(whole[:100])
            for _ in range(2):
                assert (await inlet.request("POST", b"{}", scheme="https", ssl=old))[0] == 202
            new = write_pair(tmp_path)
            assert (await inlet.request("POST", b"{}", scheme="https", ssl=old))[0] == 202
            assert (await inlet.request("POST", b"{}", scheme="https", ssl=new))[0] == 202
        assert [event for level, event, _ in inlet.log.records if level == "info"][-1] == "certificate renewed"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"auth": {}}, "give one of standard_webhooks, github"),
        ({"auth": {"bearer": "a", "github": "b"}}, "not github and bearer"),
        ({"auth": {"bearer": ""}}, "at least 1"),
        ({"auth": {"standard_webhooks": "whsec_c2hvcnQ="}}, "at least 24 bytes"),
        ({"auth": {"standard_webhooks": "not base64!"}}, "followed by base64"),
        ({"auth": {"sns": {"topics": []}}}, "at least 1"),
        ({"auth": {"sns": {"topics": ["uploads"]}}}, "the ARN of a topic"),
        ({"path": "hooks"}, 'must start with "/"'),
        ({"path": "/a*"}, "takes everything below"),
        ({"path": "/a?b=1"}, 'must start with "/"'),
        ({"methods": ["post"]}, 'such as "POST"'),
        ({"methods": ["OPTIONS"]}, "handshake"),
        ({"burst": 3}, 'goes with "rate" only'),
        ({"id_header": "a b"}, "no name of a header"),
        ({"listen": "8080"}, "HOST:PORT"),
    ],
)
def test_mistakes_are_named_and_quote_no_secret(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        HttpSource.model_validate({"type": "http", "listen": "127.0.0.1:1", **options})
    assert words in str(caught.value)
    assert "not base64!" not in str(caught.value)


def test_missing_files_are_problems(tmp_path: Path) -> None:
    tls = {"cert": "c.pem", "key": "k.pem"}
    settings = HttpSource.model_validate({"type": "http", "listen": "127.0.0.1:1", "tls": tls})
    assert set(settings.problems(tmp_path)) == {"tls.cert", "tls.key"}
