"""How sources, consumers and the journal are."""

from __future__ import annotations

from typing import Any

from headrace.cli.asking import daemon_of
from headrace.cli.options import ConfigFile, Json
from headrace.cli.output import as_json, clean, data, table


def status(config: ConfigFile = None, json: Json = False) -> None:
    """Show sources, consumers, their lag, and the journal."""
    told = daemon_of(config).get("/status")
    if json:
        as_json(told)
    else:
        _show(told)


COMMAND = status


def _show(told: dict[str, Any]) -> None:
    data(f"headrace {told['version']}: {told['state']} for {duration(told['uptime'])}, process {told['pid']}")
    sources = ("name", "type", "state", "events", "restarts", "why")
    table("sources", sources, [[each[key] for key in sources] for each in told["sources"]])
    reading = [row for each in told["sources"] for row in _reading(each)]
    table("reading", ("source", "what", "done", "of about"), reading)
    table("consumers", _CONSUMERS, [_consumer(each) for each in told["consumers"]])
    _journal(told["journal"])
    for orphan in told["orphans"]:
        name = orphan["name"]
        data(
            f"not in the settings: {clean(name)} keeps {orphan['undelivered']} undelivered events;"
            f" put it back, or: headrace consumer forget {name}"
        )


def _reading(source: dict[str, Any]) -> list[list[object]]:
    return [[source["name"], each["what"], each["done"], each["total"] or "-"] for each in source["reading"]]


_CONSUMERS = ("name", "kind", "state", "lag", "behind", "delivered", "failed", "parked", "dead letters", "why")


def _consumer(each: dict[str, Any]) -> list[object]:
    keys = ("name", "kind", "state", "lag")
    counts = ("delivered", "failed", "parked", "dead_letters")
    behind = duration(each["behind"]) if each["lag"] else "-"
    return [*(each[key] for key in keys), behind, *(each[key] for key in counts), each["why"]]


def _journal(journal: dict[str, Any]) -> None:
    size, most = sized(journal["size"]), sized(journal["max_size"])
    data(f"journal: {size} of {most}, {journal['events']} events from {journal['oldest']} to {journal['head']}")
    if journal["stopped"]:
        blockers = f"; needed by {', '.join(journal['blockers'])}" if journal["blockers"] else ""
        data(clean(f"  sources wait: {journal['stopped']}{blockers}"))
    for gap in journal["gaps"]:
        data(clean(f"  gap: {gap['count']} events from {gap['first']}: {gap['why']}"))


def duration(seconds: float) -> str:
    """`2h 5m`, in the two largest units."""
    rest, parts = int(seconds), []
    if seconds < 60:
        return f"{seconds:.1f}s"
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


def sized(size: float) -> str:
    """`1.2 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
