"""What `status` and the metrics tell: one snapshot of the daemon."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from headrace import __version__
from headrace.capture import state_space
from headrace.daemon import Daemon
from headrace.delivery.cursor import dead_space
from headrace.progress import progress
from headrace.settings import HandlerSettings

PAGE = 100  # dead letters counted in one read: each row holds an event
DOWN = frozenset({"starting", "waiting", "failed", "stopped"})  # states of a part that is not running


async def report(daemon: Daemon) -> dict[str, Any]:
    """The JSON of `headrace status --json`; its keys are stable."""
    return {
        "version": __version__,
        "pid": os.getpid(),
        "uptime": round(daemon.clock.time() - daemon.started, 3),
        "state": "stopping" if daemon.stopping else "running" if daemon.up else "starting",
        "ready": ready(daemon),
        "config": str(daemon.config.file),
        "data_dir": str(daemon.config.data_dir),
        "sources": [await source(daemon, name) for name in list(daemon.sources)],
        "consumers": [await consumer(daemon, name) for name in list(daemon.consumers)],
        "journal": await journal(daemon),
        "orphans": [{"name": name, "undelivered": undelivered(daemon, at)} for name, at in daemon.orphans.items()],
    }


def ready(daemon: Daemon) -> bool:
    """Whether every part runs, or waits because the operator wanted it to."""
    parts = [*daemon.sources.values(), *daemon.running.values()]
    return daemon.up and all(part.state == "running" for part in parts)


async def source(daemon: Daemon, name: str) -> dict[str, Any]:
    """A source as its supervisor sees it; `events` since the daemon started, `reading`: what was there already."""
    part = daemon.sources[name]
    return {
        "name": name,
        "type": daemon.config.sources[name].type if name in daemon.config.sources else "",
        "state": part.state,
        "why": part.why,
        "restarts": part.restarts,
        "events": daemon.captured[name],
        "reading": await progress(daemon.journal.store, state_space(name)),
    }


async def consumer(daemon: Daemon, name: str) -> dict[str, Any]:
    """A consumer as it says of itself, or as its supervisor does where it is down."""
    each, part = daemon.consumers[name], daemon.running.get(name)
    told: dict[str, Any] = msgspec.to_builtins(each.status())
    if part is None or part.state in DOWN:
        told |= {"state": part.state if part else "starting", "why": (part.why if part else "") or told["why"]}
    restarts = part.restarts if part else 0
    return {
        **told,
        "kind": "handler" if isinstance(each.settings, HandlerSettings) else "sink",
        "behind": round(told["behind"], 3),
        "restarts": restarts,
        "dead_letters": await dead_letters(daemon, name),
    }


async def dead_letters(daemon: Daemon, consumer: str) -> int:
    """How many are kept, from this and earlier runs."""
    count, after, space = 0, None, dead_space(consumer)
    while page := await daemon.journal.store.scan(space, b"", after, PAGE):
        count, after = count + len(page), page[-1][0]
    return count


async def journal(daemon: Daemon) -> dict[str, Any]:
    """Its extent in bytes, events and positions, what stops intake, and what was skipped."""
    usage = await daemon.journal.usage()
    return {
        "size": usage.size,
        "max_size": usage.max_size,
        "retention": daemon.config.journal.retention,
        "wal": usage.wal,
        "events": usage.events,
        "oldest": usage.oldest,
        "head": usage.oldest + usage.events,
        "stopped": usage.stopped,
        "blockers": sorted(usage.blockers),
        "gaps": [
            {"first": first, "count": count, "time": time, "why": why}
            for first, count, time, why in await daemon.journal.gaps()
        ],
    }


def undelivered(daemon: Daemon, position: int) -> int:
    """Events behind the cursor of a consumer that left the settings, wanted or not."""
    return max(0, max(daemon.journal.head(shard) for shard in daemon.journal.shards) - position)
