"""The replication connection while it streams: messages in, status out, both without waiting for each other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, Literal

import psycopg
from psycopg import pq, sql

from headrace.errors import Transient
from headrace.sources.postgres.failures import explain
from headrace.sources.postgres.protocol import status_update

MESSAGES: Final = 1_500  # taken at once, before anybody else has a turn
BYTES: Final = 2 << 20  # of them


def protocol_version(server_version: int) -> int:
    """The newest that the server speaks: in-progress streaming since 14."""
    major = server_version // 10_000
    return 4 if major >= 16 else 3 if major == 15 else 2


class CopyOut:
    """Messages of a COPY that a connection is in: taken without waiting. Raises `Transient` or `Fatal` at an error."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self.ended = False
        self.more = False

    def take(self, limit: int = MESSAGES) -> list[bytes]:
        """Up to `limit` that came, or somewhat more than `BYTES` of them, without waiting; `more` may be there."""
        get = self._pgconn.get_copy_data
        found: list[bytes] = []
        add = found.append
        consumed_at, size = -1, 0
        while len(found) < limit and size < BYTES:
            before = len(found)
            for _ in range(limit - before):
                count, data = get(1)
                if count <= 0:
                    break
                add(bytes(data))
            else:
                break
            if count < 0:
                self._end()
                break
            if consumed_at == len(found):  # nothing came since
                break
            size += sum(map(len, found[before:]))
            self._consume()
            consumed_at = len(found)
        self.more = len(found) >= limit or size >= BYTES
        return found

    def _consume(self) -> None:
        try:
            self._pgconn.consume_input()
        except psycopg.Error as error:
            raise explain(error) from error

    def _end(self) -> None:
        """The COPY is over, as it should be, or because the server says so or the connection broke."""
        self.ended = True
        while (result := self._pgconn.get_result()) is not None:
            if result.status == pq.ExecStatus.FATAL_ERROR:
                raise explain(_error(result))

    async def readable(self, seconds: float, wake: asyncio.Event) -> None:
        """Until something comes, `wake` is set, or the seconds are over."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pgconn.socket, wake.set)
        try:
            async with asyncio.timeout(seconds):
                await wake.wait()
        except TimeoutError:
            pass
        finally:
            loop.remove_reader(self._pgconn.socket)
            wake.clear()

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_writer(self._pgconn.socket, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_writer(self._pgconn.socket)

    async def copy(self, query: bytes) -> None:
        """Begin a COPY to us on an idle connection."""
        self.ended = False
        try:
            self._pgconn.send_query(query)
            while self._pgconn.flush():
                await self._writable()
            wake = asyncio.Event()
            while self._pgconn.is_busy():
                await self.readable(60.0, wake)
                self._consume()
            result = self._pgconn.get_result()
        except psycopg.Error as error:
            raise explain(error) from error
        if result is None or result.status != pq.ExecStatus.COPY_OUT:
            raise explain(_error(result)) if result else Transient("Postgres: the connection ended")


class Replication(CopyOut):
    """A started stream. Raises `Transient` or `Fatal` when it ends."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        super().__init__(connection)
        self._writing = asyncio.Lock()

    def _end(self) -> None:
        super()._end()
        raise Transient("Postgres: the server ended the stream")

    async def start(
        self, slot: str, publications: Sequence[str], *, streaming: bool, origin: Literal["any", "none"]
    ) -> None:
        version = self._connection.info.server_version
        options = {
            "proto_version": str(protocol_version(version)),
            "publication_names": ",".join(_listed(name) for name in publications),
            "messages": "true",
        }
        if streaming:
            options["streaming"] = "on"
        if version >= 160_000:
            options["origin"] = origin
        given = sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(name), sql.Literal(value)) for name, value in options.items()
        )
        statement = sql.SQL("START_REPLICATION SLOT {} LOGICAL 0/0 ({})").format(sql.Identifier(slot), given)
        await self._connection.execute(statement)

    def report_without_waiting(self, lsn: int, time: float) -> None:
        """The same at a stop, as far as it goes at once: what is not told now is told, and skipped, next time."""
        with suppress(psycopg.Error):
            if self._pgconn.put_copy_data(status_update(lsn, time)):
                self._pgconn.flush()

    async def report(self, lsn: int, time: float, *, reply: bool = False) -> None:
        """Tell the server that all up to `lsn` is durable; `reply` asks for an answer."""
        async with self._writing:
            try:
                while not self._pgconn.put_copy_data(status_update(lsn, time, reply=reply)):
                    await self._writable()
                while self._pgconn.flush():
                    await self._writable()
            except psycopg.Error as error:
                raise explain(error) from error


def _listed(name: str) -> str:
    """A name inside the list of publications."""
    return '"' + name.replace('"', '""') + '"'


def _error(result: pq.abc.PGresult) -> psycopg.Error:
    return psycopg.errors.error_from_result(result)
