"""Did-you-mean."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant, whatever its case; None where none is close."""
    by_lower = {name.lower(): name for name in known}
    found = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean "tables"?`, or nothing: to be put behind a message."""
    found = closest(word, known)
    return f'; did you mean "{found}"?' if found else ""


def listed(words: Iterable[str], conjunction: str = "and") -> str:
    """`a, b and c`."""
    *first, last = [*words] or ["nothing"]
    return f"{', '.join(first)} {conjunction} {last}" if first else last
