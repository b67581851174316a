"""Hints from inotify(7), read through watchdog's bindings.

Not through watchdog's Observer, whose three threads and their queues cost seven times the processor time and lost a
third of 100,000 closes in the run where this reader lost none (ADR 5): its own descriptor, one
thread, a tree of watches in which renaming a directory is one step, and the cookies that prove a rename.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import threading
from contextlib import suppress
from struct import Struct
from time import monotonic, sleep
from typing import Final, NamedTuple, Self

from watchdog.observers.inotify_c import InotifyConstants as In
from watchdog.observers.inotify_c import WatchDescriptor, inotify_add_watch, inotify_init, inotify_rm_watch

from headrace.errors import Transient
from headrace.sources.filesystem.hints import CHANGED, CREATED, DELETED, FINISHED, WATCHES, Act, Hint, Hints
from headrace.sources.filesystem.mounts import Mounts
from headrace.sources.filesystem.names import Visibility
from headrace.sources.filesystem.node import Node

BUFFER: Final = 1 << 18
PAIRING: Final = 0.005  # seconds that a move-out waits for its other half, holding up nothing but itself
GATHER: Final = 0.002  # seconds that more is left to gather in a torrent: a wake-up for each event slows its writer too
TORRENT: Final = 16  # reads in a row, each soon after the last, that make a torrent

_EVENT: Final = Struct("iIII")
_WANTED: Final = (
    In.IN_CREATE | In.IN_CLOSE_WRITE | In.IN_MOVED_FROM | In.IN_MOVED_TO | In.IN_DELETE | In.IN_ATTRIB
    | In.IN_ONLYDIR | In.IN_EXCL_UNLINK
)  # fmt: skip
_ROOT: Final = _WANTED | In.IN_DELETE_SELF | In.IN_MOVE_SELF
_LOST: Final = In.IN_DELETE_SELF | In.IN_MOVE_SELF | In.IN_UNMOUNT | In.IN_IGNORED
_FLAGS: Final = {
    In.IN_CREATE: CREATED,
    In.IN_CLOSE_WRITE: FINISHED,
    In.IN_ATTRIB: CHANGED,
    In.IN_MODIFY: CHANGED,
    In.IN_DELETE: DELETED,
}


class Half(NamedTuple):
    """The first half of a rename: when it was read (monotonic seconds), the old path, the watched directory."""

    since: float
    path: bytes
    child: Node | None
    directory: bool


class Watcher:
    """Watches a tree. `watch` may be called from any thread; hints arrive from one of the watcher's own.

    Used as a context: left, the thread has ended and all watches are gone. Raises `Transient` where the root cannot
    be watched. `blind` counts the directories that could not be watched because the limit was reached.
    """

    def __init__(self, root: bytes, hints: Hints, visible: Visibility, *, modified: bool) -> None:
        self._root = root
        self._real = os.path.realpath(root).rstrip(b"/")
        self._hints = hints
        self._visible = visible
        self._extra = In.IN_MODIFY if modified else 0
        self._lock = threading.Lock()
        self._nodes: dict[int, Node] = {}
        self._halves: dict[int, Half] = {}
        self._top = Node(WatchDescriptor(-1))
        self._generation = 0
        self._closed = False
        self.blind = 0

    def __enter__(self) -> Self:
        self._fd = inotify_init()
        if self._fd < 0:
            raise _unwatched(ctypes.get_errno())
        os.set_inheritable(self._fd, False)  # noqa: FBT003 -- the function has no keyword
        self._stop_r, self._stop_w = os.pipe()
        self._mounts = Mounts(self._real)
        try:
            self.watch(b"")
        except OSError as error:
            self._close()
            raise _unwatched(error.errno or 0) from error
        self._thread = threading.Thread(target=self._run, name="filesystem-watcher", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._stop_w, b"x")
        self._thread.join()
        self._close()

    def _close(self) -> None:
        with self._lock:  # a cancelled listing may still be under way in its thread
            self._closed = True
            self._mounts.close()
            for descriptor in (self._fd, self._stop_r, self._stop_w):
                os.close(descriptor)

    def __len__(self) -> int:
        return len(self._nodes)

    def watch(self, path: bytes) -> None:
        """Have a watch on the directory, where it is now. Raises `OSError` where there is no such directory.

        At the limit of watches it is counted and left unwatched: only listings see it then.
        """
        with self._lock:
            if self._closed:
                raise FileNotFoundError(errno.EBADF, "no longer watched")
            self._watch(path)

    def _watch(self, path: bytes) -> None:
        parent, name = self._place(path) if path else (None, b"")
        if path and parent is None:
            return  # its parent was renamed meanwhile; the hint of that brings us back
        wd = self._add(path)
        if wd is None:
            self.blind += 1
        else:
            self._attach(wd, name, parent)

    def _add(self, path: bytes) -> WatchDescriptor | None:
        """A watch on this very directory; None at the limit of watches.

        A path may lead through a link that took a directory's place. What was opened is what `/proc` says it is.
        """
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | (os.O_NOFOLLOW if path else 0)
        descriptor = os.open(self._root + b"/" + path, flags)
        try:
            opened = b"/proc/self/fd/%d" % descriptor
            if os.readlink(opened) != (self._real + b"/" + path if path else self._real or b"/"):
                raise FileNotFoundError(errno.ENOENT, "it leads elsewhere by now")
            wd = inotify_add_watch(self._fd, opened, (_WANTED if path else _ROOT) | self._extra)
            number = ctypes.get_errno()
        finally:
            os.close(descriptor)
        if wd >= 0:
            return wd
        if number == errno.ENOSPC and path:
            return None
        raise OSError(number, os.strerror(number))

    def _place(self, path: bytes) -> tuple[Node | None, bytes]:
        node: Node | None = self._top
        *parents, name = path.split(b"/")
        for it in parents:
            node = node.children.get(it) if node is not None else None
        return node, name

    def _attach(self, wd: WatchDescriptor, name: bytes, parent: Node | None) -> None:
        node = self._nodes.get(wd)
        if node is None:
            node = self._nodes[wd] = Node(wd)
        node.generation = self._generation
        if parent is None:
            self._top = node
        elif node is not self._top:
            self._put(node, parent, name)

    def _put(self, node: Node, parent: Node, name: bytes) -> None:
        """Only a listing can tell where a directory is that seems to be within itself."""
        if not node.attach(parent, name):
            self._hints.overflow()

    def _forget(self, node: Node) -> None:
        node.detach()
        for it in node.subtree():
            self._nodes.pop(it.wd, None)
            inotify_rm_watch(self._fd, it.wd)

    def begin(self) -> None:
        """A comparison begins: it calls `watch` for every directory."""
        with self._lock:
            self._generation += 1
            self.blind = 0

    def sweep(self) -> None:
        """After one: give up the watches of directories that it did not meet and that are not where they were."""
        with self._lock:
            for node in [
                it for it in self._nodes.values() if it.generation != self._generation and it is not self._top
            ]:
                path = node.path(self._top)
                if path is None or not os.path.isdir(self._root + b"/" + path):
                    self._forget(node)

    # The thread

    def _run(self) -> None:
        try:
            self._read()
        except BaseException as error:  # noqa: BLE001 -- reported to the task that waits for hints, which raises it
            self._hints.fail(error)

    def _read(self) -> None:
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        poller.register(self._stop_r, select.POLLIN)
        poller.register(self._mounts, select.POLLPRI)
        in_a_row, last = 0, 0.0
        while True:
            ready = {descriptor for descriptor, _ in poller.poll(PAIRING * 1000 if self._halves else None)}
            if self._stop_r in ready:
                return
            if self._mounts.fileno() in ready and self._mounts.changed():
                self._hints.remount()
            in_a_row = in_a_row + 1 if monotonic() - last < GATHER * 2 else 0
            if in_a_row > TORRENT:
                sleep(GATHER)
            with self._lock:
                if self._fd in ready:
                    self._handle(os.read(self._fd, BUFFER))
                self._expire((last := monotonic()) - PAIRING)

    def _handle(self, data: bytes) -> None:
        """One read of the descriptor. What has a name follows; the rest is about a watch itself."""
        unpack, nodes, look = _EVENT.unpack_from, self._nodes, self._hints.look
        at, end = 0, len(data)
        last, prefix = -2, None
        while at < end:
            wd, mask, cookie, length = unpack(data, at)
            name = data[at + 16 : at + 16 + length].rstrip(b"\0")
            at += 16 + length
            flag = _FLAGS.get(mask)
            if flag is None or not name:
                self._special(nodes.get(wd), mask, cookie, name)
                last = -2
                continue
            if wd != last:
                node = nodes.get(wd)
                last, prefix = wd, node.path(self._top) if node is not None else None
            if prefix is not None:
                look(prefix + name, flag)

    def _special(self, node: Node | None, mask: int, cookie: int, name: bytes) -> None:
        """Everything that is not about one file in place."""
        if mask & In.IN_Q_OVERFLOW:
            self._hints.overflow()
        elif node is None:
            return
        elif not name:
            self._about_watch(node, mask)
        elif (parent := node.path(self._top)) is not None:
            self._about_child(node, mask, cookie, name, parent + name)

    def _about_watch(self, node: Node, mask: int) -> None:
        if not mask & _LOST:
            if mask & In.IN_ATTRIB and node is self._top:
                self._hints.add(Hint(Act.RIGHTS, b""))
        elif node is self._top:
            self._hints.lose_root()
        elif mask & In.IN_IGNORED:
            self._nodes.pop(node.wd, None)
            node.detach()

    def _about_child(self, node: Node, mask: int, cookie: int, name: bytes, path: bytes) -> None:
        if mask & In.IN_MOVED_FROM:
            self._moved_from(node, mask, cookie, name, path)
        elif mask & In.IN_MOVED_TO:
            self._moved_to(node, mask, cookie, name, path)
        elif mask & In.IN_DELETE:
            self._hints.add(Hint(Act.LEFT, path))
        elif mask & In.IN_CREATE:
            self._enter(path)
        else:
            self._hints.add(Hint(Act.RIGHTS, path))

    def _enter(self, path: bytes) -> bool:
        """Watch a directory that appeared; False where nothing in it is visible."""
        if not self._visible.enters(path):
            return False
        with suppress(OSError):  # gone again, or not ours to read: the listing tells
            self._watch(path)
        self._hints.add(Hint(Act.ENTER, path))
        return True

    def _moved_from(self, node: Node, mask: int, cookie: int, name: bytes, path: bytes) -> None:
        child = node.children.get(name) if mask & In.IN_ISDIR else None
        if child is not None:
            child.detach()
        self._halves[cookie] = Half(monotonic(), path, child, bool(mask & In.IN_ISDIR))

    def _moved_to(self, node: Node, mask: int, cookie: int, name: bytes, path: bytes) -> None:
        half = self._halves.pop(cookie, None)
        directory = bool(mask & In.IN_ISDIR)
        if half is not None:
            if half.child is not None and not half.child.attached:
                self._put(half.child, node, name)
            self._hints.add(Hint(Act.MOVED_DIRECTORY if directory else Act.MOVED, half.path, 0, path))
        elif not directory:
            self._hints.look(path, FINISHED)
        if directory and not self._enter(path) and name in node.children:
            self._forget(node.children[name])

    def _expire(self, before: float) -> None:
        """Halves whose other half lies outside the tree."""
        for cookie in [it for it, half in self._halves.items() if half.since <= before]:
            half = self._halves.pop(cookie)
            if half.child is not None and not half.child.attached:
                self._forget(half.child)
            if half.directory:
                self._hints.add(Hint(Act.LEFT, half.path))
            else:
                self._hints.was_gone(half.path)


def _unwatched(number: int) -> Transient:
    if number == errno.EMFILE:
        return Transient(
            "no inotify instance is left for this user",
            hint="raise it: sysctl fs.inotify.max_user_instances=1024",
        )
    if number == errno.ENOSPC:
        return Transient("no inotify watch is left for this user", hint=WATCHES)
    return Transient(f"the root cannot be watched: {os.strerror(number)}", hint="check its path and rights")
