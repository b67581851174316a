"""`GET /live`, `/ready` and `/metrics`.

`/live` looks at nothing; `/ready` is 503 until every source and consumer runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from aiohttp import web

from headrace.control.answers import DAEMON, answer
from headrace.control.report import ready, report


async def live(_: web.Request) -> web.Response:
    """The event loop answers."""
    return answer({"live": True})


async def is_ready(request: web.Request) -> web.Response:
    """Every part runs."""
    there = ready(request.app[DAEMON])
    return answer({"ready": there}, 200 if there else 503)


async def metrics(request: web.Request) -> web.Response:
    """The report as Prometheus reads it."""
    text = "".join(_metrics(await report(request.app[DAEMON])))
    return web.Response(text=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


# Name without its prefix, type, what it means, and the key of the report.
_SOURCES: Final = (
    ("source_events_total", "counter", "Events captured, durable in the journal.", "events"),
    ("source_restarts_total", "counter", "Runs of the source that ended in a failure.", "restarts"),
)
_CONSUMERS: Final = (
    ("consumer_delivered_total", "counter", "Events delivered.", "delivered"),
    ("consumer_failed_total", "counter", "Deliveries of an event that failed.", "failed"),
    ("consumer_retried_total", "counter", "Deliveries of an event that were repeated.", "retried"),
    ("consumer_dead_total", "counter", "Events given up.", "dead"),
    ("consumer_dead_letters", "gauge", "Dead letters kept.", "dead_letters"),
    ("consumer_parked_events", "gauge", "Events that wait for a retry, or behind one.", "parked"),
    ("consumer_lag_events", "gauge", "Events in the journal behind the cursor, wanted or not.", "lag"),
    ("consumer_behind_seconds", "gauge", "Age of the oldest undelivered event.", "behind"),
    ("consumer_gaps", "gauge", "Recorded gaps: positions that were never delivered.", "gaps"),
    ("consumer_restarts_total", "counter", "Runs of the consumer that ended in a failure.", "restarts"),
)
_JOURNAL: Final = (
    ("journal_size_bytes", "gauge", "What the journal holds.", "size"),
    ("journal_max_size_bytes", "gauge", "What it may hold.", "max_size"),
    ("journal_wal_bytes", "gauge", "Its write-ahead log.", "wal"),
    ("journal_events", "gauge", "Events between the oldest and the head.", "events"),
)


def _metrics(told: dict[str, Any]) -> Iterator[str]:
    yield from _metric("build_info", "gauge", "The version that runs.", [({"version": told["version"]}, 1)])
    yield from _metric("uptime_seconds", "gauge", "Since the daemon started.", [({}, told["uptime"])])
    yield from _parts("source", _SOURCES, told["sources"])
    yield from _parts("consumer", _CONSUMERS, told["consumers"])
    journal = told["journal"]
    for name, kind, what, key in _JOURNAL:
        yield from _metric(name, kind, what, [({}, journal[key])])
    yield from _metric(
        "journal_intake_stopped", "gauge", "1 while sources wait.", [({}, int(bool(journal["stopped"])))]
    )
    yield from _metric("journal_gaps", "gauge", "Damaged blocks that were skipped.", [({}, len(journal["gaps"]))])


def _parts(label: str, table: Iterable[tuple[str, str, str, str]], parts: list[dict[str, Any]]) -> Iterator[str]:
    up = [({label: part["name"]}, int(part["state"] == "running")) for part in parts]
    yield from _metric(f"{label}_up", "gauge", "1 while it runs.", up)
    for name, kind, what, key in table:
        yield from _metric(name, kind, what, [({label: part["name"]}, part[key]) for part in parts])


def _metric(name: str, kind: str, what: str, samples: Sequence[tuple[Mapping[str, str], float]]) -> Iterator[str]:
    """The text format: https://prometheus.io/docs/instrumenting/exposition_formats/. Names need no escaping."""
    if not samples:
        return
    yield f"# HELP headrace_{name} {what}\n# TYPE headrace_{name} {kind}\n"
    for labels, value in samples:
        text = ",".join(f'{key}="{each}"' for key, each in labels.items())
        yield f"headrace_{name}{'{' + text + '}' if text else ''} {value}\n"


ROUTES: Final = (web.get("/live", live), web.get("/ready", is_ready), web.get("/metrics", metrics))
