"""Notifications of a real server: captured while somebody listens, and a gap told of where nobody did."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from headrace.errors import Transient
from headrace.event import Event
from headrace.protocols import Diagnoses
from headrace.sources.postgres_notify import PostgresNotifySource
from headrace.tasks import cause
from headrace.testing import MemoryCapture, RecordingLog, make_context
from headrace.testing.leaks import cancelled, eventually, nothing_left
from tests.fixtures.postgres import Database, Server, newest_postgres, postgres_servers

__all__ = ["newest_postgres", "postgres_servers"]

pytestmark = pytest.mark.postgres


@pytest.fixture
def database(newest_postgres: Server) -> Iterator[Database]:
    with newest_postgres.database() as made:
        yield made


class Listener:
    """The source over one or several runs."""

    def __init__(self, tmp_path: Path, dsn: str, **options: Any) -> None:
        self.path = tmp_path
        self.options = {"type": "postgres-notify", "dsn": dsn, "channels": ["jobs"], **options}
        self.capture = MemoryCapture()
        self.log = RecordingLog()

    @asynccontextmanager
    async def running(self) -> Any:
        self.capture = self.capture.survivor()
        appends = self.capture.appends
        settings = PostgresNotifySource.model_validate(self.options)
        async with settings.open(make_context(self.path, log=self.log)) as source, asyncio.TaskGroup() as group:
            task = group.create_task(source.run(self.capture))
            await eventually(lambda: self.capture.appends > appends or task.done(), "it listens")
            yield source
            await cancelled(task)

    async def events(self, count: int) -> list[Event]:
        await eventually(lambda: len(self.capture.events) >= count, f"{count} events")
        return self.capture.events


def test_notifications_become_events(tmp_path: Path, database: Database) -> None:
    async def run() -> list[Event]:
        listener = Listener(tmp_path, database.dsn, channels=["jobs", 'Odd "name"'])
        async with nothing_left(), listener.running():
            await asyncio.to_thread(
                database.execute,
                "NOTIFY jobs, 'one'",
                "NOTIFY jobs",
                'NOTIFY "Odd ""name""", \'ünï\'',
                "NOTIFY other, 'not wanted'",
                "SELECT pg_notify('jobs', number::text) FROM generate_series(1, 2000) number",
            )
            return await listener.events(2_003)

    events = asyncio.run(run())
    assert [(event.subject, event.data["payload"]) for event in events[:3]] == [
        ("jobs", "one"),
        ("jobs", ""),
        ('Odd "name"', "ünï"),
    ]
    assert [event.data["payload"] for event in events[3:]] == [str(number) for number in range(1, 2_001)]
    assert {event.type for event in events} == {"headrace.postgres.notification"}
    assert len({event.id for event in events}) == len(events)
    assert [event.sequence for event in events] == sorted(event.sequence or "" for event in events)
    assert events[0].data["pid"] > 0


def test_json_payloads(tmp_path: Path, database: Database) -> None:
    async def run() -> list[Any]:
        listener = Listener(tmp_path, database.dsn, format="json")
        sent = [json.dumps({"id": 7, "tags": ["a"]}), "3", "not json", ""]
        async with listener.running():
            for payload in sent:
                await asyncio.to_thread(database.execute, f"SELECT pg_notify('jobs', '{payload}')")
            return [event.data["payload"] for event in await listener.events(len(sent))]

    assert asyncio.run(run()) == [{"id": 7, "tags": ["a"]}, 3, "not json", ""]


def test_a_gap_is_told_of_when_it_listens_again(tmp_path: Path, database: Database) -> None:
    async def run() -> list[Event]:
        listener = Listener(tmp_path, database.dsn)
        async with listener.running():
            await asyncio.to_thread(database.execute, "NOTIFY jobs, 'heard'")
            await listener.events(1)
        await asyncio.to_thread(database.execute, "NOTIFY jobs, 'gone'")
        async with listener.running():
            await asyncio.to_thread(database.execute, "NOTIFY jobs, 'heard again'")
            return await listener.events(3)

    heard, gap, again = asyncio.run(run())
    assert (gap.type, gap.data["channels"]) == ("headrace.postgres.gap", ["jobs"])
    assert (heard.time or "") <= gap.data["since"] <= (gap.time or "")
    assert again.data["payload"] == "heard again"


def test_a_cut_connection_is_transient(tmp_path: Path, database: Database) -> None:
    async def run() -> BaseException | None:
        listener = Listener(tmp_path, database.dsn)
        settings = PostgresNotifySource.model_validate(listener.options)
        async with settings.open(make_context(tmp_path)) as source:
            task = asyncio.ensure_future(source.run(listener.capture))
            await eventually(lambda: listener.capture.appends > 0, "it listens")
            kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'headrace%'"
            await asyncio.to_thread(database.execute, kill)
            await asyncio.wait([task], timeout=10)
            return task.exception()

    error = asyncio.run(run())
    assert error is not None
    assert isinstance(cause(error), Transient)


def test_a_silent_connection_is_tried(tmp_path: Path, database: Database) -> None:
    async def run() -> None:
        listener = Listener(tmp_path, database.dsn, alive="1s")
        async with listener.running():
            query = (
                "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'headrace %' AND query = 'SELECT 1'"
            )
            loop = asyncio.get_running_loop()
            end = loop.time() + 10
            while (await asyncio.to_thread(database.execute, query))[0][0] == 0:
                assert loop.time() < end
            await asyncio.to_thread(database.execute, "NOTIFY jobs, 'still there'")
            await listener.events(1)

    asyncio.run(run())


def test_no_server_is_transient_and_diagnosed(tmp_path: Path) -> None:
    async def run() -> list[Any]:
        settings = PostgresNotifySource.model_validate(
            {"type": "postgres-notify", "dsn": "host=127.0.0.1 port=1 password=s3cret", "channels": ["jobs"]}
        )
        async with settings.open(make_context(tmp_path)) as source:
            with pytest.raises(Transient) as caught:
                await source.run(MemoryCapture())
            assert "s3cret" not in str(caught.value)
            assert isinstance(source, Diagnoses)
            return [finding async for finding in source.diagnose()]

    assert [finding.level for finding in asyncio.run(run())] == ["error", "warning"]


@pytest.mark.parametrize("channels", [[], [""], ["x" * 64]])
def test_channels_are_checked(channels: list[str]) -> None:
    with pytest.raises(ValidationError):
        PostgresNotifySource.model_validate({"type": "postgres-notify", "dsn": "x", "channels": channels})
