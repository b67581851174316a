"""The durable log of blocks: a codec, the embedded engine, and one in memory for tests."""
