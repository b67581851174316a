"""The `[sources.NAME]` table of `type = "filesystem"`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from headrace.protocols import Context, Source
from headrace.settings import Duration, Size, SourceSettings
from headrace.sources.filesystem.names import problem


def _pattern(text: str) -> str:
    if why := problem(text):
        raise ValueError(why)
    return text


Pattern = Annotated[str, AfterValidator(_pattern)]


class FilesystemSource(SourceSettings):
    """A directory and all that is below it.

    `include` and `exclude` are patterns relative to `path`; an excluded directory hides all that is in it. A file is
    told of once it is finished: closed, renamed to its name, or, where the kernel does not tell, unchanged for
    `settle`. One that stays open is told of every `emit_open`. `mode = "auto"` watches, and polls every `poll` where
    the file system does not notify. Every `rescan` all is compared, whatever was seen. `snapshot = "initial"` tells of
    what is there at the very first start.

    `fingerprint` reads every file that is closed, and tells apart what size and times do not: a write within the
    clock's tick, and one that changed nothing. `content` puts what is in a file into its event, up to `content_max`;
    as `"text"` where it is UTF-8, else as Base64.
    """

    events: ClassVar[frozenset[str] | None] = frozenset({"created", "modified", "deleted", "moved"})

    type: Literal["filesystem"]
    path: Path
    include: tuple[Pattern, ...] = ("**",)
    exclude: tuple[Pattern, ...] = ()
    settle: Duration = Field(1.0, gt=0)
    emit_open: Literal["never"] | Duration = "never"
    mode: Literal["auto", "watch", "poll"] = "auto"
    poll: Duration = Field(5.0, ge=0.1)
    rescan: Duration = Field(3600.0, ge=1)
    fingerprint: bool = False
    content: Literal["never", "text", "base64"] = "never"
    content_max: Size = 65_536

    def problems(self, directory: Path) -> Mapping[str, str]:
        path = directory / self.path
        if not path.exists():
            return {"path": f"{path} does not exist"}
        if not path.is_dir():
            return {"path": f"{path} is not a directory"}
        if not os.access(path, os.R_OK | os.X_OK):
            return {"path": f"{path} cannot be read by this user"}
        return {}

    def open(self, context: Context) -> AbstractAsyncContextManager[Source]:
        return _opened(self, context)


@asynccontextmanager
async def _opened(settings: FilesystemSource, context: Context) -> AsyncIterator[Source]:
    from headrace.sources.filesystem.source import Filesystem  # watchdog is loaded only where it is used

    yield Filesystem(settings, context)
