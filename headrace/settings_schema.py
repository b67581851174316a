"""A JSON Schema of the settings file, over all adapters that are installed; one that cannot be loaded takes any key.

Only constructs that mean the same from draft 4 on, for language servers of TOML differ in what they
know: no `const`, `if`, `prefixItems`, exclusive bounds or keys beside `$ref`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaWarningKind

from headrace.plugins import Finder, Group, PluginError, Plugins
from headrace.settings import DaemonSettings, JournalSettings
from headrace.settings_file import NAME
from headrace.units import format_duration

Schema = dict[str, Any]

_SCALARS: Final = frozenset({"string", "integer", "number", "boolean"})
_KEPT: Final = frozenset(
    {"type", "enum", "description", "required", "minLength", "maxLength", "minItems", "maxItems", "pattern"}
)
_NUMERIC: Final = frozenset({"minimum", "maximum"})
_REFERENCES: Final[list[Schema]] = [{"$ref": "#/definitions/env"}, {"$ref": "#/definitions/file"}]
_SCALAR: Final[Schema] = {"type": ["string", "integer", "number", "boolean"]}


def schema(plugins: Finder | None = None) -> Schema:
    """The schema, as what `json.dumps` takes."""
    finder = plugins or Plugins()
    tables: Schema = {
        "daemon": _model(DaemonSettings),
        "journal": _model(JournalSettings),
        "sources": _section(finder, "headrace.sources", "type"),
        "handlers": _section(finder, "headrace.contracts", "contract"),
        "sinks": _section(finder, "headrace.sinks", "type"),
    }
    return {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "title": "Headrace settings",
        **_table(tables),
        "definitions": {
            "env": _table({"env": {"type": "string"}, "default": _SCALAR}, required=["env"]),
            "file": _table({"file": {"type": "string"}}, required=["file"]),
        },
    }


def _table(properties: Mapping[str, Any], *, required: list[str] | None = None) -> Schema:
    needed = {"required": sorted(required)} if required else {}
    return {"type": "object", "properties": {**properties}, "additionalProperties": False, **needed}


def _section(finder: Finder, group: Group, key: str) -> Schema:
    choices = [_adapter(finder, group, name, key) for name in finder.names(group)]
    patterns = {f"^{NAME}$": {"anyOf": choices}} if choices else {}
    return {"type": "object", "patternProperties": patterns, "additionalProperties": False}


def _adapter(finder: Finder, group: Group, name: str, key: str) -> Schema:
    """One kind of table, known by its `type` or `contract`."""
    try:
        found = _model(finder.find(group, name))
    except (PluginError, PydanticInvalidForJsonSchema):
        found = {"type": "object", "properties": {}}
    found["properties"][key] = {"enum": [name]}
    required = set(found.pop("required", ())) - {key}
    if name not in found["properties"]:  # the key `function` stands for its contract
        required.add(key)
    return {**found, **({"required": sorted(required)} if required else {})}


def _model(model: type[BaseModel]) -> Schema:
    raw = model.model_json_schema(mode="validation", schema_generator=_Generator)
    return _Draft4(raw.get("$defs", {})).of(raw)


class _Generator(GenerateJsonSchema):
    """Leaves a default out where JSON cannot hold it, without a warning."""

    def emit_warning(self, kind: JsonSchemaWarningKind, detail: str) -> None: ...


class _Draft4:
    """Rewrites what pydantic writes: references to definitions are written out, as models nest little."""

    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self._definitions = definitions

    def of(self, node: Any, within: frozenset[str] = frozenset()) -> Schema:
        """`within` are the definitions being written out: one that holds itself is left open."""
        if not isinstance(node, dict) or node.get("$ref") in within:
            return {}
        if "$ref" in node:
            reference: str = node["$ref"]
            inner = self.of(self._definitions.get(reference.rpartition("/")[2], {}), within | {reference})
            return {**inner, **_default(node)}
        if members := node.get("anyOf") or node.get("oneOf"):
            return self._union(node, members, within)
        return self._single(node, within)

    def _union(self, node: Schema, members: list[Schema], within: frozenset[str]) -> Schema:
        flat: list[Schema] = []
        for member in members:
            written = self.of(member, within)
            flat += written.get("anyOf", [written])
        unique = [each for index, each in enumerate(flat) if each not in flat[:index] and each != {"type": "null"}]
        alone = unique[0] if len(unique) == 1 else {"anyOf": unique}
        return {**alone, **_texts(node), **_default(node)}

    def _single(self, node: Schema, within: frozenset[str]) -> Schema:
        kept = {key: value for key, value in node.items() if key in _KEPT}
        if "const" in node:
            kept["enum"] = [node["const"]]
        if node.get("type") in {"integer", "number"}:
            kept |= _bounds(node)
        if "properties" in node:
            kept["properties"] = {key: self.of(value, within) for key, value in node["properties"].items()}
        for key in ("items", "additionalProperties"):
            if key in node:
                kept[key] = self.of(node[key], within) if isinstance(node[key], dict) else node[key]
        return self._or_reference(kept) | _default(node)

    @staticmethod
    def _or_reference(kept: Schema) -> Schema:
        if kept.get("type") not in _SCALARS and "enum" not in kept:
            return kept
        return {"anyOf": [kept, *_REFERENCES], **_texts(kept)}


def _texts(node: Schema) -> Schema:
    return {"description": node["description"]} if "description" in node else {}


def _bounds(node: Schema) -> Schema:
    """Bounds as every draft reads them: exclusive ones as inclusive, a little too wide."""
    loose = {
        name: node[key]
        for name, key in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum"))
        if key in node
    }
    return loose | {key: node[key] for key in _NUMERIC if key in node}


def _default(node: Schema) -> Schema:
    """The default as it would be written in the file: TOML has no null, and durations are texts."""
    value = node.get("default")
    if value is None:
        return {}
    is_duration = node.get("type") == "string" and isinstance(value, int | float)
    return {"default": format_duration(value) if is_duration else value}
