"""The minio source keeps what every source must."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest

from headrace.settings import SourceSettings
from headrace.sources.minio import MinioSource
from headrace.testing import SourceConformance
from tests.adapters.bucket_runs import minio_table
from tests.fixtures.s3 import free_port, server


@pytest.mark.s3
class TestMinioSource(SourceConformance):
    """A change is an object. In an outage, nobody listens where the server was."""

    versioned = False
    away = False

    def settings(self, tmp_path: Path) -> SourceSettings:
        table = minio_table(server(), self._bucket(tmp_path))
        endpoint = f"http://127.0.0.1:{free_port()}" if self.away else server().endpoint
        return MinioSource.model_validate(table | {"endpoint": endpoint})

    def prepare(self, tmp_path: Path) -> None:
        (tmp_path / "bucket").write_text(server().bucket(versioned=self.versioned))

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
        with server().connected() as client:
            client.put_object(self._bucket(tmp_path), key, BytesIO(text.encode()), len(text))

    @staticmethod
    def _bucket(tmp_path: Path) -> str:
        return (tmp_path / "bucket").read_text()


@pytest.mark.s3
class TestMinioSourceWithVersions(TestMinioSource):
    """The same on a versioned bucket."""

    versioned = True
