"""The parts of the filesystem source, each alone."""

import ctypes
import errno
import os
import re
import threading
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from watchdog.observers.inotify_c import WatchDescriptor, inotify_add_watch

from headrace.sources.filesystem import FilesystemSource, walk, watch
from headrace.sources.filesystem.appeared import Appeared
from headrace.sources.filesystem.decide import Decisions, Step
from headrace.sources.filesystem.diagnose import findings
from headrace.sources.filesystem.entry import Entry, identity, packer, unpack, untouched
from headrace.sources.filesystem.finished import open_for_writing
from headrace.sources.filesystem.hints import CHANGED, CREATED, DELETED, FINISHED, Act, Hint, Hints
from headrace.sources.filesystem.names import Visibility, below, key_of, path_of
from headrace.sources.filesystem.node import Node
from headrace.sources.filesystem.root import Root, RootLost, file_system, notifies, own_folder
from headrace.sources.filesystem.walk import Walker
from headrace.sources.filesystem.watch import Watcher

NAME = st.text("ab.-*", min_size=1, max_size=3).filter(lambda it: it not in {".", ".."})
PATH = st.lists(NAME, min_size=1, max_size=4).map("/".join)
PART = st.one_of(st.text("ab.-*?", min_size=1, max_size=3), st.just("**")).filter(lambda it: it not in {".", ".."})
PATTERN = st.lists(PART, min_size=1, max_size=4).map("/".join)


# Names


@given(st.lists(st.binary(min_size=1, max_size=3).filter(lambda it: not re.search(rb"[/\0]", it)), max_size=4))
def test_keys_give_their_paths_back(parts: list[bytes]) -> None:
    path = b"/".join(parts)
    assert path_of(key_of(path)) == path


@given(st.sets(PATH, max_size=30))
def test_keys_sort_depth_first(paths: set[str]) -> None:
    """All that is below a directory stands behind it, before anything else."""
    ordered = sorted(paths, key=lambda it: key_of(it.encode()))
    for directory in paths:
        inside = [it.startswith(directory + "/") for it in ordered[ordered.index(directory) + 1 :]]
        assert inside == sorted(inside, reverse=True)
        assert all(
            key_of(it.encode()).startswith(below(directory.encode())) == it.startswith(directory + "/") for it in paths
        )


def matches(pattern: list[str], path: list[str]) -> bool:
    """The naive matcher: `**` tries every number of parts."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        least = 1 if len(pattern) == 1 else 0
        return any(matches(pattern[1:], path[count:]) for count in range(least, len(path) + 1))
    return bool(path) and fnmatchcase(path[0], pattern[0]) and matches(pattern[1:], path[1:])


@given(st.lists(PATTERN, max_size=2), st.lists(PATTERN, max_size=2), PATH)
def test_visibility_is_that_of_a_naive_matcher(include: list[str], exclude: list[str], path: str) -> None:
    def match(patterns: list[str], path: str) -> bool:
        return any(matches(it.split("/"), path.split("/")) for it in patterns)

    ancestors = [path[: it.start()] for it in re.finditer("/", path)]
    shown = match(include or ["**"], path) and not any(match(exclude, it) for it in (*ancestors, path))
    visible = Visibility(include, exclude)
    assert visible.shows(path.encode()) == shown
    assert all(visible.enters(it.encode()) for it in ancestors) or not shown


@pytest.mark.parametrize(
    ("pattern", "path", "shown"),
    [
        ("*.[ch]", "x.c", True),
        ("*.[!ch]", "x.c", False),
        ("*.[^c]", "x.^", True),
        ("[]]", "]", True),
        ("a[", "a[", True),
        ("?", "é", True),
        ("**/*.csv", "a.csv", True),
        ("**/*.csv", "d/e/a.csv", True),
        ("*.csv", "d/a.csv", False),
        ("d/**", "d", False),
        ("d/**/x", "d/x", True),
    ],
)
def test_patterns(pattern: str, path: str, shown: bool) -> None:
    assert Visibility([pattern], []).shows(path.encode()) is shown


def test_a_directory_whose_content_is_hidden_is_not_entered() -> None:
    visible = Visibility(["**"], ["**/node_modules/**"])
    assert visible.shows(b"a/node_modules")
    assert not visible.enters(b"a/node_modules")


@pytest.mark.parametrize("pattern", ["", "/", "../x", "a//b"])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(ValidationError):
        FilesystemSource.model_validate({"type": "filesystem", "path": ".", "include": [pattern]})


# Rows


def test_a_row_gives_back_what_was_seen(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    os.utime(tmp_path / "a", ns=(0, -1))
    seen = os.lstat(tmp_path / "a")
    value = packer(seen.st_dev)(seen)
    assert unpack(value) == Entry(0, 0, 0, seen.st_ino, 1, -1, seen.st_ctime_ns)
    assert identity(value) == identity(packer(seen.st_dev)(seen))
    assert identity(value) != identity(packer(0)(seen))


def test_a_rename_leaves_a_thing_untouched(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    pack = packer(tmp_path.stat().st_dev)
    before = pack(os.lstat(tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "b")
    assert untouched(before, pack(os.lstat(tmp_path / "b")))
    (tmp_path / "b").write_text("xx")
    assert not untouched(before, pack(os.lstat(tmp_path / "b")))


# Listing


def walker(root: Path, **options: object) -> Walker:
    every = {"visible": Visibility(["**"], []), "enter": lambda _: None, "top": b"", **options}
    return Walker(os.fsencode(root), pack=packer(root.stat().st_dev), scratch=root.parent, **every)  # type: ignore[arg-type]


def pages(walker: Walker, limit: int = 7) -> list[bytes]:
    found = []
    while page := walker.page(limit):
        assert len(page) <= limit
        found += [path_of(key) for key, _ in page]
    return found


def test_a_listing_is_in_the_order_of_the_keys(tmp_path: Path) -> None:
    for name in ("a", "a-", "a/b", "a/b-", "a.c", "b/c/d", "é"):
        (tmp_path / "t" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "t" / name / "file").touch()
    entered: list[bytes] = []
    found = pages(walker(tmp_path / "t", enter=entered.append))
    everything = [os.fsencode(it.relative_to(tmp_path / "t")) for it in (tmp_path / "t").rglob("*")]
    assert found == sorted(everything, key=key_of)
    assert {b"", b"a", b"b/c"} <= set(entered)


def test_a_large_directory_is_sorted_through_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "CHUNK", 10)
    monkeypatch.setattr(walk, "BLOCK", 300)
    names = [os.fsencode(f"{number * 7919 % 1000}{'x' * (number % 200)}\n") for number in range(500)]
    (tmp_path / "t").mkdir()
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path / "t") + b"/" + name)).touch()
    assert pages(walker(tmp_path / "t"), 64) == sorted(names)


def test_a_link_is_listed_and_not_entered(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t/loop").symlink_to(".")
    assert pages(walker(tmp_path / "t")) == [b"loop"]


def test_directories_that_appeared_are_listed_once_and_within_a_limit(tmp_path: Path) -> None:
    for name in ("a/b", "c"):
        (tmp_path / "t" / name).mkdir(parents=True)
        (tmp_path / "t" / name / "file").touch()
    appeared = Appeared(lambda top: walker(tmp_path / "t", top=top), limit=2)
    assert not appeared
    assert [appeared.add(it) for it in (b"a", b"a", b"a/b", b"c", b"d")] == [True, True, True, True, False]
    assert [path_of(key) for key, _ in appeared.page()] == [b"a", b"a/b", b"a/b/file", b"c", b"c/file"]
    assert appeared.add(b"a/b")
    assert [path_of(key) for key, _ in appeared.page()] == [b"a/b", b"a/b/file"]
    assert not appeared


def test_a_deep_tree(tmp_path: Path) -> None:
    depth = 300  # deeper trees pytest itself cannot remove
    path = os.fsencode(tmp_path / "t")
    os.mkdir(path)
    here = os.open(path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(b"d", dir_fd=here)
        deeper = os.open(b"d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    found = pages(walker(tmp_path / "t"), 100)
    assert [len(it) + 1 for it in found] == [2 * level for level in range(1, depth + 1)]


# Finished


def test_a_lease_tells_whether_a_file_is_open_for_writing(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / "a")
    with open(path, "w"):
        assert open_for_writing(path) is True
    assert open_for_writing(path) is False
    with open(path):
        assert open_for_writing(path) is False
    assert open_for_writing(path + b"-") is None


def test_asking_does_not_disturb_a_writer(tmp_path: Path) -> None:
    """A lease broken by an opening writer signals its holder; that must not kill."""
    path = os.fsencode(tmp_path / "a")
    (tmp_path / "a").touch()
    child = os.fork()
    if child == 0:
        for _ in range(3000):
            os.close(os.open(path, os.O_WRONLY))
        os._exit(0)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        open_for_writing(path)


# Hints


def test_looks_at_one_path_are_one_until_it_is_renamed() -> None:
    woken: list[int] = []
    hints = Hints(lambda: woken.append(1))
    for flag in (CREATED, CHANGED, FINISHED):
        hints.look(b"a", flag)
    hints.add(Hint(Act.MOVED, b"a", 0, b"b"))
    hints.look(b"a", FINISHED)
    hints.look(b"c", FINISHED)
    assert [(it.act, it.path, it.flags) for it in hints.take(3)] == [
        (Act.LOOK, b"a", CREATED | CHANGED | FINISHED),
        (Act.MOVED, b"a", 0),
        (Act.LOOK, b"a", FINISHED),
    ]
    hints.look(b"a", DELETED)
    assert len(hints.take(9)) == 2
    assert len(woken) == 1


def test_deleted_needs_no_close_and_is_remembered() -> None:
    hints = Hints(lambda: None)
    hints.look(b"a", FINISHED)
    hints.look(b"a", DELETED)
    hints.look(b"a", CREATED)
    assert hints.take(1)[0].flags == DELETED | CREATED


def test_hints_are_bounded() -> None:
    hints = Hints(lambda: None, limit=10)
    for number in range(25):
        hints.look(b"%d" % number, FINISHED)
    assert hints.take_overflow()
    assert not hints.take_overflow()
    assert len(hints.take(99)) == 5


# Decisions

OLD, NEW, OTHER = (b"\0\0" + bytes(8) + bytes([number]) * 8 + bytes(24) for number in (1, 2, 3))
TOUCHED = OLD[:-1] + b"\1"
FOLDER, FOLDER_AGAIN = (b"\1\0" + bytes(8) + bytes([number]) * 8 + bytes(24) for number in (4, 5))


def decided(
    hints: list[Hint],
    rows: dict[bytes, bytes],
    looks: dict[bytes, bytes | None],
    written: dict[bytes, bool | None] | None = None,
    shows: Callable[[bytes], bool] = lambda path: not path.endswith(b".tmp"),
) -> Decisions:
    decisions = Decisions(rows, looks, written or {}, shows, lambda _: False)
    decisions.decide(hints)
    return decisions


def look(flags: int, path: bytes = b"a") -> list[Hint]:
    return [Hint(Act.LOOK, path, flags)]


def moved(path: bytes, to: bytes) -> Hint:
    return Hint(Act.MOVED, path, 0, to)


@pytest.mark.parametrize(
    ("flags", "row", "now", "names"),
    [
        (FINISHED, None, NEW, ["created"]),
        (FINISHED, OLD, NEW, ["modified"]),
        (FINISHED, OLD, OLD, []),
        (FINISHED, OLD, TOUCHED, ["modified"]),
        (CHANGED, OLD, TOUCHED, [""]),
        (FINISHED, OLD, None, []),
        (DELETED, OLD, None, ["deleted"]),
        (DELETED, None, None, []),
        (DELETED | FINISHED, OLD, NEW, ["deleted", "created"]),
        (DELETED | FINISHED, OLD, OLD, []),
        (CREATED, FOLDER, FOLDER_AGAIN, [""]),
        (DELETED | CREATED, FOLDER, FOLDER_AGAIN, ["deleted", "created"]),
        (CREATED, FOLDER, FOLDER, []),
        (FINISHED, FOLDER, NEW, ["deleted", "created"]),
        (CREATED, OLD, FOLDER, ["deleted", "created"]),
    ],
)
def test_what_a_look_means(flags: int, row: bytes | None, now: bytes | None, names: list[str]) -> None:
    decisions = decided(look(flags), {b"a": row} if row else {}, {b"a": now}, {b"a": False})
    assert [step.name for step in decisions.steps] == names


def test_what_the_system_will_not_tell_stays_as_it_is() -> None:
    assert decided(look(DELETED), {b"a": OLD}, {}).steps == []


@pytest.mark.parametrize(("written", "names"), [(True, []), (None, []), (False, ["created"])])
def test_a_file_without_a_close_waits_unless_nobody_writes(written: bool | None, names: list[str]) -> None:
    decisions = decided(look(CREATED), {}, {b"a": NEW}, {b"a": written})
    assert [step.name for step in decisions.steps] == names
    assert decisions.held == ({} if names else {b"a": NEW})


def test_ping_pong_is_told_by_the_rows() -> None:
    """However late it is looked at: every rename is a step."""
    hints = [moved(b"a", b"b"), moved(b"b", b"a")] * 2
    for looks in ({b"a": OLD, b"b": None}, {b"a": None, b"b": OLD}):
        steps = decided(hints, {b"a": OLD}, looks).steps
        assert [(step.name, step.path, step.previous) for step in steps] == [
            ("moved", b"b", b"a"),
            ("moved", b"a", b"b"),
        ] * 2


def test_renames_in_and_out_of_sight() -> None:
    assert decided([moved(b"x.tmp", b"x")], {}, {b"x": NEW}).steps == [Step("created", b"x", NEW)]
    assert decided([moved(b"x.tmp", b"x")], {b"x": OLD}, {b"x": NEW}).steps == [Step("modified", b"x", NEW)]
    assert decided([moved(b"x", b"x.tmp")], {b"x": OLD}, {}).steps == [Step("deleted", b"x", OLD)]


def test_a_row_from_after_the_rename_is_not_renamed() -> None:
    """`new` was written, renamed to `a`, and written again before the first look at it."""
    hints = [moved(b"new", b"a")]
    decisions = decided(hints, {b"new": OTHER, b"a": OLD}, {b"new": OTHER, b"a": NEW})
    assert decisions.steps == [Step("modified", b"a", NEW)]


def test_a_rename_over_what_came_later() -> None:
    hints = [moved(b"a", b"b"), moved(b"c", b"b")]
    steps = decided(hints, {b"a": OLD, b"c": NEW}, {b"a": None, b"b": NEW, b"c": None}).steps
    assert [(step.name, step.path, step.value) for step in steps] == [("moved", b"b", OLD), ("moved", b"b", NEW)]


# The root


def test_the_root_is_known_by_its_identity(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / "t")
    with pytest.raises(RootLost):
        Root.find(path)
    (tmp_path / "t").touch()
    with pytest.raises(RootLost):
        Root.find(path)
    (tmp_path / "t").unlink()
    (tmp_path / "t").mkdir()
    root = Root.find(path)
    root.present()
    (tmp_path / "t").rename(tmp_path / "u")
    (tmp_path / "t").mkdir()
    with pytest.raises(RootLost):
        root.present()


def test_the_type_of_a_file_system(tmp_path: Path) -> None:
    assert file_system(b"/proc") == "proc"
    assert notifies(file_system(os.fsencode(tmp_path)))
    assert not notifies("fuse.sshfs")
    assert not notifies("nfs4")
    assert notifies("fuseblk") is True


def test_the_own_folder_below_the_root(tmp_path: Path) -> None:
    scratch = tmp_path / "watched/app/data/scratch/name"
    scratch.mkdir(parents=True)
    root = os.fsencode(tmp_path / "watched")
    assert own_folder(root, scratch) == b"app/data/scratch"
    (tmp_path / "watched/app/data/journal.db").touch()
    assert own_folder(root, scratch) == b"app/data"
    assert own_folder(root + b"/other", scratch) is None


# Watching


def test_a_directory_is_never_put_into_itself() -> None:
    """A listing is ahead of the hints: what it says and what they say may contradict each other."""
    top, a, b = (Node(WatchDescriptor(number)) for number in range(3))
    assert a.attach(top, b"a")
    assert b.attach(a, b"b")
    assert b.path(top) == b"a/b/"
    assert not a.attach(b, b"a")
    assert a.path(top) is None
    assert b.attach(top, b"b")
    assert a.attach(b, b"a")
    assert a.path(top) == b"b/a/"
    a.detach()
    assert a.path(top) is None
    assert not a.attached


def test_the_limit_of_watches_leaves_directories_unwatched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = inotify_add_watch

    def limited(descriptor: int, path: bytes, mask: int) -> int:
        if os.readlink(path).endswith(b"beyond"):
            ctypes.set_errno(errno.ENOSPC)
            return -1
        return real(descriptor, path, mask)

    monkeypatch.setattr(watch, "inotify_add_watch", limited)
    for each in ("a", "b", "beyond"):
        (tmp_path / each).mkdir()
    hints = Hints(lambda: None)
    with Watcher(os.fsencode(tmp_path), hints, Visibility(["**"], []), modified=False) as watcher:
        for name in (b"a", b"b", b"beyond"):
            watcher.watch(name)
        assert (watcher.blind, len(watcher)) == (1, 3)


def test_settings_have_their_limits(tmp_path: Path) -> None:
    settings = FilesystemSource.model_validate({"type": "filesystem", "path": "t", "emit_open": "30s"})
    assert settings.emit_open == 30
    assert list(settings.problems(tmp_path)) == ["path"]
    (tmp_path / "t").touch()
    assert list(settings.problems(tmp_path)) == ["path"]
    (tmp_path / "t").unlink()
    (tmp_path / "t").mkdir()
    assert settings.problems(tmp_path) == {}


def test_what_doctor_says(tmp_path: Path) -> None:
    def said(**options: object) -> list[tuple[str, str]]:
        settings = FilesystemSource.model_validate({"type": "filesystem", "path": "t", **options})
        return [(it.level, it.what) for it in findings(settings, os.fsencode(tmp_path / "t"), tmp_path / "limits")]

    assert [level for level, _ in said()] == ["error"]
    (tmp_path / "t/a/b").mkdir(parents=True)
    (tmp_path / "limits").mkdir()
    (tmp_path / "limits/max_user_watches").write_text("8192\n")
    (tmp_path / "limits/max_queued_events").write_text("16384\n")
    assert [level for level, _ in said()] == ["ok", "ok"]
    assert ("ok", "3 directories to watch, of 8192 watches that a user may have") in said()
    assert ("ok", "1 directories to watch, of 8192 watches that a user may have") in said(exclude=["a"])
    (tmp_path / "limits/max_user_watches").write_text("3\n")
    (tmp_path / "limits/max_queued_events").write_text("100\n")
    assert [level for level, _ in said()] == ["ok", "warning", "warning"]
    for number in range(10):
        os.utime(tmp_path / "t/a", (1, 1))
        (tmp_path / f"t/{number}").touch()
        os.utime(tmp_path / f"t/{number}", (number, number))
    assert [level for level, _ in said(mode="poll")] == ["ok", "warning"]


def test_an_overflow_of_the_kernels_queue_is_told(tmp_path: Path) -> None:
    """The reader is held up while more happens than the kernel keeps."""
    kept = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if kept > 50_000:
        pytest.skip(f"the kernel keeps {kept} notifications: too many to write here")
    told = threading.Event()
    hints = Hints(told.set)
    with Watcher(os.fsencode(tmp_path), hints, Visibility(["**"], []), modified=False) as watcher:
        with watcher._lock:
            for number in range(kept // 2 + 100):
                (tmp_path / str(number)).touch()
        deadline = time.monotonic() + 10
        while not hints.take_overflow():
            assert told.wait(deadline - time.monotonic())
            told.clear()
