"""The documentation under test: blocks parse, commands exist, links lead somewhere."""

import ast
import json
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import tomli

from headrace.settings_file import load

ROOT = Path(__file__).parents[2]
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")})
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\S*)[^\n]*\n(?P<text>.*?)^ *```[ \t]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)")
HEADING = re.compile(r"^#+ +(.+?) *#*$", re.MULTILINE)
# `text` is for what is neither a command nor a file: a layout, a message.
LANGUAGES = {"toml", "sh", "bash", "console", "python", "json", "jsonl", "ini", "text"}


class Block(NamedTuple):
    """A fenced block, and where it stands."""

    place: str
    language: str
    text: str


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def found(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for fence in FENCE.finditer(text):
        line = text.count("\n", 0, fence.start()) + 1
        indent = len(fence["indent"])
        body = "".join(row[indent:] or "\n" for row in fence["text"].splitlines(keepends=True))
        yield Block(f"{name(page)}:{line}", fence["language"], body)


def composed() -> Block:
    """Return the settings file inside compose.yaml."""
    text = (ROOT / "compose.yaml").read_text()
    content = re.search(r"content: \|\n((?: {6}.*\n|\n)+)", text)
    assert content is not None
    return Block("compose.yaml", "toml", textwrap.dedent(content[1]))


BLOCKS = [*(block for page in PAGES for block in found(page)), composed()]


def blocks(*languages: str) -> pytest.MarkDecorator:
    chosen = [block for block in BLOCKS if block.language in languages]
    return pytest.mark.parametrize("block", chosen, ids=[block.place for block in chosen])


def validate_settings(block: Block, folder: Path) -> None:
    """Load a block as the settings file that it shows; environment and secret files are made up."""
    file = folder / "headrace.toml"
    file.write_text(block.text)
    for secret in re.findall(r"{ *file *= *\"([^\"]+)\" *}", block.text):
        (folder / secret).write_text("made-up")
    environment = {name: made_up(name) for name in re.findall(r"env *= *\"(\w+)\"", block.text)}
    load(file, environment)


def made_up(name: str) -> str:
    """Return a value that passes for what a variable's name says."""
    kinds = {"URL": "https://made-up.example/", "SECRET": "whsec_bWFkZS11cC1tYWRlLXVwLW1hZGUtdXAtMQ=="}
    return kinds.get(name.rpartition("_")[2], "made-up")


def test_every_block_says_its_language() -> None:
    unknown = [f"{block.place}: {block.language!r}" for block in BLOCKS if block.language not in LANGUAGES]
    assert not unknown


@blocks("toml")
def test_toml_is_toml_1_0_and_settings_are_settings(block: Block, tmp_path: Path) -> None:
    if tomli.loads(block.text).keys() & {"daemon", "journal", "sources", "handlers", "sinks"}:
        validate_settings(block, tmp_path)


@blocks("python")
def test_python_parses(block: Block) -> None:
    ast.parse(block.text, block.place)


@blocks("json", "jsonl")
def test_json_parses(block: Block) -> None:
    for text in [block.text] if block.language == "json" else block.text.splitlines():
        json.loads(text)


def script(block: Block) -> str:
    """Return the commands of a block: all of a script, what follows `$ ` in a console."""
    if block.language != "console":
        return block.text
    # A console's command goes on after a backslash at the end of its line.
    commands = re.findall(r"^\$ ((?:.*\\\n)*.*)$", block.text, re.MULTILINE)
    return "\n".join(commands) + "\n"


@blocks("sh", "bash", "console")
def test_shell_parses(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=script(block), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{block.place}: {done.stderr}"


def commands(text: str) -> Iterator[list[str]]:
    """Split a script into simple commands; redirections end one."""
    lexer = shlex.shlex(joined(text), posix=True, punctuation_chars=";&|()<>")
    command: list[str] = []
    for token in lexer:
        if set(token) <= set(";&|()<>"):
            yield command
            command = []
        else:
            command.append(token)
    yield command


def joined(text: str) -> str:
    """Make each line a command of its own, before its comment hides the end of the line."""
    lines = text.replace("\\\n", " ").splitlines()
    return " ; ".join(re.sub(r"(^|\s)#.*", "", line) for line in lines)


@cache
def complaint(command: tuple[str, ...]) -> str:
    """Return what the program answers to a command line that it does not know, else nothing.

    `--help` is answered before anything runs, but only where each command and option exists.
    """
    call = [sys.executable, "-m", "headrace", *command, "--help"]
    done = subprocess.run(call, capture_output=True, text=True, check=False, cwd=ROOT)
    return done.stdout + done.stderr if done.returncode else ""


@blocks("sh", "bash", "console")
def test_every_headrace_command_exists(block: Block) -> None:
    for program, *args in filter(None, commands(script(block))):
        if program == "headrace":
            said = complaint(tuple(args))
            assert not said, f"{block.place}: headrace {shlex.join(args)}: {said}"


@blocks("sh", "bash", "console")
def test_every_task_exists(block: Block) -> None:
    for command in filter(None, commands(script(block))):
        if command[0] == "make":
            tasks = command[1:2]
        elif command[:2] == ["python3", "dev.py"]:
            tasks = command[2:3]
        else:
            continue
        for task in tasks:
            assert known(task), f"{block.place}: {shlex.join(command)}: no task {task}"


def known(task: str) -> bool:
    if task.startswith("bench-"):
        return (ROOT / "benchmarks" / f"{task[6:]}.py").is_file()
    (tasks,) = re.findall(r"^TASKS = (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return task in tasks.split()


def test_make_and_dev_know_the_same_tasks() -> None:
    text = (ROOT / "dev.py").read_text()
    table = re.search(r"^TASKS = \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    assert table is not None
    assert all(known(task) for task in re.findall(r'^    "(\w+)":', table[1], re.MULTILINE))


def without_blocks(page: Path) -> str:
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text()))


def anchors(page: Path) -> set[str]:
    """Return the names that a page's headings get."""
    headings = HEADING.findall(FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(without_blocks(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{name(page)}: {link} leads nowhere"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{name(page)}: {link}: no such heading"


@pytest.mark.parametrize(
    "text",
    ["a = {x = 1,}", 'a = "\\e"', "a = {\nx = 1 }", "a = 07:32"],
    ids=["trailing comma", "escape", "newline in a table", "time without seconds"],
)
def test_the_pinned_parser_refuses_toml_1_1(text: str) -> None:
    with pytest.raises(tomli.TOMLDecodeError):
        tomli.loads(text)


def test_blocks_and_commands_are_found() -> None:
    # The finders themselves: a test that finds nothing shows nothing.
    text = "cd x && headrace -c a.toml run | jq . > out  # headrace nothing\nmake test \\\n  -s\n"
    assert [*filter(None, commands(text))] == [
        ["cd", "x"],
        ["headrace", "-c", "a.toml", "run"],
        ["jq", "."],
        ["out"],
        ["make", "test", "-s"],
    ]
    console = Block("", "console", "$ headrace run\nready\n$ make \\\n  test\n")
    assert script(console) == "headrace run\nmake \\\n  test\n"
