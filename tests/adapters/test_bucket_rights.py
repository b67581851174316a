"""What a key may do: the documented rights are enough, and a missing one is named."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from minio.credentials.providers import StaticProvider
from minio.minioadmin import MinioAdmin

from headrace.errors import Transient
from headrace.protocols import Diagnoses, Finding
from headrace.testing import make_context
from tests.adapters.bucket_runs import Run, failure, minio_table, settings_of, until
from tests.fixtures.s3 import free_port, server

pytestmark = pytest.mark.s3

LISTING = ["s3:ListBucket", "s3:ListBucketVersions", "s3:GetBucketVersioning"]
RIGHTS = {"s3": LISTING, "minio": [*LISTING, "s3:ListenBucketNotification"]}


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


@pytest.fixture(params=["minio", "s3"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def findings(folder: Path, table: dict[str, Any]) -> list[Finding]:
    async def run() -> list[Finding]:
        async with settings_of(table).open(make_context(folder)) as source:
            assert isinstance(source, Diagnoses)
            return [finding async for finding in source.diagnose()]

    return asyncio.run(run())


def test_the_documented_rights_are_enough(tmp_path: Path, kind: str) -> None:
    given = server()
    bucket = given.bucket(versioned=True)
    access, secret = user(bucket, "least", RIGHTS[kind], tmp_path)
    keys = {"type": kind, "relist": "1s", "access_key": access, "secret_key": secret}
    found = findings(tmp_path, minio_table(given, bucket) | keys)
    assert {it.level for it in found} == {"ok"}, found
    assert len(found) == (3 if kind == "minio" else 2)
    run = Run(tmp_path, given, bucket, keys, kind=settings_of)

    async def body() -> None:
        async with run.running():
            run.put("a")
            run.client.remove_object(bucket, "a")
            await until(lambda: len(run.events) == 2)
            await run.agrees()

    asyncio.run(body())


def test_missing_rights_are_named(tmp_path: Path, kind: str) -> None:
    given = server()
    bucket = given.bucket()
    access, secret = user(bucket, "listing", ["s3:ListBucket", "s3:GetBucketVersioning"], tmp_path, objects=False)
    table = minio_table(given, bucket) | {"type": kind, "access_key": access, "secret_key": secret}
    found = findings(tmp_path, table)
    assert [it.level for it in found[:2]] == ["ok", "error"], found
    assert "s3:GetObject" in found[1].remedy
    if kind == "minio":
        assert "s3:ListenBucketNotification" in found[2].remedy
        error = failure(tmp_path, **table)
        assert isinstance(error, Transient)
        assert "s3:ListenBucketNotification" in str(error)


def test_no_right_to_list(tmp_path: Path, kind: str) -> None:
    given = server()
    bucket = given.bucket()
    access, secret = user(bucket, "reading", ["s3:GetBucketVersioning", "s3:ListenBucketNotification"], tmp_path)
    error = failure(tmp_path, **minio_table(given, bucket) | {"type": kind, "access_key": access, "secret_key": secret})
    assert isinstance(error, Transient)
    assert f'denies s3:ListBucket on bucket "{bucket}"' in error.message
    assert error.hint == "allow s3:ListBucket to this key"


def test_doctor_of_a_server_that_is_not_there(tmp_path: Path) -> None:
    table = minio_table(server(), "b-1") | {"endpoint": f"http://127.0.0.1:{free_port()}"}
    found = findings(tmp_path, table)
    assert [it.level for it in found] == ["error"]
    assert "cannot be reached" in found[0].what
