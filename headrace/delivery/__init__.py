"""The journal to one consumer: cursor, order, retry, dead letters."""
