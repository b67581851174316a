"""Follows buckets of AWS and of servers that cannot be listened to: by a queue of notifications, or by listing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator

from headrace.protocols import Context, Source
from headrace.sources.objects.settings import Endpoint, ObjectSettings

if find_spec("aiobotocore") is None:  # told when the settings are read; it is loaded when the source is opened
    raise ModuleNotFoundError("No module named 'aiobotocore'", name="aiobotocore")


def _queue(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.path.strip("/"):
        raise ValueError('must be a queue\'s URL, such as "https://sqs.eu-west-1.amazonaws.com/123456789012/uploads"')
    if url.endswith(".fifo"):
        raise ValueError("must be a standard queue: S3 sends to no FIFO queue")
    return url


class S3Source(ObjectSettings):
    """`endpoint` is needed for servers other than AWS. Without keys, AWS's usual chain is asked for them.

    `queue` is the URL of an SQS queue that gets the buckets' notifications and that nobody else reads. Without one,
    the buckets are listed every `relist` (5 minutes; an hour with a queue). It runs in a process of its own: reading
    the XML of large listings would hold up the daemon.
    """

    child: ClassVar[bool] = True

    type: Literal["s3"]
    endpoint: Endpoint | None = None
    region: str | None = None
    addressing: Literal["auto", "path", "virtual"] = "auto"
    queue: Annotated[str, AfterValidator(_queue)] | None = None

    @property
    def listing_interval(self) -> float:
        if self.relist is not None:
            return self.relist
        return 3600.0 if self.queue else 300.0

    def problems(self, directory: Path) -> Mapping[str, str]:
        return self.problems_of_files(directory)

    def open(self, context: Context) -> AbstractAsyncContextManager[Source]:
        return _opened(self, context)


@asynccontextmanager
async def _opened(settings: S3Source, context: Context) -> AsyncIterator[Source]:
    from headrace.sources.objects.s3_source import Server, open_s3  # aiobotocore is loaded only where it is used

    server = Server(settings.endpoint, settings.region, settings.addressing)
    async with open_s3(settings, context, server, settings.queue) as source:
        yield source
