"""Reading of notifications: lines of a stream in any pieces, records of several servers, their order."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import Transient
from headrace.sources.objects.decide import Verdict, applied, judge
from headrace.sources.objects.entry import LOOSE, SECOND, Entry, Place, same
from headrace.sources.objects.lines import LineReader
from headrace.sources.objects.records import hint_of, parse, precedes

keys = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40)


def record(key: str, **other: Any) -> dict[str, Any]:
    found = {"key": key, "size": 3, "eTag": "abc", "sequencer": "17F2"} | other.pop("object", {})
    return {
        "eventName": "s3:ObjectCreated:Put",
        "eventSource": "minio:s3",
        "eventTime": "2026-01-02T03:04:05.678Z",
        "s3": {"bucket": {"name": "uploads"}, "object": found},
    } | other


@given(st.lists(keys), st.lists(st.integers(1, 200)), st.sampled_from([" ", "", "{}\n", '{"Records":null}\n', "\r\n"]))
def test_lines_come_out_however_the_stream_is_cut(keys: list[str], cuts: list[int], between: str) -> None:
    stream = b"".join((json.dumps({"Records": [record(key)]}) + "\n" + between).encode() for key in keys)
    reader, found, at = LineReader(), list[bytes](), 0
    for size in [*cuts, len(stream)]:
        found += reader.feed(stream[at : at + size])
        at += size
    assert [it.s3.object.key for line in found for it in parse(line)] == keys


@given(st.binary(max_size=50))
def test_a_cut_last_line_is_never_given(rest: bytes) -> None:
    reader = LineReader()
    assert reader.feed(b'{"Records":[]}\n' + rest.replace(b"\n", b"")) == [b'{"Records":[]}']
    assert reader.unfinished == bool(rest.replace(b"\n", b"").strip())


def test_a_line_without_end_is_an_error() -> None:
    reader = LineReader()
    for _ in range(10):
        reader.feed(b"x" * 100_000)
    with pytest.raises(Transient, match="1 MiB"):
        reader.feed(b"x" * 100_000)


@given(keys)
def test_keys_are_raw_from_minio_and_encoded_from_everyone_else(key: str) -> None:
    from urllib.parse import quote_plus

    encoded = (quote_plus(key), quote_plus(key, safe="/"))
    for source, text in (("minio:s3", key), *product(("aws:s3", "rustfs:s3"), encoded)):
        [found] = parse(json.dumps({"Records": [record(text, eventSource=source)]}))
        hint = hint_of(found)
        assert hint is not None
        assert hint.place == Place("uploads", key)


RUSTFS = """{"EventName":"s3:ObjectCreated:Put","Key":"uploads/in/a b+ü.jpg","Records":[{"eventVersion":"2.1",
"eventSource":"rustfs:s3","awsRegion":"us-east-1","eventTime":"2026-06-27T04:17:28.001381834Z",
"eventName":"s3:ObjectCreated:Put","userIdentity":{"principalId":"rustfs"},"requestParameters":{},
"responseElements":{},"s3":{"s3SchemaVersion":"1.0","configurationId":"Config",
"bucket":{"name":"uploads","ownerIdentity":{"principalId":"rustfs"},"arn":"arn:aws:s3:::uploads"},
"object":{"key":"in%2Fa+b%2B%C3%BC.jpg","size":3,"eTag":"abc","contentType":"image/jpeg","userMetadata":{},
"versionId":"","sequencer":"18BB7D1D5B5F2D4A"}},"source":{"host":"127.0.0.1","port":"","userAgent":"x"}}]}"""


def test_a_record_of_rustfs() -> None:
    """Its keys are encoded on the listen stream too, and its times have nanoseconds."""
    [found] = parse(RUSTFS.replace("\n", ""))
    hint = hint_of(found)
    assert hint is not None
    assert hint.place == Place("uploads", "in/a b+ü.jpg")
    assert hint.entry == Entry(LOOSE, 1_782_533_848_001, 3, "abc", "18BB7D1D5B5F2D4A")
    assert not hint.ordered


@given(keys, st.sampled_from(["", "v1"]))
def test_places_survive_their_row(key: str, version: str) -> None:
    place = Place("uploads", key, version)
    assert Place.of(place.row) == place


@given(st.lists(keys, min_size=2, unique=True))
def test_rows_sort_as_listings_do(keys: list[str]) -> None:
    rows = sorted(Place("b", key).row for key in keys)
    assert [Place.of(row).key for row in rows] == sorted(keys, key=str.encode)


def test_minio_tells_the_time_of_the_write_in_its_sequencer() -> None:
    moment = 1_700_000_000_123_456_789
    [found] = parse(json.dumps({"Records": [record("a", object={"sequencer": f"{moment:X}"})]}))
    hint = hint_of(found)
    assert hint is not None
    assert hint.entry == Entry(0, 1_700_000_000_123, 3, "abc")


@pytest.mark.parametrize("text", ["", "[1]", "nonsense", '{"Records": 5}', '{"Records":[{"s3":7}]}'])
def test_what_is_no_notification_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="no notification"):
        parse(text)


@pytest.mark.parametrize("text", ["{}", '{"Records":null}', '{"Service":"Amazon S3","Event":"s3:TestEvent"}'])
def test_keepalives_and_test_messages_are_empty(text: str) -> None:
    assert not parse(text)


@pytest.mark.parametrize("name", ["PutTagging", "DeleteTagging", "PutRetention", "PutLegalHold"])
def test_attributes_are_no_creation(name: str) -> None:
    [found] = parse(json.dumps({"Records": [record("a", eventName=f"s3:ObjectCreated:{name}")]}))
    assert hint_of(found) is None


def test_sequencers_are_padded_on_the_right() -> None:
    assert precedes("0055AED6DCD90281E5", "0055AED6DCD90281E6")
    assert precedes("10", "11F")
    assert not precedes("1F", "11F")
    assert not precedes("1F", "1f00")


AWS = {"eventSource": "aws:s3", "eventName": "ObjectCreated:Put"}


def aws(sequencer: str, **other: Any) -> Any:
    [found] = parse(json.dumps({"Records": [record("a", object={"sequencer": sequencer}, **(AWS | other))]}))
    hint = hint_of(found)
    assert hint is not None
    return hint


def test_a_queue_may_repeat_and_reorder() -> None:
    first, second = aws("0A"), aws("0B")
    assert judge(first, None, doubtful=False) is Verdict.APPLY
    step = applied(first, None)
    assert step is not None
    row = step.value
    assert judge(first, row, doubtful=False) is Verdict.IGNORE
    assert judge(second, row, doubtful=False) is Verdict.APPLY
    assert judge(first, second.entry, doubtful=False) is Verdict.LOOK
    assert judge(first, None, doubtful=True) is Verdict.LOOK
    removed = aws("09", eventName="ObjectRemoved:Delete")
    assert judge(removed, row, doubtful=False) is Verdict.LOOK
    assert judge(removed, None, doubtful=False) is Verdict.IGNORE
    version = removed._replace(place=Place("uploads", "a", "v1"))
    assert judge(version, None, doubtful=False) is Verdict.IGNORE
    assert judge(version._replace(ordered=True), None, doubtful=False) is Verdict.LOOK, "a marker that expiry made"


def test_times_are_compared_as_exactly_as_both_are_known() -> None:
    exact = Entry(0, 1_234_567, 1, "e")
    assert not same("", exact, exact._replace(time=1_234_568))
    assert same("", exact, Entry(SECOND, 1_234_000, 1, "e"))
    assert not same("", exact, Entry(SECOND, 1_235_000, 1, "e"))
    assert same("", exact, Entry(LOOSE, 1_250_000, 1, "e"))
    assert not same("", exact, Entry(LOOSE, 9_250_000, 1, "e"))
    assert same("v1", exact, Entry(0, 5, 1, "e"))


@given(keys)
def test_the_partition_key_is_that_of_the_core(key: str) -> None:
    from headrace.event import encode_key
    from headrace.inventory import Change
    from headrace.sources.objects.decide import Step
    from headrace.sources.objects.events import Events

    entry = Entry(0, 5, 1, "e")
    step = Step("created", "s3:ObjectCreated:Put", Place("uploads", key), entry, entry)
    event = Events("headrace:x").event(step, Change("1", "1"), time=5, recovered=False)
    assert event.partitionkey == encode_key(("uploads", key))
