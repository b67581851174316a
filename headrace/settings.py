"""The typed settings: what each table of the TOML file may hold. `settings_file` reads them.

Every class is frozen and refuses unknown keys. Adapters derive from `SourceSettings`, `SinkSettings` or
`HandlerSettings`; the class is what their entry point names, and it builds the adapter.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from headrace.protocols import Context, Sink, Source

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SIZES: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[smhdw]))+")
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])")
_SIZE: Final = re.compile(r"(\d+)\s*(B|KiB|MiB|GiB|TiB)")


def parse_duration(value: Any) -> Any:
    """`"1h30m"`, `"200ms"` as seconds."""
    if not isinstance(value, str):
        raise ValueError('a duration is a text such as "200ms", "30s", "1h30m" or "7d"')
    if not _DURATION.fullmatch(value):
        raise ValueError(f'"{value}" is no duration; write one as "200ms", "30s", "1h30m" or "7d"')
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(value))


def parse_size(value: Any) -> Any:
    """`"10MiB"` as bytes; a plain number is bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f'{value!r} is no size; write one as "512KiB", "10MiB" or "1GiB"')
    return int(found[1]) * _SIZES[found[2]]


Duration = Annotated[float, BeforeValidator(parse_duration, json_schema_input_type=str)]
"""Seconds; written as a text with units."""
Size = Annotated[int, Field(ge=0), BeforeValidator(parse_size, json_schema_input_type=str | int)]
"""Bytes; written as a text with a binary unit, or as a number."""
Secret = SecretStr
"""A text that prints as `***`."""


class Settings(BaseModel):
    """The base of every table."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class SourceSettings(Settings):
    """A `[sources.NAME]` table. `events` are the EVENT names that `on` may choose; None stands for any.

    `child` makes the source run in a process of its own. `problems` adds what only the whole table can tell, for
    `check`: messages by key.
    """

    events: ClassVar[frozenset[str] | None] = None
    child: ClassVar[bool] = False

    type: str
    snapshot: Literal["initial", "never"] = "never"

    @abstractmethod
    def open(self, context: Context) -> AbstractAsyncContextManager[Source]:
        """The running adapter; closed when the context is left."""
        raise NotImplementedError

    def problems(self, directory: Path) -> Mapping[str, str]:
        return {}


class Retry(Settings):
    """Exponential with full jitter, from `initial` to `max`; an event is given up after `attempts` or `max_age`."""

    initial: Duration = Field(0.2, gt=0)
    max: Duration = Field(300.0, gt=0)
    attempts: int = Field(8, ge=1)
    max_age: Duration = Field(86_400.0, gt=0)


class BatchSize(Settings):
    """Events per delivery, and how long to wait for more of them once there is one."""

    size: int = Field(1, ge=1, le=100_000)
    wait: Duration = Field(0.0, ge=0)


class ConsumerSettings(Settings):
    """The options of every consumer, a handler or a sink alike. An adapter overrides the defaults."""

    on: tuple[str, ...] | None = None
    start: Literal["earliest", "latest"] | datetime = "latest"
    ordering: Literal["key", "strict", "none"] = "key"
    concurrency: int = Field(1, ge=1, le=1_000)
    batch: BatchSize = BatchSize()
    retry: Retry = Retry()
    timeout: Duration = Field(30.0, gt=0)
    on_failure: Literal["dead-letter", "hold-key", "pause"] = "dead-letter"
    on_lag: Literal["stop-intake", "detach"] = "stop-intake"

    @abstractmethod
    def open(self, context: Context) -> AbstractAsyncContextManager[Sink]:
        """The running adapter; closed when the context is left."""
        raise NotImplementedError

    def problems(self, directory: Path) -> Mapping[str, str]:
        return {}


class SinkSettings(ConsumerSettings):
    """A `[sinks.NAME]` table; `type` names the entry point."""

    type: str


class HandlerSettings(ConsumerSettings):
    """A `[handlers.NAME]` table; `contract` names the entry point (`function` and `command` follow from their key)."""

    contract: str


class DaemonSettings(Settings):
    """`[daemon]`. `admin` is `HOST:PORT`, off unless set; anything but loopback needs `admin_token`."""

    data_dir: Path = Path("headrace-data")
    origin: str = "headrace:"
    admin: str | None = None
    admin_token: Secret | None = None
    grace: Duration = Field(10.0, ge=0)


class JournalSettings(Settings):
    """`[journal]`. `max_size` beats `retention`."""

    retention: Duration = Field(604_800.0, gt=0)
    max_size: Size = Field(10 << 30, ge=1 << 20)
    max_event: Size = Field(16 << 20, ge=1 << 10)


@dataclass(frozen=True, slots=True)
class Config:
    """A whole settings file, checked. `directory` is its folder, where relative paths start."""

    file: Path
    daemon: DaemonSettings
    journal: JournalSettings
    sources: Mapping[str, SourceSettings]
    handlers: Mapping[str, HandlerSettings]
    sinks: Mapping[str, SinkSettings]

    @property
    def directory(self) -> Path:
        return self.file.parent

    @property
    def data_dir(self) -> Path:
        return self.directory / self.daemon.data_dir

    @property
    def consumers(self) -> Mapping[str, ConsumerSettings]:
        """Handlers and sinks by name; names are unique over both and over sources."""
        return {**self.handlers, **self.sinks}
