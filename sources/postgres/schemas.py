"""JSON Schemas of the events' `data`, by `dataschema`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from headrace.sources.postgres.lines import SCHEMA_PREFIX

_Schema = dict[str, Any]
_TEXT: Final[_Schema] = {"type": "string"}
_NAMES: Final[_Schema] = {"type": "array", "items": _TEXT}
_ROW: Final[_Schema] = {"type": ["object", "null"]}
_TX: Final[_Schema] = {
    "type": "object",
    "properties": {
        "id": {"type": ["integer", "null"], "description": "the server's transaction id"},
        "lsn": _TEXT | {"description": "of the commit; of rows that were there, where the stream goes on"},
        "ordinal": {"type": "integer", "description": "within the transaction, from 1"},
        "commit_time": {"type": ["string", "null"], "format": "date-time"},
        "origin": _TEXT | {"description": "where it was replicated from, if it was"},
        "last": {"type": "boolean", "description": "the last captured change of its transaction"},
    },
    "required": ["id", "lsn", "ordinal", "commit_time", "last"],
}
_TABLE: Final[_Schema] = {"schema": _TEXT, "table": _TEXT}
_CHANGE: Final[_Schema] = {
    **_TABLE,
    "key": _ROW | {"description": "the columns of the replica identity or primary key; null where there is none"},
    "before": _ROW | {"description": "the old key where it changed or the row is gone; all of the old row with FULL"},
    "after": _ROW | {"description": "the new row, without the columns named in `unchanged`"},
    "unchanged": _NAMES | {"description": "large values that did not change and were not sent"},
    "unparsed": _NAMES | {"description": "`json` values that JSON readers refuse, carried as strings"},
    "oversize": _NAMES | {"description": "values left out because of `max_event`"},
}
_COLUMN: Final[_Schema] = {
    "type": "object",
    "properties": {
        "name": _TEXT,
        "type_oid": {"type": "integer"},
        "modifier": {"type": "integer"},
        "type": _TEXT | {"description": "where it is not built in; of a domain, the type below it"},
        "key": {"type": "boolean"},
    },
    "required": ["name", "type_oid", "modifier", "key"],
}
_PROPERTIES: Final[Mapping[str, _Schema]] = MappingProxyType(
    {
        "insert": _CHANGE,
        "update": _CHANGE,
        "delete": _CHANGE,
        "read": _CHANGE,
        "truncate": {**_TABLE, "cascade": {"type": "boolean"}, "restart_identity": {"type": "boolean"}},
        "schema": {
            **_TABLE,
            "columns": {"type": "array", "items": _COLUMN},
            "added": _NAMES,
            "removed": _NAMES,
            "retyped": _NAMES,
        },
        "message": {
            "prefix": _TEXT,
            "transactional": {"type": "boolean"},
            "content": _TEXT | {"description": "where it is UTF-8"},
            "content_base64": _TEXT,
        },
    }
)
_OPTIONAL: Final = frozenset({"unchanged", "unparsed", "oversize", "content", "content_base64"})


def schemas() -> Mapping[str, Mapping[str, Any]]:
    """One for each type of event."""
    return {f"{SCHEMA_PREFIX}{name}:1": _schema(name, properties) for name, properties in _PROPERTIES.items()}


def _schema(name: str, properties: _Schema) -> _Schema:
    whole = {"op": {"enum": [name]}, **properties, "tx": _TX}
    return {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "id": f"{SCHEMA_PREFIX}{name}:1",
        "type": "object",
        "properties": whole,
        "required": [key for key in whole if key not in _OPTIONAL],
    }
