"""From the settings file to its daemon. Only `[daemon] data_dir` is read: the rest may be in the middle of an edit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.control.client import Client


def settings_file(config: str | None) -> Path:
    """Where the settings are. Raises `SettingsError`."""
    from headrace.settings_file import locate

    return locate(config, os.environ)


def data_dir(file: Path) -> Path:
    """The data directory that the settings name. Raises `SettingsError`, then with all mistakes of the file."""
    import tomli

    from headrace.settings_file import load

    try:
        daemon = tomli.loads(file.read_bytes().decode()).get("daemon", {})
        named = daemon.get("data_dir", "headrace-data")
    except (OSError, ValueError, AttributeError):
        named = None
    if isinstance(named, str) and named:
        return file.absolute().parent / named
    return load(file, os.environ).data_dir


def daemon_of(config: str | None) -> Client:
    """The daemon to ask; whether it runs shows at the first question."""
    from headrace.control.client import Client

    file = settings_file(config)
    return Client(data_dir(file), hint=f"start it with: headrace run -c {file}")
