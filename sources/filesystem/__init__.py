"""Watches a directory: created, modified, deleted and moved files and directories, none lost, each once."""

from headrace.sources.filesystem.settings import FilesystemSource

__all__ = ["FilesystemSource"]
