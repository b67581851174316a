"""What is told late, twice or out of turn, and a first listing that does not get to its end."""

from __future__ import annotations

import asyncio
from io import BytesIO
from pathlib import Path

import pytest
from minio.commonconfig import SnowballObject
from minio.credentials.providers import StaticProvider

from headrace.clock import SystemClock
from headrace.inventory import Inventory
from headrace.sources.objects.entry import Entry, Place
from headrace.sources.objects.events import Events
from headrace.sources.objects.keeper import Keeper
from headrace.sources.objects.minio_store import MinioStore
from headrace.sources.objects.records import Hint
from headrace.sources.objects.request import Server
from headrace.sources.objects.scope import Scope
from headrace.testing import MemoryCapture, SimulatedCrash
from tests.adapters.bucket_runs import Run, until
from tests.fixtures.s3 import server

pytestmark = pytest.mark.s3

CREATED, REMOVED = "s3:ObjectCreated:Put", "s3:ObjectRemoved:Delete"


@pytest.mark.parametrize("order", [(CREATED, REMOVED, CREATED), (REMOVED, CREATED), (CREATED, None, CREATED, REMOVED)])
def test_a_version_comes_once_and_goes_once(tmp_path: Path, order: tuple[str | None, ...]) -> None:
    """The hints of a version that is gone, late and in any order; None is a look at the bucket."""
    run = Run(tmp_path, server(), server().bucket(versioned=True))
    run.put("a")
    [there] = run.client.list_objects(run.bucket, include_version=True)
    run.client.remove_object(run.bucket, "a", version_id=there.version_id)
    place = Place(run.bucket, "a", there.version_id or "")

    def hint(name: str) -> Hint:
        return Hint(name, place, Entry(0, 5, 1, "e") if name == CREATED else None, "5", 5, None, ordered=True)

    async def body() -> MemoryCapture:
        capture = MemoryCapture()
        inventory = await Inventory.open(capture)
        given = run.server
        credentials = StaticProvider(given.access_key, given.secret_key)
        store = MinioStore(Server(given.endpoint, given.region, credentials), None)
        events, scope = Events("headrace:uploads"), Scope([run.bucket])
        keeper = Keeper(inventory, store, events, scope, SystemClock(), metadata=False, finds_versions=True)
        keeper.versioned[run.bucket] = True
        for name in order:
            await (keeper.look([place]) if name is None else keeper.follow([hint(name)]))
        await inventory.settle()
        store.close()
        return capture

    capture = asyncio.run(body())
    names = [event.type.rpartition(".")[2] for event in capture.events]
    assert names in ([], ["created", "deleted"])


def test_what_was_made_while_a_first_listing_was_interrupted_is_new(tmp_path: Path) -> None:
    """Also behind the place that the listing had reached, where everything else was there before."""
    run = Run(tmp_path, server(), server().bucket())
    old = [SnowballObject(f"old-{number:04}", data=BytesIO(b"x"), length=1) for number in range(2_500)]
    run.client.upload_snowball_objects(run.bucket, old)

    async def body() -> None:
        crashing = MemoryCapture(crash=SimulatedCrash(3, "after"))
        async with run.running(crashing):
            await until(crashing.crashed.is_set)
        known = await crashing.survivor().state.scan(b"o\0", None, 10_000)
        assert 0 < len(known) < len(old), "the listing was interrupted"
        for key in ("a", "old-new", "z"):
            run.put(key)
        async with run.running():
            pass
        assert run.short == [("created", key) for key in ("a", "old-new", "z")]

    asyncio.run(body())
