"""Values from the environment and from files; secrets that appear nowhere."""

from __future__ import annotations

import logging
import pickle
import traceback
from pathlib import Path

import pytest
import structlog

from headrace.errors import SettingsError
from headrace.settings import Config, Secret
from headrace.settings_file import load
from tests.core.settings_adapters import Login, Offered, Shop, loaded, problems, written

SHOP = '[sources.shop]\ntype = "shop"\n'
DSN = 'dsn = "db://x"\n'
HIDDEN = "hunter2-ÄÖ'\"\\"


def shop(config: Config) -> Shop:
    found = config.sources["shop"]
    assert isinstance(found, Shop)
    return found


def test_any_scalar_may_come_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from a file\n")
    (tmp_path / "size").write_text("2MiB\r\n")
    found = shop(
        loaded(
            tmp_path,
            SHOP + 'dsn = { env = "DSN" }\npassword = { file = "key" }\nport = { env = "PORT" }\n'
            'ratio = { env = "RATIO" }\ntls = { env = "TLS" }\nevery = { env = "EVERY" }\nchunk = { file = "size" }\n'
            'level = { env = "LEVEL", default = 3 }\nsnapshot = { env = "SNAPSHOT", default = "initial" }\n'
            'tables = ["a", { env = "TABLE" }]\nports = [1, { env = "PORT" }]\nheaders = { x = { env = "TABLE" } }\n'
            'auth = { user = "u", password = { file = "key" } }\nfolder = { env = "TABLE" }\n',
            DSN="db://y",
            PORT=" 6543\n",
            RATIO="1e-2",
            TLS="Off",
            EVERY="1m",
            TABLE="b",
        )
    )
    assert (found.dsn, found.port, found.ratio, found.tls, found.every) == ("db://y", 6543, 0.01, False, 60.0)
    assert (found.chunk, found.level, found.snapshot, found.tables) == (2 << 20, 3, "initial", ("a", "b"))
    assert (found.ports, found.folder) == ((1, 6543), Path("b"))
    assert found.password is not None
    assert found.password.get_secret_value() == "from a file"
    assert found.headers["x"].get_secret_value() == "b"
    assert isinstance(found.auth, Login)
    assert found.auth.password.get_secret_value() == "from a file"


def test_a_variable_wins_over_the_default_even_when_it_is_empty(tmp_path: Path) -> None:
    text = SHOP + DSN + 'password = { env = "P", default = "d" }\n'
    for environ, value in (({}, "d"), ({"P": ""}, ""), ({"P": "x"}, "x")):
        password = shop(load(written(tmp_path, text), environ, plugins=Offered())).password
        assert password is not None
        assert password.get_secret_value() == value


def test_nothing_is_replaced_where_a_table_may_stand(tmp_path: Path) -> None:
    text = SHOP + DSN + 'payload = { file = "a", deep = { env = "B" }, list = [{ file = "c" }] }\n'
    assert shop(loaded(tmp_path, text)).payload == {"file": "a", "deep": {"env": "B"}, "list": [{"file": "c"}]}
    assert shop(loaded(tmp_path, SHOP + DSN + 'payload = { env = "B" }\n', B="no")).payload == {"env": "B"}
    headers = shop(loaded(tmp_path, SHOP + DSN + 'headers = { env = "B" }\n', B="no")).headers
    assert headers["env"].get_secret_value() == "B"


def test_a_value_is_never_read_as_toml(tmp_path: Path) -> None:
    injected = '"\nport = 1\n[sinks.x]\n{ env = "OTHER" }'
    config = loaded(tmp_path, SHOP + DSN + 'tables = [{ env = "T" }]\n', T=injected, OTHER="no")
    assert shop(config).tables == (injected,)
    assert not config.sinks


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('password = { env = "NO" }', "password: the environment variable NO is not set"),
        ('tables = ["a",\n{ env = "NO" },\n{ env = "NO2" }]', "tables[1]: the environment variable NO is not set"),
        ('password = { file = "no" }', 'password: cannot read the file "no": No such file or directory'),
        ('password = { file = "." }', 'password: cannot read the file ".": Is a directory'),
        ('password = { file = "binary" }', 'password: cannot read the file "binary": it is not UTF-8 text'),
        ('password = { file = "large" }', 'password: cannot read the file "large": it is larger than 1 MiB'),
        ("password = { env = 1 }", "password.env: expected a text, found a whole number"),
        ('password = { env = "" }', "password.env: is empty"),
        ('password = { env = "NO", default = [] }', "password.default: expected a single value, found a list"),
        ('password = { env = "NO", defualt = "" }', 'password.defualt: unknown key; did you mean "default"?'),
        (
            'password = { file = "no", default = "" }',
            (
                'password.default: unknown key; a value from elsewhere is { env = "NAME" }, '
                '{ env = "NAME", default = … } or { file = "…" }'
            ),
        ),
        ('port = { env = "TEXT" }', "port: expected a whole number, and the text filled in is not that"),
        ('port = { env = "EMPTY" }', "port: expected a whole number, and the text filled in is not that"),
        ('port = { env = "BIG" }', "port: must be at most 65535"),
        ('port = { env = "NO", default = "1" }', "port: expected a whole number, found a text"),
        ('tls = { env = "BIG" }', "tls: expected true or false, and the text filled in is not that"),
        ('ratio = { env = "NAN" }', "ratio: expected a number, and the text filled in is not that"),
        ('tables = { env = "TEXT" }', "tables: expected a list, found a table"),
    ],
)
def test_mistakes_are_located(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "binary").write_bytes(b"\xff")
    (tmp_path / "large").write_bytes(b"a" * ((1 << 20) + 1))
    found = problems(tmp_path, SHOP + DSN + line + "\n", TEXT="many", EMPTY="", BIG="70000", NAN="nan")
    key = message.partition(": ")[0]
    assert f"{5 if '[1]' in key else 4}: sources.shop.{message}" in found
    assert len(found) == line.count('"NO2"') + 1


def test_what_could_not_be_filled_in_has_no_consequences(tmp_path: Path) -> None:
    text = SHOP + 'dsn = { env = "NO" }\n[daemon]\nadmin = "0.0.0.0:1"\nadmin_token = { env = "NO" }\n'
    assert problems(tmp_path, text) == [
        "3: sources.shop.dsn: the environment variable NO is not set",
        "6: daemon.admin_token: the environment variable NO is not set",
    ]


@pytest.mark.parametrize(
    "line",
    [
        'dsn = { file = "hidden" }',  # the validator quotes the value
        'dsn = { env = "HIDDEN" }',
        DSN + 'every = { env = "HIDDEN" }',
        DSN + 'chunk = { file = "hidden" }',
        DSN + 'port = { env = "HIDDEN" }',
        DSN + 'snapshot = { env = "HIDDEN" }',
        DSN + 'level = { env = "HIDDEN" }',
        DSN + 'password = { env = "HIDDEN" }\nport = 0',
        DSN + 'password = { env = "HIDDEN" }\nunknown = 0',
        DSN + 'auth = { user = 1, password = { file = "hidden" } }',
        DSN + 'headers = { a = { file = "hidden" }, b = 1 }',
        DSN + 'password = { env = "HIDDEN" }\nfolder = "absent"',  # problems() quotes it
    ],
)
def test_no_error_shows_what_came_from_elsewhere(tmp_path: Path, line: str) -> None:
    (tmp_path / "hidden").write_text(HIDDEN, encoding="utf-8")
    path = written(tmp_path, SHOP + line)
    with pytest.raises(SettingsError) as caught:
        load(path, {"HIDDEN": HIDDEN}, plugins=Offered(), strict=True)
    chain = "".join(traceback.TracebackException.from_exception(caught.value).format())
    for text in (str(caught.value), repr(caught.value), repr(caught.value.problems), chain):
        assert "hunter2" not in text


def test_no_frame_of_the_traceback_shows_a_secret(tmp_path: Path) -> None:
    (tmp_path / "hidden").write_text(HIDDEN, encoding="utf-8")
    path = written(tmp_path, SHOP + DSN + 'password = { file = "hidden" }\nport = 0\n')
    with pytest.raises(SettingsError) as caught:
        load(path, {}, plugins=Offered())
    assert caught.value.__context__ is None
    with_locals = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert "hunter2" not in "".join(with_locals.format())


def test_settings_never_print_a_secret(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = SHOP + DSN + 'password = "hunter2"\nauth.user = "u"\nauth.password = "hunter2"\nheaders.a = "hunter2"\n'
    config = loaded(tmp_path, text + '[daemon]\nadmin_token = "hunter2"\n')
    logging.getLogger("headrace").warning("%s %r", config, config)
    with structlog.testing.capture_logs() as logs:
        structlog.get_logger().info("settings", config=config)
    rendered = structlog.processors.JSONRenderer()(None, "", dict(logs[0]))
    source = shop(config)
    for shown in (
        repr(config),
        str(config),
        caplog.text,
        str(logs),
        str(rendered),
        str(source.model_dump()),
        source.model_dump_json(),
    ):
        assert "hunter2" not in shown
    assert "***" in repr(config)


def test_a_secret_prints_as_stars() -> None:
    assert (str(Secret("x")), repr(Secret("")), f"{Secret('x')}") == ("***", "Secret('***')", "***")


def test_settings_go_to_a_child_process_whole(tmp_path: Path) -> None:
    config = loaded(tmp_path, SHOP + DSN + 'password = "hunter2"\n')
    assert pickle.loads(pickle.dumps(config)) == config
