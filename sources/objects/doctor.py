"""Whether the server can be reached, and the key has every right that is needed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import NamedTuple

from headrace.errors import HeadraceError
from headrace.protocols import Finding
from headrace.sources.objects.entry import Place
from headrace.sources.objects.errors import BucketMissing, Denied
from headrace.sources.objects.scope import Scope
from headrace.sources.objects.store import Store
from headrace.tasks import cause

PROBE_KEY = "headrace-doctor"  # an object that need not be there: a missing one answers 404, a forbidden one 403


class Probe(NamedTuple):
    """One thing to try, and what is told when it works."""

    what: str
    call: Callable[[], Awaitable[object]]


class Doctor:
    """Tries in order; after a failure that is no matter of rights, the rest would say the same."""

    def __init__(self, probes: Callable[[], Awaitable[Sequence[Probe]]]) -> None:
        self._probes = probes

    async def findings(self) -> AsyncIterator[Finding]:
        try:
            probes = await self._probes()
        except HeadraceError as error:
            yield Finding("error", error.message, error.hint)
            return
        for probe in probes:
            finding, goes_on = await _tried(probe)
            yield finding
            if not goes_on:
                return


async def _tried(probe: Probe) -> tuple[Finding, bool]:
    try:
        await probe.call()
    except* HeadraceError as group:
        error = cause(group)
    else:
        return Finding("ok", probe.what), True
    assert isinstance(error, HeadraceError)  # noqa: S101 -- for the type: the group holds no other
    return Finding("error", error.message, error.hint), isinstance(error, Denied | BucketMissing)


async def common_probes(scope: Scope, store: Store) -> list[Probe]:
    """Listing, versions and reading, of each bucket; and finding the buckets, where they are found by pattern."""
    names = list(scope.named)
    if scope.discovers:
        names += sorted(it for it in await store.buckets() if scope.takes(it))
    return [probe for name in names for probe in _of_bucket(name, scope, store)]


def _of_bucket(bucket: str, scope: Scope, store: Store) -> list[Probe]:
    key = scope.prefixes[0] + PROBE_KEY
    return [
        Probe(f'bucket "{bucket}" can be listed', partial(_first_page, bucket, scope, store)),
        Probe(f'objects of bucket "{bucket}" can be read', partial(store.look, Place(bucket, key), versions=False)),
    ]


async def _first_page(bucket: str, scope: Scope, store: Store) -> None:
    versions = await store.versioned(bucket)
    async with aclosing(store.pages(bucket, scope, versions=versions)) as pages:
        async for _ in pages:
            return
