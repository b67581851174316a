"""The rules of the house: who may import whom, and the links (ADR 1)."""

import ast
import importlib.util
import os
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("sources", "sinks", "handlers")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# An adapter is what an entry point names; other modules of its folder are shared parts.
ENTRY_POINTS = {
    f"{group}:{name}": target.partition(":")[0]
    for group, names in PYPROJECT["project"]["entry-points"].items()
    for name, target in names.items()
}
ADAPTERS = frozenset(ENTRY_POINTS.values())


def python_files(*folders: str) -> Iterator[Path]:
    """Every module under the folders, each once: links are not followed."""
    for folder in folders:
        for path, _, names in os.walk(ROOT / folder):
            yield from (Path(path, name) for name in sorted(names) if name.endswith(".py"))


def module(path: Path) -> str:
    """`sources/postgres/__init__.py` is `headrace.sources.postgres`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("headrace", *parts) if parts[0] in FOLDERS else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@cache
def imports(path: Path) -> frozenset[str]:
    """The absolute names that a file imports, inside functions and through `import_module` too."""
    tree = ast.parse(path.read_bytes(), path)
    return frozenset(name for node in ast.walk(tree) for name in imported(node, path))


def imported(node: ast.AST, path: Path) -> Iterator[str]:
    match node:
        case ast.Import():
            yield from (alias.name for alias in node.names)
        case ast.ImportFrom():
            base = origin(node, path)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        case ast.Call(
            func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"),
            args=[ast.Constant(value=str(name)), *_],
        ):
            yield name


def origin(node: ast.ImportFrom, path: Path) -> str:
    """What `from … import` names, relative ones resolved."""
    if not node.level:
        return node.module or ""
    package = module(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, node.module or ""]).rstrip(".")


def offences(files: Iterator[Path], *forbidden: str) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in sorted(imports(path))
        if within(name, *forbidden)
    ]


def test_the_core_imports_no_adapter() -> None:
    assert not offences(python_files("headrace"), *(f"headrace.{folder}" for folder in FOLDERS))


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_knows_nothing_of_the_others(folder: str) -> None:
    others = (f"headrace.{other}" for other in FOLDERS if other != folder)
    assert not offences(python_files(folder), *others)


def test_no_adapter_imports_another() -> None:
    for path in python_files(*FOLDERS):
        own = {adapter for adapter in ADAPTERS if within(module(path), adapter)}
        assert not offences(iter([path]), *(ADAPTERS - own))


def test_nobody_imports_past_the_package() -> None:
    files = python_files("headrace", *FOLDERS, "tests", "benchmarks", "examples")
    assert not offences(files, *FOLDERS)


def test_only_plugins_reads_entry_points() -> None:
    readers = {
        module(path)
        for path in python_files("headrace", *FOLDERS)
        if "importlib.metadata.entry_points" in imports(path)
        or any(
            isinstance(node, ast.Attribute) and node.attr == "entry_points"
            for node in ast.walk(ast.parse(path.read_bytes()))
        )
    }
    assert readers == {"headrace.plugins"}


def test_the_rules_see_what_they_forbid(tmp_path: Path) -> None:
    # The walk itself, on a file that breaks each rule in another way.
    path = ROOT / "headrace" / "delivery" / "imaginary.py"
    source = """
import sources.cron
from .. import sinks
from headrace.handlers import worker
def later(): import_module("headrace.sources.http")
"""
    names = {name for node in ast.walk(ast.parse(source)) for name in imported(node, path)}
    assert names == {
        "sources.cron",
        "headrace.sinks",
        "headrace.handlers.worker",
        "headrace.sources.http",
    }


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_links_are_relative_and_lead_to_the_top(folder: str) -> None:
    assert os.readlink(ROOT / "headrace" / folder) == os.path.join("..", folder)
    spec = importlib.util.find_spec(f"headrace.{folder}")
    assert spec is not None
    assert spec.origin == str(ROOT / "headrace" / folder / "__init__.py")


def test_every_folder_of_modules_is_a_package_with_a_docstring() -> None:
    for folder in {path.parent for path in python_files("headrace", *FOLDERS)}:
        assert (folder / "__init__.py").is_file(), f"{folder} has no __init__.py"
    for path in python_files("headrace", *FOLDERS):
        assert ast.get_docstring(ast.parse(path.read_bytes())), f"{path} has no docstring"


@pytest.mark.parametrize(("name", "target"), sorted(ENTRY_POINTS.items()))
def test_every_entry_point_names_a_module_of_its_folder(name: str, target: str) -> None:
    folder = {"contracts": "handlers"}.get(kind := name.partition(":")[0][9:], kind)
    assert within(target, f"headrace.{folder}")
    assert importlib.util.find_spec(target) is not None, f"{name} leads nowhere: {target}"


def test_the_worker_needs_nothing_but_python() -> None:
    # It runs in the user's interpreter, where Headrace may not be installed.
    names = {name.partition(".")[0] for name in imports(ROOT / "handlers" / "worker.py")}
    assert names <= sys.stdlib_module_names


def test_no_example_hides_a_folder() -> None:
    assert not {path.stem for path in python_files("examples")} & set(FOLDERS)


def test_every_dependency_has_its_reason() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    start = lines.index("dependencies = [") + 1
    for line in lines[start : lines.index("]", start)]:
        assert "#" in line, f"no reason beside {line.strip()}"
