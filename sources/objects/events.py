"""The envelope of a change of a bucket."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from headrace.event import Event, encode_text, rfc3339
from headrace.inventory import Change
from headrace.sources.objects.decide import Step

NAMES: Final = ("created", "deleted")


class Events:
    """Builds the events of one source."""

    def __init__(self, source: str) -> None:
        self._source = source

    def event(
        self,
        step: Step,
        change: Change,
        *,
        time: int,
        recovered: bool,
        sequencer: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> Event:
        """The event of a change; `time` in ms since 1970."""
        place, entry, subject = step.place, step.entry, encode_text(step.place.key)
        data: dict[str, Any] = {"bucket": place.bucket, "key": place.key}
        if place.version:
            data["versionId"] = place.version
        if entry.marker:
            data["deleteMarker"] = True
        else:
            data |= {"size": entry.size, "etag": entry.etag}
        if sequencer:
            data["sequencer"] = sequencer
        data |= {"eventName": step.event_name, "recovered": recovered}
        if metadata is not None:
            data["metadata"] = dict(metadata)
        return Event(
            id=change.id,
            source=self._source,
            type=f"headrace.object.{step.name}",
            subject=subject,
            time=rfc3339(time * 1_000_000),
            dataschema=f"urn:headrace:schema:object.{step.name}:1",
            datacontenttype="application/json",
            # `encode_key((bucket, key))`, at a third of the cost: a part differs from a text by its "/" alone
            partitionkey=f"{place.bucket}/{subject.replace('/', '%2F')}",
            sequence=change.sequence,
            data=data,
        )


def schemas() -> Mapping[str, Mapping[str, Any]]:
    """JSON Schemas of `data`, by `dataschema`."""
    return {f"urn:headrace:schema:object.{name}:1": _schema(name) for name in NAMES}


def _schema(name: str) -> Mapping[str, Any]:
    text = {"type": "string"}
    marker = "a delete marker was created, or removed where eventName is another"
    return {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "id": f"urn:headrace:schema:object.{name}:1",
        "type": "object",
        "properties": {
            "bucket": text,
            "key": text | {"description": "as it is, not encoded"},
            "versionId": text | {"description": "in versioned buckets; absent for the version S3 calls null"},
            "size": {"type": "integer", "description": "bytes; of a deletion, of what was there"},
            "etag": text | {"description": "without quotes"},
            "deleteMarker": {"type": "boolean", "description": marker},
            "sequencer": text | {"description": "the server's, where it told when it happened"},
            "eventName": text | {"description": "S3's name; ends in :* where only a listing showed the change"},
            "recovered": {"type": "boolean", "description": "found by comparing, not seen when it happened"},
            "metadata": {"type": "object", "description": "where asked for", "additionalProperties": text},
        },
        "required": ["bucket", "key", "eventName", "recovered"],
    }
