"""Events that a pattern looks at per second, on one core: `make bench-patterns`.

Blocks of 2,000 bucket events of about 500 bytes, already decompressed, as a consumer at the journal's head finds them.
`block` is how delivery asks; `one by one` is a single encoded line at a time. One event in ten matches.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.report import report
from headrace.event import Event, source_seed
from headrace.journal.block import BLOCK_EVENTS, Block, Lines, seal
from headrace.pattern import Pattern, Rows

BLOCKS = 40
ATTRIBUTES: Mapping[str, Mapping[str, Any]] = {
    "exact": {"subject": ["incoming/file-0.jpg", "incoming/file-10.jpg"]},
    "suffix": {"subject": [{"suffix": ".jpg"}, {"suffix": ".png"}]},
    "wildcard": {"subject": [{"wildcard": "*/file-*.jpg"}]},
    "anything-but": {"subject": [{"anything-but": {"suffix": ".bin"}}]},
    "three attributes": {
        "subject": [{"suffix": ".jpg"}],
        "type": "headrace.object.created",
        "traceparent": [{"exists": False}],
    },
}
DATA: Mapping[str, Mapping[str, Any]] = {
    "exact": {"data": {"storage": ["cold"]}},
    "numeric": {"data": {"size": [{"numeric": [">", 0, "<=", 1990]}]}},
    "cidr": {"data": {"client": [{"cidr": "10.0.1.0/24"}]}},
    "three fields": {
        "subject": [{"suffix": ".jpg"}],
        "data": {"size": [{"numeric": [">=", 0]}], "bucket": "uploads", "versionId": [None]},
    },
}


def event(number: int) -> Event:
    tenth = number % 10 == 0
    key = f"incoming/file-{number}.{'jpg' if tenth else 'bin'}"
    data = {
        "bucket": "uploads",
        "key": key,
        "versionId": None,
        "size": number * 10,
        "etag": "d41d8cd98f00b204e9800998ecf8427e",
        "sequencer": "0055AED6DCD90281E5",
        "eventName": "s3:ObjectCreated:Put",
        "storage": "cold" if tenth else "hot",
        "client": f"10.0.{1 if tenth else 2}.{number % 250}",
        "recovered": False,
    }
    return Event(
        id=f"7/{number}",
        source="headrace:uploads",
        type="headrace.object.created",
        subject=key,
        time="2026-01-02T03:04:05.678901Z",
        dataschema="urn:headrace:schema:object.created:1",
        partitionkey=f"uploads/{key}",
        sequence=f"{number:020d}",
        data=data,
    )


SEALED = seal("uploads", Lines.of([event(number) for number in range(BLOCK_EVENTS)], source_seed("uploads")))


def blocks() -> list[Block]:
    """Fresh ones: nothing of them is decoded yet but the lines."""
    fresh = [Block(SEALED.head(0, 0, 0), SEALED.index, SEALED.body) for _ in range(BLOCKS)]
    for block in fresh:
        block.verify()
    return fresh


def by_block(wheres: Sequence[Mapping[str, Any]]) -> int:
    """Events per second that all of these patterns have looked at, sharing their rows."""
    rows = Rows()
    patterns = [Pattern(where, rows) for where in wheres]
    everything = range(BLOCK_EVENTS)
    best = 0.0
    for _ in range(5):
        fresh = blocks()
        start = time.perf_counter()
        while fresh:
            block = fresh.pop()  # and its rows go with it, as at the end of the journal's tail
            for pattern in patterns:
                pattern.indices(block, everything)
        best = max(best, BLOCKS * BLOCK_EVENTS / (time.perf_counter() - start))
    return int(best) // 1000 * 1000


def one_by_one(where: Mapping[str, Any]) -> int:
    lines = blocks()[0].lines
    matches = Pattern(where).matches
    best = 0.0
    for _ in range(20):
        start = time.perf_counter()
        for line in lines:
            matches(line)
        best = max(best, len(lines) / (time.perf_counter() - start))
    return int(best) // 1000 * 1000


def main() -> None:
    figures: dict[str, float | int | str] = {"bytes per event": SEALED.raw_size // BLOCK_EVENTS}
    for what, patterns in (("attributes", ATTRIBUTES), ("data", DATA)):
        for name, where in patterns.items():
            figures[f"{what}: {name}, events/s by block"] = by_block([where])
            figures[f"{what}: {name}, events/s one by one"] = one_by_one(where)
    for count in (1, 10, 100):
        misses: list[Mapping[str, Any]] = [{"subject": [f"nothing-{number}"]} for number in range(count)]
        figures[f"{count} consumers whose exact pattern matches nothing, events/s"] = by_block(misses)
        misses = [{"data": {"size": [{"numeric": ["<", -number - 1]}]}} for number in range(count)]
        figures[f"{count} consumers whose numeric pattern matches nothing, events/s"] = by_block(misses)
        misses = [{"subject": [{"wildcard": f"incoming/*-x{number}*.jpg"}]} for number in range(count)]
        figures[f"{count} consumers whose wildcard matches nothing, events/s"] = by_block(misses)
    report("patterns", figures)


if __name__ == "__main__":
    main()
