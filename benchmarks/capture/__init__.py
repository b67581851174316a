"""The parts of `benchmarks/postgres.py`."""
