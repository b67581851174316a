"""What processes of the user's code are started with: the scrubbed environment, and the settings for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import ClassVar, Final

from pydantic import Field

from headrace.handlers.pool import Limits
from headrace.settings import Duration, HandlerSettings, Secret, Settings, Size

_PASSED: Final = frozenset({"PATH", "HOME", "LANG", "TZ", "TMPDIR"})
_PASSED_PREFIX: Final = "LC_"


def usual_concurrency() -> int:
    """One process per core, four at most: what runs beside the daemon without asking."""
    return min(4, os.cpu_count() or 1)


class Recycle(Settings):
    """When a process that stays is replaced by a fresh one: after so many events, or with more memory than this."""

    events: int | None = Field(None, ge=1)
    memory: Size | None = Field(None, ge=1 << 20)


class ProcessHandlerSettings(HandlerSettings):
    """A handler whose code runs in processes of its own.

    They get PATH, HOME, LANG, LC_*, TZ and TMPDIR of the daemon's environment, what `pass_env` names, and `env`;
    nothing else, so that the daemon's secrets do not reach them. `timeout` counts for each event, and is enforced here:
    only the process tells which event of a batch it has in hand. Processes that stay are started by need, up to
    `concurrency`; the last one ends when it was not needed for `idle`.
    """

    own_timeout: ClassVar[bool] = True

    concurrency: int = Field(default_factory=usual_concurrency, ge=1, le=1_000)
    env: dict[str, Secret] = Field(default_factory=dict)
    pass_env: tuple[str, ...] = ()
    idle: Duration = Field(600.0, gt=0)
    recycle: Recycle = Recycle()

    def limits(self) -> Limits:
        return Limits(self.concurrency, self.idle, self.recycle.events, self.recycle.memory)

    def environment(self) -> dict[str, str]:
        own = {name: value.get_secret_value() for name, value in self.env.items()}
        return {**_scrubbed(os.environ, frozenset(self.pass_env)), **own}


def _scrubbed(environment: Mapping[str, str], passed: frozenset[str]) -> dict[str, str]:
    names = _PASSED | passed
    return {name: value for name, value in environment.items() if name in names or name.startswith(_PASSED_PREFIX)}
