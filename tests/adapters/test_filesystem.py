"""The filesystem source over real trees: what each change of a tree looks like as events."""

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from headrace.sources.filesystem import follow
from tests.adapters.filesystem_runs import Run, name, until
from tests.fixtures.users import unprivileged

Scene = Callable[[Run], Awaitable[None]]


def play(tmp_path: Path, scene: Scene, **options: object) -> Run:
    """Run the scene while the source runs over an empty tree."""
    run = Run(tmp_path, options)
    run.tree.mkdir(exist_ok=True)

    async def main() -> None:
        async with run.running():
            await scene(run)

    asyncio.run(main())
    return run


def test_created_modified_deleted(tmp_path: Path) -> None:
    async def scene(run: Run) -> None:
        file = run.tree / "a"
        file.write_text("one")
        await run.sees(("created", "a"))
        file.write_text("two!")
        await run.sees(("created", "a"), ("modified", "a"))
        file.unlink()
        await run.sees(("created", "a"), ("modified", "a"), ("deleted", "a"))

    event = play(tmp_path, scene).capture.events[1]
    assert event.data["size"] == 4
    assert event.data["kind"] == "file"
    assert event.data["recovered"] is False
    assert event.partitionkey == "a"
    assert event.time == event.data["mtime"]
    assert event.dataschema == "urn:headrace:schema:filesystem.modified:1"
    assert event.data["root"] == str(tmp_path / "tree")


def test_a_file_is_told_of_when_it_is_closed(tmp_path: Path) -> None:
    async def scene(run: Run) -> None:
        with (run.tree / "slow").open("w") as file:
            file.write("half")
            file.flush()
            (run.tree / "mark").mkdir()
            await run.sees(("created", "mark"))
            file.write(" and the rest")
        await run.sees(("created", "mark"), ("created", "slow"))
        assert run.capture.events[1].data["size"] == 17

    play(tmp_path, scene)


def test_rename_ping_pong_is_four_moves(tmp_path: Path) -> None:
    async def scene(run: Run) -> None:
        a, b = run.tree / "a", run.tree / "b"
        a.write_text("x")
        await run.sees(("created", "a"))
        for _ in range(2):
            a.rename(b)
            b.rename(a)
        moves = [("moved", "b"), ("moved", "a")] * 2
        await run.sees(("created", "a"), *moves)
        await run.agrees()

    run = play(tmp_path, scene)
    assert [event.previouskey for event in run.capture.events[1:]] == ["a", "b", "a", "b"]


def test_a_rename_over_a_file_is_one_move(tmp_path: Path) -> None:
    async def scene(run: Run) -> None:
        (run.tree / "a").write_text("a")
        (run.tree / "b").write_text("bb")
        await until(lambda: len(run.all) == 2)
        (run.tree / "b").rename(run.tree / "a")
        await until(lambda: run.since(2) == [("moved", "a")])
        await run.agrees()

    play(tmp_path, scene)


def test_atomic_saves_by_visibility(tmp_path: Path) -> None:
    async def scene(run: Run) -> None:
        for text in ("first", "second version"):
            (run.tree / "x.tmp").write_text(text)
            (run.tree / "x.tmp").rename(run.tree / "x")
            await until(lambda: bool(run.all) and run.capture.events[-1].data["size"] == len(text))  # noqa: B023
        (run.tree / "x").rename(run.tree / "x.tmp")
        await run.sees(("created", "x"), ("modified", "x"), ("deleted", "x"))

    play(tmp_path, scene, exclude=["**/*.tmp"])


def test_moves_into_and_out_of_the_tree(tmp_path: Path) -> None:
    async def scene(run: Run) -> None:
        outside = run.folder / "outside"
        outside.write_text("x")
        outside.rename(run.tree / "in")
        await run.sees(("created", "in"))
        (run.tree / "in").rename(outside)
        await run.sees(("created", "in"), ("deleted", "in"))

    play(tmp_path, scene)


def test_a_directory_moved_gives_its_own_event_and_one_for_all_in_it(tmp_path: Path) -> None:
    async def scene(run: Run) -> None:
        (run.tree / "d/e").mkdir(parents=True)
        (run.tree / "d/e/f").write_text("x")
        await until(lambda: len(run.all) == 3)
        (run.tree / "d").rename(run.tree / "q")
        await until(lambda: len(run.all) == 6)
        (run.tree / "q/e/f").write_text("changed")
        await until(lambda: len(run.all) == 7)
        await run.agrees()

    events = play(tmp_path, scene).capture.events[3:]
    assert [(name(it), it.subject, it.previouskey, it.barrier) for it in events] == [
        ("moved", "q", "d", "d/"),
        ("moved", "q/e", "d/e", "d/e/"),
        ("moved", "q/e/f", "d/e/f", None),
        ("modified", "q/e/f", None, None),
    ]


def test_a_directory_moved_out_and_in_again(tmp_path: Path) -> None:
    async def scene(run: Run) -> None:
        (run.tree / "d/e").mkdir(parents=True)
        (run.tree / "d/e/f").write_text("x")
        await until(lambda: len(run.all) == 3)
        (run.tree / "d").rename(run.folder / "d")
        await until(lambda: len(run.all) == 6)
        (run.folder / "d/e/f").write_text("changed outside")
        (run.folder / "d").rename(run.tree / "d")
        await until(lambda: len(run.all) == 9)
        (run.tree / "d/e/f").write_text("and inside")
        await until(lambda: len(run.all) == 10)
        await run.agrees()

    run = play(tmp_path, scene)
    assert {it for it, _ in run.all[3:6]} == {"deleted"}
    assert run.capture.events[5].barrier == "d/"
    assert run.all[6:] == [("created", "d"), ("created", "d/e"), ("created", "d/e/f"), ("modified", "d/e/f")]


def test_files_that_race_their_directory(tmp_path: Path) -> None:
    async def scene(run: Run) -> None:
        for number in range(200):
            folder = run.tree / f"{number}/a/b"
            folder.mkdir(parents=True)
            (folder / "file").write_text("x")
        await run.agrees()

    run = play(tmp_path, scene)
    assert len(run.all) == 800


def test_links_and_special_files(tmp_path: Path) -> None:
    async def scene(run: Run) -> None:
        outside = run.folder / "outside"
        outside.mkdir()
        (outside / "secret").write_text("x")
        (run.tree / "loop").symlink_to(".")
        (run.tree / "escape").symlink_to(outside)
        (run.tree / "dangling").symlink_to("nowhere")
        os.mkfifo(run.tree / "fifo")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(run.tree / "socket"))
            await until(lambda: len(run.all) == 5)
        await run.agrees()

    run = play(tmp_path, scene)
    kinds = {event.subject: event.data["kind"] for event in run.capture.events}
    links = dict.fromkeys(["loop", "escape", "dangling"], "symlink")
    assert kinds == {**links, "fifo": "other", "socket": "other"}


def test_hard_links_change_together(tmp_path: Path) -> None:
    async def scene(run: Run) -> None:
        (run.tree / "a").write_text("x")
        os.link(run.tree / "a", run.tree / "b")
        await until(lambda: len(run.all) == 2)
        (run.tree / "b").write_text("longer")
        await until(lambda: len(run.all) == 4)
        await run.agrees()

    run = play(tmp_path, scene)
    count = len(run.all)

    async def again() -> None:
        async with run.running():
            assert run.since(count) == []

    asyncio.run(again())


def test_names_that_are_no_text(tmp_path: Path) -> None:
    async def scene(run: Run) -> None:
        for each in (b"latin-\xe9", b"100%", b"new\nline", "für".encode()):
            (run.tree / os.fsdecode(each)).write_text("x")
        await until(lambda: len(run.all) == 4)

    run = play(tmp_path, scene)
    found = {event.subject: event.data.get("path_base64") for event in run.capture.events}
    assert found == {"latin-%E9": "bGF0aW4t6Q==", "100%25": "MTAwJQ==", "new%0Aline": "bmV3CmxpbmU=", "für": None}


def test_include_and_exclude(tmp_path: Path) -> None:
    async def scene(run: Run) -> None:
        for path in ("a.csv", "a.txt", "d/e/b.csv", ".git/c.csv", "d/.hidden.csv", "d/old/x.csv"):
            (run.tree / path).parent.mkdir(parents=True, exist_ok=True)
            (run.tree / path).write_text("x")
        (run.tree / "last.csv").write_text("x")
        await until(lambda: ("created", "last.csv") in run.all)
        await until(lambda: len(run.all) == 3)
        (run.tree / "d").rename(run.tree / "q")
        await until(lambda: len(run.all) == 4)

    run = play(tmp_path, scene, include=["**/*.csv"], exclude=["**/.*", "**/old/**"])
    assert sorted(run.all) == [
        ("created", "a.csv"),
        ("created", "d/e/b.csv"),
        ("created", "last.csv"),
        ("moved", "q/e/b.csv"),
    ]


def test_its_own_data_is_not_looked_at(tmp_path: Path) -> None:
    async def scene(run: Run) -> None:
        (run.folder / ".headrace-scratch/x").write_text("x")
        (run.tree / "seen").write_text("x")
        await until(lambda: ("created", "tree/seen") in run.all)

    run = play(tmp_path, scene, path=".")
    assert run.all == [("created", "tree/seen")]


# Changes while nobody looked


def apart(tmp_path: Path, before: Callable[[Path], None], between: Callable[[Path], None], **options: object) -> Run:
    """The events of what changed between two runs."""
    run = Run(tmp_path, {"snapshot": "initial", **options})
    run.tree.mkdir()
    before(run.tree)

    async def main() -> int:
        async with run.running():
            await run.agrees()
        count = len(run.all)
        between(run.tree)
        async with run.running():
            await run.agrees()
        return count

    count = asyncio.run(main())
    run.capture.events[:] = run.capture.events[count:]
    return run


def test_the_first_listing_says_nothing_by_default(tmp_path: Path) -> None:
    async def main() -> None:
        run = Run(tmp_path)
        (run.tree / "d").mkdir(parents=True)
        (run.tree / "d/there").write_text("x")
        async with run.running():
            assert run.all == []
        (run.tree / "d/new").write_text("x")
        async with run.running():
            await run.sees(("created", "d/new"))
            assert run.capture.events[0].data["recovered"] is True

    asyncio.run(main())


def test_the_first_listing_as_events(tmp_path: Path) -> None:
    def before(tree: Path) -> None:
        (tree / "d").mkdir()
        (tree / "d/there").write_text("x")

    assert apart(tmp_path, before, lambda _: None).all == []


def test_changes_while_it_was_down(tmp_path: Path) -> None:
    def before(tree: Path) -> None:
        for each in ("gone", "kept", "longer", "same size", "from"):
            (tree / each).write_text("x")

    def between(tree: Path) -> None:
        (tree / "gone").unlink()
        (tree / "longer").write_text("xx")
        st = (tree / "same size").stat()
        (tree / "same size").write_text("y")
        os.utime(tree / "same size", ns=(st.st_atime_ns, st.st_mtime_ns))
        (tree / "from").rename(tree / "a-to")
        (tree / "new").write_text("x")

    run = apart(tmp_path, before, between)
    assert sorted(run.all) == [
        ("created", "new"),
        ("deleted", "gone"),
        ("modified", "longer"),
        ("modified", "same size"),
        ("moved", "a-to"),
    ]
    assert all(event.data["recovered"] for event in run.capture.events)


@pytest.mark.parametrize("to", ["a", "z"])
def test_a_directory_renamed_while_it_was_down(tmp_path: Path, to: str) -> None:
    def before(tree: Path) -> None:
        (tree / "m/n").mkdir(parents=True)
        (tree / "m/n/f").write_text("x")

    def between(tree: Path) -> None:
        (tree / "m").rename(tree / to)

    run = apart(tmp_path, before, between)
    assert run.all == [("moved", to), ("moved", f"{to}/n"), ("moved", f"{to}/n/f")]


def test_a_file_in_place_of_a_directory_and_back(tmp_path: Path) -> None:
    def before(tree: Path) -> None:
        (tree / "d").mkdir()
        (tree / "d/x").write_text("x")
        (tree / "f").write_text("x")

    def between(tree: Path) -> None:
        shutil.rmtree(tree / "d")
        (tree / "f").unlink()
        (tree / "d").write_text("a file now")
        (tree / "f").mkdir()

    run = apart(tmp_path, before, between)
    assert sorted(run.all) == [
        ("created", "d"),
        ("created", "f"),
        ("deleted", "d"),
        ("deleted", "d/x"),
        ("deleted", "f"),
    ]


def test_a_slow_writer_across_a_restart_is_one_created(tmp_path: Path) -> None:
    async def main() -> None:
        run = Run(tmp_path)
        run.tree.mkdir()
        async with run.running():
            pass
        with (run.tree / "slow").open("w") as file:
            file.write("half")
            file.flush()
            async with run.running():
                assert run.all == []
            async with run.running():
                file.write(" and the rest")
                file.close()
                await run.sees(("created", "slow"))
                assert run.capture.events[0].data["size"] == 17

    asyncio.run(main())


def test_files_kept_open_are_told_of_when_asked(tmp_path: Path) -> None:
    async def scene(run: Run) -> None:
        with (run.tree / "log").open("w") as file:
            for count in range(1, 4):
                file.write("line\n")
                file.flush()
                await until(lambda: len(run.all) == count)  # noqa: B023
        assert run.all == [("created", "log"), ("modified", "log"), ("modified", "log")]

    play(tmp_path, scene, emit_open="20ms")


def test_a_directory_that_may_not_be_read_keeps_what_is_known() -> None:
    async def main(folder: Path) -> None:
        run = Run(folder, {"snapshot": "initial"})
        (run.tree / "d/e").mkdir(parents=True)
        (run.tree / "d/e/x").write_text("x")
        async with run.running():
            await until(lambda: len(run.all) == 3)
        for mode in (0, 0o400, 0o100):
            (run.tree / "d").chmod(mode)
            async with run.running():
                assert len(run.all) == 3
        assert run.told("a directory cannot be read, what is in it is left as it was") == 3
        async with run.running():
            (run.tree / "d").chmod(0o700)
            (run.tree / "d/y").write_text("x")
            await until(lambda: ("created", "d/y") in run.all)
            (run.tree / "d/z").write_text("x")
            await until(lambda: ("created", "d/z") in run.all)
            await run.agrees()

    with unprivileged() as folder:
        asyncio.run(main(folder))


def test_files_of_others_are_finished_when_they_settle() -> None:
    """A read lease is for the owner of a file: of others' the kernel does not tell."""
    if os.geteuid() != 0:
        pytest.skip("making another user's file takes root")

    async def main(folder: Path) -> None:
        run = Run(folder, {"settle": "100ms"})
        run.tree.mkdir()
        async with run.running():
            os.seteuid(0)
            os.link(_of_root(folder / "other"), run.tree / "other")
            os.seteuid(65534)
            await run.sees(("created", "other"))

    with unprivileged() as folder:
        asyncio.run(main(folder))


def _of_root(path: Path) -> Path:
    path.write_text("x")
    return path


# Content, fingerprints, settings that change


def test_a_fingerprint_tells_what_size_and_times_do_not(tmp_path: Path) -> None:
    def put(path: Path, text: str) -> None:
        path.write_text(text)
        os.utime(path, (1, 1))

    async def scene(run: Run) -> None:
        file = run.tree / "a"
        put(file, "one")
        await until(lambda: len(run.all) == 1)
        put(file, "one")
        (run.tree / "mark").mkdir()
        await until(lambda: ("created", "mark") in run.all)
        put(file, "two")
        await run.sees(("created", "a"), ("created", "mark"), ("modified", "a"))
        file.rename(run.tree / "b")
        put(run.tree / "b", "two")
        (run.tree / "end").mkdir()
        await until(lambda: ("created", "end") in run.all)
        assert run.since(3) == [("moved", "b"), ("created", "end")]

    run = play(tmp_path, scene, fingerprint=True)
    count = len(run.all)

    async def again() -> None:
        async with run.running():
            assert run.since(count) == []

    asyncio.run(again())


@pytest.mark.parametrize(
    ("content", "written", "found"),
    [
        ("text", "grün".encode(), {"content": "grün"}),
        ("text", b"\xff", {"content_base64": "/w=="}),
        ("base64", b"text", {"content_base64": "dGV4dA=="}),
        ("text", b"x" * 101, {"oversize": ["content"]}),
        ("never", b"text", {}),
    ],
)
def test_content(tmp_path: Path, content: str, written: bytes, found: dict[str, object]) -> None:
    async def scene(run: Run) -> None:
        (run.tree / "a").write_bytes(written)
        await run.sees(("created", "a"))

    data = play(tmp_path, scene, content=content, content_max=100).capture.events[0].data
    assert {key: data[key] for key in ("content", "content_base64", "oversize") if key in data} == found


def test_patterns_that_change_are_no_change_of_the_tree(tmp_path: Path) -> None:
    async def main() -> None:
        run = Run(tmp_path, {"include": ["*.a"]})
        run.tree.mkdir()
        for each in ("1.a", "1.b"):
            (run.tree / each).write_text("x")
        async with run.running():
            pass
        run.options["include"] = ["*.b"]
        (run.tree / "2.b").write_text("x")
        async with run.running():
            assert run.all == []
            (run.tree / "3.b").write_text("x")
            await run.sees(("created", "3.b"))
        (run.tree / "4.b").write_text("x")
        (run.tree / "1.b").unlink()
        async with run.running():
            await until(lambda: len(run.all) == 3)
            assert sorted(run.since(1)) == [("created", "4.b"), ("deleted", "1.b")]

    asyncio.run(main())


def did(*command: str | Path) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_what_was_on_an_unmounted_file_system_is_not_deleted(tmp_path: Path) -> None:
    async def main() -> None:
        run = Run(tmp_path, {"snapshot": "initial"})
        mount = run.tree / "m"
        mount.mkdir(parents=True)
        if not did("mount", "-t", "tmpfs", "none", mount):
            pytest.skip("mounting takes root")
        try:
            (mount / "a").write_text("x")
            (mount / "b").write_text("x")
            async with run.running():
                await run.agrees()
            (mount / "b").unlink()
        finally:
            assert did("umount", mount)
        count = len(run.all)
        (run.tree / "c").write_text("x")
        async with run.running():
            await until(lambda: len(run.all) > count)
            assert run.since(count) == [("created", "c")]
        assert run.told("a file system below the directory is not mounted, what was on it is left as it was") == 1

    asyncio.run(main())


def test_a_link_in_place_of_a_directory_is_not_followed(tmp_path: Path) -> None:
    async def scene(run: Run) -> None:
        outside = run.folder / "outside"
        outside.mkdir()
        (outside / "secret").write_text("x")
        for _ in range(50):
            (run.tree / "d").mkdir()
            (run.tree / "d/secret").write_text("x")
            shutil.rmtree(run.tree / "d")
            (run.tree / "d").symlink_to(outside)
            (outside / "secret").write_text("x")
            (run.tree / "d").unlink()
        (run.tree / "d").symlink_to(outside)
        await run.agrees()
        (outside / "more").write_text("x")
        (run.tree / "end").mkdir()
        await until(lambda: run.all[-1] == ("created", "end"))
        await run.agrees()

    play(tmp_path, scene)


# The root


def test_a_root_that_appears_later(tmp_path: Path) -> None:
    async def main() -> None:
        run = Run(tmp_path)
        async with run.running():
            await until(lambda: run.told("waiting for the watched directory") == 1)
            run.tree.mkdir()
            await until(lambda: run.told("compared with the tree") == 1)
            (run.tree / "a").write_text("x")
            await run.sees(("created", "a"))

    asyncio.run(main())


def test_a_root_that_is_a_link_is_followed_where_it_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "PRESENCE_IDLE", 0.2)  # where a link leads is not notified

    async def main() -> None:
        for release, files in (("one", ["a", "b"]), ("two", ["b", "c"])):
            for file in files:
                (tmp_path / release).mkdir(exist_ok=True)
                (tmp_path / release / file).write_text(release)
        run = Run(tmp_path, {"snapshot": "initial"})
        run.tree.symlink_to("one")
        async with run.running():
            await until(lambda: len(run.all) == 2)
            (run.tree / "d").mkdir()
            await until(lambda: run.since(2) == [("created", "d")])
            (tmp_path / "next").symlink_to("two")
            (tmp_path / "next").replace(run.tree)
            await until(lambda: len(run.all) == 7)
            assert sorted(run.since(3)) == [("created", "c"), ("deleted", "a"), ("deleted", "d"), ("modified", "b")]
            (run.tree / "e").write_text("x")
            await run.agrees()

    asyncio.run(main())


def test_a_root_renamed_away_is_not_all_deleted(tmp_path: Path) -> None:
    async def scene(run: Run) -> None:
        (run.tree / "a").write_text("x")
        (run.tree / "b").write_text("x")
        await until(lambda: len(run.all) == 2)
        run.tree.rename(run.folder / "away")
        await until(lambda: run.told("waiting for the watched directory") == 1)
        run.tree.mkdir()
        await until(lambda: run.told("waiting for the watched directory") == 2)
        (run.folder / "away/c").write_text("x")
        run.tree.rmdir()
        (run.folder / "away").rename(run.tree)
        await until(lambda: ("created", "c") in run.all)
        assert run.all[2:] == [("created", "c")]

    play(tmp_path, scene)


def test_a_root_removed_and_made_again(tmp_path: Path) -> None:
    async def scene(run: Run) -> None:
        (run.tree / "a").write_text("x")
        (run.tree / "b").write_text("x")
        await until(lambda: len(run.all) == 2)
        shutil.rmtree(run.tree)
        await until(lambda: len(run.all) == 4)
        run.tree.mkdir()
        await until(lambda: run.told("compared with the tree") == 2)
        (run.tree / "a").write_text("again")
        await until(lambda: len(run.all) == 5)
        assert sorted(run.all[2:4]) == [("deleted", "a"), ("deleted", "b")]
        await run.agrees()

    play(tmp_path, scene)


# Polling, overflow


def test_polling_finds_the_same(tmp_path: Path) -> None:
    async def scene(run: Run) -> None:
        (run.tree / "d").mkdir()
        (run.tree / "d/a").write_text("x")
        await until(lambda: len(run.all) == 2)
        (run.tree / "d/a").rename(run.tree / "b")
        await until(lambda: len(run.all) == 3)
        (run.tree / "b").write_text("longer")
        await until(lambda: len(run.all) == 4)
        (run.tree / "b").unlink()
        await run.sees(("created", "d"), ("created", "d/a"), ("moved", "b"), ("modified", "b"), ("deleted", "b"))

    run = play(tmp_path, scene, mode="poll", poll="100ms", settle="50ms")
    assert all(event.data["recovered"] for event in run.capture.events)


def test_a_burst_beyond_every_buffer_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.sources.filesystem.hints.LIMIT", 500)
    monkeypatch.setattr("headrace.sources.filesystem.hints.Hints.__init__.__defaults__", (500,))

    async def scene(run: Run) -> None:
        for number in range(5_000):
            (run.tree / str(number)).write_text("x")
            if number % 3 == 0:
                (run.tree / str(number)).rename(run.tree / f"moved-{number}")
        await run.agrees()

    run = play(tmp_path, scene)
    assert run.told("notifications were lost in a burst: the whole tree is compared") > 0
