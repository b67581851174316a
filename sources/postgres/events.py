"""Events that are no rows: about a table as a whole, and logical messages."""

from __future__ import annotations

import base64
from typing import Any

from headrace.event import Event, encode_key, encode_text
from headrace.sources.postgres.lines import SCHEMA_PREFIX, TYPE_PREFIX, Tx
from headrace.sources.postgres.protocol import LogicalMessage, lsn_text
from headrace.sources.postgres.relations import Relation


def table_event(source: str, relation: Relation, operation: str, data: dict[str, Any], tx: Tx, ordinal: int) -> Event:
    """A change of a whole table; a barrier for all its keys."""
    about = {"op": operation, "schema": relation.message.schema, "table": relation.message.table}
    prefix = relation.key_prefix
    return _event(source, operation, relation.subject, about | data, prefix, prefix, tx, ordinal)


def message_event(source: str, message: LogicalMessage, tx: Tx, ordinal: int) -> Event:
    """What `pg_logical_emit_message` wrote."""
    data: dict[str, Any] = {"op": "message", "prefix": message.prefix, "transactional": message.transactional}
    try:
        data["content"] = message.content.decode()
    except UnicodeDecodeError:
        data["content_base64"] = base64.b64encode(message.content).decode()
    return _event(source, "message", encode_text(message.prefix), data, encode_key([message.prefix]), None, tx, ordinal)


def _event(
    source: str,
    operation: str,
    subject: str,
    data: dict[str, Any],
    key: str,
    barrier: str | None,
    tx: Tx,
    ordinal: int,
) -> Event:
    time = tx.time.decode() if tx.commit_time else None
    about = {"id": tx.xid, "lsn": lsn_text(tx.lsn), "ordinal": ordinal, "commit_time": time}
    if tx.origin:
        about["origin"] = tx.origin
    return Event(
        id=f"{tx.head_id.decode()}{ordinal}",
        source=source,
        type=TYPE_PREFIX + operation,
        subject=subject,
        time=time,
        dataschema=f"{SCHEMA_PREFIX}{operation}:1",
        partitionkey=key,
        barrier=barrier,
        sequence=f"{tx.sequence.decode()}{ordinal:010d}",
        data={**data, "tx": {**about, "last": False}},
    )


def in_front(event: Event, suffix: str) -> Event:
    """The event in front of the row that it was made for: an id of its own, a sequence just below."""
    head, _, ordinal = (event.sequence or "").rpartition("/")
    return Event(
        **{name: getattr(event, name) for name in event.__struct_fields__ if name not in {"id", "sequence"}},
        id=f"{event.id}/{suffix}",
        sequence=f"{head}/{int(ordinal) - 1:010d}s",
    )
