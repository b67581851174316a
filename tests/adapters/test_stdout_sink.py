"""The stdout sink: whole lines, a reader that stops reading, a reader that is gone."""

import asyncio
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headrace.errors import Fatal
from headrace.event import Event
from headrace.sinks.stdout import StdoutSink, text_line
from headrace.testing import make_batch, make_context


@contextmanager
def piped() -> Iterator[int]:
    """Inside, standard output is a pipe of 4 KiB; its other end. No fixture: pytest's own capture would come after."""
    saved = os.dup(1)
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.dup2(write, 1)
    os.close(write)
    try:
        yield read
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(read)


def events(count: int, text: str = "") -> list[Event]:
    return [Event(id=str(n), source="headrace:test", type="test.made", data={"text": text}) for n in range(count)]


async def read_all(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await asyncio.to_thread(os.read, fd, 65536)
    return data


def test_a_pipe_that_nobody_reads_blocks_neither_the_loop_nor_a_cancellation(tmp_path: Path) -> None:
    batch = make_batch(events(300, "x" * 100))

    async def run(reader: int) -> bytes:
        async with StdoutSink().open(make_context(tmp_path)) as sink:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):  # the loop turns, or this would never be raised
                    await sink.deliver(batch)
            begun = await read_all(reader, 4096)
            async with asyncio.TaskGroup() as group:
                rest = group.create_task(read_all(reader, len(batch.data)))
                await sink.deliver(batch)
            return begun + rest.result()

    with piped() as reader:
        lines = asyncio.run(run(reader)).splitlines(keepends=True)
    assert set(lines) == set(batch.lines)  # whole lines, none of them torn by the cancellation
    assert list(dict.fromkeys(lines)) == batch.lines


def test_a_reader_that_is_gone_is_fatal(tmp_path: Path) -> None:
    async def run() -> None:
        async with StdoutSink().open(make_context(tmp_path)) as sink:
            await sink.deliver(make_batch(events(1)))

    with piped() as reader:
        os.dup2(os.open(os.devnull, os.O_RDONLY), reader)  # nobody has the pipe's other end any more
        with pytest.raises(Fatal, match="Broken pipe"):
            asyncio.run(run())


def test_text_is_short(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    event = Event(
        id="1",
        source="headrace:uploads",
        type="headrace.filesystem.created",
        subject="incoming/a.csv",
        time="2026-01-02T12:00:01.000000Z",
    )

    async def run() -> None:
        async with StdoutSink(format="text").open(make_context(tmp_path)) as sink:
            await sink.deliver(make_batch([event, *events(1)]))

    asyncio.run(run())
    assert capfd.readouterr().out == "12:00:01 uploads created incoming/a.csv\n--:--:-- test made\n"


def test_text_cannot_steer_a_terminal() -> None:
    event = Event(id="1", source="https://example.com", type="t", subject="\x1b[2J\nä")
    assert text_line(event, "headrace:") == "--:--:-- https://example.com t \\u001b[2J\\u000aä\n"


def test_refuses_more_than_one_writer() -> None:
    with pytest.raises(ValueError, match="one stream"):
        StdoutSink(concurrency=2)
