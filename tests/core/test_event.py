"""The envelope: a line is the event and nothing else, and no two keys are written alike."""

from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.event import (
    NULL_PART,
    Event,
    encode_key,
    encode_text,
    event_name,
    key_hash,
    lines_of,
    rfc3339,
    source_seed,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
OPTIONAL = st.none() | TEXT
RESERVED = {*Event.__struct_fields__, "specversion"}
EXTENSIONS = st.dictionaries(
    st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True).filter(lambda name: name not in RESERVED),
    st.booleans() | st.integers(-(2**31), 2**31 - 1) | TEXT,
    max_size=3,
)
EVENTS = st.builds(
    Event,
    id=TEXT,
    source=TEXT,
    type=TEXT,
    subject=OPTIONAL,
    time=OPTIONAL,
    dataschema=OPTIONAL,
    datacontenttype=OPTIONAL,
    partitionkey=OPTIONAL,
    previouskey=OPTIONAL,
    barrier=OPTIONAL,
    sequence=OPTIONAL,
    traceparent=OPTIONAL,
    data=JSON,
    extensions=EXTENSIONS,
)
PARTS = st.lists(st.none() | st.binary(max_size=6), min_size=1, max_size=4)


@given(EVENTS)
def test_a_line_gives_the_event_back(event: Event) -> None:
    line = event.line()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert Event.parse(line) == event
    assert Event.parse(line).line() == line


@given(st.lists(EVENTS, max_size=4))
def test_lines_split_at_their_newlines_only(events: list[Event]) -> None:
    assert [Event.parse(line) for line in lines_of(events).splitlines(keepends=True)] == events


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"{}",
        b"nonsense",
        b'{"specversion":"0.3","id":"1","source":"s","type":"t"}',
        b'{"specversion":"1.0","source":"s","type":"t"}',
        b'{"specversion":"1.0","id":1,"source":"s","type":"t"}',
    ],
)
def test_what_is_no_event_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="not a CloudEvent"):
        Event.parse(line)


def test_data_that_is_not_json_is_refused() -> None:
    with pytest.raises(ValueError, match="event 7"):
        Event(id="7", source="s", type="t", data=object()).line()


@given(st.binary())
def test_percent_decoding_gives_the_bytes_back(data: bytes) -> None:
    text = encode_text(data)
    assert unquote_to_bytes(text) == data
    text.encode()  # can be written as UTF-8
    assert not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in text)


@given(TEXT)
def test_text_and_its_bytes_are_encoded_alike(text: str) -> None:
    assert encode_text(text) == encode_text(text.encode())


@given(st.text(st.characters(min_codepoint=0xA0, exclude_categories=["Cs"])))
def test_nothing_else_is_encoded(text: str) -> None:
    assert encode_text(text) == text


def decode_key(key: str) -> list[bytes | None]:
    return [None if part == NULL_PART else unquote_to_bytes(part) for part in key.split("/")]


@given(PARTS)
def test_a_key_can_be_taken_apart_again(parts: list[bytes | None]) -> None:
    assert decode_key(encode_key(parts)) == parts


@given(PARTS, PARTS)
def test_no_two_keys_are_written_alike(one: list[bytes | None], other: list[bytes | None]) -> None:
    assert (encode_key(one) == encode_key(other)) == (one == other)


def test_a_key_without_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one part"):
        encode_key([])


@given(st.text(), TEXT)
def test_a_key_hashes_to_something(key: str, source: str) -> None:
    seed = source_seed(source)
    assert 0 < key_hash(seed, key) < 2**32
    assert key_hash(seed, None) == 0


def test_a_hash_of_zero_is_made_one() -> None:
    assert key_hash(0, "") == 1


def test_sources_hash_apart() -> None:
    assert key_hash(source_seed("a"), "k") != key_hash(source_seed("b"), "k")


@pytest.mark.parametrize(
    ("nanoseconds", "expected"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (1_700_000_000_123_456_789, "2023-11-14T22:13:20.123456Z"),
        (-1_000, "1969-12-31T23:59:59.999999Z"),
        (10**30, "9999-12-31T23:59:59.999999Z"),
        (-(10**30), "0001-01-01T00:00:00.000000Z"),
    ],
)
def test_times(nanoseconds: int, expected: str) -> None:
    assert rfc3339(nanoseconds) == expected


def test_the_name_of_an_event_is_its_last_segment() -> None:
    assert [event_name(it) for it in ("headrace.object.created", "tick")] == ["created", "tick"]
