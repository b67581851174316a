"""Durations, sizes and addresses, there and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.units import format_duration, format_size, is_loopback, parse_address, parse_duration, parse_size


@given(st.integers(0, 10**12))
def test_a_duration_is_read_as_it_was_written(milliseconds: int) -> None:
    assert round(parse_duration(format_duration(milliseconds / 1000)) * 1000) == milliseconds


@given(st.integers(0, 1 << 60))
def test_a_size_is_read_as_it_was_written(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(("text", "seconds"), [("200ms", 0.2), ("1h30m", 5400.0), ("1.5s", 1.5), ("2w", 1_209_600.0)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["", "5", "s", "-1s", "1 s", "1y", "1s!", 5, None, ["1s"]])
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(value)


@pytest.mark.parametrize(("value", "size"), [(5, 5), ("5", 5), ("5B", 5), ("1 KiB", 1024), ("10GiB", 10 << 30)])
def test_sizes(value: object, size: int) -> None:
    assert parse_size(value) == size


@pytest.mark.parametrize("value", ["", "-5", -5, "1KB", "1.5MiB", True, 1.5, None])
def test_what_is_no_size(value: object) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(value)


def test_addresses() -> None:
    assert parse_address("127.0.0.1:0") == ("127.0.0.1", 0)
    assert parse_address("[::1]:8470") == ("::1", 8470)
    assert [is_loopback(host) for host in ("::1", "127.1.2.3", "LOCALHOST", "0.0.0.0", "::", "example")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize("text", ["", ":80", "host", "host:", "host:65536", "::1:80", "a b:1", "host:1 ", "host:-1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_address(text)
