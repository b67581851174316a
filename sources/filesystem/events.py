"""The envelope of a change of the tree."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from typing import Any, Final

from headrace.event import Event, encode_text, rfc3339
from headrace.inventory import Change
from headrace.sources.filesystem.decide import Step
from headrace.sources.filesystem.entry import DIRECTORY, KINDS, Entry, unpack

NAMES: Final = ("created", "modified", "deleted", "moved")


class Events:
    """Builds the events of one source."""

    def __init__(self, source: str, root: bytes) -> None:
        self._source = source
        self._root = encode_text(root)

    def event(
        self, step: Step, change: Change, *, now: float, recovered: bool, content: Mapping[str, Any] | None = None
    ) -> Event:
        """The event of a change. `content` joins its data; `now` (seconds since 1970) dates what has no time."""
        entry = unpack(step.value)
        data = self._data(step, entry) | {"recovered": recovered, **(content or {})}
        time = data.get("mtime") if step.name != "deleted" else None
        return Event(
            id=change.id,
            source=self._source,
            type=f"headrace.filesystem.{step.name}",
            subject=data["path"],
            time=time or rfc3339(int(now * 1e9)),
            dataschema=f"urn:headrace:schema:filesystem.{step.name}:1",
            datacontenttype="application/json",
            partitionkey=data["path"],
            previouskey=data.get("previous_path"),
            barrier=_barrier(step, entry),
            sequence=change.sequence,
            data=data,
        )

    def _data(self, step: Step, entry: Entry) -> dict[str, Any]:
        data: dict[str, Any] = {"root": self._root, **_path("path", step.path), "kind": KINDS[entry.kind]}
        if step.previous is not None:
            data |= _path("previous_path", step.previous)
        if entry.kind != DIRECTORY:
            data |= {"size": entry.size, "mtime": rfc3339(entry.mtime)}
        return data


def _path(name: str, path: bytes) -> dict[str, str]:
    text = encode_text(path)
    return {name: text, f"{name}_base64": b64encode(path).decode()} if "%" in text else {name: text}


def _barrier(step: Step, entry: Entry) -> str | None:
    """A directory that goes concerns every key below it."""
    if entry.kind != DIRECTORY or step.name not in {"moved", "deleted"}:
        return None
    return encode_text(step.path if step.previous is None else step.previous) + "/"


def schemas() -> Mapping[str, Mapping[str, Any]]:
    """JSON Schemas of `data`, by `dataschema`."""
    return {f"urn:headrace:schema:filesystem.{name}:1": _schema(name) for name in NAMES}


def _schema(name: str) -> Mapping[str, Any]:
    text = {"type": "string"}
    properties = {
        "root": text | {"description": "the watched directory"},
        "path": text | {"description": "below the root; %, control characters and undecodable bytes percent-encoded"},
        "path_base64": text | {"description": "the path's bytes, where encoding changed them"},
        "kind": {"enum": list(KINDS)},
        "size": {"type": "integer", "description": "bytes; not of a directory"},
        "mtime": text | {"format": "date-time", "description": "not of a directory"},
        "recovered": {"type": "boolean", "description": "found by comparing, not seen when it happened"},
        "content": text | {"description": "where asked for, and within content_max"},
        "content_base64": text,
    }
    if name == "moved":
        properties |= {"previous_path": text, "previous_path_base64": text}
    return {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "id": f"urn:headrace:schema:filesystem.{name}:1",
        "type": "object",
        "properties": properties,
        "required": ["root", "path", "kind", "recovered"] + (["previous_path"] if name == "moved" else []),
    }
