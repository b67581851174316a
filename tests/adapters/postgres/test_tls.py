"""TLS as libpq has it: a certificate that is trusted and fits, or an error with its remedy."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from headrace.demo.cluster import NOBODY
from headrace.errors import Fatal
from headrace.testing import MemoryCapture
from tests.adapters.postgres.test_failures import captured, ends
from tests.fixtures.postgres import Database, Server, need_local, server

pytestmark = pytest.mark.postgres


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed one for `localhost`: the file and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the program openssl: apt install openssl")
    file, key = folder / f"{name}.crt", folder / f"{name}.key"
    about = ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command = ["openssl", "req", *kind, *about, "-keyout", str(key), "-out", str(file)]
    subprocess.run(command, check=True, capture_output=True)
    return file, key


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[tuple[Database, Path]]:
    """A database behind TLS, and its certificate."""
    file, key = certificate(tmp_path, "right")
    for choice in reversed(need_local()):  # the wheel's server is built without TLS
        with server(choice) as made:
            if made.data is None or not encrypts(made, made.data, file, key):
                continue
            made.restart()
            with made.database() as database:
                database.execute("CREATE TABLE t (a int PRIMARY KEY)")
                yield database, file
            return
    pytest.skip("needs a server of our own with TLS: apt install postgresql")


def encrypts(made: Server, data: Path, file: Path, key: Path) -> bool:
    """Whether the server has TLS; it is on from its next start."""
    for each, name in ((file, "server.crt"), (key, "server.key")):
        copied = shutil.copy(each, data / name)
        Path(copied).chmod(0o600)
        if os.geteuid() == 0:
            os.chown(copied, NOBODY, NOBODY)
    with suppress(psycopg.errors.InvalidParameterValue):
        made.execute("ALTER SYSTEM SET ssl = on")
        made.execute("ALTER SYSTEM SET listen_addresses = 'localhost'")
        return True
    return False


def test_a_certificate_that_is_trusted_and_fits(shop: tuple[Database, Path], tmp_path: Path) -> None:
    database, file = shop
    dsn = make_conninfo(database.dsn, host="localhost", sslmode="verify-full", sslrootcert=str(file))
    found = captured(database, tmp_path, MemoryCapture(), 1, dsn=dsn)
    assert len(found.events) == 1


def test_one_that_is_not_trusted(shop: tuple[Database, Path], tmp_path: Path) -> None:
    database, _ = shop
    other, _ = certificate(tmp_path, "other")
    dsn = make_conninfo(database.dsn, host="localhost", sslmode="verify-full", sslrootcert=str(other))
    error = ends(database, tmp_path, dsn=dsn)
    assert isinstance(error, Fatal)
    assert "certificate verify failed" in error.message
    assert "sslrootcert" in error.hint


def test_one_of_another_host(shop: tuple[Database, Path], tmp_path: Path) -> None:
    database, file = shop
    dsn = make_conninfo(database.dsn, host="127.0.0.1", sslmode="verify-full", sslrootcert=str(file))
    error = ends(database, tmp_path, dsn=dsn)
    assert isinstance(error, Fatal)
    assert "does not match host name" in error.message or "127.0.0.1" in error.message
    assert "sslmode" in error.hint


def test_a_root_certificate_that_is_missing(shop: tuple[Database, Path], tmp_path: Path) -> None:
    database, _ = shop
    dsn = make_conninfo(database.dsn, host="localhost", sslmode="verify-full", sslrootcert=str(tmp_path / "none"))
    error = ends(database, tmp_path, dsn=dsn)
    assert isinstance(error, Fatal)
    assert "sslrootcert" in error.hint
