"""The order of events by key and barrier, against a naive model."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from headrace.delivery.order import Item, Order
from headrace.event import Event, key_hash
from headrace.journal.block import Special

KEYS = ("a/1", "a/2", "b/1", "b/", "")
SEED = 7


def item(position: int, key: str | None, previous: str | None = None, barrier: str | None = None) -> Item:
    event = Event(id="", source="s", type="t", partitionkey=key, previouskey=previous, barrier=barrier)
    special = Special(key_hash(SEED, previous), barrier) if previous is not None or barrier is not None else None
    return Item(position, event.line(), "s", key_hash(SEED, key), special)


def some_item(chance: random.Random, position: int) -> Item:
    mood = chance.random()
    if mood < 0.2:
        return item(position, None, barrier=chance.choice(("a/", "b/", "", "a/1")))
    return item(position, chance.choice((*KEYS, None)), chance.choice(KEYS) if mood < 0.4 else None)


@given(seed=st.integers(0, 1 << 32))
def test_an_event_is_free_when_all_earlier_related_ones_are_complete(seed: int) -> None:
    chance, order = random.Random(seed), Order()
    open_items: list[Item] = []
    free: set[int] = set()
    for position in range(60):
        new = some_item(chance, position)
        expected = not any(new.related(other) for other in open_items)
        assert order.must_wait(new) is not expected
        assert order.admit(new) is expected
        open_items.append(new)
        if expected:
            free.add(position)
        while free and chance.random() < 0.45:
            chosen = chance.choice(sorted(free))
            done = next(it for it in open_items if it.position == chosen)
            open_items.remove(done)
            free.discard(done.position)
            freed = {it.position for it in order.complete(done)}
            now = {it.position for it in open_items if not _waits(it, open_items)}
            assert freed == now - free
            free = now
    assert len(order) == len(open_items)


def _waits(one: Item, open_items: list[Item]) -> bool:
    return any(other.position < one.position and one.related(other) for other in open_items)


@given(seed=st.integers(0, 1 << 32))
def test_an_event_is_inserted_before_those_behind_it(seed: int) -> None:
    """As in a run whose later events are parked already when an earlier one fails."""
    chance, order = random.Random(seed), Order()
    items = [some_item(chance, position) for position in range(25)]
    for each in chance.sample(items, len(items)):
        order.insert(each)
    done: list[int] = []
    free = [it for it in items if not it.waits]
    while free:
        one = free.pop(chance.randrange(len(free)))
        done.append(one.position)
        free += order.complete(one)
    assert sorted(done) == list(range(25)), "a circle"
    for later in items:
        for earlier in items[: later.position]:
            assert not later.related(earlier) or done.index(earlier.position) < done.index(later.position)


def test_what_is_behind_a_parked_event_is_parked() -> None:
    order = Order()
    first = item(0, "a/1")
    first.parked = True
    order.admit(first)
    renamed, far, other = item(1, "b/1", previous="a/1"), item(2, "b/1"), item(3, "c")
    for each in (renamed, far, other):
        order.admit(each)
    assert [it.parked for it in (renamed, far, other)] == [True, True, False]
    assert {it.position for it in order.behind(first)} == {1, 2}


def test_a_barrier_is_kept_apart_by_source() -> None:
    order = Order()
    order.admit(item(0, "a/1"))
    barrier = item(1, None, barrier="")
    barrier.source = "other"
    assert order.admit(barrier)
