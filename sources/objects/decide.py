"""What a look or a hint means for a row: pure, so that it can be tested as such."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final, NamedTuple

from headrace.sources.objects.entry import LOOSE, Entry, Place, same
from headrace.sources.objects.records import ALL_REMOVED, CREATED, MARKED, REMOVED, Hint, precedes

ANY_CREATION: Final = "s3:ObjectCreated:*"  # a look cannot tell how an object came to be
NOTHING: Final = "s3:ObjectRemoved:NoOP"  # a deletion of what was not there
ANY_REMOVAL: Final = "s3:ObjectRemoved:*"


class Step(NamedTuple):
    """A change of a row. `name` is the event's, empty where there is none; `value` None removes the row.

    `entry` is what came, or what was there before it went.
    """

    name: str
    event_name: str
    place: Place
    entry: Entry
    value: Entry | None


def seen(place: Place, row: Entry | None, now: Entry | None) -> Step | None:
    """What the origin's word about a place changes. None where the row says the same."""
    if now is None:
        return None if row is None else Step("deleted", ANY_REMOVAL, place, row, None)
    if row is not None and same(place.version, row, now):
        return Step("", "", place, now, now) if _better(row, now) else None
    if now.marker:
        return Step("deleted", MARKED[0], place, now, now)
    return Step("created", ANY_CREATION, place, now, now)


def _better(row: Entry, now: Entry) -> bool:
    """A listing is exact: what a hint or HEAD had left open is filled in."""
    return row != now and not now.flags & LOOSE


class Verdict(Enum):
    """What is to be done about a hint."""

    IGNORE = auto()  # nothing new
    APPLY = auto()
    LOOK = auto()  # the hint alone does not tell what is there


def judge(hint: Hint, row: Entry | None, *, doubtful: bool) -> Verdict:
    """Whether a hint can be believed. `doubtful`: there is a reason outside of hint and row not to.

    Hints from queues come late, twice and in any order; hints from one server's stream come in order but for those of
    writes at the same time.
    """
    if hint.entry is not None and row is not None and _known(hint, row):
        return Verdict.IGNORE
    if not _understood(hint.name):
        return Verdict.IGNORE if hint.name == NOTHING and row is None else Verdict.LOOK
    if hint.entry is None and row is None:
        # MinIO tells of the delete marker that lifecycle expiry made as of a removal, with the marker's id.
        return Verdict.LOOK if hint.ordered and hint.place.version else Verdict.IGNORE
    if doubtful or _backwards(hint, row):
        return Verdict.LOOK
    return Verdict.APPLY


def _understood(name: str) -> bool:
    return name.startswith(CREATED) or name in MARKED or name in REMOVED


def _known(hint: Hint, row: Entry) -> bool:
    """A marker that is made again was removed in truth: MinIO uses one name for both."""
    entry = hint.entry
    if entry is None or (entry.marker and row.marker and hint.ordered):
        return False
    if entry.sequencer and row.sequencer:
        return entry.sequencer == row.sequencer
    return same(hint.place.version, row, entry)


def _backwards(hint: Hint, row: Entry | None) -> bool:
    """The row is of a later write, or its order with the hint is not known."""
    if row is None:
        return False
    if hint.entry is not None and hint.entry.marker and row.marker:
        return True
    if hint.place.version:
        return False
    if hint.sequencer and row.sequencer:
        return precedes(hint.sequencer, row.sequencer)
    if not hint.ordered and not row.sequencer:
        return True
    return hint.time < row.time


def applied(hint: Hint, row: Entry | None) -> Step | None:
    """What a believed hint changes."""
    place, now = hint.place, hint.entry
    if now is None:
        return None if row is None else Step("deleted", hint.name, place, row, None)
    return Step("deleted" if now.marker else "created", hint.name, place, now, now)


def removes_all(hint: Hint) -> bool:
    """Whether the hint is about every version of its key."""
    return hint.name == ALL_REMOVED
