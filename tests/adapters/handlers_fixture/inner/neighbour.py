"""What deep.py needs."""

TYPE = "test.deep"
