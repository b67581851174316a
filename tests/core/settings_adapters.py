"""Settings classes of adapters that exist for the tests of the settings, and a finder that offers them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from headrace.errors import SettingsError
from headrace.plugins import Adapter, Group, PluginError
from headrace.protocols import Context, Sink, Source
from headrace.settings import (
    Config,
    Duration,
    HandlerSettings,
    Secret,
    Settings,
    SinkSettings,
    Size,
    SourceSettings,
    mistake,
)
from headrace.settings_file import load
from headrace.suggest import did_you_mean


class Login(Settings):
    """One member of a union of tables."""

    user: str
    password: Secret


class Token(Settings):
    """The other."""

    token: Secret


class Shop(SourceSettings):
    """A source with a key of every kind."""

    events: ClassVar[frozenset[str] | None] = frozenset({"insert", "update"})

    dsn: str
    password: Secret | None = None
    tables: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    headers: dict[str, Secret] = Field(default_factory=dict)
    payload: dict[str, Any] | None = None
    auth: Login | Token | None = None
    port: int = Field(5432, ge=1, le=65_535)
    ratio: float = 0.5
    tls: bool = True
    level: int | Literal["auto"] = "auto"
    every: Duration = Field(30.0, gt=0)
    chunk: Size = Field(1 << 20, ge=1 << 10)
    folder: Path = Path()

    @field_validator("dsn")
    @classmethod
    def _has_scheme(cls, value: str) -> str:
        if "://" not in value:
            raise ValueError(f"{value!r} is no address")
        return value

    @model_validator(mode="after")
    def _port_or_tls(self) -> Self:
        if self.port == 1 and not self.tls:
            raise mistake("port", "port 1 needs tls")
        return self

    def open(self, context: Context) -> AbstractAsyncContextManager[Source]:
        raise NotImplementedError

    def problems(self, directory: Path) -> Mapping[str, str]:
        secret = self.password.get_secret_value() if self.password else ""
        return {} if (directory / self.folder).is_dir() else {"folder": f"does not exist {secret}"}


class Clock(SourceSettings):
    """A source with nothing of its own."""

    def open(self, context: Context) -> AbstractAsyncContextManager[Source]:
        raise NotImplementedError


class Audit(SinkSettings):
    """A sink."""

    path: Path

    def open(self, context: Context) -> AbstractAsyncContextManager[Sink]:
        raise NotImplementedError


class Function(HandlerSettings):
    """A handler by its key."""

    contract: str = "function"
    function: str

    def open(self, context: Context) -> AbstractAsyncContextManager[Sink]:
        raise NotImplementedError


class Command(HandlerSettings):
    """Another one."""

    contract: str = "command"
    command: tuple[str, ...]

    def open(self, context: Context) -> AbstractAsyncContextManager[Sink]:
        raise NotImplementedError


class Lambda(Function):
    """A handler by its contract."""

    memory: Size = 128 << 20


class Offered:
    """The classes above, by entry point."""

    classes: ClassVar[Mapping[Group, Mapping[str, type[Adapter]]]] = {
        "headrace.sources": {"shop": Shop, "clock": Clock},
        "headrace.sinks": {"audit": Audit},
        "headrace.contracts": {"function": Function, "command": Command, "aws-lambda": Lambda},
    }

    def names(self, group: Group) -> list[str]:
        return sorted(self.classes[group])

    def find(self, group: Group, name: str) -> type[Adapter]:
        if name not in self.classes[group]:
            raise PluginError(f'unknown "{name}"' + did_you_mean(name, self.classes[group]))
        return self.classes[group][name]


def written(folder: Path, text: str) -> Path:
    path = folder / "headrace.toml"
    path.write_text(text)
    return path


def loaded(folder: Path, text: str, *, strict: bool = False, **environ: str) -> Config:
    return load(written(folder, text), environ, plugins=Offered(), strict=strict)


def problems(folder: Path, text: str, *, strict: bool = False, **environ: str) -> list[str]:
    """What is wrong with a text, without the folder."""
    try:
        loaded(folder, text, strict=strict, **environ)
    except SettingsError as error:
        return [str(problem).removeprefix(f"{folder}/headrace.toml:") for problem in error.problems]
    return []
