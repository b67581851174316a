"""`docs/schemas` holds what `headrace schema` prints; `HEADRACE_WRITE_SCHEMAS=1` writes it anew."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema

from tests.fixtures.daemon import headrace

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"
SETTINGS = """
[sources.files]
type = "filesystem"
path = "."

[sources.clock]
type = "cron"
every = "1h"

[sources.hooks]
type = "http"
listen = "127.0.0.1:0"

[sources.buckets]
type = "minio"
endpoint = "http://127.0.0.1:9000"
bucket = "uploads"

[sources.tables]
type = "postgres"
dsn = "host=localhost"

[sources.notifications]
type = "postgres-notify"
dsn = "host=localhost"
channels = ["jobs"]
"""


def test_the_schemas_in_the_docs_are_what_the_command_prints(tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_text(SETTINGS)
    printed = {f"{urn.partition('schema:')[2].replace(':', '.')}.json": it for urn, it in events(tmp_path).items()}
    printed["settings.json"] = json.loads(headrace("schema", "settings", cwd=tmp_path).stdout)
    if os.environ.get("HEADRACE_WRITE_SCHEMAS"):
        for name, schema in printed.items():
            (SCHEMAS / name).write_text(json.dumps(schema, indent=2, sort_keys=True) + "\n")
    kept = {file.name: json.loads(file.read_text()) for file in SCHEMAS.glob("*.json")}
    assert kept == printed, "write them anew with HEADRACE_WRITE_SCHEMAS=1"
    for schema in kept.values():
        jsonschema.Draft4Validator.check_schema(schema)


def events(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(headrace("schema", "events", cwd=folder).stdout)
    return found
