"""Which ids are known: a window of time and number, that survives restarts and forgets."""

import asyncio
from hashlib import blake2b
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.protocols import Write
from headrace.sources.http.window import PREFIX, Table, Window
from headrace.testing import MemoryCapture

HOUR = 3600.0


def id_of(number: int) -> bytes:
    return blake2b(str(number).encode(), digest_size=16).digest()


@settings(deadline=None)
@given(st.lists(st.integers(0, 300)), st.integers(1, 40))
def test_a_table_is_a_set(numbers: list[int], capacity: int) -> None:
    """Also beyond what it was made for, and where places collide."""
    table, model = Table(capacity), set()
    for number in numbers:
        assert (id_of(number) in table) == (number in model)
        table.add(id_of(number))
        model.add(number)
        assert table.count == len(model)
    assert all((id_of(number) in table) == (number in model) for number in range(301))


async def add(window: Window, capture: MemoryCapture, now: float, *numbers: int) -> None:
    ids = [id_of(number) for number in numbers]
    window.rotate(now, len(ids))
    writes = [*window.row(ids), *await window.forget(capture.state)]
    await capture.append([], writes)
    window.add(ids)


def known(window: Window, numbers: Any) -> set[int]:
    return {number for number in numbers if id_of(number) in window}


async def reloaded(capture: MemoryCapture, now: float, most: int = 1_000) -> Window:
    return await Window.load(capture.survivor().state, HOUR, most, now)


def test_ids_are_known_for_the_window_and_no_more_than_two() -> None:
    async def run() -> None:
        capture = MemoryCapture()
        window = await Window.load(capture.state, HOUR, 1_000, 0.0)
        await add(window, capture, 0.0, 1)
        await add(window, capture, HOUR - 1, 2)
        assert known(window, range(5)) == {1, 2}
        await add(window, capture, HOUR + 1, 3)
        assert known(window, range(5)) == known(await reloaded(capture, HOUR + 1), range(5)) == {1, 2, 3}
        await add(window, capture, 2 * HOUR + 2, 4)
        assert known(window, range(5)) == known(await reloaded(capture, 2 * HOUR + 2), range(5)) == {3, 4}
        await add(window, capture, 100 * HOUR)
        assert known(window, range(5)) == set()

    asyncio.run(run())


def test_the_number_is_bounded_in_memory_and_in_state() -> None:
    async def run() -> None:
        capture = MemoryCapture()
        window = await Window.load(capture.state, HOUR, 1_000, 0.0)
        for number in range(0, 20_000, 10):
            await add(window, capture, number / 1e6, *range(number, number + 10))
        assert known(window, range(19_000, 20_000)) == set(range(19_000, 20_000))
        assert len(known(window, range(20_000))) <= 2_000
        rows = await capture.state.scan(PREFIX, None, 100_000)
        assert len(rows) <= 300
        assert known(await reloaded(capture, 0.02), range(20_000)) == known(window, range(20_000))

    asyncio.run(run())


def test_a_clock_set_back_forgets_nothing() -> None:
    async def run() -> None:
        capture = MemoryCapture()
        window = await Window.load(capture.state, HOUR, 1_000, 10 * HOUR)
        await add(window, capture, 10 * HOUR, 1)
        await add(window, capture, 2 * HOUR, 2)
        assert known(window, range(3)) == known(await reloaded(capture, 2 * HOUR), range(3)) == {1, 2}

    asyncio.run(run())


def test_one_append_may_bring_more_than_the_window_holds() -> None:
    async def run() -> None:
        capture = MemoryCapture()
        window = await Window.load(capture.state, HOUR, 1_000, 0.0)
        await add(window, capture, 0.0, *range(5_000))
        assert known(window, range(5_000)) == set(range(5_000))

    asyncio.run(run())


def test_rows_of_former_generations_are_deleted() -> None:
    async def run() -> int:
        capture = MemoryCapture()
        rows = [Write(PREFIX + (1).to_bytes(8) + number.to_bytes(8), id_of(number)) for number in range(3_000)]
        await capture.append([], rows)
        window = await Window.load(capture.state, HOUR, 100_000, 100 * HOUR)
        for number in range(20):
            await add(window, capture, 100 * HOUR, 10_000 + number)
        return len(await capture.state.scan(PREFIX, None, 10_000))

    assert asyncio.run(run()) == 20
