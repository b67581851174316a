"""The filesystem source keeps what every source must."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace.settings import SourceSettings
from headrace.sources.filesystem import FilesystemSource
from headrace.testing import SourceConformance


class TestFilesystemSource(SourceConformance):
    """A change is a file that appears whole, by a rename into the tree."""

    waits = True

    def settings(self, tmp_path: Path) -> SourceSettings:
        return FilesystemSource.model_validate({"type": "filesystem", "path": "tree"})

    def prepare(self, tmp_path: Path) -> None:
        (tmp_path / "tree").mkdir()

    def change(self, tmp_path: Path, number: int) -> str:
        self._put(tmp_path, f"file-{number}", f"{number}\n")
        return f"file-{number}"

    def change_again(self, tmp_path: Path, number: int) -> None:
        self._put(tmp_path, f"file-{number}", f"{number} again\n")

    @contextmanager
    def outage(self, tmp_path: Path) -> Iterator[None]:
        (tmp_path / "tree").rename(tmp_path / "away")
        yield
        (tmp_path / "away").rename(tmp_path / "tree")

    @staticmethod
    def _put(tmp_path: Path, name: str, text: str) -> None:
        (tmp_path / "part").write_text(text)
        (tmp_path / "part").rename(tmp_path / "tree" / name)
