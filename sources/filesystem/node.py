"""The tree of watched directories: renaming one is one step, however much is below it."""

from __future__ import annotations

from collections.abc import Iterator

from watchdog.observers.inotify_c import WatchDescriptor


class Node:
    """A watched directory: `wd` is its watch, `generation` the comparison that last met it."""

    __slots__ = ("children", "generation", "name", "parent", "wd")

    def __init__(self, wd: WatchDescriptor, name: bytes = b"") -> None:
        self.wd = wd
        self.name = name
        self.parent: Node | None = None
        self.children: dict[bytes, Node] = {}
        self.generation = 0

    def path(self, top: Node) -> bytes | None:
        """Below `top`, with a `/` at its end; `b""` for `top` itself, None for what is not below it."""
        names: list[bytes] = []
        node = self
        while node.parent is not None:
            names.append(node.name)
            node = node.parent
        if node is not top:
            return None
        return b"/".join(reversed(names)) + b"/" if names else b""

    @property
    def attached(self) -> bool:
        """Whether its parent has it: not while it is on its way out of the tree."""
        return self.parent is not None and self.parent.children.get(self.name) is self

    def attach(self, parent: Node, name: bytes) -> bool:
        """Put it there. False where it holds the parent itself, which then is below nothing.

        What is known of names may be of different times: a listing is ahead of the hints.
        """
        self.detach()
        above: Node | None = parent
        while above is not None:
            if above is self:
                return False
            above = above.parent
        self.parent, self.name = parent, name
        parent.children[name] = self
        return True

    def detach(self) -> None:
        """Take it out of its parent."""
        if self.parent is not None and self.attached:
            del self.parent.children[self.name]
        self.parent = None

    def subtree(self) -> Iterator[Node]:
        waiting = [self]
        while waiting:
            node = waiting.pop()
            waiting += node.children.values()
            yield node
