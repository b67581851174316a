"""Everything embedded."""

COMMAND = None
