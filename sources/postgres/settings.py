"""The `[sources.NAME]` table of `type = "postgres"`."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, Field

from headrace.protocols import Context, Source
from headrace.settings import Secret, Settings, Size, SourceSettings
from headrace.sources.postgres.relations import Shown

_SLOT_NAME: Final = re.compile("[a-z0-9_]{1,63}")


def _table(text: str) -> str:
    if "." not in text.strip("."):
        raise ValueError(f'must name the schema as well: "public.{text}"')
    return text


def _slot(text: str) -> str:
    if not _SLOT_NAME.fullmatch(text):
        raise ValueError("must be 1 to 63 lower-case letters, digits and underscores")
    return text


TablePattern = Annotated[str, AfterValidator(_table)]
SlotName = Annotated[str, AfterValidator(_slot)]


class ColumnSettings(Settings):
    """What a table's events leave out, or show as SHA-256, before anything reaches the journal."""

    exclude: tuple[str, ...] = ()
    hash: tuple[str, ...] = ()


class PostgresSource(SourceSettings):
    """A database, or some of its tables.

    `dsn` is whatever libpq takes: an address, `service=…`, several hosts. `tables` are patterns of `schema.table`.
    The slot and the publication are created when they are missing (`create`), and used as they are otherwise.
    `keyless = "insert-only"` captures tables without a replica identity as well, their inserts and truncates only.
    `messages` are patterns of prefixes of logical messages. `origin = "none"` leaves out what was replicated here.
    `primary_dsn` is for a standby. A new `epoch` begins anew after a server went back. `retained_warning`: WAL that the
    slot keeps on the server beyond which warnings come.
    """

    events: ClassVar[frozenset[str] | None] = frozenset(
        {"insert", "update", "delete", "truncate", "read", "schema", "message"}
    )
    child: ClassVar[bool] = True

    type: Literal["postgres"]
    snapshot: Literal["initial", "never"] = "initial"
    dsn: Secret
    password: Secret | None = None
    primary_dsn: Secret | None = None
    tables: tuple[TablePattern, ...] = ("*.*",)
    columns: Mapping[TablePattern, ColumnSettings] = Field(default_factory=dict)
    slot: SlotName | None = None
    publication: str | None = None
    create: bool = True
    keyless: Literal["refuse", "insert-only"] = "refuse"
    messages: tuple[str, ...] = ("*",)
    origin: Literal["any", "none"] = "any"
    streaming: bool = True
    failover: bool = False
    epoch: int = Field(1, ge=1, le=9_999)
    snapshot_readers: int = Field(2, ge=1, le=16)
    retained_warning: Size = Field(1 << 30, ge=1)

    def slot_name(self, name: str) -> str:
        """The slot of the source `name`; what its name cannot hold becomes `_`."""
        return self.slot or re.sub("[^a-z0-9_]", "_", f"headrace_{name}".lower())[:63]

    def publication_name(self, name: str) -> str:
        return self.publication or self.slot_name(name)

    def shown(self, schema: str, table: str) -> Shown | None:
        """How a table's events look; None where it is not captured."""
        name = f"{schema}.{table}"
        if not any(fnmatchcase(name, pattern) for pattern in self.tables):
            return None
        found = [columns for pattern, columns in self.columns.items() if fnmatchcase(name, pattern)]
        exclude = frozenset(column for columns in found for column in columns.exclude)
        return Shown(exclude, frozenset(column for columns in found for column in columns.hash) - exclude)

    def wants_message(self, prefix: str) -> bool:
        return any(fnmatchcase(prefix, pattern) for pattern in self.messages)

    def open(self, context: Context) -> AbstractAsyncContextManager[Source]:
        return _opened(self, context)

    def problems(self, directory: Path) -> Mapping[str, str]:
        return {}


@asynccontextmanager
async def _opened(settings: PostgresSource, context: Context) -> AsyncIterator[Source]:
    from headrace.sources.postgres.source import Postgres  # psycopg is loaded only where it is used

    yield Postgres(settings, context)
