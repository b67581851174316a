"""The servers, and what the run used."""

from __future__ import annotations

from typing import Any

from tests.fixtures.postgres import choices, database, newest_postgres, postgres, postgres_servers

__all__ = ["database", "newest_postgres", "postgres", "postgres_servers"]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"Postgres servers used: {', '.join(choices()) or 'none'}")
