"""Which transactions a snapshot sees, by the 32 bits that the stream tells."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.sources.postgres.window import Visible


@given(st.integers(0, 1 << 40), st.integers(0, 1000), st.sets(st.integers(0, 999)), st.integers(-1000, 1000))
def test_a_snapshot_sees_what_ended_before_it(start: int, length: int, running: set[int], offset: int) -> None:
    xmin, xmax = start + 3000, start + 3000 + length
    listed = sorted(xmin + place for place in running if xmin + place < xmax)
    visible = Visible.parse(f"{xmin}:{xmax}:{','.join(map(str, listed))}")
    xid = xmin + offset
    assert visible.sees(xid & 0xFFFFFFFF) == (xid < xmax and xid not in listed)
