"""The JSON Schema of the settings: valid from draft 4 on, and of the same mind as the loader."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date, time
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import tomli

from headrace.plugins import Plugins
from headrace.settings_schema import schema
from tests.core.settings_adapters import Offered

jsonschema = pytest.importorskip("jsonschema", reason="comes with moto[server] of the dev extra")

NEWER = {
    "const",
    "if",
    "then",
    "else",
    "prefixItems",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "$defs",
    "contains",
    "propertyNames",
}


FULL = """
[sources.shop]
type = "shop"
dsn = { env = "D", default = "d" }
port = { file = "p" }
tables = ["a", { env = "T" }]
headers = { a = { file = "x" } }
payload = { any = [1, { thing = true }] }
auth = { token = { env = "T" } }
every = "1s"
chunk = 5
level = "auto"
"""


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for below in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from nodes(below)


def plain(value: Any) -> Any:
    """TOML's times as the texts that a language server sees."""
    if isinstance(value, dict):
        return {key: plain(below) for key, below in value.items()}
    if isinstance(value, list):
        return [plain(below) for below in value]
    return value.isoformat() if isinstance(value, date | time) else value


def accepts(text: str) -> bool:
    validator = jsonschema.Draft4Validator(schema(Offered()))
    return bool(validator.is_valid(plain(tomli.loads(text))))


def test_only_constructs_that_every_draft_reads_alike() -> None:
    found = schema(Offered())
    jsonschema.Draft4Validator.check_schema(found)
    jsonschema.Draft202012Validator.check_schema({**found, "$schema": "https://json-schema.org/draft/2020-12/schema"})
    assert json.loads(json.dumps(found)) == found
    for node in nodes(found):
        assert not NEWER & set(node)
        assert "$ref" not in node or len(node) == 1


def test_what_is_installed_has_a_schema() -> None:
    jsonschema.Draft4Validator.check_schema(schema(Plugins()))


@pytest.mark.parametrize(
    "text",
    [
        "",
        '[daemon]\ngrace = "1s"\nadmin_token = { env = "T" }\n[journal]\nmax_size = "1GiB"\nmax_event = 4096\n',
        FULL,
        '[handlers.a]\nfunction = "f.py:f"\non = ["x"]\nstart = 2026-01-31T06:00:00Z\nretry = { attempts = 2 }\n',
        '[handlers.a]\ncommand = ["x"]\n[handlers.b]\ncontract = "aws-lambda"\nfunction = "f.py:f"\nbatch.size = 3\n',
        '[sinks.s]\ntype = "audit"\npath = "p"\nstart = "earliest"\ntimeout = { env = "T" }\n',
    ],
)
def test_it_accepts_what_the_loader_accepts(text: str) -> None:
    assert accepts(text)


@pytest.mark.parametrize(
    "text",
    [
        "[deamon]",
        '[sources."a b"]\ntype = "clock"\n',
        '[sources.a]\ntype = "clok"\n',
        "[sources.a]\n",
        '[sources.a]\ntype = "clock"\nsnapshot = "x"\n',
        '[sources.a]\ntype = "shop"\ndsn = 1\n',
        '[sources.a]\ntype = "shop"\n',
        '[sources.a]\ntype = "shop"\ndsn = "x"\nport = 0\n',
        '[sources.a]\ntype = "shop"\ndsn = { env = "x", defualt = 1 }\n',
        "[handlers.a]\n",
        '[handlers.a]\ncontract = "aws-lambda"\n',
    ],
)
def test_it_refuses_what_the_loader_refuses(text: str) -> None:
    assert not accepts(text)


def test_an_adapter_that_cannot_be_loaded_takes_any_key() -> None:
    unloadable = EntryPoint("gone", "no_such_module:X", "headrace.sources")
    validator = jsonschema.Draft4Validator(schema(Plugins([unloadable])))
    assert validator.is_valid({"sources": {"a": {"type": "gone", "any": 1}}})
    assert not validator.is_valid({"sources": {"a": {"type": "other"}}})


def test_defaults_read_as_they_would_be_written() -> None:
    daemon = schema(Offered())["properties"]["daemon"]["properties"]
    assert daemon["grace"]["default"] == "10s"
    assert daemon["data_dir"]["default"] == "headrace-data"
    assert "default" not in daemon["admin_token"]
