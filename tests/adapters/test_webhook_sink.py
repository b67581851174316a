"""The webhook sink against real servers: what is sent, and what each kind of answer means."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from pydantic import ValidationError

from headrace.errors import Fatal, HeadraceError, Permanent, SettingsError, Transient
from headrace.event import Event
from headrace.protocols import Batch, Diagnoses, Sink, Verdict
from headrace.settings_file import load
from headrace.sinks.webhook import WebhookSink
from headrace.sinks.webhook.answers import retry_after
from headrace.sinks.webhook.guard import Forbidden, PublicResolver, check_url, is_public
from headrace.sinks.webhook.template import Template
from headrace.testing import FakeClock, make_batch, make_context
from headrace.testing.sink import an_event, batch_of
from tests.adapters.webhook_fixture import Receiver, Request, certificate, raw_server, read_request, receiver

SECRETS = ["whsec_" + base64.b64encode(bytes([n]) * 24).decode() for n in (1, 2)]


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as found:
        yield found


def settings(url: str | None, **options: Any) -> WebhookSink:
    return WebhookSink.model_validate({**({"url": url} if url else {}), "timeout": "5s", **options})


@asynccontextmanager
async def opened(tmp_path: Path, sink: WebhookSink, clock: FakeClock | None = None) -> AsyncIterator[Sink]:
    async with sink.open(make_context(tmp_path, clock=clock)) as target:
        yield target


def deliver(tmp_path: Path, sink: WebhookSink, *batches: Batch) -> list[Verdict]:
    async def run() -> list[Verdict]:
        async with opened(tmp_path, sink) as target:
            return [await target.deliver(batch) for batch in batches]

    return asyncio.run(run())


def refused(tmp_path: Path, sink: WebhookSink, batch: Batch | None = None) -> HeadraceError:
    with pytest.raises(HeadraceError) as caught:
        deliver(tmp_path, sink, batch or batch_of(0, 1))
    return caught.value


def wire(request: Request) -> dict[str, str]:
    return {name.lower(): value for name, value in request.headers.items()}


# --- what is sent


def test_binary_mode_writes_attributes_as_headers(tmp_path: Path, hook: Receiver) -> None:
    event = Event(
        id="1/2",
        source="headrace:s",
        type="t",
        subject='a b"%é\U0001f30a\\/\u0001',
        data={"n": 1.50, "t": "é"},
        extensions={"flag": True, "number": 7},
    )
    deliver(tmp_path, settings(hook.url), make_batch([event]))
    [request] = hook.requests
    assert {name: value for name, value in wire(request).items() if name.startswith("ce-")} == {
        "ce-specversion": "1.0",
        "ce-id": "1/2",
        "ce-source": "headrace:s",
        "ce-type": "t",
        "ce-subject": "a%20b%22%25%C3%A9%F0%9F%8C%8A\\/%01",
        "ce-flag": "true",
        "ce-number": "7",
    }
    assert request.method == "POST"
    assert wire(request)["content-type"] == "application/json"
    assert wire(request)["user-agent"].startswith("headrace/")
    assert request.body == b'{"n":1.5,"t":"\xc3\xa9"}', "the data as it stands in the line"


@pytest.mark.parametrize(
    ("event", "content_type", "body"),
    [
        ({"datacontenttype": "application/xml", "data": "<é/>"}, "application/xml", "<é/>".encode()),
        ({"datacontenttype": "application/vnd.x+json; v=1", "data": "x"}, "application/vnd.x+json; v=1", b'"x"'),
        ({"datacontenttype": "text/json", "data": [1]}, "text/json", b"[1]"),
        ({"datacontenttype": "image/png", "extensions": {"data_base64": "/+8="}}, "image/png", b"\xff\xef"),
        ({}, None, b""),
    ],
)
def test_data_of_other_types(
    tmp_path: Path, hook: Receiver, event: dict[str, Any], content_type: str | None, body: bytes
) -> None:
    deliver(tmp_path, settings(hook.url), make_batch([Event(id="1", source="s", type="t", **event)]))
    [request] = hook.requests
    assert (wire(request).get("content-type"), request.body) == (content_type, body)
    assert not {"ce-datacontenttype", "ce-data_base64"} & wire(request).keys()


def test_structured_and_batch_modes(tmp_path: Path, hook: Receiver) -> None:
    batch = batch_of(0, 3)
    deliver(tmp_path, settings(hook.url, mode="batch"), batch)
    deliver(tmp_path, settings(hook.url, mode="structured", method="PUT"), batch_of(0, 1))
    together, alone = hook.requests
    assert json.loads(together.body) == [json.loads(line) for line in batch.lines]
    assert wire(together)["content-type"] == "application/cloudevents-batch+json; charset=utf-8"
    assert alone.body + b"\n" == batch.lines[0]
    assert wire(alone)["content-type"] == "application/cloudevents+json; charset=utf-8"
    assert alone.method == "PUT"


def test_signatures_hold_for_every_secret_and_ids_stay(tmp_path: Path, hook: Receiver) -> None:
    sink = settings(hook.url, secrets=SECRETS)
    deliver(tmp_path, sink, batch_of(0, 1), batch_of(0, 1), batch_of(1, 1))
    headers = [wire(request) for request in hook.requests]
    ids = [header["webhook-id"] for header in headers]
    assert ids[0] == ids[1] != ids[2]
    assert "." not in ids[0]
    for request, header in zip(hook.requests, headers, strict=True):
        signed = f"{header['webhook-id']}.{header['webhook-timestamp']}.".encode() + request.body
        keys = [base64.b64decode(secret.removeprefix("whsec_")) for secret in SECRETS]
        codes = [base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode() for key in keys]
        assert header["webhook-signature"] == " ".join(f"v1,{code}" for code in codes)


def test_the_signature_of_the_specification() -> None:
    # The example of the Standard Webhooks libraries.
    from headrace.sinks.webhook.signature import Signer, parse_secret

    signer = Signer([parse_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")])
    headers = signer.headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_body_for_targets_without_cloudevents(tmp_path: Path, hook: Receiver) -> None:
    words = {"text": "{subject}: {data.number} {{x}}", "no": "{data.x.y}"}
    body = {**words, "size": "{data.number}", "deep": [{"all": "{data}"}]}
    deliver(tmp_path, settings(hook.url, body=body), batch_of(3, 1))
    deliver(tmp_path, settings(hook.url, body="n={data.number};{nothing}", content_type="text/x"), batch_of(3, 1))
    table, text = hook.requests
    assert json.loads(table.body) == {
        "text": "file-3: 3 {x}",
        "size": 3,
        "deep": [{"all": {"number": 3, "text": ""}}],
        "no": None,
    }
    assert wire(table)["content-type"] == "application/json"
    assert (text.body, wire(text)["content-type"]) == (b"n=3;", "text/x")
    assert not any(name.startswith("ce-") for name in wire(table))


def test_a_template_cannot_be_led_out_of_its_text() -> None:
    fill = Template({"text": "by {subject}", "list": "{data.1.a}"}).fill
    filled = fill({"subject": '","admin":true,"x":"{type}\n', "data": [0, {"a": None}]})
    assert json.loads(filled) == {"text": 'by ","admin":true,"x":"{type}\n', "list": None}


@pytest.mark.parametrize("body", ["{", "a } b", "{}", "{a b}", "{data..x}", {"x": ["{"]}])
def test_templates_that_cannot_be_filled(body: Any) -> None:
    with pytest.raises(ValidationError, match=r"write"):
        settings("http://a/", body=body)


def test_own_headers_and_query(tmp_path: Path, hook: Receiver) -> None:
    sink = settings(hook.url + "?token=a%2Fb&c", headers={"Authorization": "Bearer x", "X-Y": "1"})
    deliver(tmp_path, sink, batch_of(0, 1))
    [request] = hook.requests
    assert request.path == "/hook?token=a%2Fb&c"
    assert (wire(request)["authorization"], wire(request)["x-y"]) == ("Bearer x", "1")
    assert "Bearer" not in repr(sink)
    assert "token" not in repr(sink)


# --- connections


def test_connections_are_used_again_and_bounded(tmp_path: Path, hook: Receiver) -> None:
    async def slow(_: Request) -> web.Response:
        await asyncio.sleep(0.002)
        return web.Response(text="x" * 50_000)

    hook.answer = slow
    deliver(tmp_path, settings(hook.url, connections=3), batch_of(0, 30), batch_of(30, 30))
    assert len(hook.requests) == 60
    assert hook.at_once == 3
    assert len({request.peer for request in hook.requests}) <= 3


def test_strict_order_is_one_at_a_time(tmp_path: Path, hook: Receiver) -> None:
    hook.answer = lambda request: web.Response(status=422 if b'"number":2' in request.body else 200)
    [verdict] = deliver(tmp_path, settings(hook.url, ordering="strict"), batch_of(0, 5))
    assert (list(verdict.failed), list(verdict.skipped)) == ([2], [3, 4])
    assert len(hook.requests) == 3
    assert hook.at_once == 1


def test_tls_is_verified(tmp_path: Path) -> None:
    ca, context = certificate(tmp_path)
    with receiver(context) as found:
        error = refused(tmp_path, settings(found.url))
        assert isinstance(error, Transient)
        assert "TLS failed: self-signed certificate" in str(error)
        assert not found.requests
        deliver(tmp_path, settings(found.url, ca=ca.name), batch_of(0, 1))
        wrong_name = refused(tmp_path, settings(found.url.replace("127.0.0.1", "localhost"), ca=ca.name))
        assert "TLS failed" in str(wrong_name)
        assert len(found.requests) == 1


def test_ca_file_that_holds_none(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    assert settings("https://a/", ca="ca.pem").problems(tmp_path)["ca"].startswith("cannot read ca.pem: it holds no")
    assert "No such file" in settings("https://a/", ca="no.pem").problems(tmp_path)["ca"]
    assert settings("https://a/").problems(tmp_path) == {}


# --- what an answer means


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "failed"), (403, "failed"), (409, "failed"), (413, "failed"), (422, "failed")]
    + [(301, Fatal), (308, Fatal), (410, Fatal)]
    + [(status, Transient) for status in (302, 303, 307, 401, 404, 405, 408, 425, 429, 500, 502, 503, 504)],
)
def test_statuses(tmp_path: Path, hook: Receiver, status: int, kind: Any) -> None:
    hook.answer = lambda _: web.Response(status=status, text="why\n\x1b[31mnot", headers={"Location": hook.url + "/2"})
    if kind == "failed":
        [verdict] = deliver(tmp_path, settings(hook.url), batch_of(0, 1))
        assert verdict.failed == {0: f"HTTP {status}: why [31mnot"}
        assert isinstance(refused(tmp_path, settings(hook.url, mode="batch")), Permanent)
    else:
        error = refused(tmp_path, settings(hook.url))
        assert type(error) is kind
        assert error.message.startswith(f"HTTP {status}")
        assert error.hint or status >= 408
        assert {request.path for request in hook.requests} == {"/hook"}, "no redirect was followed"


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_every_2xx_is_success(tmp_path: Path, hook: Receiver, status: int) -> None:
    hook.answer = lambda _: web.Response(status=status)
    assert deliver(tmp_path, settings(hook.url), batch_of(0, 2)) == [Verdict()]


def test_retry_after_is_passed_on(tmp_path: Path, hook: Receiver) -> None:
    hook.answer = lambda _: web.Response(status=429, headers={"Retry-After": "17"})
    error = refused(tmp_path, settings(hook.url))
    assert isinstance(error, Transient)
    assert error.retry_after == 17
    assert retry_after({"Retry-After": formatdate(1_000_060, usegmt=True)}, 1_000_000) == 60
    assert retry_after({"Retry-After": formatdate(1_000_060, usegmt=True)}, 2_000_000) == 0
    for text in ("", "soon", "-1", "1.5", "99999999999999", "٣"):
        assert retry_after({"Retry-After": text}, 0) is None


def test_some_events_fail_and_others_come_again(tmp_path: Path, hook: Receiver) -> None:
    def answer(request: Request) -> web.Response:
        number = json.loads(request.body)["number"]
        return web.Response(status={1: 422, 3: 503}.get(number, 200), text="no")

    hook.answer = answer
    [verdict] = deliver(tmp_path, settings(hook.url), batch_of(0, 5))
    assert verdict == Verdict(failed={1: "HTTP 422: no"}, skipped=[3])


def test_outages_are_transient(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
        error = refused(tmp_path, settings(url + "secret-path"))
    assert isinstance(error, Transient)
    assert str(error).startswith("cannot connect to 127.0.0.1: ")
    assert "secret-path" not in str(error)
    unknown = refused(tmp_path, settings("http://no-such-host.invalid/"))
    assert isinstance(unknown, Transient)
    assert "no-such-host.invalid" in str(unknown)


Talker = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


def against(tmp_path: Path, talk: Talker, *batches: Batch, **options: Any) -> list[Verdict]:
    async def run() -> list[Verdict]:
        async with raw_server(talk) as url, opened(tmp_path, settings(url, **options)) as sink:
            return [await sink.deliver(batch) for batch in batches or [batch_of(0, 1)]]

    return asyncio.run(run())


async def half_an_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 500 No")


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"\x00\xff SSH-2.0\r\n\r\n")


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    await reader.read()


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(10)
    taken = writer.get_extra_info("socket")
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


async def endless_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 200_000)
    await reader.read()


@pytest.mark.parametrize("talk", [half_an_answer, garbage, silence, reset, endless_head])
def test_misbehaving_servers_are_outages(tmp_path: Path, talk: Talker) -> None:
    with pytest.raises(Transient, match=r"127\.0\.0\.1"):
        against(tmp_path, talk, timeout="300ms")


async def body_breaks_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")


async def endless_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
        await writer.drain()


async def bomb(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 422 No\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\n\x1f\x8b\x08")


@pytest.mark.parametrize("talk", [body_breaks_off, endless_body])
def test_the_status_counts_whatever_the_body_does(tmp_path: Path, talk: Talker) -> None:
    assert against(tmp_path, talk) == [Verdict()]


def test_compressed_answers_are_not_unpacked(tmp_path: Path) -> None:
    assert against(tmp_path, bomb) == [Verdict(failed={0: "HTTP 422"})]


def test_a_kept_connection_that_was_closed_is_opened_anew(tmp_path: Path) -> None:
    count = 0

    async def one_each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        await read_request(reader)
        count += 1
        writer.write(b"HTTP/1.1 204 Fine\r\n\r\n")  # and closes, though it did not say so

    assert against(tmp_path, one_each, *[batch_of(n, 1) for n in range(4)]) == [Verdict()] * 4
    assert count == 4


# --- handshake


def test_handshake_once_and_at_the_allowed_rate(tmp_path: Path, hook: Receiver) -> None:
    allowed = {"WebHook-Allowed-Origin": "shop.example", "WebHook-Allowed-Rate": "120"}
    hook.answer = lambda request: web.Response(headers=allowed if request.method == "OPTIONS" else {})
    clock = FakeClock()

    async def run() -> None:
        async with opened(tmp_path, settings(hook.url, handshake="shop.example"), clock) as sink:
            await sink.deliver(batch_of(0, 1))
            second = asyncio.ensure_future(sink.deliver(batch_of(1, 1)))
            await asyncio.wait({second}, timeout=0.1)
            assert not second.done(), "two a second are allowed"
            clock.advance(0.5)
            await second

    asyncio.run(run())
    assert [request.method for request in hook.requests] == ["OPTIONS", "POST", "POST"]
    assert wire(hook.requests[0])["webhook-request-origin"] == "shop.example"


@pytest.mark.parametrize(
    ("status", "origin", "kind"),
    [
        (200, "*", None),
        (204, "shop.example", None),
        (200, "other.example", Fatal),
        (200, None, Fatal),
        (405, "*", Transient),
        (403, "*", Fatal),
        (503, "*", Transient),
    ],
)
def test_handshake_answers(tmp_path: Path, hook: Receiver, status: int, origin: str | None, kind: Any) -> None:
    headers = {"WebHook-Allowed-Origin": origin} if origin else {}
    hook.answer = lambda request: web.Response(status=status if request.method == "OPTIONS" else 200, headers=headers)
    sink = settings(hook.url, handshake="shop.example")
    if kind is None:
        assert deliver(tmp_path, sink, batch_of(0, 1)) == [Verdict()]
    else:
        assert type(refused(tmp_path, sink)) is kind
        assert [request.method for request in hook.requests] == ["OPTIONS"]


# --- addresses that events name


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
        ),
        *("::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"),
    ],
)
def test_inner_addresses_are_not_public(address: str) -> None:
    assert not is_public(ip_address(address))
    literal = f"[{address}]" if ":" in address else address
    with pytest.raises(ValueError, match="leads inside"):
        check_url(f"http://{literal}:8080/x")


def test_public_addresses_are() -> None:
    assert all(is_public(ip_address(one)) for one in ("8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8"))
    assert check_url("https://example.com/x").host == "example.com"
    for text in (None, 3, "ftp://a/", "/x", "http://", "http://u:p@example.com/", "http://[::1"):
        with pytest.raises(ValueError, match=r"."):
            check_url(text)


class Answers(AbstractResolver):
    """A resolver that knows these."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        known = {"hostname": host, "port": port, "family": family, "proto": 0, "flags": 0}
        return [ResolveResult(host=address, **known) for address in self._addresses]  # type: ignore[typeddict-item]

    async def close(self) -> None: ...


def test_a_name_with_one_inner_address_is_refused() -> None:
    async def run() -> None:
        assert await PublicResolver(Answers("8.8.8.8")).resolve("a")
        with pytest.raises(Forbidden, match=r"a leads inside: 10\.0\.0\.1"):
            await PublicResolver(Answers("8.8.8.8", "10.0.0.1")).resolve("a")

    asyncio.run(run())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "[::ffff:127.0.0.1]"])
def test_events_lead_nowhere_inside(tmp_path: Path, hook: Receiver, host: str) -> None:
    url = hook.url.replace("127.0.0.1", host)
    events = [Event(id="1", source="s", type="t", data={"callback": url}), Event(id="2", source="s", type="t")]
    [verdict] = deliver(tmp_path, settings(None, url_from="data.callback"), make_batch(events))
    assert list(verdict.failed) == [0, 1]
    assert "inside" in verdict.failed[0] or "no name or address" in verdict.failed[0]
    assert "names no URL" in verdict.failed[1]
    assert not hook.requests


# --- settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needed, or url_from instead"),
        ({"url": "http://a/", "url_from": "data.x"}, "stands beside"),
        ({"url": "ftp://a/"}, "must be an address"),
        ({"url": "http://u:hidden@a/"}, "must not hold a user"),
        ({"url": "http://a/", "headers": {"ce-id": "hidden"}}, "written by Headrace"),
        ({"url": "http://a/", "headers": {"a b": "hidden"}}, "no name of a header"),
        ({"url": "http://a/", "headers": {"a": "hidden\r\nb: c"}}, "control character"),
        ({"url": "http://a/", "secrets": ["whsec_hidden"]}, "must be whsec_"),
        ({"url": "http://a/", "secrets": [SECRETS[0], "hidden"]}, "must be whsec_"),
        ({"url": "http://a/", "mode": "batch", "body": {}}, "mode is batch"),
        ({"url": "http://a/", "content_type": "a/b"}, "belongs to body"),
        ({"url_from": "data.x", "headers": {"a": "hidden"}}, "whatever address"),
        ({"url_from": "data.x", "mode": "batch"}, "one for each event"),
    ],
)
def test_settings_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        WebhookSink.model_validate(options)
    assert "hidden" not in str(caught.value)


def test_settings_from_the_environment_and_files(tmp_path: Path, hook: Receiver) -> None:
    (tmp_path / "old.key").write_text(SECRETS[1] + "\n")
    file = tmp_path / "headrace.toml"
    file.write_text(
        '[sinks.hook]\ntype = "webhook"\nurl = { env = "URL" }\n'
        'secrets = [{ env = "NEW" }, { file = "old.key" }]\nheaders.Authorization = { env = "TOKEN" }\n'
    )
    environ = {"URL": hook.url, "NEW": SECRETS[0], "TOKEN": "Bearer t"}
    sink = load(file, environ).sinks["hook"]
    assert isinstance(sink, WebhookSink)
    deliver(tmp_path, sink, batch_of(0, 1))
    assert wire(hook.requests[0])["webhook-signature"].count("v1,") == 2
    with pytest.raises(SettingsError) as caught:
        load(file, {**environ, "URL": "gopher://hidden", "NEW": "whsec_hidden"})
    assert [problem.path for problem in caught.value.problems] == ["sinks.hook.url", "sinks.hook.secrets[0]"]
    assert "hidden" not in str(caught.value)


def test_diagnosis(tmp_path: Path, hook: Receiver) -> None:
    async def run(url: str) -> list[tuple[str, str]]:
        async with opened(tmp_path, settings(url)) as sink:
            assert isinstance(sink, Diagnoses)
            return [(finding.level, finding.what) async for finding in sink.diagnose()]

    assert asyncio.run(run(hook.url)) == [("ok", "127.0.0.1 answers (HTTP 202 to OPTIONS)")]
    [(level, what)] = asyncio.run(run("http://no-such-host.invalid/"))
    assert (level, "no-such-host.invalid" in what) == ("error", True)


def test_an_event_that_is_no_request_fails_alone(tmp_path: Path, hook: Receiver) -> None:
    broken = Event(id="x", source="s", type="t", extensions={"data_base64": "!"})
    [verdict] = deliver(tmp_path, settings(hook.url), make_batch([an_event(0), broken]))
    assert list(verdict.failed) == [1]
    assert "cannot be written as a request" in verdict.failed[1]
