"""The examples of clock and web, run by a real daemon."""

import http.client
import shutil
from pathlib import Path

from tests.fixtures.inlet import free_port
from tests.fixtures.killed import Daemon, until

EXAMPLES = Path(__file__).parents[2] / "examples"


def copied(name: str, folder: Path, *changes: tuple[str, str]) -> Path:
    """A copy of an example with some of its settings changed."""
    house = folder / name
    shutil.copytree(EXAMPLES / name, house)
    text = (house / "headrace.toml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (house / "headrace.toml").write_text(text)
    return house


def test_webhook_to_function(tmp_path: Path) -> None:
    port = free_port()
    house = copied("webhook-to-function", tmp_path, ("127.0.0.1:8080", f"127.0.0.1:{port}"))
    with Daemon(house) as daemon:
        until(lambda: daemon.says("listening"), "it listens")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        headers = {"Authorization": "Bearer change-me", "Content-Type": "application/json"}
        connection.request("POST", "/hooks", b'{"name": "Ada"}', headers)
        assert connection.getresponse().status == 202
        connection.close()
        until(lambda: "Hello, Ada" in daemon.log, "the function was called")


def test_nightly_report(tmp_path: Path) -> None:
    house = copied("nightly-report", tmp_path, ("30 2 * * *", "* * * * * *"))
    with Daemon(house) as daemon:
        until(lambda: any(house.glob("report-*.txt")), "the report is there")
        until(lambda: "wrote the report of" in daemon.log, "and told of")
    [report] = house.glob("report-*.txt")
    assert report.read_text().startswith("sales of ")
