"""The `minio` source against a real server: what happens while it listens, and while nobody does."""

from __future__ import annotations

import asyncio
from io import BytesIO
from pathlib import Path

import pytest
from minio.commonconfig import CopySource, Tags
from minio.deleteobjects import DeleteObject

from tests.adapters.bucket_runs import Run, until
from tests.fixtures.s3 import server

pytestmark = pytest.mark.s3


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, server(), server().bucket())


@pytest.fixture
def versioned(tmp_path: Path) -> Run:
    return Run(tmp_path, server(), server().bucket(versioned=True))


def test_creations_overwrites_and_deletions_are_seen_as_they_happen(run: Run) -> None:
    async def body() -> None:
        async with run.running():
            run.put("a", "1")
            run.put("a", "22")
            run.put("folder/b")
            run.client.remove_object(run.bucket, "a")
            await run.sees(("created", "a"), ("created", "a"), ("created", "folder/b"), ("deleted", "a"))
            await run.agrees()
        assert not any(event.data["recovered"] for event in run.events)
        assert run.events[0].data["eventName"] == "s3:ObjectCreated:Put"
        assert run.events[1].data["size"] == 2
        assert run.events[0].partitionkey == f"{run.bucket}/a"

    asyncio.run(body())


def test_what_happened_meanwhile_is_recovered(run: Run) -> None:
    async def body() -> None:
        async with run.running():
            for key in ("kept", "changed", "gone"):
                run.put(key)
            await run.agrees()
        run.put("changed", "other")
        run.put("new")
        run.client.remove_object(run.bucket, "gone")
        before = len(run.events)
        async with run.running():
            await run.agrees()
        assert sorted(run.short[before:]) == [("created", "changed"), ("created", "new"), ("deleted", "gone")]
        assert all(event.data["recovered"] for event in run.events[before:])
        async with run.running():
            pass
        assert len(run.events) == before + 3

    asyncio.run(body())


def test_the_first_start_is_silent_unless_asked_for(run: Run, tmp_path: Path) -> None:
    async def body() -> None:
        run.put("old")
        async with run.running():
            pass
        assert not run.events
        loud = Run(tmp_path, run.server, run.bucket, {"snapshot": "initial"})
        async with loud.running():
            await loud.agrees()
        assert loud.short == [("created", "old")]

    asyncio.run(body())


def test_every_version_and_marker_has_its_event(versioned: Run) -> None:
    run = versioned

    async def body() -> None:
        async with run.running():
            run.put("a", "1")
            run.put("a", "2")
            run.client.remove_object(run.bucket, "a")
            await until(lambda: len(run.events) == 3)
            await run.agrees()
        run.put("a", "3")
        run.put("b", "1")
        run.client.remove_object(run.bucket, "b")
        first, *_ = run.events
        run.client.remove_object(run.bucket, "a", version_id=first.data["versionId"])
        async with run.running():
            await run.agrees()
            assert len(run.events) == 7
            marker = next(it for it in run.events if it.data.get("deleteMarker"))
            run.client.remove_object(run.bucket, "a", version_id=marker.data["versionId"])
            await until(lambda: len(run.events) == 8)
            await run.agrees()
        assert run.events[7].data["deleteMarker"]
        assert run.short[7] == ("deleted", "a")

    asyncio.run(body())


def test_a_deletion_of_nothing_is_nothing(versioned: Run) -> None:
    run = versioned

    async def body() -> None:
        async with run.running():
            run.put("a", "1")
            await until(lambda: len(run.events) == 1)
            version = run.events[0].data["versionId"]
            run.put("a", "2")
            for _ in range(2):
                run.client.remove_object(run.bucket, "a", version_id=version)
            run.client.remove_object(run.bucket, "a", version_id="null")
            run.put("b")
            await until(lambda: run.capture.has("b"))
            await run.agrees()
        assert len(run.events) == 4

    asyncio.run(body())


def test_versions_may_be_ignored(versioned: Run) -> None:
    run = versioned
    run.options["versions"] = False

    async def body() -> None:
        async with run.running():
            run.put("a", "1")
            run.put("a", "2")
            run.client.remove_object(run.bucket, "a")
            await run.sees(("created", "a"), ("created", "a"), ("deleted", "a"))
            await run.agrees()
        run.put("a", "3")
        async with run.running():
            await run.agrees()
        assert run.short[3:] == [("created", "a")]
        assert not any("versionId" in event.data for event in run.events)

    asyncio.run(body())


def test_multipart_copies_and_batches_of_deletions(run: Run) -> None:
    async def body() -> None:
        async with run.running():
            run.client.put_object(run.bucket, "big", BytesIO(bytes(11 << 20)), 11 << 20, part_size=5 << 20)
            run.client.copy_object(run.bucket, "copy", CopySource(run.bucket, "big"))
            await run.sees(("created", "big"), ("created", "copy"))
            assert run.events[0].data["eventName"] == "s3:ObjectCreated:CompleteMultipartUpload"
            assert run.events[1].data["eventName"] == "s3:ObjectCreated:Copy"
            assert not list(run.client.remove_objects(run.bucket, [DeleteObject("big"), DeleteObject("copy")]))
            await run.agrees()
        assert len(run.events) == 4

    asyncio.run(body())


def test_tags_and_locks_are_no_change(tmp_path: Path) -> None:
    run = Run(tmp_path, server(), server().bucket(lock=True))

    async def body() -> None:
        async with run.running():
            run.put("a")
            tags = Tags.new_object_tags()
            tags["colour"] = "red"
            run.client.set_object_tags(run.bucket, "a", tags)
            run.client.enable_object_legal_hold(run.bucket, "a")
            run.client.disable_object_legal_hold(run.bucket, "a")
            run.put("b")
            await run.sees(("created", "a"), ("created", "b"))

    asyncio.run(body())


KEYS = [
    "with space",
    "plus+plus",
    "100%",
    "a%2Fb",
    "quo\"te'",
    "umläut/日本/🌊",
    "tab\there",
    "semi;colon&amp=1",
    "a b/?#[]",
]


def test_any_legal_key(run: Run) -> None:
    async def body() -> None:
        async with run.running():
            for key in KEYS:
                run.put(key)
            await run.agrees()
            assert [event.data["key"] for event in run.events] == KEYS
        for key in KEYS:
            run.client.remove_object(run.bucket, key)
            run.put(f"again/{key}")
        async with run.running():
            await run.agrees()

    asyncio.run(body())


def test_prefixes_and_suffixes(run: Run) -> None:
    run.options = {"prefix": ["in/", "other/x", "in/deeper/"], "suffix": [".jpg", ".png"]}
    told = ["in/a.jpg", "in/deeper/b.png", "other/xyz.jpg"]
    hidden = ["in/a.txt", "other/a.jpg", "b.png"]

    async def body() -> None:
        async with run.running():
            for key in told + hidden:
                run.put(key)
            await run.sees(*[("created", key) for key in told])
        for key in told + hidden:
            run.put(f"{key[:-4]}2{key[-4:]}")
        async with run.running():
            assert [it[1] for it in run.short[3:]] == ["in/a2.jpg", "in/deeper/b2.png", "other/xyz2.jpg"]

    asyncio.run(body())


def test_settings_that_show_more_are_silent_about_what_was_there(run: Run) -> None:
    async def body() -> None:
        run.options["prefix"] = "a/"
        run.put("b/old")
        async with run.running():
            run.put("a/1")
            await run.sees(("created", "a/1"))
        run.options["prefix"] = ["a/", "b/"]
        run.put("a/2")
        async with run.running():
            run.put("b/new")
            await run.sees(("created", "a/1"), ("created", "a/2"), ("created", "b/new"))
        run.options["prefix"] = "b/"
        async with run.running():
            pass
        assert len(run.events) == 3

    asyncio.run(body())


def test_many_buckets_by_pattern_one_of_them_later(tmp_path: Path) -> None:
    given = server()
    stem = given.bucket()
    run = Run(tmp_path, given, stem, {"bucket": [f"{stem}*"]})

    async def body() -> None:
        async with run.running():
            run.put("a")
            await run.sees(("created", "a"))
            later = given.bucket(name=f"{stem}-later")
            run.client.put_object(later, "b", BytesIO(b"x"), 1)
            await until(lambda: len(run.events) == 2)
            run.client.put_object(later, "c", BytesIO(b"x"), 1)
            await until(lambda: len(run.events) == 3)
        assert [event.data["bucket"] for event in run.events] == [stem, later, later]

    asyncio.run(body())


def test_metadata_when_asked_for(run: Run) -> None:
    run.options["metadata"] = True

    async def body() -> None:
        async with run.running():
            run.put("live", metadata={"Colour": "red"})
            await run.sees(("created", "live"))
        run.put("missed", metadata={"Colour": "blue"})
        async with run.running():
            pass
        assert [event.data["metadata"] for event in run.events] == [{"colour": "red"}, {"colour": "blue"}]

    asyncio.run(body())


def test_versioning_switched_on_while_it_runs(run: Run) -> None:
    from minio.versioningconfig import VersioningConfig

    async def body() -> None:
        async with run.running():
            run.put("a", "1")
            await run.sees(("created", "a"))
            run.client.set_bucket_versioning(run.bucket, VersioningConfig("Enabled"))
            run.put("a", "2")
            await until(lambda: len(run.events) == 2)
            await run.agrees()
            run.client.set_bucket_versioning(run.bucket, VersioningConfig("Suspended"))
            run.put("a", "3")
            await until(lambda: len(run.events) == 3)
            run.client.remove_object(run.bucket, "a")
            await until(lambda: len(run.events) == 4)
            await run.agrees()
        async with run.running():
            await run.agrees()
        assert len(run.events) == 4

    asyncio.run(body())
