"""`event.open()` of a bucket's event, in a real daemon: by an address made on demand. And the example that uses it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest

from headrace.handlers.worker import _ask_daemon
from tests.fixtures.s3 import S3Server, server, until

pytestmark = pytest.mark.s3

ROOT = Path(__file__).parents[2]
SETTINGS = """
[sources.uploads]
type = "{kind}"
endpoint = "{endpoint}"
bucket = "{bucket}"
access_key = "{access_key}"
secret_key = "{secret_key}"
snapshot = "initial"

[handlers.read]
function = "read.py:read"
on = ["uploads.created"]
start = "earliest"
"""
HANDLER = """
import os
def read(event):
    with event.open() as binary, event.open("r", encoding="utf-8") as text:
        with open("read.log", "a") as log:
            log.write(f"{binary.read()!r} {text.read()!r} {sorted(os.environ)}\\n")
"""


@contextmanager
def daemon(folder: Path, **environment: str) -> Iterator[None]:
    command = [sys.executable, "-m", "headrace", "run", "-c", str(folder / "headrace.toml")]
    with (folder / "daemon.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environment})
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)
        sys.stdout.write((folder / "daemon.log").read_text())


def put(found: S3Server, bucket: str, key: str, data: bytes) -> None:
    with found.connected() as client:
        client.put_object(bucket, key, BytesIO(data), len(data))


@pytest.mark.parametrize("kind", ["minio", "s3"])
def test_a_function_reads_the_version_that_the_event_is_about(tmp_path: Path, kind: str) -> None:
    found = server()
    bucket = found.bucket(versioned=True)
    put(found, bucket, "a b+ü.txt", b"first")
    put(found, bucket, "a b+ü.txt", b"second")
    text = SETTINGS.format(
        kind=kind, endpoint=found.endpoint, bucket=bucket, access_key=found.access_key, secret_key=found.secret_key
    )
    (tmp_path / "headrace.toml").write_text(text)
    (tmp_path / "read.py").write_text(HANDLER)
    log = tmp_path / "read.log"
    with daemon(tmp_path):
        until(lambda: log.exists() and log.read_text().count("\n") == 2, "both versions are read")
    lines = log.read_text().splitlines()
    assert sorted(line.split()[0] for line in lines) == ["b'first'", "b'second'"]
    assert found.secret_key not in log.read_text()


def test_code_that_may_ask_for_addresses_may_ask_for_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a worker is told of gives addresses, of what the source follows, and takes no command."""
    found = server()
    bucket, other = found.bucket(), found.bucket()
    text = SETTINGS.format(
        kind="minio", endpoint=found.endpoint, bucket=bucket, access_key=found.access_key, secret_key=found.secret_key
    )
    (tmp_path / "headrace.toml").write_text(text)
    (tmp_path / "read.py").write_text(HANDLER)
    socket = tmp_path / "headrace-data" / "links.sock"
    monkeypatch.setenv("HEADRACE_LINKS", str(socket))
    event = {"source": "headrace:uploads", "data": {"bucket": bucket, "key": "a"}}
    with daemon(tmp_path):
        until(lambda: "compared with the buckets" in (tmp_path / "daemon.log").read_text(), "it runs")
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        assert _ask_daemon("/link", event)["url"].startswith(f"{found.endpoint}/{bucket}/a?")
        with pytest.raises(OSError, match="is not followed by this source"):
            _ask_daemon("/link", event | {"data": {"bucket": other, "key": "a"}})
        for command in ("/pause", "/reload", "/seek"):
            with pytest.raises(OSError, match=f"{command}: Not Found"):
                _ask_daemon(command, {"name": "read"})
    assert not socket.exists()


def test_the_thumbnails_example(tmp_path: Path) -> None:
    found = server()
    bucket = found.bucket()
    house = tmp_path / "thumbnails"
    shutil.copytree(ROOT / "examples" / "thumbnails", house)
    environment = {"S3_ENDPOINT": found.endpoint, "S3_BUCKET": bucket}
    environment |= {"S3_ACCESS_KEY": found.access_key, "S3_SECRET": found.secret_key}
    made = house / "thumbnails" / "flag.ppm"
    with daemon(house, **environment):
        until(lambda: "compared with the buckets" in (house / "daemon.log").read_text(), "it listens")
        put(found, bucket, "in/flag.ppm", b"P6\n256 128\n255\n" + b"rgb" * (256 * 128))
        until(made.exists, "the thumbnail is made")
        until(lambda: made.stat().st_size > 0, "it is written")
    assert made.read_bytes() == b"P6\n64 32\n255\n" + b"rgb" * (64 * 32)
