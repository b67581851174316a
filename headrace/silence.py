"""A log that nobody reads: where a command answers by itself what an adapter would only log."""

from __future__ import annotations

from typing import Any


class SilentLog:
    """The `Logger` that says nothing."""

    def debug(self, event: str, **fields: Any) -> None: ...
    def info(self, event: str, **fields: Any) -> None: ...
    def warning(self, event: str, **fields: Any) -> None: ...
    def error(self, event: str, **fields: Any) -> None: ...
    def exception(self, event: str, **fields: Any) -> None: ...
    def bind(self, **fields: Any) -> SilentLog:
        return self
