"""Opening an adapter outside of the daemon, to ask it something."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

from headrace.clock import SystemClock
from headrace.errors import HeadraceError
from headrace.protocols import Context, Diagnoses, Finding, Logger, Source
from headrace.settings import Config, SourceSettings
from headrace.silence import SilentLog

Findings: TypeAlias = list[tuple[str, Finding]]
"""By the name of the part that they are about."""


async def diagnosed(settings: Config) -> Findings:
    """What the adapters find around them. Sinks are not opened for it: to open one may change what it holds."""
    found: Findings = []
    for name, each in settings.sources.items():
        try:
            async with opened(settings, name, each) as source:
                if isinstance(source, Diagnoses):
                    found += [(name, finding) async for finding in source.diagnose()]
        except HeadraceError as error:
            found.append((name, Finding("error", error.message, error.hint)))
    return found


@asynccontextmanager
async def opened(settings: Config, name: str, source: SourceSettings) -> AsyncIterator[Source]:
    """The source, not running, with a scratch folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="headrace-") as scratch:
        log: Logger = SilentLog()
        origin = settings.daemon.origin
        context = Context(name, None, settings.directory, Path(scratch), log, SystemClock(), origin)
        async with source.open(context) as adapter:
            yield adapter
