"""Pages of listings: whatever a server writes, read as minio-py reads it; versions in the order of their rows."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from urllib.parse import quote_plus
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st
from minio.datatypes import parse_list_objects

from headrace.sources.objects.entry import Entry, Place, milliseconds, version_text
from headrace.sources.objects.listing import page_of, query_of
from headrace.sources.objects.store import whole_keys

SPACE = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
keys = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
plain = st.text("ab/ +%&<'é日", min_size=1, max_size=20)  # what XML can hold as it is
entries = st.tuples(
    st.sampled_from(["Contents", "Version", "DeleteMarker"]),
    keys,
    st.integers(0, 1 << 40),
    st.sampled_from(["", "null", "v1", "v2"]),
    st.datetimes(),
)


def body(found: list[tuple[Any, ...]], *, space: str, encode: bool, extra: str = "") -> bytes:
    texts = []
    for tag, key, size, version, moment in found:
        name = quote_plus(key, safe="/") if encode else escape(key)
        id_ = f"<VersionId>{version}</VersionId>" if version else ""
        time = moment.isoformat(timespec="milliseconds") + "Z"
        sized = "" if tag == "DeleteMarker" else f"<Size>{size}</Size><ETag>&#34;e{size}&#34;</ETag>"
        owner = "<Owner><ID>1</ID></Owner>"
        texts.append(f"<{tag}><Key>{name}</Key><LastModified>{time}</LastModified>{sized}{id_}{owner}</{tag}>")
    encoding = "<EncodingType>url</EncodingType>" if encode else ""
    head = f"<Name>b</Name>{encoding}{extra or '<IsTruncated>false</IsTruncated>'}"
    return f"<ListBucketResult{space}>{head}{''.join(texts)}</ListBucketResult>".encode()


class Answer:
    """What minio-py's reader takes."""

    def __init__(self, data: bytes) -> None:
        self.data = data


def by_minio_py(data: bytes) -> list[tuple[bytes, Entry]]:
    answer: Any = Answer(data)
    found = []
    for it in parse_list_objects(answer)[0]:
        row = Place("b", it.object_name or "", version_text(it.version_id)).row
        entry = Entry(int(it.is_delete_marker), milliseconds(it.last_modified), it.size or 0, it.etag or "")
        found.append((row, entry))
    return sorted(found)


@given(st.lists(entries, max_size=8), st.sampled_from(["", SPACE]))
def test_entries_are_those_that_minio_py_reads(found: list[tuple[Any, ...]], space: str) -> None:
    data = body(found, space=space, encode=True)
    page = page_of(data, "b")
    assert sorted((row, Entry.unpack(value)) for _, (row, value) in page.entries) == by_minio_py(data)
    assert [key for key, _ in page.entries] == [it[1] for it in found]
    assert not page.following


@given(plain)
def test_keys_that_are_not_encoded_stay_as_they_are(key: str) -> None:
    data = body([("Contents", key, 1, "", datetime(2026, 1, 1))], space=SPACE, encode=False)  # noqa: DTZ001 -- as drawn
    assert [name for name, _ in page_of(data, "b").entries] == [key]


@pytest.mark.parametrize(
    ("extra", "following"),
    [
        ("<NextContinuationToken>t+1</NextContinuationToken>", [("continuation-token", "t+1")]),
        ("<NextKeyMarker>a%2Bb</NextKeyMarker>", [("key-marker", "a+b")]),
        (
            "<NextKeyMarker>a</NextKeyMarker><NextVersionIdMarker>v</NextVersionIdMarker>",
            [("key-marker", "a"), ("version-id-marker", "v")],
        ),
    ],
)
def test_where_the_next_page_begins(extra: str, following: list[tuple[str, str]]) -> None:
    page = page_of(body([], space=SPACE, encode=True, extra=f"<IsTruncated>true</IsTruncated>{extra}"), "b")
    assert page.following == following
    assert query_of("p", page.following, versions=False)[-len(following) :] == following


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"{}", "no XML"),
        (b"<html></html>", "no listing"),
        (b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>", "where the next begins"),
    ],
)
def test_what_is_no_listing_is_an_error(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        page_of(data, "b")


ids = st.lists(st.text("xyz", min_size=1, max_size=3), unique=True, min_size=1)


@given(st.dictionaries(keys, ids, max_size=6), st.data())
def test_versions_come_in_the_order_of_their_rows_however_they_are_paged(
    versions: dict[str, list[str]], data: st.DataObject
) -> None:
    listed = [(key, (Place("b", key, it).row, b"")) for key in sorted(versions, key=str.encode) for it in versions[key]]
    pages, at = [], 0
    while at < len(listed):
        size = data.draw(st.integers(1, 4))
        pages.append(listed[at : at + size])
        at += size
    rows = [row for page in whole_keys(pages) for _, row in page]
    assert rows == sorted(row for _, row in listed)
