"""The s3 source keeps what every source must: by listings of MinIO and of moto, and by a queue of moto's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from headrace.settings import SourceSettings
from headrace.sources.s3 import S3Source
from headrace.testing import SourceConformance
from tests.adapters.bucket_runs import minio_table
from tests.fixtures.moto import moto
from tests.fixtures.s3 import S3Server, free_port, server


class S3Conformance(SourceConformance):
    """A change is an object. In an outage, nobody listens where the server was."""

    crashes = 2
    away = False

    def server(self) -> S3Server:
        raise NotImplementedError

    def settings(self, tmp_path: Path) -> SourceSettings:
        made = self._made(tmp_path)
        there = f"http://127.0.0.1:{free_port()}" if self.away else self.server().endpoint
        table = minio_table(self.server(), made["bucket"]) | {"type": "s3", "endpoint": there, "region": "us-east-1"}
        return S3Source.model_validate(table | made["options"])

    def prepare(self, tmp_path: Path) -> None:
        made = {"bucket": self.server().bucket(), "options": {"relist": "1s"}}
        (tmp_path / "made").write_text(json.dumps(made))

    def change(self, tmp_path: Path, number: int) -> str:
        self._put(tmp_path, f"object-{number}", f"{number}")
        return f"object-{number}"

    def change_again(self, tmp_path: Path, number: int) -> None:
        self._put(tmp_path, f"object-{number}", f"{number} again")

    @contextmanager
    def outage(self, tmp_path: Path) -> Iterator[None]:
        self.away = True
        yield
        self.away = False

    def _put(self, tmp_path: Path, key: str, text: str) -> None:
        with self.server().connected() as client:
            client.put_object(self._made(tmp_path)["bucket"], key, BytesIO(text.encode()), len(text))

    @staticmethod
    def _made(tmp_path: Path) -> dict[str, Any]:
        made: dict[str, Any] = json.loads((tmp_path / "made").read_text())
        return made


@pytest.mark.s3
class TestS3SourceListingMinio(S3Conformance):
    """Listed every second."""

    def server(self) -> S3Server:
        return server()


@pytest.mark.s3
class TestS3SourceListingMoto(S3Conformance):
    """Another server than MinIO."""

    def server(self) -> S3Server:
        return moto()


@pytest.mark.s3
class TestS3SourceWithQueue(S3Conformance):
    """Told by a queue, listed at the start."""

    crashes = 4

    def server(self) -> S3Server:
        return moto()

    def prepare(self, tmp_path: Path) -> None:
        queue, bucket = moto().queue(), moto().bucket()
        moto().notify(bucket, queue)
        (tmp_path / "made").write_text(json.dumps({"bucket": bucket, "options": {"queue": queue, "relist": "1h"}}))
