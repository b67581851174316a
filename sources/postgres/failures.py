"""What a server's error means: whether time heals it, and the SQL that does."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final

import psycopg

from headrace.errors import Fatal, HeadraceError, Transient

_RESOURCES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "53300": "ALTER SYSTEM SET max_wal_senders = 20; and restart the server, or end other replication connections",
        "53400": "drop a slot that nobody uses (SELECT pg_drop_replication_slot('NAME')), or "
        "ALTER SYSTEM SET max_replication_slots = 20; and restart the server",
        "55006": "another process uses the slot: SELECT active_pid FROM pg_replication_slots; it is tried again",
    }
)
_RIGHTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "42501": "as a superuser: ALTER ROLE {user} REPLICATION; "
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {user};",
        "28000": "allow the role in pg_hba.conf, and ALTER ROLE {user} LOGIN REPLICATION;",
        "28P01": "set `password` in the settings, or ALTER ROLE {user} PASSWORD '…';",
        "3D000": "name a database that is there: `dbname` in `dsn`",
    }
)
# What libpq says where it gives no SQLSTATE: before the connection stands.
_CONNECT: Final = (
    (re.compile("password|SCRAM|channel binding"), "28P01"),
    (re.compile(r"no pg_hba\.conf entry|role .* (does not exist|not permitted to log in)|is not permitted"), "28000"),
    (re.compile(r"database .* does not exist"), "3D000"),
    (re.compile("permission denied|must be superuser or replication role|REPLICATION attribute"), "42501"),
    (re.compile("too many (clients|connections)|remaining connection slots|max_wal_senders"), "53300"),
)
_TLS: Final = re.compile("SSL|TLS|certificate")
TLS_HINT: Final = "see sslmode and sslrootcert in `dsn`: https://www.postgresql.org/docs/current/libpq-ssl.html"


def explain(error: psycopg.Error, user: str = "ROLE") -> HeadraceError:
    """The same error as `Transient` or `Fatal`, with what mends it."""
    text = " ".join(str(error).split())
    state = error.sqlstate or _guess(text)
    if state in _RESOURCES:
        return Transient(f"Postgres: {text}", hint=_RESOURCES[state])
    if state in _RIGHTS:
        return Fatal(f"Postgres: {text}", hint=_RIGHTS[state].format(user=user))
    if error.sqlstate is None and _TLS.search(text) and "closed" not in text:
        return Fatal(f"Postgres: {text}", hint=TLS_HINT)
    if isinstance(error, psycopg.OperationalError) or state[:2] in {"08", "57", "40", "53"}:
        return Transient(f"Postgres: {text}")
    return Fatal(f"Postgres: {text}")


def _guess(text: str) -> str:
    return next((state for pattern, state in _CONNECT if pattern.search(text)), "")


@contextmanager
def explained(user: str = "ROLE") -> Iterator[None]:
    """Inside, the driver's errors become ours."""
    try:
        yield
    except psycopg.Error as error:
        raise explain(error, user) from error
