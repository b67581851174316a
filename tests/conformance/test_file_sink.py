"""The file sink keeps what every sink must, with rotation and without."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headrace.settings import SinkSettings
from headrace.sinks.file import FileSink
from headrace.testing import SinkConformance


class TestFileSink(SinkConformance):
    """One file that grows."""

    effectively_once = True

    def settings(self, tmp_path: Path) -> SinkSettings:
        return FileSink.model_validate({"path": "out/audit.jsonl"})

    def delivered(self, tmp_path: Path) -> list[bytes]:
        files = [*sorted((tmp_path / "out").glob("audit.jsonl.*")), tmp_path / "out/audit.jsonl"]
        return [line for file in files for line in file.read_bytes().splitlines(keepends=True)]

    @contextmanager
    def outage(self, tmp_path: Path) -> Iterator[None]:
        """A disk that takes ten more bytes of each write."""
        real = os.write

        def write(fd: int, data: bytes) -> int:
            if len(data) < 100:
                return real(fd, data)
            real(fd, bytes(data)[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "write", write)
            yield


class TestFileSinkThatRotates(TestFileSink):
    """Many small files: most crashes of the suite meet an uncommitted rotation."""

    def settings(self, tmp_path: Path) -> SinkSettings:
        rotate = {"size": "2KiB", "keep": "all"}
        return FileSink.model_validate({"path": "out/audit.jsonl", "rotate": rotate})
