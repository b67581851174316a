"""Calls a Python function for each event."""

from __future__ import annotations

from headrace.handlers.python import FunctionSink, PythonHandler

__all__ = ["FunctionHandler", "FunctionSink"]


class FunctionHandler(PythonHandler):
    """`function = "thumbs.py:make"`, called with events, may return events."""

    contract: str = "function"
