"""A source's way into the journal: order, state at once, back-pressure, failure, size."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.capture import IN_FLIGHT, JournalPort, Overlay, SourceCapture, fit
from headrace.errors import Fatal, Permanent
from headrace.event import Event, source_seed
from headrace.journal.block import Lines, seal
from headrace.journal.memory import MemoryJournal
from headrace.protocols import Change, Write
from headrace.testing.leaks import eventually
from tests.core.delivery_rig import ENGINES, a_journal, an_event

LIMIT = 16 << 20


class Slow(MemoryJournal):
    """Changes become durable only when told, in order."""

    def __init__(self) -> None:
        super().__init__(shards=1)
        self.waiting: list[tuple[Change, asyncio.Future[None]]] = []
        self.fail: Exception | None = None

    def submit(self, change: Change) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append((change, future))
        return future

    def let(self, count: int = 1) -> None:
        for change, future in self.waiting[:count]:
            if self.fail:
                future.set_exception(self.fail)
            else:
                self._commit(change, future)
        del self.waiting[:count]


def capture(journal: Any, limit: int = LIMIT) -> SourceCapture:
    return SourceCapture(JournalPort(journal, "s"), "s", limit)


def test_what_is_submitted_is_in_order_and_seen_at_once() -> None:
    async def main() -> None:
        journal = Slow()
        out = capture(journal)
        futures = [await out.submit([an_event(n)], [Write(b"k", b"%d" % n, b"s%d" % (n % 2))]) for n in range(4)]
        assert await out.state.get(b"k") == b"3"
        assert await out.state.scan(b"", None, 9) == [(b"k", b"3")]
        assert await out.state.find([b"s1"]) == [(b"k", b"3")]
        assert await out.state.find([b"s0"]) == []
        journal.let(2)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [future.done() for future in futures] == [True, True, False, False]
        assert await out.state.get(b"k") == b"3"
        journal.let(9)
        await out.drain()
        assert await out.state.get(b"k") == b"3"
        assert not out.state._writes

    asyncio.run(main())


def test_a_failed_append_fails_all_later_ones() -> None:
    async def main() -> None:
        journal = Slow()
        out = capture(journal)
        futures = [await out.submit([an_event(n)]) for n in range(2)]
        journal.fail = Fatal("no")
        journal.let(1)
        with pytest.raises(Fatal, match="no"):
            await futures[0]
        for _ in range(2):
            with pytest.raises(Fatal, match="no"):
                await out.append([an_event(3)])
        assert len(journal.waiting) == 1

    asyncio.run(main())


def test_a_source_waits_while_too_much_is_in_flight() -> None:
    async def main() -> None:
        journal = Slow()
        out = capture(journal)
        noise = random.Random(1).randbytes(1 << 17).hex()

        async def produce() -> None:
            for number in range(6):
                await out.submit([an_event(number, data=noise)])

        task = asyncio.create_task(produce())
        await eventually(lambda: len(journal.waiting) >= 1, "in flight")
        while not task.done():
            await eventually(lambda: bool(journal.waiting) or task.done(), "more")
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert sum(out._in_flight.values()) <= IN_FLIGHT
            journal.let(1)
        await task

    asyncio.run(main())


def test_a_cancelled_wait_hands_nothing_over_and_others_go_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with a_journal("sqlite", tmp_path) as journal:
            out = capture(journal)
            tasks = [asyncio.create_task(out.append([an_event(number)])) for number in range(20)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await out.append([an_event(99)])
            assert not out._in_flight

    asyncio.run(main())


def test_more_than_5000_writes_are_refused() -> None:
    async def main() -> None:
        out = capture(MemoryJournal())
        await out.append([], [Write(b"%d" % number, b"") for number in range(5_000)])
        with pytest.raises(Fatal, match="5000"):
            await out.append([], [Write(b"%d" % number, b"") for number in range(5_001)])

    asyncio.run(main())


@pytest.mark.parametrize("engine", ENGINES)
@given(seed=st.integers(0, 1 << 32))
def test_reads_are_those_of_a_dictionary(tmp_path_factory: pytest.TempPathFactory, engine: str, seed: int) -> None:
    if engine == "sqlite" and seed % 10:
        return
    folder = tmp_path_factory.mktemp("journal")
    asyncio.run(_model(random.Random(seed), engine, folder))


async def _model(chance: random.Random, engine: str, folder: Path) -> None:
    keys = [bytes(key) for key in ((97,), (97, 0), (97, 98), (97, 255), (98,), (98, 98), (255,), (255, 255))]
    model: dict[bytes, tuple[bytes, bytes | None]] = {}
    async with a_journal(engine, folder) as journal:
        out = capture(journal)
        for number in range(40):
            writes = []
            for key in chance.sample(keys, chance.randint(0, 4)):
                value = None if chance.random() < 0.4 else b"%d" % number
                write = Write(key, value, chance.choice((None, b"x", b"y")))
                writes.append(write)
                if value is None:
                    model.pop(key, None)
                else:
                    model[key] = (value, write.secondary)
            await out.submit([], writes)
            for _ in range(chance.choice((0, 0, 1, 5))):
                await asyncio.sleep(0)
            await _compare(chance, out.state, model, keys)


async def _compare(
    chance: random.Random, state: Overlay, model: dict[bytes, tuple[bytes, bytes | None]], keys: list[bytes]
) -> None:
    key, prefix = chance.choice(keys), chance.choice((b"", b"a", b"b", b"\xff", b"z"))
    after, limit = chance.choice((None, *keys)), chance.randint(1, 4)
    assert await state.get(key) == (model[key][0] if key in model else None)
    expected = [(k, v) for k, (v, _) in sorted(model.items()) if k.startswith(prefix) and (after is None or k > after)]
    assert await state.scan(prefix, after, limit) == expected[:limit]
    assert await state.find([b"x"]) == [(k, v) for k, (v, s) in sorted(model.items()) if s == b"x"]
    assert await state.find([b"y", b"z", b"x"]) == [(k, v) for k, (v, s) in sorted(model.items()) if s]
    some = chance.sample([*keys, b"none"], 5)
    assert await state.get_many(some) == {k: model[k][0] for k in some if k in model}


def test_what_makes_an_event_too_large_is_left_out_and_named() -> None:
    data = {"small": 1, "deep": {"large": "x" * 900, "kept": "y" * 50}, "larger": "z" * 2_000, "mid": "m" * 300}
    event, line = fit(an_event(0, data=data), 800)
    assert len(line) <= 800
    assert event.data["oversize"] == ["larger", "deep.large"]
    assert event.data["deep"] == {"kept": "y" * 50}
    assert Event.parse(line) == event
    assert fit(an_event(0, data="x" * 9_999), 800)[0].data == {"oversize": ["value"]}
    assert fit(an_event(0, data=[1, 2]), 800)[0].data == [1, 2]
    with pytest.raises(Permanent, match="even without its data"):
        fit(an_event(0, key="k" * 9_999), 800)


def test_an_event_with_very_many_values_is_cut_soon() -> None:
    data = {f"column{number}": "x" * 20 for number in range(50_000)}
    _, line = fit(an_event(0, data=data), 1_900_000)
    assert len(line) <= 1_900_000


def test_a_sealed_block_goes_in_as_it_is(tmp_path: Path) -> None:
    async def main() -> None:
        async with a_journal("sqlite", tmp_path) as journal:
            events = [an_event(number) for number in range(3)]
            await capture(journal).append(seal("s", Lines.of(events, source_seed("s"))))
            page = await journal.read(journal.shards[0], 0, lambda _: True)
            assert [Event.parse(line) for line in page.blocks[0].lines] == events

    asyncio.run(main())


def test_values_that_are_too_large_are_left_out_of_a_sealed_block_too() -> None:
    async def main() -> None:
        journal = Slow()
        events = [an_event(0), Event(id="big", source="s", type="t", data={"a": 1, "b": "x" * 500})]
        await capture(journal, limit=400).submit(seal("s", Lines.of(events, source_seed("s"))))
        (block,) = journal.waiting[0][0].blocks
        small, big = map(Event.parse, block.lines().data.splitlines())
        assert small == events[0]
        assert big.data == {"a": 1, "oversize": ["b"]}

    asyncio.run(main())


def test_a_sealed_block_of_another_source_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(Fatal, match="another one"):
            await capture(Slow()).submit(seal("other", Lines.of([an_event(0)], source_seed("other"))))

    asyncio.run(main())
