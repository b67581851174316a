"""The documents' figures are the measured ones."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_made_from_the_results() -> None:
    shown = ""
    for document in tables().DOCUMENTS:
        text = document.read_text()
        assert tables().filled(text) == text
        shown += text
    assert set(re.findall("<!-- bench:(\\w+) -->", shown)) == {"summary", *measured()}


def measured() -> set[str]:
    """The benchmarks with committed results."""
    return {file.stem for file in tables().RESULTS.iterdir()}


def test_the_first_screen_has_what_a_newcomer_needs() -> None:
    """One sentence, a settings file of about ten lines, the two commands, real output."""
    first = (ROOT / "README.md").read_text().splitlines()[:60]
    assert "make demo" in "\n".join(first)
    assert "make test" in "\n".join(first)
    assert "```toml" in first
    settings = first[first.index("```toml") + 1 :]
    assert settings.index("```") <= 14
