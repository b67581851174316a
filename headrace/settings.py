"""The typed settings: what each table of the TOML file may hold. `settings_file` reads them.

Every class is frozen and refuses unknown keys. Adapters derive from `SourceSettings`, `SinkSettings`
or `HandlerSettings`; the class is what their entry point names, and it builds the adapter.

A validator raises `ValueError` with a message that stands behind the key (`must end in "/"`), or, where
it compares several keys, `mistake(key, message)`. Messages must not quote the values of secrets.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)
from pydantic_core import PydanticCustomError

from headrace.pattern_syntax import PatternError, load, parse
from headrace.protocols import Context, Sink, Source
from headrace.units import (
    format_duration,
    format_size,
    is_loopback,
    parse_address,
    parse_duration,
    parse_size,
    parse_start,
)

_URI_REFERENCE: Final = re.compile(r"(?:[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=]|%[0-9A-Fa-f]{2})+")


def mistake(key: str, message: str) -> PydanticCustomError:
    """What a model validator raises to blame one key (`"retry.max"`: one in a table below)."""
    return PydanticCustomError("mistake", "{message}", {"key": key, "message": message})


def _address(text: str) -> str:
    parse_address(text)
    return text


def _uri_prefix(text: str) -> str:
    if not _URI_REFERENCE.fullmatch(text):
        raise ValueError("must start a URI: letters, digits and -._~:/?#[]@!$&'()*+,;=% only")
    return text


def _where(value: Any) -> Any:
    try:
        table = load(value)
        parse(table)
    except PatternError as error:
        raise PydanticCustomError("mistakes", "{mistakes}", {"mistakes": error.mistakes}) from None
    return table


def _folder(path: Any) -> Any:
    if path == "":
        raise ValueError("must name a folder")
    return path


Duration = Annotated[float, BeforeValidator(parse_duration, json_schema_input_type=str)]
"""Seconds; written as a text with units."""
Size = Annotated[int, BeforeValidator(parse_size, json_schema_input_type=str | int)]
"""Bytes; written as a text with a binary unit, or as a number."""
Start = Annotated[
    Literal["earliest", "latest"] | datetime,
    BeforeValidator(parse_start, json_schema_input_type=Literal["earliest", "latest"] | datetime),
]
"""Where a consumer begins when it is first seen."""
Where = Annotated[dict[str, Any] | None, BeforeValidator(_where, json_schema_input_type=dict[str, Any] | str)]
"""A pattern, written as a table or a JSON text; checked, and kept as a table for `headrace.pattern.Pattern`."""
Address = Annotated[str, AfterValidator(_address)]
"""`HOST:PORT`."""


class Secret(SecretStr):
    """A text that prints as `***`, the empty one too."""

    def _display(self) -> str:
        return "***"


class Settings(BaseModel):
    """The base of every table."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class SourceSettings(Settings):
    """A `[sources.NAME]` table. `events` are the EVENT names `on` may choose; None stands for any.

    `child` makes the source run in a process of its own. `problems` is for `check`: what only a look
    at the outside tells (a path that is not there), messages by key. Relative paths start at
    `directory`.
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

    def conflicts(self, earlier: Mapping[str, SourceSettings]) -> Mapping[str, str]:
        """What does not go together with the sources before this one in the file: messages by key."""
        return {}


class Retry(Settings):
    """Exponential with full jitter, from `initial` to `max`.

    An event is given up after `attempts` or `max_age`.
    """

    initial: Duration = Field(0.2, gt=0)
    max: Duration = Field(300.0, gt=0)
    attempts: int = Field(8, ge=1)
    max_age: Duration = Field(86_400.0, gt=0)

    @model_validator(mode="after")
    def _initial_first(self) -> Self:
        if self.initial > self.max:
            text = format_duration(self.initial)
            raise mistake("initial", f"{text} is more than max ({format_duration(self.max)})")
        return self


class BatchSize(Settings):
    """Events per delivery, and how long to wait for more of them once there is one."""

    size: int = Field(1, ge=1, le=100_000)
    wait: Duration = Field(0.0, ge=0)


class ConsumerSettings(Settings):
    """The options of every consumer, handlers and sinks alike. An adapter overrides the defaults.

    `bulk`: the sink takes whole batches in order, one at a time, and a batch fails as a whole; so
    the engine need not look at each event. `own_timeout`: the adapter itself enforces `timeout`,
    for each event of a batch. With more dead letters than `dead_letter_limit` the consumer pauses.
    """

    bulk: ClassVar[bool] = False
    own_timeout: ClassVar[bool] = False

    on: tuple[str, ...] | None = None
    where: Where = None
    start: Start = "latest"
    ordering: Literal["key", "strict", "none"] = "key"
    concurrency: int = Field(1, ge=1, le=1_000)
    batch: BatchSize = BatchSize()
    retry: Retry = Retry()
    timeout: Duration = Field(30.0, gt=0)
    on_failure: Literal["dead-letter", "hold-key", "pause"] = "dead-letter"
    dead_letter_limit: int = Field(10_000, ge=1)
    on_lag: Literal["stop-intake", "detach"] = "stop-intake"

    @property
    def in_flight(self) -> int:
        """Deliveries at once: more than `concurrency` where the adapter wants the next one at hand."""
        return self.concurrency

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
    """A `[handlers.NAME]` table; `contract` names the entry point.

    In the file, `function` and `command` follow from the key of that name.
    """

    contract: str


class DaemonSettings(Settings):
    """`[daemon]`. `admin` is off unless set; anything but loopback needs `admin_token`."""

    data_dir: Annotated[Path, BeforeValidator(_folder, json_schema_input_type=str)] = Path("headrace-data")
    origin: Annotated[str, AfterValidator(_uri_prefix)] = "headrace:"
    admin: Address | None = None
    admin_token: Secret | None = None
    grace: Duration = Field(10.0, ge=0)

    @property
    def admin_address(self) -> tuple[str, int] | None:
        """Host and port of `admin`."""
        return None if self.admin is None else parse_address(self.admin)

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        token = self.admin_token.get_secret_value() if self.admin_token else ""
        if self.admin_address and not is_loopback(self.admin_address[0]) and not token:
            raise mistake("admin", "can be reached from other machines: set admin_token as well")
        return self


class JournalSettings(Settings):
    """`[journal]`. `max_size` beats `retention`."""

    retention: Duration = Field(604_800.0, gt=0)
    max_size: Size = Field(10 << 30, ge=1 << 20)
    max_event: Size = Field(16 << 20, ge=1 << 10)

    @model_validator(mode="after")
    def _room_for_one(self) -> Self:
        if self.max_event > self.max_size:
            size = format_size(self.max_event)
            raise mistake("max_event", f"{size} is more than max_size ({format_size(self.max_size)})")
        return self


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
