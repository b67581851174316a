"""Telling systemd how the daemon is: https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress


def notify(*assignments: str) -> None:
    """Send `READY=1` and its like to the service manager; does nothing where there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end, suppress(OSError):
        end.sendto("\n".join(assignments).encode(), address)


def reloading() -> None:
    """`Type=notify-reload` wants the time at which the reload began."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_interval() -> float | None:
    """Seconds between two signs of life that the service manager expects; None where it expects none."""
    wanted = os.environ.get("WATCHDOG_USEC")
    return int(wanted) / 2_000_000 if wanted else None
