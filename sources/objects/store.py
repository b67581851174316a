"""What a source needs of an S3 server, whatever library speaks to it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Final, Protocol

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


def whole_keys(pages: Iterable[Sequence[tuple[str, Found]]]) -> Iterator[list[tuple[str, Found]]]:
    """Pages of versions in the order of their rows. The versions of a key may go on in the next page, and wait for it.

    Holds the versions of one key. Servers give them by age, rows are ordered by id.
    """
    rest: list[tuple[str, Found]] = []
    for page in pages:
        entries = [*rest, *page]
        last = max((key.encode() for key, _ in entries), default=b"")
        rest = [it for it in entries if it[0].encode() == last]
        yield sorted((it for it in entries if it[0].encode() != last), key=_row)
    yield sorted(rest, key=_row)


_row = itemgetter(1)
