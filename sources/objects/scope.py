"""Which buckets and objects a source follows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import translate
from typing import Any

from headrace.sources.objects.entry import Place


class Scope:
    """Buckets by name or pattern (`*`, `?`, `[…]`), keys by any of the prefixes and any of the suffixes."""

    def __init__(self, buckets: Sequence[str], prefixes: Sequence[str] = (), suffixes: Sequence[str] = ()) -> None:
        self.named = sorted({it for it in buckets if not is_pattern(it)})
        patterns = [translate(it) for it in buckets if is_pattern(it)]
        self._matches = re.compile("|".join(patterns)).match if patterns else None
        self.prefixes = tuple(_shortest(prefixes))
        self.suffixes = tuple(suffixes)
        self._note = [sorted(buckets), sorted(prefixes), sorted(suffixes)]

    @property
    def discovers(self) -> bool:
        """Whether buckets must be listed to know which they are."""
        return self._matches is not None

    def takes(self, bucket: str) -> bool:
        return bucket in self.named or bool(self._matches and self._matches(bucket))

    def shows_key(self, key: str) -> bool:
        return key.startswith(self.prefixes) and (not self.suffixes or key.endswith(self.suffixes))

    def shows(self, place: Place) -> bool:
        return self.takes(place.bucket) and self.shows_key(place.key)

    @property
    def note(self) -> Any:
        """What `of_note` makes the same scope from."""
        return self._note

    @classmethod
    def of_note(cls, note: Any) -> Scope:
        return cls(*note)


def is_pattern(name: str) -> bool:
    """Whether a bucket is named by what it looks like."""
    return any(it in name for it in "*?[")


def _shortest(prefixes: Sequence[str]) -> list[str]:
    """In the order of their bytes, without those that another one covers; no prefix at all is the empty one."""
    kept: list[str] = []
    for prefix in sorted(prefixes or ("",), key=str.encode):
        if not (kept and prefix.startswith(kept[-1])):
            kept.append(prefix)
    return kept
