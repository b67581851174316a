"""Headrace leads changes from where they happen to the code and systems that must react."""

__version__ = "0.1.0"
