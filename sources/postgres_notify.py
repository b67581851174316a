"""Postgres notifications: `LISTEN`, and each `NOTIFY` as an event, while somebody listens.

Postgres keeps no notification for later. What is sent while the source does not listen is gone, and nobody can tell
whether there was anything: so every time it begins to listen again, a `gap` event says since when it had not.
What must not be lost goes into the WAL instead: `pg_logical_emit_message(true, 'prefix', 'text')`, which the `postgres`
source captures as a `message`.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

import msgspec
from pydantic import AfterValidator, Field

from headrace.errors import Fatal, Transient
from headrace.event import Event, encode_text, rfc3339
from headrace.failpoints import reach
from headrace.protocols import Capture, Context, Finding, Source, Write
from headrace.settings import Duration, Secret, SourceSettings

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Notify

LEDGER: Final = b"ledger"
CONNECT: Final = 10  # seconds
LONGEST: Final = 63  # bytes of an identifier


def _channel(name: str) -> str:
    if not name or len(name.encode()) > LONGEST or "\0" in name:
        raise ValueError(f"must be a channel's name, of at most {LONGEST} bytes")
    return name


class PostgresNotifySource(SourceSettings):
    """Channels of one database. A channel's name is taken as it stands: `NOTIFY Jobs` without quotes sends to "jobs".

    `format = "json"`: a payload that is JSON is captured as the value, any other as the text. Every `alive` the
    connection is tried where nothing came.
    """

    events: ClassVar[frozenset[str] | None] = frozenset({"notification", "gap"})

    type: Literal["postgres-notify"]
    dsn: Secret
    password: Secret | None = None
    channels: tuple[Annotated[str, AfterValidator(_channel)], ...] = Field(min_length=1)
    format: Literal["text", "json"] = "text"
    alive: Duration = Field(30.0, ge=1)

    def open(self, context: Context) -> AbstractAsyncContextManager[Source]:
        return _opened(self, context)


@asynccontextmanager
async def _opened(settings: PostgresNotifySource, context: Context) -> AsyncIterator[Source]:
    try:
        import psycopg  # noqa: F401 -- an extra; only to say early that it is missing
    except ImportError:
        raise Fatal("postgres-notify needs a driver", hint="pip install 'headrace[postgres]'") from None
    yield PostgresNotify(settings, context)


class _Ledger(msgspec.Struct):
    """How many events there were, and until when somebody listened; ids begin with `incarnation`."""

    incarnation: str
    events: int = 0
    listened: float = 0.0

    @classmethod
    def read(cls, row: bytes | None) -> _Ledger:
        return msgspec.json.decode(row, type=cls) if row else cls(secrets.token_hex(8))


class PostgresNotify:
    """One listening connection. Also `Diagnoses` and `Describes`."""

    def __init__(self, settings: PostgresNotifySource, context: Context) -> None:
        self._settings = settings
        self._context = context

    def schemas(self) -> Mapping[str, Mapping[str, Any]]:
        return _SCHEMAS

    async def diagnose(self) -> AsyncIterator[Finding]:
        try:
            async with self._listening():
                yield Finding("ok", f"listens to {', '.join(self._settings.channels)}")
        except Transient as error:
            yield Finding("error", error.message, error.hint)
        what = "notifications sent while the source does not listen are gone"
        yield Finding("warning", what, "send what must not be lost by pg_logical_emit_message, to a postgres source")

    async def run(self, out: Capture) -> None:
        ledger = _Ledger.read(await out.state.get(LEDGER))
        async with self._listening() as connection:
            await self._begin(ledger, out)
            while True:
                notifications = await self._next(connection)
                reach("postgres-notify.received")
                if notifications:
                    events = [self._notification(ledger, each) for each in notifications]
                    await self._append(ledger, events, out)

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[AsyncConnection[Any]]:
        """Raises `Transient` wherever the server does not answer, or no more."""
        import psycopg
        from psycopg.sql import SQL, Identifier

        try:
            async with await psycopg.AsyncConnection.connect(**self._parameters()) as connection:
                for channel in self._settings.channels:
                    await connection.execute(SQL("LISTEN {}").format(Identifier(channel)))
                yield connection
        except psycopg.Error as error:
            raise Transient(f"Postgres: {_one_line(error)}", hint="dsn, password, and is the server up?") from None

    def _parameters(self) -> dict[str, Any]:
        password = self._settings.password
        given = {"password": password.get_secret_value()} if password else {}
        return {
            "conninfo": self._settings.dsn.get_secret_value(),
            "autocommit": True,
            "connect_timeout": CONNECT,
            "application_name": f"headrace {self._context.name}",
            "keepalives_idle": 30,
            **given,
        }

    async def _next(self, connection: AsyncConnection[Any]) -> Sequence[Notify]:
        """What came in one packet; empty where nothing came for a while and the connection is well."""
        found = [each async for each in connection.notifies(timeout=self._settings.alive, stop_after=1)]
        if not found:
            await connection.execute("SELECT 1")
        return found

    async def _begin(self, ledger: _Ledger, out: Capture) -> None:
        """From here on nothing is missed, until the connection ends; what came before is said to be unknown."""
        self._context.log.info("listening", channels=list(self._settings.channels))
        events = [self._gap(ledger)] if ledger.listened else []
        await self._append(ledger, events, out)

    async def _append(self, ledger: _Ledger, events: Sequence[Event], out: Capture) -> None:
        ledger.listened = self._context.clock.time()
        await out.append(events, [Write(LEDGER, msgspec.json.encode(ledger))])

    def _gap(self, ledger: _Ledger) -> Event:
        since = rfc3339(int(ledger.listened * 1e9))
        self._context.log.warning("nobody listened: notifications sent meanwhile are gone", since=since)
        data = {"channels": list(self._settings.channels), "since": since}
        return self._event(ledger, "gap", None, data)

    def _notification(self, ledger: _Ledger, notify: Notify) -> Event:
        data = {"channel": notify.channel, "payload": self._payload(notify.payload), "pid": notify.pid}
        return self._event(ledger, "notification", encode_text(notify.channel), data)

    def _payload(self, text: str) -> Any:
        if self._settings.format == "json":
            try:
                return msgspec.json.decode(text)
            except (ValueError, RecursionError, msgspec.MsgspecError):
                return text
        return text

    def _event(self, ledger: _Ledger, name: str, channel: str | None, data: Mapping[str, Any]) -> Event:
        ledger.events += 1
        return Event(
            id=f"{ledger.incarnation}/{ledger.events}",
            source=self._context.source,
            type=f"headrace.postgres.{name}",
            subject=channel,
            time=rfc3339(int(self._context.clock.time() * 1e9)),
            dataschema=f"urn:headrace:schema:postgres.{name}:1",
            datacontenttype="application/json",
            partitionkey=channel,
            sequence=f"{ledger.events:020}",
            data=data,
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _schema(name: str, properties: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    urn = f"urn:headrace:schema:postgres.{name}:1"
    head = {"$schema": "http://json-schema.org/draft-04/schema#", "id": urn, "type": "object"}
    return {urn: {**head, "properties": properties, "required": list(properties)}}


_SCHEMAS: Final[Mapping[str, Mapping[str, Any]]] = {
    **_schema(
        "notification",
        {
            "channel": {"type": "string"},
            "payload": {"description": 'the text; with format = "json" the value where it is JSON'},
            "pid": {"type": "integer", "description": "the server's process of whoever sent it"},
        },
    ),
    **_schema(
        "gap",
        {
            "channels": {"type": "array", "items": {"type": "string"}},
            "since": {"type": "string", "format": "date-time", "description": "the last time it surely listened"},
        },
    ),
}
