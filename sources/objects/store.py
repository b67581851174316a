"""What a source needs of an S3 server, whatever library speaks to it."""

from __future__ import annotations

import heapq
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final, Protocol

from headrace.inventory import Found
from headrace.sources.objects.entry import Entry, Place
from headrace.sources.objects.hints import Hints
from headrace.sources.objects.scope import Scope

PAGE: Final = 1_000  # entries of one answer: what S3 gives at most


class Store(Protocol):
    """Every method raises the errors of `explain`: `Transient` or `Fatal`, with what to do."""

    async def buckets(self) -> Sequence[str]: ...
    async def versioned(self, bucket: str) -> bool:
        """Whether the bucket keeps, or kept, versions."""

    def pages(self, bucket: str, scope: Scope, *, versions: bool) -> AsyncGenerator[Sequence[Found]]:
        """The rows of what is there, in their order, a page at a time; none is empty. Raises `BucketMissing`."""

    async def look(self, place: Place, *, versions: bool) -> Entry | None:
        """What is there now; without an id in the place, the version "null" where versions count, else the current one.

        A bucket that is missing looks like an object that is.
        """

    async def exists(self, bucket: str) -> bool: ...
    async def metadata(self, place: Place) -> Mapping[str, str]:
        """The user's metadata of an object; empty where it is gone."""

    async def link(self, place: Place, seconds: int) -> str:
        """An address that reads the object for a while, without further credentials."""


class Stream(Protocol):
    """Where hints come from."""

    async def run(self, hints: Hints) -> None:
        """Fill `hints` until cancelled. Raises `Transient` when the server is away, `Fatal` when it never can."""


def sorted_within(entries: Iterable[tuple[bytes, Any]], window: int = PAGE) -> Iterator[tuple[bytes, Any]]:
    """Entries by key, where none stands more than `window` places from where it belongs.

    A page of versions gives the versions first and the delete markers after them, each in order.
    """
    heap: list[tuple[bytes, int, Any]] = []
    for number, (key, value) in enumerate(entries):
        if len(heap) <= window:
            heapq.heappush(heap, (key, number, value))
        else:
            first = heapq.heappushpop(heap, (key, number, value))
            yield first[0], first[2]
    while heap:
        first = heapq.heappop(heap)
        yield first[0], first[2]


def by_version(entries: Iterable[tuple[bytes, Found]]) -> Iterator[Found]:
    """The rows of versions, by key and then by version id: the order of the rows. Holds the versions of one key."""
    for _, group in groupby(entries, key=lambda it: it[0]):
        yield from sorted(row for _, row in group)


def paged(rows: Iterable[Found]) -> Iterator[list[Found]]:
    """The rows in pages of `PAGE`, none empty."""
    page: list[Found] = []
    for row in rows:
        page.append(row)
        if len(page) == PAGE:
            yield page
            page = []
    if page:
        yield page
