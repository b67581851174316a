"""The checker of the crash tests of Postgres sees what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fixtures.postgres_truth import Rebuilt


def event(lsn: int, op: str, key: int, n: int = 0, before: int | None = None, **attributes: Any) -> dict[str, Any]:
    after = None if op == "delete" else {"a": key, "n": n}
    data = {"op": op, "table": "items", "key": {"a": key}, "after": after, "before": before and {"a": before}}
    tx = {"lsn": f"0/{lsn}", "ordinal": 1, "last": True}
    return {"id": f"{lsn}/1", "sequence": f"{lsn:08d}", "data": data | {"tx": tx}, **attributes}


RIGHT = [event(1, "insert", 1), event(2, "update", 1, 1), event(3, "update", 2, 1, 1, previouskey="public.items/1")]


def taken(*more: dict[str, Any]) -> Rebuilt:
    rebuilt = Rebuilt()
    rebuilt.take([*RIGHT, *more], {})
    return rebuilt


def test_what_is_right_is_rebuilt() -> None:
    assert taken(event(4, "delete", 2), event(5, "insert", 3)).tables["items"] == {3: {"a": 3, "n": 0}}


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (event(3, "delete", 2), "came twice"),
        (event(2, "delete", 2) | {"id": "other"}, "out of order"),
        (event(4, "insert", 2), "inserts what is there"),
        (event(4, "delete", 1), "deletes what is not there"),
        (event(4, "update", 1), "changes what is not there"),
        (event(4, "update", 2, 3), "misses a change"),
        (event(4, "delete", 2, barrier="public.items/"), "4/1"),
        (event(4, "update", 3, 1, 2), "4/1"),
        (event(3, "delete", 2) | {"id": "3/2"}, "after 0/3/1, its last one"),
    ],
)
def test_what_is_wrong_is_seen(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(AssertionError, match=why):
        taken(wrong)
