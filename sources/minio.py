"""Follows buckets of a server that can be listened to: MinIO, RustFS. Live, and nothing lost while nobody listened."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from headrace.protocols import Context, Source
from headrace.sources.objects.settings import Endpoint, ObjectSettings

if find_spec("minio") is None:  # told when the settings are read; the SDK is loaded when the source is opened
    raise ModuleNotFoundError("No module named 'minio'", name="minio")


class MinioSource(ObjectSettings):
    """`region` is the server's; MinIO's is `us-east-1` unless it was set."""

    type: Literal["minio"]
    endpoint: Endpoint
    region: str = "us-east-1"

    def problems(self, directory: Path) -> Mapping[str, str]:
        return self.problems_of_files(directory)

    def open(self, context: Context) -> AbstractAsyncContextManager[Source]:
        return _opened(self, context)


@asynccontextmanager
async def _opened(settings: MinioSource, context: Context) -> AsyncIterator[Source]:
    from headrace.sources.objects.minio_source import open_minio  # the SDK is loaded only where it is used

    async with open_minio(settings, context, settings.endpoint, settings.region) as source:
        yield source
