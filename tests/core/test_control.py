"""The commands against a real daemon, and the interface over TCP."""

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.daemon import Daemon, environment, headrace, running, until

SETTINGS = """
[daemon]
admin = "127.0.0.1:0"

[sources.inbox]
type = "filesystem"
path = "inbox"
snapshot = "initial"

[handlers.picky]
function = "picky.py:on_event"
start = "earliest"
retry = { attempts = 1 }

[sinks.audit]
type = "file"
path = "audit.jsonl"
start = "earliest"
"""
PICKY = """
def on_event(event):
    if "bad" in event.subject:
        raise ValueError("no " + event.subject)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with all that the settings name."""
    (tmp_path / "inbox").mkdir()
    (tmp_path / "picky.py").write_text(PICKY)
    return tmp_path


@pytest.fixture
def daemon(folder: Path) -> Iterator[Daemon]:
    """A daemon that is ready."""
    with running(folder, SETTINGS) as daemon:
        yield daemon


def put(daemon: Daemon, *names: str) -> None:
    for name in names:
        (daemon.folder / "inbox" / name).write_text(name)


def delivered(daemon: Daemon, count: int) -> None:
    daemon.wait_until(lambda told: all(c["delivered"] + c["dead"] >= count for c in told["consumers"]))


def admin_address(daemon: Daemon) -> str:
    entries = [json.loads(line) for line in daemon.log.splitlines()]
    return str(next(entry["address"] for entry in entries if entry["event"] == "admin"))


def get(daemon: Daemon, path: str, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(admin_address(daemon), timeout=10)
    connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    body = response.status, response.read()
    connection.close()
    return body


def test_status_tells_of_all_parts(daemon: Daemon) -> None:
    put(daemon, "a", "b")
    delivered(daemon, 2)
    told = json.loads(daemon.run("status", "--json").stdout)
    assert told["pid"] == daemon.process.pid
    assert told["version"] == "0.1.0"
    assert [(each["name"], each["state"], each["events"]) for each in told["sources"]] == [("inbox", "running", 2)]
    assert [(each["name"], each["kind"], each["lag"]) for each in told["consumers"]] == [
        ("picky", "handler", 0),
        ("audit", "sink", 0),
    ]
    assert (told["journal"]["events"], told["journal"]["head"]) == (2, 2)
    text = daemon.run("status").stdout
    assert text.startswith("headrace 0.1.0: running")
    for part in ("inbox", "picky", "audit", "journal: "):
        assert part in text


def test_tail_from_the_start_live_and_chosen(daemon: Daemon) -> None:
    put(daemon, "a", "b")
    delivered(daemon, 2)
    past = daemon.run("tail", "--from", "earliest", "-n", "2")
    assert [json.loads(line)["subject"] for line in past.stdout.splitlines()] == ["a", "b"]
    assert (daemon.folder / "audit.jsonl").read_text() == past.stdout
    text = daemon.run("tail", "inbox.created", "--from", "1", "-n", "1", "--text").stdout
    assert text.endswith("inbox created b\n")
    tail = command(daemon, "tail", "inbox.deleted", "-n", "1")
    until(lambda: tails(daemon) or tail.poll() is not None)
    (daemon.folder / "inbox" / "a").unlink()
    out, err = tail.communicate(timeout=30)
    assert json.loads(out)["type"] == "headrace.filesystem.deleted", err


def command(daemon: Daemon, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "headrace", *args],
        cwd=daemon.folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def tails(daemon: Daemon) -> bool:
    """Whether somebody holds the control socket open beside this question."""
    links = (os.readlink(link) for link in Path(f"/proc/{daemon.process.pid}/fd").iterdir() if link.is_symlink())
    with Path("/proc/net/unix").open() as table:
        served = {f"socket:[{line.split()[6]}]" for line in table if line.rstrip().endswith("control.sock")}
    return sum(link in served for link in links) > 1


def test_tail_says_what_it_does_not_know(daemon: Daemon) -> None:
    for args, said in (
        (["inbx"], 'no source "inbx"; did you mean "inbox"?'),
        (["inbox.renamed"], "has no event"),
        (["--from", "yesterday"], "yesterday"),
    ):
        done = daemon.run("tail", *args)
        assert (done.returncode, done.stdout) == (1, "")
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_tail_that_nobody_reads_ends_quietly(daemon: Daemon) -> None:
    put(daemon, "a", "b")
    tail = command(daemon, "tail", "--from", "earliest")
    assert tail.stdout is not None
    assert tail.stderr is not None
    tail.stdout.readline()
    tail.stdout.close()
    assert tail.wait(30) == 141
    assert tail.stderr.read() == ""
    tail.stderr.close()


def test_a_slow_tail_holds_nobody_and_ends_with_the_daemon(daemon: Daemon) -> None:
    tail = command(daemon, "tail", "--from", "earliest")
    names = [f"f{number}" for number in range(300)]
    put(daemon, *names)
    delivered(daemon, 300)
    assert daemon.stop() == 0
    out, err = tail.communicate(timeout=30)
    assert {json.loads(line)["subject"] for line in out.splitlines()} <= set(names)
    assert "the daemon ended" in err or "start it" in err or err == ""


def test_dead_letters_are_listed_shown_redriven_and_discarded(daemon: Daemon) -> None:
    put(daemon, "bad1", "good", "bad2", "bad3")
    daemon.wait_until(lambda told: told["consumers"][0]["dead_letters"] == 3)
    lines = daemon.run("dead-letters", "list", "--json").stdout.splitlines()
    letters = {letter["subject"]: letter for letter in map(json.loads, lines)}
    assert letters.keys() == {"bad1", "bad2", "bad3"}
    assert letters["bad1"]["attempts"] == 1
    assert "no bad1" in letters["bad1"]["error"]
    assert "bad2" in daemon.run("dead-letters", "list", "picky").stdout

    first = letters["bad1"]["position"]
    shown = json.loads(daemon.run("dead-letters", "show", "picky", first, "--json").stdout)
    assert shown["event"]["subject"] == "bad1"
    assert "no bad1" in daemon.run("dead-letters", "show", "picky", first).stderr

    asked = daemon.run("dead-letters", "discard", "picky", first)
    assert asked.returncode == 1
    assert "discard 1 dead letter of picky?" in asked.stderr
    assert daemon.run("dead-letters", "discard", "picky", first, "--yes").returncode == 0
    assert daemon.consumer("picky")["dead_letters"] == 2

    (daemon.folder / "picky.py").write_text("def on_event(event): pass\n")
    daemon.kill()
    daemon.start()
    daemon.ready()
    done = daemon.run("dead-letters", "redrive", "picky", "--all", "--yes")
    assert done.stderr == "redrive: 2 dead letters of picky\n"
    daemon.wait_until(lambda told: told["consumers"][0]["delivered"] == 2)
    assert daemon.consumer("picky")["dead_letters"] == 0
    missing = daemon.run("dead-letters", "redrive", "picky", first, "--yes")
    assert (missing.returncode, len(missing.stderr.splitlines())) == (1, 1)
    assert daemon.run("dead-letters", "redrive", "picky").returncode == 1
    assert "did you mean" in daemon.run("dead-letters", "list", "pickie").stderr


def test_a_pause_survives_a_kill(daemon: Daemon) -> None:
    assert daemon.run("pause", "audit").returncode == 0
    daemon.kill()
    daemon.start()
    daemon.ready()
    assert daemon.consumer("audit")["state"] == "paused"
    put(daemon, "a")
    daemon.wait_until(lambda told: told["consumers"][0]["delivered"] == 1)
    assert daemon.consumer("audit")["delivered"] == 0
    assert daemon.run("resume", "audit").returncode == 0
    delivered(daemon, 1)
    for name, said in (("inbox", "is a source"), ("nobody", "no consumer nobody")):
        done = daemon.run("pause", name)
        assert (done.returncode, done.stdout) == (1, "")
        assert said in done.stderr
    assert "nothing is called nobody" in daemon.run("resume", "nobody").stderr


def test_reload_applies_or_says_why_not(daemon: Daemon) -> None:
    settings = daemon.folder / "headrace.toml"
    assert "nothing has changed" in daemon.run("reload").stderr
    settings.write_text(SETTINGS.replace("[sinks.audit]", "[sinks.second]").replace("audit.jsonl", "second.jsonl"))
    assert daemon.run("reload").stderr == "reloaded: added second, removed audit\n"
    told = daemon.status()
    assert [each["name"] for each in told["consumers"]] == ["picky", "second"]
    assert told["orphans"] == [{"name": "audit", "undelivered": 0}]

    settings.write_text(SETTINGS.replace('type = "file"', 'type = "fil"') + "\nnonsense = 1\n")
    wrong = daemon.run("reload")
    assert wrong.returncode == 78
    assert 'unknown sink type "fil"; did you mean "file"?' in wrong.stderr
    assert [each["name"] for each in daemon.status()["consumers"]] == ["picky", "second"]

    settings.write_text(SETTINGS + '\n[journal]\nretention = "1d"\n')
    refused = daemon.run("reload")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert "restart the daemon" in refused.stderr

    settings.write_text("not toml")
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: "the old settings stay" in daemon.log)
    assert "Traceback" not in daemon.log


def test_consumers_that_left_are_renamed_or_forgotten(daemon: Daemon) -> None:
    put(daemon, "a")
    delivered(daemon, 1)
    assert "is in the settings" in daemon.run("consumer", "forget", "audit").stderr
    settings = daemon.folder / "headrace.toml"
    settings.write_text(SETTINGS.replace("[sinks.audit]", "[sinks.second]"))
    assert daemon.run("reload").returncode == 0
    put(daemon, "b")
    daemon.wait_until(lambda told: told["orphans"] == [{"name": "audit", "undelivered": 1}])
    assert "not in the settings: audit keeps 1 undelivered" in daemon.run("status").stdout
    assert daemon.run("consumer", "rename", "audit", "third").returncode == 0
    assert daemon.status()["orphans"] == [{"name": "third", "undelivered": 1}]
    assert daemon.run("consumer", "forget", "third").returncode == 1
    assert daemon.run("consumer", "forget", "third", "--yes").returncode == 0
    assert daemon.status()["orphans"] == []
    assert "no consumer third" in daemon.run("consumer", "forget", "third").stderr


def test_the_journal_is_verified_and_copied_with_and_without_the_daemon(daemon: Daemon) -> None:
    put(daemon, "a")
    delivered(daemon, 1)
    for name in ("online", "offline"):
        assert daemon.run("journal", "verify").stderr == "no damage\n"
        assert daemon.run("journal", "backup", name).returncode == 0
        assert (daemon.folder / name).stat().st_size > 0
        again = daemon.run("journal", "backup", name)
        assert (again.returncode, len(again.stderr.splitlines())) == (1, 1)
        assert daemon.run("journal", "skip", "7", "--yes").returncode == 1
        if daemon.process.poll() is None:
            assert daemon.stop() == 0


def test_the_admin_address_only_reads_and_only_for_this_machine(daemon: Daemon) -> None:
    assert get(daemon, "/live") == (200, b'{"live":true}\n')
    assert get(daemon, "/ready")[0] == 200
    assert json.loads(get(daemon, "/status")[1])["pid"] == daemon.process.pid
    status, metrics = get(daemon, "/metrics")
    assert status == 200
    names = {line.split()[2] for line in metrics.decode().splitlines() if line.startswith("# TYPE")}
    assert {"headrace_build_info", "headrace_source_events_total", "headrace_consumer_behind_seconds"} <= names
    assert b'headrace_consumer_up{consumer="audit"} 1\n' in metrics
    for path in ("/reload", "/tail", "/dead-letters", "/journal/verify"):
        assert get(daemon, path)[0] == 404
    assert get(daemon, "/status", Host="evil.example")[0] == 403
    assert get(daemon, "/status", Origin="http://evil.example")[0] == 403
    assert get(daemon, "/status", Origin=f"http://{admin_address(daemon)}")[0] == 200


def test_the_admin_address_asks_for_its_token(folder: Path) -> None:
    settings = SETTINGS.replace("[daemon]", '[daemon]\nadmin_token = { env = "ADMIN_TOKEN" }')
    with running(folder, settings, {"ADMIN_TOKEN": "s3cret"}) as daemon:
        assert get(daemon, "/status")[0] == 401
        assert get(daemon, "/status", Authorization="Bearer wrong")[0] == 401
        assert get(daemon, "/status", Authorization="Bearer s3cret")[0] == 200
        assert "s3cret" not in daemon.log


def test_an_admin_address_that_is_taken(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    address = admin_address(daemon)
    (other / "headrace.toml").write_text(f'[daemon]\nadmin = "{address}"\n')
    done = headrace("run", cwd=other)
    assert done.returncode == 70
    assert f"[daemon] admin {address}: " in done.stderr.splitlines()[-1]


def test_dead_letters_are_chosen_by_pattern_and_time_with_a_count_first(daemon: Daemon) -> None:
    put(daemon, "bad-1.txt", "bad-2.txt", "bad-3.csv")
    daemon.wait_until(lambda told: told["consumers"][0]["dead_letters"] == 3)
    csv = """{"subject": [{"suffix": ".csv"}]}"""
    listed = daemon.run("dead-letters", "list", "picky", "--json", "--where", csv).stdout.splitlines()
    assert [json.loads(line)["subject"] for line in listed] == ["bad-3.csv"]
    assert not daemon.run("dead-letters", "list", "picky", "--json", "--before", "1h").stdout
    asked = daemon.run("dead-letters", "discard", "picky", "--where", csv)
    assert asked.returncode == 1
    assert "discard 1 dead letter of picky?" in asked.stderr
    assert daemon.run("dead-letters", "discard", "picky", "--where", csv, "--yes").returncode == 0
    assert "no dead letters like that" in daemon.run("dead-letters", "redrive", "picky", "--where", csv).stderr
    wrong = daemon.run("dead-letters", "redrive", "picky", "--where", """{"subject": []}""")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
    assert daemon.run("dead-letters", "redrive", "picky", "--since", "1h", "--yes").returncode == 0
    daemon.wait_until(lambda told: told["consumers"][0]["dead"] == 5)


def test_dead_letters_of_a_consumer_that_left_the_settings(daemon: Daemon) -> None:
    put(daemon, "bad")
    daemon.wait_until(lambda told: told["consumers"][0]["dead_letters"] == 1)
    text = (daemon.folder / "headrace.toml").read_text()
    (daemon.folder / "headrace.toml").write_text(text.replace("[handlers.picky]", "[handlers.other]"))
    assert daemon.run("reload").returncode == 0
    assert "bad" in daemon.run("dead-letters", "list", "picky").stdout
    refused = daemon.run("dead-letters", "redrive", "picky", "--all", "--yes")
    assert "is not in the settings" in refused.stderr
    assert daemon.run("dead-letters", "discard", "picky", "--all", "--yes").returncode == 0
    assert "no dead letters" in daemon.run("dead-letters", "list", "picky").stderr


def test_seek_and_replay(daemon: Daemon) -> None:
    put(daemon, "a", "b")
    delivered(daemon, 2)
    assert daemon.run("replay", "audit", "--from", "earliest").returncode == 0
    lines = daemon.folder / "audit.jsonl"
    until(lambda: len(lines.read_text().splitlines()) == 4)
    marked = [json.loads(line).get("headracereplay") for line in lines.read_text().splitlines()]
    assert marked == [None, None, True, True]
    daemon.wait_until(lambda told: not any(each["replaying"] for each in told["consumers"]))
    assert "goes on from 0" in daemon.run("seek", "audit", "earliest").stderr
    until(lambda: len(lines.read_text().splitlines()) == 6)
    assert "from where?" in daemon.run("replay", "audit").stderr
    assert "has no replay" in daemon.run("replay", "audit", "--cancel").stderr
    assert "no consumer audt" in daemon.run("seek", "audt", "latest").stderr


def test_tail_by_pattern(daemon: Daemon) -> None:
    put(daemon, "a", "b", "c")
    delivered(daemon, 3)
    told = daemon.run("tail", "--from", "earliest", "-n", "1", "--where", """{"subject": ["b"]}""")
    assert [json.loads(line)["subject"] for line in told.stdout.splitlines()] == ["b"]
    assert "--where" in daemon.run("tail", "--where", "{").stderr
