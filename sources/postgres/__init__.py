"""Captures a Postgres database by logical replication."""
