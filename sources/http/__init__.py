"""Requests as events: each is durable in the journal before it is answered."""

from headrace.sources.http.settings import HttpSource

__all__ = ["HttpSource"]
