"""A MinIO that holds its listen stream back in a buffer of 4 KiB (builds since 2025-10-24) is compared instead."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.protocols import Diagnoses
from headrace.testing import make_context
from tests.adapters.bucket_runs import Run
from tests.fixtures.s3 import LocalMinio, S3Server, holding_program, server
from tests.fixtures.tcp_proxy import TcpProxy

pytestmark = pytest.mark.s3

TOLD = "the server holds notifications back; the buckets are compared instead"


@pytest.fixture(scope="module", params=["released", "proxy"])
def slow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The real one where there is one, and a proxy that does the same."""
    if request.param == "proxy":
        with TcpProxy(server().host) as proxy:
            proxy.block = 4096
            yield S3Server(proxy.host, "proxy", server().access_key, server().secret_key)
        return
    program = holding_program()
    if program is None:
        pytest.skip("no MinIO that holds back: `go install github.com/minio/minio@latest` gives one")
    minio = LocalMinio(program, tmp_path_factory.mktemp("slow"))
    minio.start()
    yield minio
    minio.kill()


def test_it_is_said_and_everything_still_comes(tmp_path: Path, slow: S3Server) -> None:
    run = Run(tmp_path, slow, slow.bucket())

    async def body() -> None:
        async with run.running():
            assert run.told(TOLD) == 1
            run.put("a")
            await run.sees(("created", "a"))
            assert run.events[0].data["recovered"], "a comparison found it"
            for number in range(40):  # some 32 KiB of notifications
                run.put(f"key-{number}")
            await run.agrees()
            run.client.remove_object(run.bucket, "a")
            await run.agrees()
        assert len(run.events) == 42
        assert run.told(TOLD) == 1

    asyncio.run(body())


def test_doctor_names_it(tmp_path: Path, slow: S3Server) -> None:
    run = Run(tmp_path, slow, slow.bucket())

    async def findings() -> list[tuple[str, str]]:
        async with run.settings().open(make_context(tmp_path)) as source:
            assert isinstance(source, Diagnoses)
            return [(it.level, it.what) async for it in source.diagnose()]

    *_, last = asyncio.run(findings())
    assert last == ("error", "the server holds notifications back")
