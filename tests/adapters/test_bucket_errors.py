"""Whatever is wrong around a bucket has its own message and remedy, and what is put right is picked up."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import Fatal, Transient
from headrace.sources.objects.minio_store import MinioStore
from headrace.sources.s3 import S3Source
from tests.adapters.bucket_runs import COMPARED, Run, failure, minio_table, settings_of, until
from tests.fixtures.certificates import self_signed
from tests.fixtures.killed import Daemon, events_of
from tests.fixtures.killed import until as eventually
from tests.fixtures.moto import moto
from tests.fixtures.s3 import S3Server, free_port, private_server, server

pytestmark = pytest.mark.s3


@pytest.fixture(params=["minio", "s3"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_wrong_keys(tmp_path: Path, kind: str) -> None:
    unknown = failure(tmp_path, type=kind, access_key="nobody")
    assert "does not know the access key" in unknown.message
    wrong = failure(tmp_path, type=kind, secret_key="not-the-secret")
    assert "the secret key is wrong" in wrong.message
    assert "secret_key" in wrong.hint
    assert isinstance(wrong, Transient)
    assert "not-the-secret" not in str(wrong)


@pytest.fixture(scope="module")
def european(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    given = private_server(tmp_path_factory.mktemp("eu"), region="eu-west-1")
    yield given
    given.kill()


def test_wrong_region(tmp_path: Path, european: S3Server) -> None:
    found = failure(tmp_path, **minio_table(european, european.bucket()) | {"region": "us-east-1"})
    assert isinstance(found, Fatal)
    assert "wants another region" in found.message
    assert found.hint == "set `region`"


def test_a_wrong_region_that_the_server_corrects(tmp_path: Path, european: S3Server) -> None:
    """Botocore asks again in the region that the refusal names."""
    options = {"type": "s3", "region": "us-east-1", "relist": "1s"}
    run = Run(tmp_path, european, european.bucket(), options, kind=S3Source.model_validate)

    async def body() -> None:
        async with run.running():
            run.put("a")
            await run.sees(("created", "a"))

    asyncio.run(body())


def test_missing_bucket(tmp_path: Path, kind: str) -> None:
    found = failure(tmp_path, type=kind, bucket="not-there-yet")
    assert isinstance(found, Transient)
    assert found.message == 'there is no bucket "not-there-yet"'


def test_nobody_answers(tmp_path: Path, kind: str) -> None:
    found = failure(tmp_path, type=kind, endpoint=f"http://127.0.0.1:{free_port()}")
    assert isinstance(found, Transient)
    assert "cannot be reached" in found.message
    assert "\n" not in str(found)


@contextmanager
def web(tls: Path | None = None, **answer: Any) -> Iterator[str]:
    """An HTTP server that is no S3 server."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answer.get("body", "<html><body>hello</body></html>").encode()
            self.send_response(answer.get("status", 200))
            self.send_header("Content-Type", answer.get("kind", "text/html"))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 -- the name that http.server looks for

        def log_message(self, *_: object) -> None: ...

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls / "cert.pem", tls / "key.pem")
        httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def test_an_endpoint_that_is_not_s3(tmp_path: Path, kind: str) -> None:
    with web() as endpoint:
        found = failure(tmp_path, type=kind, endpoint=endpoint)
    assert isinstance(found, Fatal)
    assert "is no S3 server" in found.message or "cannot be listened to" in found.message


def test_clocks_apart(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signed half an hour ahead: the server compares that with its own clock."""
    bucket = server().bucket()

    def ahead(**_: Any) -> datetime:
        return datetime.now(UTC) + timedelta(minutes=30)

    for clock in ("headrace.sources.objects.request.utcnow", "minio.time.utcnow", "botocore.auth.get_current_datetime"):
        monkeypatch.setattr(clock, ahead)
    found = failure(tmp_path, type=kind, bucket=bucket)
    assert isinstance(found, Transient)
    assert "clocks" in found.message
    assert "NTP" in found.hint


def test_a_certificate_that_is_not_trusted(tmp_path: Path, kind: str) -> None:
    self_signed(tmp_path)
    with web(tls=tmp_path) as endpoint:
        found = failure(tmp_path, type=kind, endpoint=endpoint)
        assert isinstance(found, Transient)
        assert "certificate" in found.message
        assert "ca_file" in found.hint
        trusted = failure(tmp_path, type=kind, endpoint=endpoint, ca_file="cert.pem")
        assert isinstance(trusted, Fatal), "the certificate is trusted, and the page is no S3"


@pytest.mark.parametrize(
    ("made", "remedy"),
    [({"name": "127.0.0.2"}, "as the certificate does"), ({"days": -1}, "renew the server's certificate")],
    ids=["of another host", "expired"],
)
def test_a_certificate_that_does_not_hold(tmp_path: Path, kind: str, made: dict[str, Any], remedy: str) -> None:
    self_signed(tmp_path, **made)
    with web(tls=tmp_path) as endpoint:
        found = failure(tmp_path, type=kind, endpoint=endpoint, ca_file="cert.pem")
    assert isinstance(found, Transient)
    assert "certificate" in found.message
    assert remedy in found.hint


def test_https_where_http_is_spoken(tmp_path: Path, kind: str) -> None:
    found = failure(tmp_path, type=kind, endpoint=server().endpoint.replace("http:", "https:"))
    assert isinstance(found, Transient)
    assert "TLS" in found.message


def test_a_server_that_cannot_listen(tmp_path: Path) -> None:
    other = moto()
    found = failure(tmp_path, **minio_table(other, other.bucket()))
    assert isinstance(found, Fatal)
    assert "cannot be listened to" in found.message
    assert 'type = "s3"' in found.hint


def test_a_queue_that_is_not_there(tmp_path: Path) -> None:
    other = moto()
    table = minio_table(other, other.bucket()) | {"type": "s3", "queue": f"{other.endpoint}/123456789012/none"}
    found = failure(tmp_path, **table)
    assert found.message == "there is no such queue"


def test_a_bucket_that_appears_later_is_picked_up(tmp_path: Path) -> None:
    given = server()
    first = given.bucket()
    run = Run(tmp_path, given, first, {"bucket": [first, f"{first}-later"]})

    async def body() -> None:
        async with run.running():
            run.put("a")
            await until(lambda: run.capture.has("a"))
            given.bucket(name=f"{first}-later")
            run.client.put_object(f"{first}-later", "b", BytesIO(b"x"), 1)
            await until(lambda: run.capture.has("b"), 20)

    asyncio.run(body())


def test_a_missing_bucket_is_looked_for_without_listing_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, exists = list[str](), MinioStore.exists

    async def counted(self: MinioStore, bucket: str) -> bool:
        looks.append(bucket)
        return await exists(self, bucket)

    monkeypatch.setattr(MinioStore, "exists", counted)
    monkeypatch.setattr("headrace.sources.objects.follow.ABSENT", 0.05)
    monkeypatch.setattr("headrace.sources.objects.listen.AGAIN", 0.05)
    given = server()
    first = given.bucket()
    run = Run(tmp_path, given, first, {"bucket": [first, f"{first}-never"]})

    async def body() -> None:
        async with run.running():
            compared = run.told(COMPARED)
            await until(lambda: looks.count(f"{first}-never") >= 5)
            assert run.told(COMPARED) == compared

    asyncio.run(body())


def test_the_only_bucket_appears_after_the_first_start(tmp_path: Path, kind: str) -> None:
    """Whatever is in it then is new, though it is the very first listing that finds it."""
    given, bucket = server(), f"later-{kind}-{free_port()}"
    table = minio_table(given, bucket) | {"type": kind}
    source = "".join(f'{name} = "{value}"\n' for name, value in table.items())
    sink = '[sinks.audit]\ntype = "file"\npath = "audit.jsonl"\nstart = "earliest"\n'
    (tmp_path / "headrace.toml").write_text(f"[sources.uploads]\n{source}\n{sink}")
    with Daemon(tmp_path) as daemon:
        eventually(lambda: daemon.says(f'there is no bucket \\"{bucket}\\"'), "it says what is missing")
        given.bucket(name=bucket)
        with given.connected() as client:
            client.put_object(bucket, "first", BytesIO(b"x"), 1)
        eventually(lambda: bool(events_of(tmp_path)), "the bucket is picked up")
    assert [event["subject"] for event in events_of(tmp_path)] == ["first"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"endpoint": "127.0.0.1:9000"}, "must be an address"),
        ({"endpoint": "http://h:9000/bucket"}, "scheme, host and port only"),
        ({"bucket": []}, "must name a bucket"),
        ({"bucket": "a/b"}, "belongs to `prefix`"),
        ({"secret_key": None}, "is needed with access_key"),
        ({"access_key": None}, "is needed with secret_key"),
        ({"prefixes": "x"}, "Extra inputs"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], why: str) -> None:
    table = {
        "type": "minio",
        "endpoint": "http://h:9000",
        "bucket": "b",
        "access_key": "a",
        "secret_key": "s",
    } | changes
    with pytest.raises(ValueError, match=why):
        settings_of({key: value for key, value in table.items() if value is not None})
