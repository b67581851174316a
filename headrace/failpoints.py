"""Places where a crash test kills the process: `HEADRACE_FAILPOINT=NAME` or `NAME:N` for the N-th time it is reached.

The process says so on standard error, for the test must know that the place was reached.

Nothing is armed, and nothing is paid beyond one comparison, unless the variable is set.
"""

from __future__ import annotations

import os
import signal
from itertools import count


def _parse(text: str) -> tuple[str, int]:
    name, _, times = text.partition(":")
    return name, int(times or 1)


_name, _times = _parse(os.environ.get("HEADRACE_FAILPOINT", ""))
_reached = count(1)


def reach(name: str) -> None:
    """Die here by SIGKILL, as if the power went, when this place is the armed one."""
    if name == _name and next(_reached) >= _times:
        os.write(2, b"failpoint %b\n" % name.encode())
        os.kill(os.getpid(), signal.SIGKILL)
