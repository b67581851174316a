"""What every journal must keep, as a suite that a subclass applies to one engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from headrace.event import Event, source_seed
from headrace.journal.block import Block, Kind, Lines, SealedBlock, seal
from headrace.protocols import Bounds, Change, Journal, Position, Retains, Row, Store

PATIENCE: Final = 20.0  # seconds within which a journal must have answered


class Engine(Journal, Store, Bounds, Retains, Protocol):
    """A journal with all of its powers."""


def make_block(source: str, ids: Sequence[str], type_: str = "headrace.test.made", size: int = 0) -> SealedBlock:
    """A block of events with these ids; `size` bytes of padding in each."""
    padding = "x" * size
    events = [Event(id=it, source=f"headrace:{source}", type=type_, partitionkey=it, data=padding) for it in ids]
    return seal(source, Lines.of(events, source_seed(source)))


def everything(_kinds: Sequence[Kind]) -> bool:
    """Wants every block."""
    return True


def only(*types: str) -> Callable[[Sequence[Kind]], bool]:
    """Wants blocks with at least one of these types."""
    return lambda kinds: any(kind.type in types for kind in kinds)


async def read_blocks(
    journal: Journal, shard: str, start: Position = 0, wanted: Callable[[Sequence[Kind]], bool] = everything
) -> list[Block]:
    """All wanted blocks from `start` to the head."""
    found: list[Block] = []
    while start < journal.head(shard):
        page = await journal.read(shard, start, wanted)
        assert page.next > start, "a page must lead on"
        found.extend(page.blocks)
        start = page.next
    return found


def ids_of(blocks: Sequence[Block], start: Position = 0) -> list[str]:
    """The ids of all events from `start` on."""
    return [
        Event.parse(line).id
        for block in blocks
        for position, line in enumerate(block.lines, start=block.first)
        if position >= start
    ]


async def read_ids(journal: Journal, shard: str, start: Position = 0) -> list[str]:
    """The ids of all events from `start` to the head. A page may begin inside a block that a merge has made."""
    found: list[str] = []
    while start < journal.head(shard):
        page = await journal.read(shard, start, everything)
        found += ids_of(page.blocks, start)
        start = page.next
    return found


async def shard_of(journal: Journal, source: str) -> str:
    """Where the events of a source are, learnt by appending one."""
    before = {shard: journal.head(shard) for shard in journal.shards}
    await journal.submit(Change([make_block(source, ["probe"])]))
    (shard,) = [shard for shard in journal.shards if journal.head(shard) != before[shard]]
    return shard


class JournalConformance:
    """Subclass it, override `open`, and pytest finds the tests."""

    def open(self, tmp_path: Path) -> AbstractAsyncContextManager[Engine]:
        """An empty journal."""
        raise NotImplementedError

    def run(self, tmp_path: Path, test: Callable[[Engine], Coroutine[Any, Any, None]]) -> None:
        """Run a test against a fresh journal, within `PATIENCE`."""

        async def main() -> None:
            async with asyncio.timeout(PATIENCE), self.open(tmp_path) as journal:
                await test(journal)

        asyncio.run(main())

    def test_positions_are_dense_and_in_order_of_the_calls(self, tmp_path: Path) -> None:
        async def test(journal: Engine) -> None:
            shard = await shard_of(journal, "a")
            counts = [1, 7, 2_000, 3]
            futures = [journal.submit(Change([make_block("a", [f"{n}-{i}" for i in range(n)])])) for n in counts]
            await asyncio.gather(*futures)
            blocks = (await read_blocks(journal, shard))[1:]
            assert [block.count for block in blocks] == counts
            assert [block.first for block in blocks] == [1, 2, 9, 2_009]
            assert journal.head(shard) == 2_012
            assert ids_of(blocks) == [f"{n}-{i}" for n in counts for i in range(n)]

        self.run(tmp_path, test)

    def test_changes_are_acknowledged_in_the_order_of_the_calls(self, tmp_path: Path) -> None:
        async def test(journal: Engine) -> None:
            done: list[int] = []
            futures = [journal.submit(Change([make_block("a", [str(n)])])) for n in range(200)]
            for number, future in enumerate(futures):
                future.add_done_callback(partial(lambda number, _: done.append(number), number))
            await asyncio.gather(*futures)
            await asyncio.sleep(0)
            assert done == list(range(200))

        self.run(tmp_path, test)

    def test_what_is_acknowledged_can_be_read(self, tmp_path: Path) -> None:
        async def test(journal: Engine) -> None:
            shard = await shard_of(journal, "a")
            for number in range(50):
                head = journal.head(shard)
                await journal.submit(Change([make_block("a", [str(number)])], [Row("a", b"n", b"%d" % number)]))
                assert await read_ids(journal, shard, head) == [str(number)]
                assert await journal.store.get("a", b"n") == b"%d" % number

        self.run(tmp_path, test)

    def test_blocks_and_rows_of_a_change_appear_together(self, tmp_path: Path) -> None:
        async def test(journal: Engine) -> None:
            shard = await shard_of(journal, "a")

            async def write() -> None:
                for number in range(1, 200):
                    row = Row("a", b"last", str(number).encode())
                    await journal.submit(Change([make_block("a", [str(number)])], [row]))

            async def watch() -> None:
                seen = 0
                while seen < 199:
                    await asyncio.sleep(0)  # a read from memory lets nobody else by
                    seen = int(await journal.store.get("a", b"last") or b"0")
                    # The row of event N is there: so is event N. The head follows in the same turn of the loop.
                    await journal.grown(shard, seen)
                    assert int((await read_ids(journal, shard))[-1].replace("probe", "0")) >= seen

            await asyncio.gather(write(), watch())

        self.run(tmp_path, test)

    def test_several_blocks_of_one_change(self, tmp_path: Path) -> None:
        async def test(journal: Engine) -> None:
            shard = await shard_of(journal, "a")
            await journal.submit(Change([make_block("a", ["1", "2"]), make_block("a", ["3"])], [], intake=True))
            assert await read_ids(journal, shard) == ["probe", "1", "2", "3"]

        self.run(tmp_path, test)

    def test_a_change_without_blocks_moves_no_head(self, tmp_path: Path) -> None:
        async def test(journal: Engine) -> None:
            await journal.submit(Change([], [Row("c", b"cursor", b"1")]))
            assert {journal.head(shard) for shard in journal.shards} == {0}

        self.run(tmp_path, test)

    def test_a_source_stays_in_its_shard(self, tmp_path: Path) -> None:
        async def test(journal: Engine) -> None:
            for source in "abcdefgh":
                shard = await shard_of(journal, source)
                assert await shard_of(journal, source) == shard

        self.run(tmp_path, test)

    def test_reads_start_anywhere_even_inside_a_block(self, tmp_path: Path) -> None:
        async def test(journal: Engine) -> None:
            shard = await shard_of(journal, "a")
            for number in range(20):
                await journal.submit(Change([make_block("a", [f"{number}.{i}" for i in range(5)])]))
            expected = await read_ids(journal, shard)
            for start in range(journal.head(shard)):
                page = await journal.read(shard, start, everything)
                first = page.blocks[0]
                assert first.first <= start < first.end
                assert await read_ids(journal, shard, start) == expected[start:]

        self.run(tmp_path, test)

    def test_reads_at_the_head_find_nothing(self, tmp_path: Path) -> None:
        async def test(journal: Engine) -> None:
            shard = await shard_of(journal, "a")
            page = await journal.read(shard, journal.head(shard), everything)
            assert (list(page.blocks), page.next) == ([], journal.head(shard))

        self.run(tmp_path, test)

    def test_unwanted_kinds_are_passed(self, tmp_path: Path) -> None:
        async def test(journal: Engine) -> None:
            shard = await shard_of(journal, "a")
            for number in range(600):
                kind = "t.rare" if number % 100 == 99 else "t.common"
                await journal.submit(Change([make_block("a", [str(number)], kind)]))
            rare = await read_blocks(journal, shard, wanted=only("t.rare"))
            assert ids_of(rare) == [str(number) for number in range(99, 600, 100)]
            assert await read_blocks(journal, shard, wanted=only("t.none")) == []

        self.run(tmp_path, test)

    def test_a_page_is_bounded_but_never_empty_handed(self, tmp_path: Path) -> None:
        async def test(journal: Engine) -> None:
            shard = await shard_of(journal, "a")
            for number in range(12):
                await journal.submit(Change([make_block("a", [str(number)], size=1 << 20)]))
            page = await journal.read(shard, 0, everything)
            assert 1 <= sum(block.raw_size for block in page.blocks) <= 8 << 20
            await journal.submit(Change([make_block("a", ["huge"], size=20 << 20)]))
            assert (await read_ids(journal, shard))[-1] == "huge"

        self.run(tmp_path, test)

    def test_grown_wakes(self, tmp_path: Path) -> None:
        async def test(journal: Engine) -> None:
            shard = await shard_of(journal, "a")
            head = journal.head(shard)
            async with asyncio.TaskGroup() as group:
                waiting = [group.create_task(journal.grown(shard, head)) for _ in range(10)]
                later = group.create_task(journal.grown(shard, head + 1))
                await asyncio.sleep(0)
                waiting.pop().cancel()
                assert not any(task.done() for task in waiting)
                await journal.submit(Change([make_block("a", ["1"])]))
                await asyncio.gather(*waiting)
                assert not later.done()
                await journal.submit(Change([make_block("a", ["2"])]))
            await journal.grown(shard, head)

        self.run(tmp_path, test)

    def test_scans_by_prefix_after_and_limit(self, tmp_path: Path) -> None:
        async def test(journal: Engine) -> None:
            keys = [b"", b"\0", b"a", b"a\0", b"a\xff", b"a\xff\xff", b"a\xff\xffb", b"ab", b"b", b"\xff", b"\xff\xff"]
            await journal.submit(Change([], [Row("s", key, b"v" + key) for key in reversed(keys)]))
            await journal.submit(Change([], [Row("other", b"a", b"not here")]))
            for prefix in [b"", b"a", b"a\xff", b"\xff", b"zz"]:
                for after in [None, *keys]:
                    for limit in (1, 3, 100):
                        expected = sorted(
                            key for key in keys if key.startswith(prefix) and (after is None or key > after)
                        )
                        found = await journal.store.scan("s", prefix, after, limit)
                        assert found == [(key, b"v" + key) for key in expected[:limit]]
            assert await journal.store.scan("nobody", b"", None, 10) == []

        self.run(tmp_path, test)

    def test_rows_are_replaced_deleted_and_found_by_their_second_key(self, tmp_path: Path) -> None:
        async def test(journal: Engine) -> None:
            store = journal.store
            await journal.submit(Change([], [Row("s", b"b", b"2", b"inode"), Row("s", b"a", b"1", b"inode")]))
            assert await store.find("s", [b"inode"]) == [(b"a", b"1"), (b"b", b"2")]
            assert await store.find("other", [b"inode"]) == []
            # The last write of a key counts, also within one change.
            await journal.submit(Change([], [Row("s", b"a", b"3"), Row("s", b"a", b"4", b"x"), Row("s", b"b", None)]))
            assert await store.find("s", [b"inode"]) == []
            assert await store.find("s", [b"x", b"none"]) == [(b"a", b"4")]
            assert await store.get_many("s", [b"a", b"b"]) == {b"a": b"4"}
            assert (await store.get("s", b"a"), await store.get("s", b"b")) == (b"4", None)
            await journal.submit(Change([], [Row("s", b"a", b""), Row("s", b"nobody", None)]))
            assert await store.get("s", b"a") == b""
            many = [b"%04d" % number for number in range(1_000)]
            await journal.submit(Change([], [Row("s", it, it, it[:3]) for it in many]))
            assert await store.get_many("s", [b"none", *many]) == {it: it for it in many}
            assert await store.find("s", [it[:3] for it in many[:500]]) == [(it, it) for it in many[:500]]
            assert (await store.get_many("s", []), await store.find("s", [])) == ({}, [])

        self.run(tmp_path, test)

    def test_bounds(self, tmp_path: Path) -> None:
        async def test(journal: Engine) -> None:
            shard = await shard_of(journal, "a")
            await journal.submit(Change([make_block("a", ["1", "2"])]))
            blocks = await read_blocks(journal, shard)
            assert await journal.oldest(shard) == 0
            assert await journal.at(shard, 0.0) == 0
            assert await journal.at(shard, blocks[1].appended) in {0, 1}  # clocks are coarse
            assert await journal.at(shard, blocks[1].appended + 3_600) == journal.head(shard)

        self.run(tmp_path, test)

    def test_what_is_held_stays(self, tmp_path: Path) -> None:
        async def test(journal: Engine) -> None:
            shard = await shard_of(journal, "a")
            journal.hold("c", shard, 0)
            for number in range(100):
                await journal.submit(Change([make_block("a", [str(number)])], intake=True))
            assert await journal.oldest(shard) == 0
            journal.hold("c", shard, 50)
            assert await journal.oldest(shard) <= 50
            journal.release("c")
            journal.release("never seen")

        self.run(tmp_path, test)

    def test_many_write_and_read_at_once(self, tmp_path: Path) -> None:
        async def test(journal: Engine) -> None:
            sources = [f"source-{number}" for number in range(6)]
            async with asyncio.TaskGroup() as group:
                for source in sources:
                    group.create_task(_write_40(journal, source))
                readers = [
                    group.create_task(_follow(journal, shard, 6 * 40)) for shard in journal.shards for _ in range(3)
                ]
            seen = [reader.result() for reader in readers]
            for source in sources:
                expected = [f"{source}/{number}" for number in range(40)]
                per_reader = [[one for one in ids if one.startswith(f"{source}/")] for ids in seen]
                assert list(filter(None, per_reader)) == [expected] * 3
                assert len(await journal.store.scan(source, b"", None, 100)) == 40

        self.run(tmp_path, test)


async def _write_40(journal: Journal, source: str) -> None:
    for number in range(40):
        row = Row(source, b"%04d" % number, b"")
        await journal.submit(Change([make_block(source, [f"{source}/{number}"])], [row]))


async def _follow(journal: Journal, shard: str, total: int) -> list[str]:
    """The ids of a shard, read while others write, until all shards together hold `total` events."""
    start, written, found = 0, 0, list[str]()
    while written < total:
        await asyncio.sleep(0)  # a read from memory lets nobody else by
        page = await journal.read(shard, start, everything)
        found += ids_of(page.blocks, start)
        start, written = page.next, sum(journal.head(it) for it in journal.shards)
    return found + await read_ids(journal, shard, start)
