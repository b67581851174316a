"""Whatever is wrong around a bucket has its own message and remedy, and what is put right is picked up."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from minio.credentials.providers import StaticProvider
from minio.minioadmin import MinioAdmin

from headrace.errors import Fatal, HeadraceError, Transient
from headrace.protocols import Diagnoses, Finding
from headrace.sources.minio import MinioSource
from headrace.sources.s3 import S3Source
from headrace.tasks import cause
from headrace.testing import MemoryCapture, make_context
from tests.adapters.bucket_runs import Run, minio_table, until
from tests.fixtures.moto import moto
from tests.fixtures.s3 import free_port, private_server, server

pytestmark = pytest.mark.s3


def settings_of(table: dict[str, Any]) -> MinioSource | S3Source:
    return (MinioSource if table["type"] == "minio" else S3Source).model_validate(table)


def failure(folder: Path, **changes: Any) -> HeadraceError:
    """What the source ends with."""
    table = minio_table(server(), server().bucket()) | changes
    table = {key: value for key, value in table.items() if value is not None}

    async def run() -> HeadraceError:
        try:
            async with settings_of(table).open(make_context(folder)) as source, asyncio.timeout(20):
                await source.run(MemoryCapture())
        except (HeadraceError, BaseExceptionGroup) as error:
            found = cause(error)
            assert isinstance(found, HeadraceError), repr(found)
            return found
        raise AssertionError("it runs")

    return asyncio.run(run())


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


def test_wrong_region(tmp_path: Path) -> None:
    """Botocore finds the right one by itself."""
    given = private_server(tmp_path, region="eu-west-1")
    try:
        found = failure(tmp_path, **minio_table(given, "uploads") | {"region": "us-east-1"})
    finally:
        given.kill()
    assert isinstance(found, Fatal)
    assert "region" in str(found)


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


@pytest.mark.parametrize("code", ["RequestTimeTooSkewed"])
def test_clocks_apart(tmp_path: Path, kind: str, code: str) -> None:
    body = f"<Error><Code>{code}</Code><Message>too far</Message></Error>"
    with web(status=403, kind="application/xml", body=body) as endpoint:
        found = failure(tmp_path, type=kind, endpoint=endpoint)
    assert isinstance(found, Transient)
    assert "NTP" in found.hint


def test_a_certificate_that_is_not_trusted(tmp_path: Path, kind: str) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    with web(tls=tmp_path) as endpoint:
        found = failure(tmp_path, type=kind, endpoint=endpoint)
        assert isinstance(found, Transient)
        assert "certificate" in found.message
        assert "ca_file" in found.hint
        trusted = failure(tmp_path, type=kind, endpoint=endpoint, ca_file="cert.pem")
        assert isinstance(trusted, Fatal), "the certificate is trusted, and the page is no S3"


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
            from io import BytesIO

            run.client.put_object(f"{first}-later", "b", BytesIO(b"x"), 1)
            await until(lambda: run.capture.has("b"), 20)

    asyncio.run(body())


# Rights

RIGHTS = {
    "listing": ["s3:ListBucket"],
    "least": ["s3:ListBucket", "s3:ListBucketVersions", "s3:GetBucketVersioning", "s3:ListenBucketNotification"],
}


def user(bucket: str, name: str, rights: list[str], folder: Path, *, objects: bool = True) -> tuple[str, str]:
    """A user of MinIO with these rights on the bucket, and with those to read its objects."""
    given = server()
    access, secret = f"{name}-{bucket[-6:]}", "a-long-secret"
    admin = MinioAdmin(
        endpoint=given.host, credentials=StaticProvider(given.access_key, given.secret_key), secure=False
    )
    statements = [{"Effect": "Allow", "Action": rights, "Resource": [f"arn:aws:s3:::{bucket}"]}]
    if objects:
        actions = ["s3:GetObject", "s3:GetObjectVersion"]
        statements.append({"Effect": "Allow", "Action": actions, "Resource": [f"arn:aws:s3:::{bucket}/*"]})
    file = folder / "policy.json"
    file.write_text(json.dumps({"Version": "2012-10-17", "Statement": statements}))
    admin.user_add(access, secret)
    admin.policy_add(access, str(file))
    admin.policy_set(access, user=access)
    return access, secret


def findings(folder: Path, table: dict[str, Any]) -> list[Finding]:
    async def run() -> list[Finding]:
        async with settings_of(table).open(make_context(folder)) as source:
            assert isinstance(source, Diagnoses)
            return [finding async for finding in source.diagnose()]

    return asyncio.run(run())


def test_the_documented_rights_are_enough(tmp_path: Path) -> None:
    given = server()
    bucket = given.bucket(versioned=True)
    access, secret = user(bucket, "least", RIGHTS["least"], tmp_path)
    table = minio_table(given, bucket) | {"access_key": access, "secret_key": secret}
    found = findings(tmp_path, table)
    assert [it.level for it in found] == ["ok"] * 3, found
    run = Run(tmp_path, given, bucket, {"access_key": access, "secret_key": secret})

    async def body() -> None:
        async with run.running():
            run.put("a")
            run.client.remove_object(bucket, "a")
            await until(lambda: len(run.events) == 2)
            await run.agrees()

    asyncio.run(body())


def test_missing_rights_are_named(tmp_path: Path) -> None:
    given = server()
    bucket = given.bucket()
    access, secret = user(bucket, "listing", [*RIGHTS["listing"], "s3:GetBucketVersioning"], tmp_path, objects=False)
    table = minio_table(given, bucket) | {"access_key": access, "secret_key": secret}
    found = findings(tmp_path, table)
    assert [it.level for it in found] == ["ok", "error", "error"], found
    assert "s3:GetObject" in found[1].remedy
    assert "s3:ListenBucketNotification" in found[2].remedy
    error = failure(tmp_path, **table)
    assert isinstance(error, Transient)
    assert "s3:ListenBucketNotification" in str(error)


def test_doctor_of_a_server_that_is_not_there(tmp_path: Path) -> None:
    table = minio_table(server(), "b-1") | {"endpoint": f"http://127.0.0.1:{free_port()}"}
    found = findings(tmp_path, table)
    assert [it.level for it in found] == ["error"]
    assert "cannot be reached" in found[0].what


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
