"""The block codec: nothing changes on the way, and no flipped byte goes unnoticed."""

import dataclasses
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.event import Event, source_seed
from headrace.journal import block as codec
from headrace.journal.block import BLOCK_BYTES, BLOCK_EVENTS, Block, CorruptBlock, Kind, Lines, cut, merge, seal

NAMES = st.text("abcxyz/.", min_size=1, max_size=6)
EVENTS = st.builds(
    Event,
    id=NAMES,
    source=st.just("headrace:s"),
    type=st.sampled_from(["t.created", "t.modified", "t.moved"]),
    partitionkey=st.none() | st.text(max_size=6),
    previouskey=st.none() | NAMES,
    barrier=st.none() | st.text(max_size=6),
    data=st.none() | st.text(max_size=40) | st.integers(-(2**53), 2**53),
)
LISTS = st.lists(EVENTS, min_size=1, max_size=30)


def lines(events: list[Event], source: str = "s") -> Lines:
    return Lines.of(events, source_seed(source))


def stored(events: list[Event], first: int = 0, source: str = "s", at: float = 1.0) -> Block:
    sealed = seal(source, lines(events, source))
    return Block(sealed.head(first, at, at), sealed.index, sealed.body)


def seen(block: Block) -> list[object]:
    """All that a consumer can see of each event."""
    return [
        (
            block.first + index,
            block.kinds[block.kind_of[index]],
            block.keys[index],
            block.special.get(index),
            block.line(index),
        )
        for index in range(block.count)
    ]


@given(LISTS, st.integers(0, 2**62), st.floats(0, 2**40))
def test_a_block_gives_back_its_events(events: list[Event], first: int, at: float) -> None:
    block = stored(events, first, at=at)
    block.verify()
    assert (block.first, block.end, block.appended, block.until) == (first, first + len(events), at, at)
    assert [Event.parse(line) for line in block.lines] == events
    assert [block.line(index) for index in range(block.count)] == block.lines
    assert block.span(0, block.count) == block.data == b"".join(block.lines)
    assert [block.kinds[kind].type for kind in block.kind_of] == [event.type for event in events]
    ordered = {index for index, event in enumerate(events) if event.previouskey or event.barrier is not None}
    assert set(block.special) == ordered
    assert all((key == 0) == (event.partitionkey is None) for key, event in zip(block.keys, events, strict=True))


@given(LISTS, st.integers(1, 8), st.integers(1, 400))
def test_cutting_changes_nothing_but_the_borders(events: list[Event], most: int, most_bytes: int) -> None:
    whole = lines(events)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "BLOCK_EVENTS", most)
        patch.setattr(codec, "BLOCK_BYTES", most_bytes)
        parts = list(cut(whole))
    assert all(len(part) <= most and (len(part.data) <= most_bytes or len(part) == 1) for part in parts)
    position, cut_up = 0, []
    for part in parts:
        sealed = seal("s", part)
        cut_up += seen(Block(sealed.head(position, 0, 0), sealed.index, sealed.body))
        position += len(part)
    assert cut_up == seen(stored(events))


def test_cutting_nothing_gives_nothing() -> None:
    assert list(cut(lines([]))) == []


def test_cutting_at_the_real_limits() -> None:
    event = Event(id="1", source="s", type="t", data="x" * 600)
    parts = list(cut(lines([event] * 4_500)))
    assert sum(map(len, parts)) == 4_500
    assert all(len(part) <= BLOCK_EVENTS and len(part.data) <= BLOCK_BYTES for part in parts)


@given(st.lists(st.tuples(LISTS, st.sampled_from(["s", "other", "third"])), min_size=1, max_size=6))
def test_merging_leaves_every_event_as_it_was(parts: list[tuple[list[Event], str]]) -> None:
    blocks: list[Block] = []
    for events, source in parts:
        blocks.append(stored(events, blocks[-1].end if blocks else 7, source, at=float(len(blocks))))
    sealed = merge(blocks)
    merged = Block(sealed.head(7, blocks[0].appended, blocks[-1].until), sealed.index, sealed.body)
    merged.verify()
    assert seen(merged) == [one for block in blocks for one in seen(block)]
    assert len(set(merged.kinds)) == len(merged.kinds)
    assert set(merged.kinds) == {kind for block in blocks for kind in block.kinds}


@given(LISTS, st.data())
def test_every_flipped_byte_is_found(events: list[Event], data: st.DataObject) -> None:
    sealed = seal("s", lines(events))
    parts = [sealed.head(3, 1.0, 1.0), sealed.index, sealed.body]
    part = data.draw(st.integers(0, 2))
    place = data.draw(st.integers(0, len(parts[part]) - 1))
    flip = data.draw(st.integers(1, 255))
    damaged = bytearray(parts[part])
    damaged[place] ^= flip
    parts[part] = bytes(damaged)
    with pytest.raises(CorruptBlock):
        Block(*parts).verify()


def test_every_single_byte_of_one_block() -> None:
    events = [Event(id=str(n), source="s", type="t", previouskey="k", barrier="") for n in range(3)]
    sealed = seal("s", lines(events))
    parts = [sealed.head(3, 1.0, 1.0), sealed.index, sealed.body]
    for number, part in enumerate(parts):
        for place in range(len(part)):
            damaged = [*parts[:number], part[:place] + bytes([part[place] ^ 0x40]) + part[place + 1 :]]
            with pytest.raises(CorruptBlock):
                Block(*damaged, *parts[number + 1 :]).verify()


@pytest.mark.parametrize("keep", [0, 10, 60])
def test_a_part_cut_short_is_found(keep: int) -> None:
    sealed = seal("s", lines([Event(id="1", source="s", type="t", data="x" * 100)] * 20))
    head = sealed.head(0, 1.0, 1.0)
    for parts in (
        (head[:keep], sealed.index, sealed.body),
        (head, sealed.index[:keep], sealed.body),
        (head, sealed.index, sealed.body[:keep]),
        (head, sealed.index, None),
    ):
        with pytest.raises(CorruptBlock):
            Block(*parts).verify()


def test_an_index_that_does_not_fit_is_found() -> None:
    sealed = seal("s", lines([Event(id="1", source="s", type="t")] * 2))
    wrong = dataclasses.replace(sealed, index=b"\xff" + sealed.index[1:])
    with pytest.raises(CorruptBlock, match="index does not fit"):
        Block(wrong.head(0, 0, 0), wrong.index, wrong.body).verify()


@given(LISTS, st.lists(st.text("abc/", max_size=9), min_size=1, max_size=8))
def test_texts_told_later_stand_where_their_marks_were(events: list[Event], told: list[str]) -> None:
    texts = [text.encode() for text in told]
    drafted = [event.line()[:-2] + b',"x":"' + b"".join(codec.MARKS[: len(texts)]) + b'"}\n' for event in events]
    whole = [codec.filled(line, texts) for line in drafted]
    sealed = seal("s", Lines.of(events, source_seed("s"), drafted))
    shared = sealed.sharing(texts, array("I", map(len, whole)))
    block = Block(shared.head(7, 1.0, 1.0), shared.index, shared.body)
    block.verify()
    assert block.lines == whole
    assert (block.raw_size, shared.lengths) == (sum(map(len, whole)), array("I", map(len, whole)))
    assert shared.lines() == Lines.of(events, source_seed("s"), whole)
    assert merge([block]).head(7, 1.0, 1.0) == seal("s", Lines.of(events, source_seed("s"), whole)).head(7, 1.0, 1.0)


def test_a_later_version_is_refused() -> None:
    sealed = seal("s", lines([Event(id="1", source="s", type="t")])).sharing([b"x"], array("I", [1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "VERSION", codec.VERSION + 1)
        head = sealed.head(5, 0, 0)
    with pytest.raises(CorruptBlock, match="format 3"):
        Block(head, sealed.index, sealed.body)


def test_kinds_are_known_from_the_head_alone() -> None:
    sealed = seal("orders", lines([Event(id="1", source="s", type="a"), Event(id="2", source="s", type="b")]))
    head = Block(sealed.head(0, 0, 0), b"", None)
    assert head.kinds == (Kind("orders", "a"), Kind("orders", "b"))
    with pytest.raises(CorruptBlock):
        _ = head.data


def test_a_block_holds_256_types() -> None:
    events = [Event(id="1", source="s", type=str(number)) for number in range(256)]
    assert len(stored(events).kinds) == 256
    with pytest.raises(ValueError, match="256"):
        lines([*events, Event(id="1", source="s", type="one more")])
