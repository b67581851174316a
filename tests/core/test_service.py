"""The systemd unit: what can be known of it without systemd, and the whole where its checker is."""

import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "docs" / "headrace.service"


def test_the_unit_is_what_systemd_accepts(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs systemd-analyze: apt install systemd")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/headrace/bin/headrace", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if "headrace.service" in line]
    assert [line for line in said if not line.endswith("notify-reload")] == []  # older than systemd 253


def test_the_unit_says_what_matters() -> None:
    lines = UNIT.read_text().splitlines()
    for line in ("Type=notify-reload", "UMask=0077", "RestartPreventExitStatus=78", "ProtectSystem=strict"):
        assert line in lines
