"""What a failure means for whoever must act on it.

Adapters raise exactly three kinds. The engine decides what to do by the kind alone; the hint is for the operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class HeadraceError(Exception):
    """A failure that the operator may read: one line, and a hint that says what to do."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class Transient(HeadraceError):
    """The other side is away or busy: try again later, and spend no attempt of the event.

    `retry_after` is the other side's own wish, in seconds (HTTP `Retry-After`).
    """

    def __init__(self, message: str, *, hint: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class Permanent(HeadraceError):
    """This event cannot be processed as it is: it spends one of its attempts."""


class Fatal(HeadraceError):
    """Going on would lose or corrupt data, or can never work: stop this part until the operator has acted."""


class JournalFailed(Fatal):
    """The journal cannot be trusted or used any more: the daemon ends, so that the next start recovers."""


class NotRunning(HeadraceError):
    """No daemon answers on the control socket."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in the settings: `path` is the TOML path (`sources.orders.tables`), `line` counts from 1."""

    file: str
    line: int | None
    path: str
    message: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.path}: {self.message}" if self.path else f"{place}: {self.message}"


class SettingsError(HeadraceError):
    """Every mistake found in the settings, at once, in the order of the file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = sorted(problems, key=lambda problem: (problem.line or 0, problem.path))
        super().__init__("\n".join(str(problem) for problem in self.problems))
