"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import typer


def _own_or_given_before(ctx: typer.Context, value: str | None) -> str | None:
    """`headrace -c FILE COMMAND` and `headrace COMMAND -c FILE` are the same; the latter wins."""
    given: Any = ctx.find_root().params.get("config")
    return value or given


ConfigFile: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="The settings file; else $HEADRACE_CONFIG, ./headrace.toml, /etc/headrace/headrace.toml.",
        callback=_own_or_given_before,
        show_default=False,
    ),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON; its keys are stable.")]
Where: TypeAlias = Annotated[str | None, typer.Option("--where", metavar="JSON", help="Only what matches a pattern.")]
Yes: TypeAlias = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
