"""The inventory against naive models of it."""

import asyncio
from collections.abc import Sequence

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from headrace.event import Event
from headrace.inventory import (
    EVENTS,
    META,
    WRITES,
    Difference,
    Found,
    Inventory,
    Meta,
    compare,
    difference,
)
from headrace.protocols import Write
from headrace.testing import MemoryCapture

KEYS = st.binary(max_size=4)
THINGS = st.dictionaries(KEYS.map(lambda key: b"f" + key), st.binary(max_size=2), max_size=60)


def found(things: dict[bytes, bytes]) -> list[Found]:
    return sorted(things.items())


def naive(listed: dict[bytes, bytes], known: dict[bytes, bytes]) -> Difference:
    return Difference(
        [(key, listed[key]) for key in sorted(listed.keys() - known.keys())],
        [(key, known[key], listed[key]) for key in sorted(listed.keys() & known.keys()) if listed[key] != known[key]],
        [(key, known[key]) for key in sorted(known.keys() - listed.keys())],
    )


class Rows:
    """Rows in memory, and how often they were read."""

    def __init__(self, rows: dict[bytes, bytes]) -> None:
        self.rows = rows
        self.reads = 0

    async def get(self, key: bytes) -> bytes | None:
        self.reads += 1
        return self.rows.get(key)

    async def scan(self, prefix: bytes, after: bytes | None, limit: int) -> list[Found]:
        self.reads += 1
        return [it for it in found(self.rows) if it[0].startswith(prefix) and (after is None or it[0] > after)][:limit]


@given(THINGS, THINGS)
def test_a_difference_is_that_of_two_dicts(listed: dict[bytes, bytes], known: dict[bytes, bytes]) -> None:
    assert difference(found(listed), found(known)) == naive(listed, known)


@given(THINGS, THINGS, st.lists(st.integers(1, 9), min_size=1))
def test_pages_add_up_to_the_whole(listed: dict[bytes, bytes], known: dict[bytes, bytes], sizes: list[int]) -> None:
    things, number = found(listed), 0

    async def pages() -> Sequence[Found]:
        nonlocal number
        size = sizes[number % len(sizes)]
        number += 1
        page = things[:size]
        del things[:size]
        return page

    async def run() -> Difference:
        whole = Difference([], [], [])
        async for it in compare(pages, Rows({**known, b"g": b"another prefix"}).scan, b"f"):
            whole = Difference([*whole.added, *it.added], [*whole.changed, *it.changed], [*whole.removed, *it.removed])
        return whole

    assert asyncio.run(run()) == naive(listed, known)


def test_rows_are_read_when_their_page_is_compared() -> None:
    """What the live stream wrote between two pages is seen."""
    rows = Rows({})
    waiting = [[(b"f1", b"x")], [(b"f2", b"x")]]

    async def pages() -> Sequence[Found]:
        return waiting.pop(0) if waiting else []

    async def run() -> None:
        steps = compare(pages, rows.scan, b"f")
        assert (await anext(steps)).added == [(b"f1", b"x")]
        rows.rows[b"f2"] = b"x"
        assert not await anext(steps)

    asyncio.run(run())


@given(st.lists(st.tuples(st.sampled_from(["put", "drop", "flush"]), st.integers(0, 5), st.integers(0, 3))))
def test_reads_see_what_was_applied(steps: list[tuple[str, int, int]]) -> None:
    async def run() -> None:
        inventory = await Inventory.open(MemoryCapture())
        model: dict[bytes, bytes] = {}
        for step, number, other in steps:
            key, secondary = b"f%d" % number, b"s%d" % other
            if step == "flush":
                await inventory.flush()
            elif step == "put":
                model[key] = secondary
                await inventory.apply((), [Write(key, secondary, secondary)])
            else:
                model.pop(key, None)
                await inventory.apply((), [Write(key, None)])
            assert await inventory.get(key) == model.get(key)
            assert await inventory.find([secondary]) == [it for it in found(model) if it[1] == secondary]
            assert await inventory.find([b"s1", secondary, b"none"]) == [
                it for it in found(model) if it[1] in {b"s1", secondary}
            ]
            assert await inventory.lookup([b"f%d" % it for it in range(7)]) == model
        assert await inventory.scan(b"f", None, 10) == found(model)

    asyncio.run(run())


def test_a_change_its_row_and_its_number_are_one_append() -> None:
    async def run() -> None:
        out = MemoryCapture()
        inventory = await Inventory.open(out)
        for number in range(3 * EVENTS):
            change = inventory.number()
            event = Event(id=change.id, source="s", type="t", sequence=change.sequence)
            await inventory.apply([event], [Write(b"f%d" % number, b"x")])
        await inventory.settle()
        again = await Inventory.open(out.survivor())
        assert out.appends == 3
        assert again.meta == inventory.meta
        assert again.number() not in {(event.id, event.sequence) for event in out.events}
        assert [event.sequence for event in out.events] == sorted(event.sequence or "" for event in out.events)

    asyncio.run(run())


def test_an_append_is_bounded() -> None:
    async def run() -> None:
        out = MemoryCapture()
        inventory = await Inventory.open(out)
        for number in range(2 * WRITES):
            await inventory.apply((), [Write(b"f%d" % number, b"x")])
        await inventory.settle()
        assert out.appends == 2

    asyncio.run(run())


def test_nothing_to_say_is_no_append() -> None:
    async def run() -> None:
        first = MemoryCapture()
        await (await Inventory.open(first)).settle()
        second = first.survivor()
        await (await Inventory.open(second)).settle()
        assert (first.appends, second.appends) == (1, 0)
        stored = await second.state.get(META)
        assert stored is not None
        assert msgspec.msgpack.decode(stored, type=Meta).incarnation

    asyncio.run(run())


def test_a_new_inventory_has_an_incarnation_of_its_own() -> None:
    async def run() -> None:
        one, other = await Inventory.open(MemoryCapture()), await Inventory.open(MemoryCapture())
        assert one.number().id != other.number().id

    asyncio.run(run())
