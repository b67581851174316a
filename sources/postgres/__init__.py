"""Captures a Postgres database by logical replication, in a process of its own."""

from headrace.sources.postgres.settings import PostgresSource

__all__ = ["PostgresSource"]
