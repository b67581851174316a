"""Finding, reading and checking the settings file: every mistake at once, in plain words, on its line."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from headrace.errors import SettingsError
from headrace.plugins import Plugins
from headrace.settings_file import load, locate
from tests.core.settings_adapters import Clock, Function, Offered, Shop, loaded, problems, written

SHOP = '[sources.shop]\ntype = "shop"\ndsn = "db://x"\n'


def test_a_whole_file(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        '[daemon]\ngrace = "3s"\n[journal]\nmax_size = "1GiB"\n' + SHOP + 'every = "1m30s"\ntables = ["a"]\n'
        '[handlers.make]\nfunction = "f.py:make"\non = ["shop.insert"]\nretry.attempts = 3\n'
        '[handlers.call]\ncommand = ["true"]\nstart = 2026-01-31T06:00:00Z\n'
        '[handlers.cloud]\ncontract = "aws-lambda"\nfunction = "f.py:make"\nstart = "2026-01-31T06:00:00.5+01:00"\n'
        '[sinks.audit]\ntype = "audit"\npath = "audit.jsonl"\n',
    )
    assert config.directory == tmp_path
    assert (config.daemon.grace, config.journal.max_size) == (3.0, 1 << 30)
    shop = config.sources["shop"]
    assert isinstance(shop, Shop)
    assert (shop.every, shop.tables) == (90.0, ("a",))
    assert isinstance(config.handlers["make"], Function)
    assert config.handlers["make"].retry.attempts == 3
    assert {name: each.contract for name, each in config.handlers.items()} == {
        "make": "function",
        "call": "command",
        "cloud": "aws-lambda",
    }
    assert config.handlers["call"].start == datetime(2026, 1, 31, 6, tzinfo=UTC)
    assert config.handlers["cloud"].start == datetime(2026, 1, 31, 5, 0, 0, 500_000, tzinfo=UTC)
    assert set(config.consumers) == {"make", "call", "cloud", "audit"}
    assert str(config.sinks["audit"].path) == "audit.jsonl"  # type: ignore[attr-defined]


def test_the_documented_form_of_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("headrace.toml").write_text(SHOP + 'tabels = ["a"]\n')
    with pytest.raises(SettingsError) as caught:
        load(locate(None, {}), {}, plugins=Offered())
    assert str(caught.value) == 'headrace.toml:4: sources.shop.tabels: unknown key; did you mean "tables"?'


def test_all_problems_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        '[sinks.audit]\ntype = "audit"\n'
        '[deamon]\n[sources.shop]\ntype = "shpo"\n[sources.other]\ntype = "shop"\nport = "5432"\ndsn = 3\n'
        '[handlers.make]\nfunction = "f.py:make"\non = ["shop", "uther"]\n',
    )
    assert found == [
        "1: sinks.audit.path: missing, and needed",
        '3: deamon: unknown table; did you mean "daemon"?',
        '5: sources.shop.type: unknown "shpo"; did you mean "shop"?',
        "8: sources.other.port: expected a whole number, found a text",
        "9: sources.other.dsn: expected a text, found a whole number",
        '12: handlers.make.on[1]: unknown source "uther"; did you mean "other"?',
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("port = true", "port: expected a whole number, found true or false"),
        ("port = 0", "port: must be at least 1"),
        ("port = 70_000", "port: must be at most 65535"),
        ("port = 1.5", "port: expected a whole number, found a number"),
        ('ratio = "1"', "ratio: expected a number, found a text"),
        ('tls = "yes"', "tls: expected true or false, found a text"),
        ('level = "atuo"', 'level: expected a whole number or "auto"; did you mean "auto"?'),
        ("level = []", 'level: expected a whole number or "auto", found a list'),
        ('tables = "a"', "tables: expected a list, found a text"),
        ("tables = [1]", "tables[0]: expected a text, found a whole number"),
        ("every = 5", 'every: a duration is a text such as "200ms", "30s", "1h30m" or "7d"'),
        ('every = "5"', 'every: "5" is no duration; write one as "200ms", "30s", "1h30m" or "7d"'),
        ('every = "0s"', "every: must be more than 0s"),
        ('chunk = "1B"', "chunk: must be at least 1KiB"),
        ("chunk = 1", "chunk: must be at least 1024"),
        ('chunk = "1KB"', 'chunk: \'1KB\' is no size; write one as "512KiB", "10MiB" or "1GiB"'),
        ('snapshot = "intial"', 'snapshot: expected "initial" or "never"; did you mean "initial"?'),
        ("snapshot = 1", 'snapshot: expected "initial" or "never", found a whole number'),
        ("folder = 1", "folder: expected a text, found a whole number"),
        ("payload = 1979-05-27", "payload: expected a table, found a date"),
        ("port = 1\ntls = false", "port: port 1 needs tls"),
        ('auth = { user = "a" }', "auth.password: missing, and needed"),
        ('auth = { user = "a", pasword = "b" }', 'auth.pasword: unknown key; did you mean "password"?'),
        ('auth = "a"', "auth: expected a table, found a text"),
        (
            "zzz = 1",
            (
                "zzz: unknown key; the keys here are auth, chunk, dsn, every, folder, headers, level, password, "
                "payload, port, ports, ratio, snapshot, tables, tls and type"
            ),
        ),
    ],
)
def test_each_mistake_is_one_plain_sentence(tmp_path: Path, line: str, message: str) -> None:
    assert f"4: sources.shop.{message}" in problems(tmp_path, SHOP + line + "\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("handlers.a = {}", '1: handlers.a: needs one of the keys "function", "command" and "contract"'),
        (
            'handlers.a.functoin = "f.py:f"',
            (
                '1: handlers.a: needs one of the keys "function", "command" and "contract"; '
                'did you mean "function" by "functoin"?'
            ),
        ),
        ("handlers.a.contract = 1", "1: handlers.a.contract: expected a text, found a whole number"),
        ("sinks.a = {}", "1: sinks.a.type: missing, and needed: audit"),
        ("sources = 1", "1: sources: expected a table, found a whole number"),
        ("[[sources.a]]", "1: sources.a: expected a table, found a list"),
        ("daemon = []", "1: daemon: expected a table, found a list"),
        ("x = 1", "1: x: unknown table; the tables here are daemon, handlers, journal, sinks and sources"),
        ("[source.x]", '1: source: unknown table; did you mean "sources"?'),
        (
            'sources."a.b".type = "clock"',
            '1: sources."a.b": a name has letters, digits, _ and -, at most 64, and does not start with -',
        ),
        (
            'sources.a.type = "clock"\n\nsinks.a = { type = "audit", path = "x" }',
            "3: sinks.a: the name is taken by [sources.a] on line 1",
        ),
        ('daemon.admin = "8470"', '1: daemon.admin: expected HOST:PORT, such as "127.0.0.1:8470" or "[::1]:8470"'),
        (
            'daemon.admin = "0.0.0.0:8470"',
            "1: daemon.admin: can be reached from other machines: set admin_token as well",
        ),
        (
            'daemon.origin = "a b"',
            "1: daemon.origin: must start a URI: letters, digits and -._~:/?#[]@!$&'()*+,;=% only",
        ),
        ('daemon.data_dir = ""', "1: daemon.data_dir: must name a folder"),
        ('journal.max_size = "2MiB"', "1: journal.max_event: 16MiB is more than max_size (2MiB)"),
        (
            'sinks.a = { type = "audit", path = "x", retry.initial = "1h" }',
            "1: sinks.a.retry.initial: 1h is more than max (5m)",
        ),
    ],
)
def test_mistakes_of_structure_and_meaning(tmp_path: Path, text: str, message: str) -> None:
    assert problems(tmp_path, text) == [message]


@pytest.mark.parametrize("admin", ["127.0.0.1:0", "localhost:8470", "[::1]:8470", "127.9.9.9:80"])
def test_loopback_needs_no_token(tmp_path: Path, admin: str) -> None:
    assert problems(tmp_path, f'daemon.admin = "{admin}"') == []


def test_other_addresses_need_a_token_that_is_not_empty(tmp_path: Path) -> None:
    assert problems(tmp_path, 'daemon = { admin = "0.0.0.0:1", admin_token = "t" }') == []
    assert len(problems(tmp_path, 'daemon = { admin = "0.0.0.0:1", admin_token = "" }')) == 1


@pytest.mark.parametrize(
    ("on", "message"),
    [
        ('["shop", "shop.insert", "shop.update", "clock.whatever"]', None),
        ('["shpo"]', 'on[0]: unknown source "shpo"; did you mean "shop"?'),
        ('["zzzz"]', 'on[0]: unknown source "zzzz"; the sources are shop and clock'),
        ('["clock", "shop.insrt"]', 'on[1]: source "shop" has no event "insrt"; did you mean "shop.insert"?'),
        ('["shop.zzzz"]', 'on[0]: source "shop" has no event "zzzz"; it has insert and update'),
        ('["shop."]', 'on[0]: source "shop" has no event ""'),
        ('["a"]', 'on[0]: unknown source "a"; the sources are shop and clock'),
        ("[]", "on: an empty list asks for nothing; without the key it is everything"),
        ('"shop"', "on: expected a list, found a text"),
    ],
)
def test_on_is_checked_against_the_sources(tmp_path: Path, on: str, message: str | None) -> None:
    text = f'{SHOP}[sources.clock]\ntype = "clock"\n[sinks.a]\ntype = "audit"\npath = "x"\non = {on}\n'
    found = problems(tmp_path, text)
    assert len(found) == (0 if message is None else 1)
    assert message is None or found[0].startswith(f"9: sinks.a.{message}")


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ('"earliest"', None),
        ("2026-01-31T06:00:00+02:00", None),
        ("2026-01-31T06:00:00", "a time needs its offset, as in 2026-01-31T06:00:00Z"),
        ("2026-01-31", 'expected "earliest", "latest" or a time such as 2026-01-31T06:00:00Z'),
        ('"2026-01-31T06:00:00"', 'expected "earliest", "latest" or a time such as 2026-01-31T06:00:00Z'),
        ('"2026-02-31T06:00:00Z"', "day is out of range for month"),
        ("17", 'expected "earliest", "latest" or a time such as 2026-01-31T06:00:00Z'),
        ("[]", 'expected "earliest", "latest" or a time such as 2026-01-31T06:00:00Z'),
    ],
)
def test_start(tmp_path: Path, start: str, message: str | None) -> None:
    found = problems(tmp_path, f'[sinks.a]\ntype = "audit"\npath = "x"\nstart = {start}\n')
    assert found == ([] if message is None else [f"4: sinks.a.start: {message}"])


def test_only_strict_looks_outside(tmp_path: Path) -> None:
    text = SHOP + 'folder = "absent"\npassword = "hunter2"\n'
    assert problems(tmp_path, text) == []
    assert problems(tmp_path, text, strict=True) == ["4: sources.shop.folder: does not exist ***"]
    (tmp_path / "absent").mkdir()
    assert problems(tmp_path, text, strict=True) == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = { b = 1,\n c = 2 }", 1),
        ("\na = { b = 1, }", 2),
        ('a = "\\e"', 1),
        ('a = "\\x41"', 1),
        ("a = 07:32", 1),
        ("a = 1979-05-27T07:32Z", 1),
    ],
)
def test_what_only_toml_1_1_allows_is_refused(tmp_path: Path, text: str, line: int) -> None:
    found = problems(tmp_path, text)
    assert len(found) == 1
    assert found[0].startswith(f"{line}: not valid TOML 1.0: column ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a = [1\n", "not valid TOML 1.0: "),
        (b"a = 1\na = 2\n", "not valid TOML 1.0: "),
        (b"a = 1\n# \xff\n", ":2: is not UTF-8 text"),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"a = " + b"{a=" * 390 + b"1" + b"}" * 390, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_toml(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "headrace.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=message) as caught:
        load(path, {}, plugins=Offered())
    assert len(caught.value.problems) == 1


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        load(tmp_path, {}, plugins=Offered())


def test_an_empty_file_has_the_defaults(tmp_path: Path) -> None:
    config = load(written(tmp_path, ""), {}, plugins=Plugins([]))
    assert config.data_dir == tmp_path / "headrace-data"
    assert not config.sources


def test_paths_stay_relative_and_the_file_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, SHOP + 'folder = "below"\n')
    config = load(Path("headrace.toml"), {}, plugins=Offered())
    shop = config.sources["shop"]
    assert isinstance(shop, Shop)
    assert shop.folder == Path("below")
    assert config.file == tmp_path / "headrace.toml"


def test_a_source_without_a_list_of_events_takes_any() -> None:
    assert Clock.events is None


def test_where_the_file_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named, other = written(tmp_path, ""), tmp_path / "other.toml"
    other.write_text("")
    assert locate(str(other), {"HEADRACE_CONFIG": str(named)}) == other
    assert locate(None, {"HEADRACE_CONFIG": str(other)}) == other
    assert locate(None, {"HEADRACE_CONFIG": ""}) == Path("headrace.toml")


def test_a_file_that_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("headrace.settings_file.PLACES", (Path("headrace.toml"), tmp_path / "etc/headrace.toml"))
    for option, environ, words in (
        (None, {}, f"no settings file: looked for headrace.toml and {tmp_path}/etc/headrace.toml"),
        ("gone.toml", {}, "no settings file: looked for gone.toml"),
        (None, {"HEADRACE_CONFIG": "gone.toml"}, "no settings file: looked for gone.toml, as HEADRACE_CONFIG says"),
    ):
        with pytest.raises(SettingsError) as caught:
            locate(option, environ)
        assert str(caught.value) == f"{words}; `headrace init` writes a starter"
