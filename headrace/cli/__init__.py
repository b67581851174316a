"""The command line: one module per command, imported when it is called."""

from __future__ import annotations

import sys


def main() -> None:
    """The program `headrace`."""
    from headrace.cli.app import run

    sys.exit(run(sys.argv[1:]))
