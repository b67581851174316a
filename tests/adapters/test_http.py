"""The HTTP source: what becomes an event, what is refused and how, and what holds under load and malice."""

import asyncio
import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from headrace.capture import JournalPort, SourceCapture
from headrace.errors import Fatal, SettingsError, Transient
from headrace.event import Event
from headrace.journal.memory import MemoryJournal
from headrace.protocols import Captured, Diagnoses, Write
from headrace.settings_file import load
from headrace.testing import MemoryCapture, make_context
from headrace.testing.leaks import eventually, nothing_left
from tests.fixtures.inlet import Inlet

CLOUD = {"specversion": "1.0", "id": "1", "source": "https://shop.example/", "type": "com.example.placed"}
STRUCTURED = {"Content-Type": "application/cloudevents+json"}
BATCH = {"Content-Type": "application/cloudevents-batch+json"}


def event_of(inlet: Inlet) -> Event:
    [event] = inlet.events
    return event


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        ("application/json", b'{"a": [1, 2.5, null]}', {"body": {"a": [1, 2.5, None]}}),
        ("application/vnd.api+json; charset=utf-8", b"[]", {"body": []}),
        ("text/plain; charset=latin-1", b"caf\xe9", {"body": "café"}),
        ("application/x-www-form-urlencoded", b"a=1&b=2", {"body": "a=1&b=2"}),
        ("text/plain", b"\xff\xfe", {"body_base64": "//4="}),
        ("image/png", b"\x89PNG", {"body_base64": base64.b64encode(b"\x89PNG").decode()}),
        ("application/json", b"", {"body": None}),
    ],
)
def test_a_request_becomes_an_event(tmp_path: Path, content_type: str, body: bytes, expected: dict[str, Any]) -> None:
    async def run() -> Event:
        inlet = Inlet(tmp_path)
        async with inlet.running():
            headers = {"Content-Type": content_type, "X-One": "1", "Authorization": "Bearer s3cret", "Cookie": "s3cret"}
            headers["traceparent"] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            status, _, _ = await inlet.request("POST", body, path="/hooks?a=1&a=2&b=", headers=headers)
            assert status == 202
        return event_of(inlet)

    event = asyncio.run(run())
    assert (event.type, event.subject, event.source) == ("headrace.http.request", "/hooks", "headrace:hooks")
    assert event.id[14] == "7"
    assert event.traceparent == "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert (event.data["method"], event.data["path"]) == ("POST", "/hooks")
    assert event.data["query"] == {"a": ["1", "2"], "b": [""]}
    assert {key: value for key, value in event.data.items() if key.startswith("body")} == expected
    assert event.data["headers"]["x-one"] == "1"
    assert b"s3cret" not in event.line()


def test_structured_cloudevents_are_kept_as_they_are(tmp_path: Path) -> None:
    async def run() -> Inlet:
        inlet = Inlet(tmp_path)
        sent = [
            {**CLOUD, "data": {"price": 1.5, "name": "ünïcode"}},
            {**CLOUD, "id": "2", "myextension": "x", "count": 3, "flag": True, "data_base64": "aGVsbG8="},
            {**CLOUD, "id": "3", "time": "2026-01-31T06:00:00+01:00", "partitionkey": "k", "sequence": "0001"},
            {**CLOUD, "id": "4", "barrier": "a/", "previouskey": "a/b", "partitionkey": "a/c"},
        ]
        async with inlet.running():
            for event in sent:
                assert await inlet.post(json.dumps(event, indent=2), STRUCTURED) == 202
        assert [json.loads(event.line()) for event in inlet.events] == sent
        return inlet

    inlet = asyncio.run(run())
    assert inlet.events[1].extensions["data_base64"] == "aGVsbG8="


def test_binary_and_batch_cloudevents(tmp_path: Path) -> None:
    async def run() -> Inlet:
        inlet = Inlet(tmp_path)
        head = {"ce-specversion": "1.0", "ce-source": "/x", "ce-type": "t", "ce-note": "caf%C3%A9%20au%25lait"}
        async with inlet.running():
            assert await inlet.post(b'{"n": 1}', {**head, "ce-id": "1"}) == 202
            assert await inlet.post(b"hello", {**head, "ce-id": "2", "Content-Type": "text/plain"}) == 202
            assert await inlet.post(b"\x00\xff", {**head, "ce-id": "3", "Content-Type": "application/x"}) == 202
            batch = [{**CLOUD, "id": f"b{number}"} for number in range(300)]
            assert await inlet.post(json.dumps(batch), BATCH) == 202
            assert await inlet.post("[]", BATCH) == 202
        return inlet

    events = asyncio.run(run()).events
    assert events[0].data == {"n": 1}
    assert events[0].extensions == {"note": "café au%lait"}
    assert events[0].datacontenttype == "application/json"
    assert events[1].data == "hello"
    assert events[2].extensions["data_base64"] == "AP8="
    assert [event.id for event in events[3:]] == [f"b{number}" for number in range(300)]


DEEP = b"[" * 90_000 + b"]" * 90_000
INVALID: list[tuple[Any, dict[str, str]]] = [
    ("{", STRUCTURED),
    ("[]", STRUCTURED),
    ("null", STRUCTURED),
    ({**CLOUD, "specversion": "0.3"}, STRUCTURED),
    ({key: value for key, value in CLOUD.items() if key != "id"}, STRUCTURED),
    ({**CLOUD, "id": ""}, STRUCTURED),
    ({**CLOUD, "source": 5}, STRUCTURED),
    ({**CLOUD, "type": None}, STRUCTURED),
    ({**CLOUD, "time": "yesterday"}, STRUCTURED),
    ({**CLOUD, "time": "2026-02-31T00:00:00Z"}, STRUCTURED),
    ({**CLOUD, "Bad-Name": "x"}, STRUCTURED),
    ({**CLOUD, "object": {"a": 1}}, STRUCTURED),
    ({**CLOUD, "data": 1, "data_base64": "aGk="}, STRUCTURED),
    ({**CLOUD, "data_base64": "not base64"}, STRUCTURED),
    ({**CLOUD, "id": "x" * 2_000}, STRUCTURED),
    (b'{"specversion":"1.0","id":"1","source":"s","type":"t","data":"\xff"}', STRUCTURED),
    (b'{"specversion":"1.0","id":"1","source":"s","type":"t","data":1e999}', STRUCTURED),
    (
        b'{"specversion":"1.0","id":"1","source":"s","type":"t","data":' + b"[" * 90_000 + b"]" * 90_000 + b"}",
        STRUCTURED,
    ),
    (CLOUD, BATCH),
    ([CLOUD, {**CLOUD, "id": ""}], BATCH),
    ([CLOUD, 7], BATCH),
    ("{}", {"ce-specversion": "1.0", "ce-id": "1", "ce-type": "t"}),
    ("{}", {"ce-specversion": "1.0", "ce-id": "1", "ce-type": "t", "ce-source": "%FF"}),
    ("not json", {"ce-specversion": "1.0", "ce-id": "1", "ce-type": "t", "ce-source": "s"}),
    ("{}", {"ce-specversion": "1.0", "ce-id": "1", "ce-type": "t", "ce-source": "s", "ce-data": "x"}),
    ("{broken", {"Content-Type": "application/json"}),
    (DEEP, {"Content-Type": "application/json"}),
]


def test_what_is_not_valid_is_refused_and_leaves_no_event(tmp_path: Path) -> None:
    async def run() -> None:
        inlet = Inlet(tmp_path)
        async with inlet.running():
            for body, headers in INVALID:
                text = body if isinstance(body, bytes | str) else json.dumps(body)
                status, words, _ = await inlet.request(
                    "POST", text, headers={"Content-Type": "application/json"} | headers
                )
                assert (status, bool(words.strip())) == (400, True), (text[:80], words)
            assert await inlet.post("<x/>", {"Content-Type": "application/cloudevents+xml"}) == 415
            assert await inlet.post(b"x", {"Content-Encoding": "gzip"}) == 415
            types = [{**CLOUD, "id": str(number), "type": f"t{number}"} for number in range(300)]
            assert await inlet.post(json.dumps(types), BATCH) == 413
            assert inlet.events == []
            assert inlet.source._in_hand == 0
            assert await inlet.post() == 202

    asyncio.run(run())


def test_paths_methods_and_the_handshake(tmp_path: Path) -> None:
    async def run() -> None:
        inlet = Inlet(tmp_path, methods=["POST", "PUT"], rate=2.0, origins=["eventemitter.example"])
        async with inlet.running():
            status, _, headers = await inlet.request("GET")
            assert (status, headers["Allow"]) == (405, "POST, PUT, OPTIONS")
            for path in ("/", "/hooks/", "/hooks/x", "/HOOKS", "/%00"):
                assert await inlet.post(path=path) == 404
            asked = {"WebHook-Request-Origin": "eventemitter.example", "WebHook-Request-Rate": "1000"}
            status, _, headers = await inlet.request("OPTIONS", headers=asked)
            assert status == 200
            assert headers["WebHook-Allowed-Origin"] == "eventemitter.example"
            assert headers["WebHook-Allowed-Rate"] == "120"
            assert "POST" in headers["Allow"]
            _, _, headers = await inlet.request("OPTIONS", headers={"WebHook-Request-Origin": "evil.example"})
            assert "WebHook-Allowed-Origin" not in headers
        assert inlet.events == []

    asyncio.run(run())


def test_everything_below_a_path(tmp_path: Path) -> None:
    async def run() -> list[str | None]:
        inlet = Inlet(tmp_path, path="/a/*")
        exact = Inlet(tmp_path, name="exact", path="/a/b", listen=inlet.options["listen"])
        async with inlet.running(), exact.running():
            for path in ("/a/x", "/a/b", "/a/b/c", "/a/"):
                assert await inlet.post(path=path) == 202
            assert await inlet.post(path="/a") == 404
        assert [event.subject for event in exact.events] == ["/a/b"]
        return [event.subject for event in inlet.events]

    assert asyncio.run(run()) == ["/a/x", "/a/b/c", "/a/"]


def test_sources_share_an_address(tmp_path: Path) -> None:
    async def run() -> None:
        one = Inlet(tmp_path, name="one", path="/one")
        two = Inlet(tmp_path, name="two", path="/two", listen=one.options["listen"])
        async with nothing_left():
            async with one.running():
                async with two.running():
                    assert await one.post(path="/two") == 202
                status, _, headers = await one.request("POST", path="/two")
                assert (status, headers["Retry-After"]) == (503, "5")
                async with two.running():
                    assert await one.post(path="/two") == 202
            with pytest.raises(aiohttp.ClientConnectionError):
                await one.post(path="/one")
        assert (len(one.events), len(two.events)) == (0, 2)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("options", "words"), [({"path": "/one"}, "belongs to another"), ({"path": "/two", "idle": "7s"}, "is shared")]
)
def test_conflicts_on_one_address_are_fatal(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    async def run() -> None:
        one = Inlet(tmp_path, name="one", path="/one")
        other = Inlet(tmp_path, name="two", **{"listen": one.options["listen"], **options})
        async with one.running():
            with pytest.raises(Fatal, match=words):
                async with other.running():
                    pass
            assert await one.post(path="/one") == 202

    asyncio.run(run())


def test_conflicts_are_mistakes_of_the_file(tmp_path: Path) -> None:
    table = '[sources.{}]\ntype = "http"\nlisten = "127.0.0.1:8080"\npath = "{}"\n{}\n'
    file = tmp_path / "headrace.toml"
    file.write_text(table.format("a", "/a", "") + table.format("b", "/a", "") + table.format("c", "/c", 'idle = "7s"'))
    with pytest.raises(SettingsError) as caught:
        load(file, {})
    same, idle = caught.value.problems
    assert (same.path, same.line) == ("sources.b.path", 9)
    assert (idle.path, idle.line) == ("sources.c.idle", 15)


def test_an_address_in_use_is_tried_again(tmp_path: Path) -> None:
    async def run() -> None:
        inlet = Inlet(tmp_path)
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", inlet.port)
        async with server:
            with pytest.raises(Transient, match="in use"):
                async with inlet.running():
                    pass
        async with inlet.running():
            assert await inlet.post() == 202

    asyncio.run(run())


# Limits.


def test_oversized_bodies(tmp_path: Path) -> None:
    async def chunks(size: int) -> Any:
        for _ in range(size // 1_000):
            yield b" " * 1_000

    async def run() -> None:
        inlet = Inlet(tmp_path, max_body="10KiB")
        async with inlet.running():
            assert await inlet.post(b" " * 10_241) == 413
            assert await inlet.post(chunks(50_000)) == 413
            declared = b"POST /hooks HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"
            assert (await inlet.raw(declared)).startswith(b"HTTP/1.1 413")
            assert inlet.events == []
            assert await inlet.post(b"[" + b" " * 10_238 + b"]") == 202
            assert await inlet.post(chunks(9_000), {"Content-Type": "text/plain"}) == 202
            assert inlet.source._in_hand == 0

    asyncio.run(run())


def test_slow_clients_are_cut_off(tmp_path: Path) -> None:
    async def run() -> None:
        inlet = Inlet(tmp_path, timeout="200ms", idle="300ms")
        async with inlet.running():
            silent, head, body = await asyncio.gather(
                inlet.raw(b""),
                inlet.raw(b"POST /hooks HTTP/1.1\r\nHost: x\r\nX-Slow:"),
                inlet.raw(b"POST /hooks HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n123"),
            )
            assert (silent, head) == (b"", b"")
            assert body.startswith(b"HTTP/1.1 408")
            await eventually(lambda: not inlet.connections, "no connection is left")
            assert inlet.events == []
            assert await inlet.post() == 202

    asyncio.run(run())


def test_a_dripping_client_gains_nothing_by_dripping(tmp_path: Path) -> None:
    async def run() -> None:
        inlet = Inlet(tmp_path, idle="300ms")
        async with inlet.running():
            reader, writer = await asyncio.open_connection("127.0.0.1", inlet.port)
            writer.write(b"POST /hooks HTTP/1.1\r\nX-Drip: ")
            loop = asyncio.get_running_loop()
            start = loop.time()
            while not reader.at_eof() and loop.time() - start < 5:
                writer.write(b"a")
                try:
                    async with asyncio.timeout(0.05):
                        await reader.read(1)
                except TimeoutError:
                    continue
                except ConnectionError:
                    break
            assert loop.time() - start < 2
            writer.close()

    asyncio.run(run())


def test_too_many_connections(tmp_path: Path) -> None:
    async def run() -> None:
        inlet = Inlet(tmp_path, max_connections=5)
        async with inlet.running():
            held = [await asyncio.open_connection("127.0.0.1", inlet.port) for _ in range(5)]
            await eventually(lambda: inlet.connections == 5, "five are connected")
            answer = await inlet.raw(b"")
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"Retry-After" in answer
            for _, writer in held:
                writer.close()
            await eventually(lambda: not inlet.connections, "all have left")
            assert await inlet.post() == 202

    asyncio.run(run())


@pytest.mark.parametrize(
    "text",
    [
        b"\x16\x03\x01\x00\xa5\x01\x00\x00",
        b"GET\r\n\r\n",
        b"POST /hooks HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /hooks HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /hooks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"POST /hooks HTTP/1.1\r\nHost: x\r\n" + b"X-Long: " + b"a" * 20_000 + b"\r\n\r\n",
        b"POST /hooks HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: a\r\n" % number for number in range(1_000)) + b"\r\n",
        b"POST /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(tmp_path: Path, text: bytes) -> None:
    async def run() -> None:
        inlet = Inlet(tmp_path, idle="2s")
        async with inlet.running():
            answer = await inlet.raw(text)
            assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400")), answer[:200]
            assert inlet.events == []
            assert await inlet.post() == 202

    asyncio.run(run())


def test_rate(tmp_path: Path) -> None:
    async def run() -> None:
        inlet = Inlet(tmp_path, rate=0.01, burst=3)
        async with inlet.running():
            assert [await inlet.post() for _ in range(3)] == [202] * 3
            status, _, headers = await inlet.request("POST")
            assert status == 429
            assert 90 <= int(headers["Retry-After"]) <= 100
        assert len(inlet.events) == 3

    asyncio.run(run())


def test_expect_continue_and_keep_alive(tmp_path: Path) -> None:
    async def run() -> bytes:
        inlet = Inlet(tmp_path, idle="200ms")
        async with inlet.running():
            reader, writer = await asyncio.open_connection("127.0.0.1", inlet.port)
            writer.write(b"POST /hooks HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
            found = await reader.readuntil(b"\r\n\r\n")
            writer.write(b"true")
            found += await reader.readuntil(b"\r\n\r\n")
            writer.write(b"POST /hooks HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1\r\n\r\n1")
            found += await reader.read()
            writer.close()
        assert len(inlet.events) == 2
        return found

    found = asyncio.run(run())
    assert [line for line in found.split(b"\r\n") if line.startswith(b"HTTP")] == [
        b"HTTP/1.1 100 Continue",
        b"HTTP/1.1 202 Accepted",
        b"HTTP/1.1 202 Accepted",
    ]
    assert b"Connection: close" in found


# The journal.


class Stuck(MemoryCapture):
    """A journal that is full: what is handed over does not become durable until `gate` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def submit(self, events: Captured, state: Sequence[Write] = ()) -> asyncio.Future[None]:
        await self.gate.wait()
        return await super().submit(events, state)


def test_a_full_journal_is_503_and_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    async def run() -> None:
        inlet = Inlet(tmp_path, accept="300ms")
        stuck = Stuck()
        async with inlet.running(stuck):
            asked = [inlet.request("POST", json.dumps({**CLOUD, "id": str(i)}), headers=STRUCTURED) for i in range(20)]
            answers = await asyncio.gather(*asked)
            assert {status for status, _, _ in answers} == {503}
            assert all(int(headers["Retry-After"]) >= 1 for _, _, headers in answers)
            assert not inlet.source._in_hand
            stuck.gate.set()
            for number in range(20):
                assert await inlet.post(json.dumps({**CLOUD, "id": str(number)}), STRUCTURED) == 202
        assert sorted(int(event.id) for event in stuck.events) == list(range(20))

    asyncio.run(run())


def test_an_event_too_large_for_the_journal_refuses_its_request_alone(tmp_path: Path) -> None:
    async def run() -> None:
        inlet = Inlet(tmp_path)
        journal = MemoryJournal()
        capture = SourceCapture(JournalPort(journal, "hooks"), "hooks", max_event=1_024)
        async with inlet.running(capture):
            long = {**CLOUD, "subject": "s" * 1_000, "dataschema": "d" * 1_000}
            bodies = [{**CLOUD, "id": "a"}, {**long, "id": "b"}, {**CLOUD, "id": "c", "data": {"text": "x" * 5_000}}]
            posts = [inlet.post(json.dumps(body), STRUCTURED) for body in bodies]
            assert await asyncio.gather(*posts) == [202, 413, 202]
            assert await inlet.post(json.dumps({**CLOUD, "id": "b"}), STRUCTURED) == 202
        assert sum(journal.head(shard) for shard in journal.shards) == 3

    asyncio.run(run())


def test_diagnose(tmp_path: Path) -> None:
    async def run() -> list[str]:
        inlet = Inlet(tmp_path)
        open_to_all = Inlet(tmp_path, listen=f"0.0.0.0:{inlet.port}")
        broken = Inlet(tmp_path, tls={"cert": "none.pem", "key": "none.pem"})
        levels: list[str] = []
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", inlet.port)
        for each in (inlet, open_to_all, broken):
            async with each.settings.open(make_context(tmp_path)) as source:
                assert isinstance(source, Diagnoses)
                levels += [finding.level async for finding in source.diagnose()]
            server.close()
            await server.wait_closed()
        return levels

    assert asyncio.run(run()) == ["warning", "ok", "warning", "error"]


# Repeated ids.


def test_repeated_ids_are_captured_once(tmp_path: Path) -> None:
    async def run() -> None:
        inlet = Inlet(tmp_path)
        body = json.dumps(CLOUD)
        async with inlet.running():
            assert await asyncio.gather(*(inlet.post(body, STRUCTURED) for _ in range(30))) == [202] * 30
            other = json.dumps({**CLOUD, "source": "https://other.example/"})
            assert await inlet.post(other, STRUCTURED) == 202
            batch = json.dumps([CLOUD, {**CLOUD, "id": "2"}, {**CLOUD, "id": "2"}])
            assert await inlet.post(batch, BATCH) == 202
            for _ in range(2):
                assert await inlet.post(headers={"Idempotency-Key": "k1"}) == 202
        async with inlet.running():
            assert await inlet.post(body, STRUCTURED) == 202
            assert await inlet.post(headers={"Idempotency-Key": "k1"}) == 202
            assert await inlet.post() == await inlet.post() == 202
        ids = [event.id for event in inlet.events]
        assert ids[:4] == ["1", "1", "2", "k1"]
        assert len(ids) == 6

    asyncio.run(run())
