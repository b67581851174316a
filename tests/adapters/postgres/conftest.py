"""The servers."""

from __future__ import annotations

from tests.fixtures.postgres import database, newest_postgres, postgres, postgres_servers

__all__ = ["database", "newest_postgres", "postgres", "postgres_servers"]
