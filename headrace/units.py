"""Texts of the settings that stand for something else: durations, sizes, moments and addresses."""

from __future__ import annotations

import re
from datetime import datetime
from ipaddress import ip_address
from typing import Any, Final

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SIZES: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[smhdw]))+")
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])")
_SIZE: Final = re.compile(r"(\d+)\s*(B|KiB|MiB|GiB|TiB)?")
_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)")
_ADDRESS: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%\w+)?)\]|([^\s:\[\]]+)):(\d{1,5})", re.ASCII)


def parse_duration(value: Any) -> Any:
    """`"1h30m"`, `"200ms"` as seconds."""
    if not isinstance(value, str):
        raise ValueError(  # noqa: TRY004 - pydantic collects ValueError only
            'a duration is a text such as "200ms", "30s", "1h30m" or "7d"'
        )
    if not _DURATION.fullmatch(value):
        raise ValueError(f'"{value}" is no duration; write one as "200ms", "30s", "1h30m" or "7d"')
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(value))


def parse_size(value: Any) -> Any:
    """`"10MiB"` as bytes; a number without a unit is bytes."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f'{value!r} is no size; write one as "512KiB", "10MiB" or "1GiB"')
    return int(found[1]) * _SIZES[found[2] or "B"]


def format_duration(seconds: float) -> str:
    """`"1h30m"`: what `parse_duration` reads as these seconds, down to milliseconds."""
    rest, text = round(seconds * 1000), ""
    for unit in ("d", "h", "m", "s", "ms"):
        count, rest = divmod(rest, round(_UNITS[unit] * 1000))
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def format_size(size: int) -> str:
    """`"10MiB"`: in the largest unit that leaves no fraction."""
    unit = next(unit for unit in reversed(_SIZES) if (size % _SIZES[unit] == 0 and size >= _SIZES[unit]) or unit == "B")
    return f"{size // _SIZES[unit]}{unit}"


def parse_start(value: Any) -> Any:
    """`"earliest"`, `"latest"`, or a moment: a TOML date-time or RFC 3339 text, with its offset."""
    if value in ("earliest", "latest"):  # no set: a list from the file has no hash
        return value
    moment = value
    if isinstance(value, str) and _MOMENT.fullmatch(value):
        moment = datetime.fromisoformat(value.upper())
    if not isinstance(moment, datetime):
        raise ValueError(  # noqa: TRY004 - pydantic collects ValueError only
            'expected "earliest", "latest" or a time such as 2026-01-31T06:00:00Z'
        )
    if moment.tzinfo is None:
        raise ValueError("a time needs its offset, as in 2026-01-31T06:00:00Z")
    return moment


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`; an IPv6 address stands in brackets. Raises `ValueError`."""
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found[3]) > 65_535:
        raise ValueError('expected HOST:PORT, such as "127.0.0.1:8470" or "[::1]:8470"')
    return found[1] or found[2], int(found[3])


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it. A name other than `localhost` is not trusted to be."""
    try:
        return ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host.lower() == "localhost"
