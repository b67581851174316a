"""An S3 server through the `minio` SDK, whose calls block: each runs in a thread."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from minio import Minio
from minio.credentials.providers import Provider
from minio.datatypes import Object
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3 import PoolManager, Retry, Timeout
from urllib3.exceptions import HTTPError

from headrace.inventory import Found
from headrace.sources.objects.entry import (
    MARKER,
    NULL,
    SECOND,
    Entry,
    Place,
    listed,
    listed_marker,
    milliseconds,
    version_text,
)
from headrace.sources.objects.errors import not_s3, refused, unreachable
from headrace.sources.objects.scope import Scope
from headrace.sources.objects.store import by_version, paged, sorted_within
from headrace.threads import finish

CONNECT: Final = 5.0  # seconds
READ: Final = 15.0  # seconds without a byte; also how long a stop waits for a thread at worst
T = TypeVar("T")

LIST, LIST_VERSIONS, LIST_ALL = "s3:ListBucket", "s3:ListBucketVersions", "s3:ListAllMyBuckets"
READ_OBJECT, READ_VERSIONING = "s3:GetObject", "s3:GetBucketVersioning"


class MinioStore:
    """Close it, and its connections are closed."""

    def __init__(self, endpoint: str, region: str, credentials: Provider | None, tls: ssl.SSLContext | None) -> None:
        url = urlsplit(endpoint)
        retries = Retry(total=2, backoff_factor=0.1, status_forcelist=[500, 502, 503, 504])
        self._pool = PoolManager(
            timeout=Timeout(connect=CONNECT, read=READ), retries=retries, maxsize=10, ssl_context=tls
        )
        self._client = Minio(
            url.netloc, secure=url.scheme == "https", region=region, http_client=self._pool, credentials=credentials
        )
        self._endpoint = endpoint

    def close(self) -> None:
        self._pool.clear()

    async def buckets(self) -> Sequence[str]:
        return await finish(self._call, LIST_ALL, "", lambda: [it.name for it in self._client.list_buckets()])

    async def exists(self, bucket: str) -> bool:
        return await finish(self._call, LIST, bucket, lambda: self._client.bucket_exists(bucket))

    async def versioned(self, bucket: str) -> bool:
        status = await finish(
            self._call, READ_VERSIONING, bucket, lambda: self._client.get_bucket_versioning(bucket).status
        )
        return status in {"Enabled", "Suspended"}

    async def pages(self, bucket: str, scope: Scope, *, versions: bool) -> AsyncGenerator[Sequence[Found]]:
        """The next page is read while the caller works on one."""
        pages = self._rows(bucket, scope, versions=versions)
        loop = asyncio.get_running_loop()
        ahead = loop.run_in_executor(None, next, pages, None)
        try:
            while (page := await asyncio.shield(ahead)) is not None:
                ahead = loop.run_in_executor(None, next, pages, None)
                yield page
        finally:
            await finish_future(ahead)

    def _rows(self, bucket: str, scope: Scope, *, versions: bool) -> Iterator[list[Found]]:
        with self._explained(LIST_VERSIONS if versions else LIST, bucket):
            yield from paged(self._versions(bucket, scope) if versions else self._current(bucket, scope))

    def _current(self, bucket: str, scope: Scope) -> Iterator[Found]:
        for prefix in scope.prefixes:
            for it in self._client.list_objects(bucket, prefix=prefix, recursive=True):
                if scope.shows_key(key := it.object_name or ""):
                    yield Place(bucket, key).row, listed(it.last_modified, it.size, it.etag)

    def _versions(self, bucket: str, scope: Scope) -> Iterator[Found]:
        for prefix in scope.prefixes:
            found = self._client.list_objects(bucket, prefix=prefix, recursive=True, include_version=True)
            named = (((it.object_name or "").encode(), it) for it in found if scope.shows_key(it.object_name or ""))
            yield from by_version((key, version_row(bucket, it)) for key, it in sorted_within(named))

    async def look(self, place: Place, *, versions: bool) -> Entry | None:
        return await finish(self._look, place, place.version or (NULL if versions else None))

    def _look(self, place: Place, version: str | None) -> Entry | None:
        try:
            with self._explained(READ_OBJECT, place.bucket, hides={"NoSuchKey", "NoSuchVersion", "405"}):
                it = self._client.stat_object(place.bucket, place.key, version_id=version)
        except _Hidden as hidden:
            return Entry(MARKER | SECOND, 0, 0, "") if hidden.code == "405" else None
        return Entry(SECOND, milliseconds(it.last_modified), it.size or 0, it.etag or "")

    async def metadata(self, place: Place) -> Mapping[str, str]:
        def read() -> Mapping[str, str]:
            found = self._client.stat_object(place.bucket, place.key, version_id=place.version or None)
            return dict(found.metadata or {})

        try:
            return await finish(self._call, READ_OBJECT, place.bucket, read, {"NoSuchKey", "NoSuchVersion", "405"})
        except _Hidden:
            return {}

    async def link(self, place: Place, seconds: int) -> str:
        return self._client.get_presigned_url(
            "GET", place.bucket, place.key, timedelta(seconds=seconds), version_id=place.version or None
        )

    def _call(self, what: str, bucket: str, call: Callable[[], T], hides: frozenset[str] | set[str] = frozenset()) -> T:
        with self._explained(what, bucket, hides=hides):
            return call()

    @contextmanager
    def _explained(self, what: str, bucket: str, hides: frozenset[str] | set[str] = frozenset()) -> Iterator[None]:
        """The SDK's errors as ours; `hides` are codes that are an answer."""
        try:
            yield
        except S3Error as error:
            status = str(error.response.status)
            code = error.code or status
            if code in hides or status in hides:
                raise _Hidden(status if status in hides else code) from None
            raise refused(code, error.message or "", what=what, endpoint=self._endpoint, bucket=bucket) from error
        except ServerError as error:
            raise refused(str(error.status_code), "", what=what, endpoint=self._endpoint, bucket=bucket) from error
        except InvalidResponseError as error:
            raise not_s3(self._endpoint, _first_line(error)) from error
        except (HTTPError, OSError) as error:
            raise unreachable(self._endpoint, error) from error
        except (MinioException, ValueError, SyntaxError) as error:  # an answer that is no XML, or a name no S3 allows
            raise not_s3(self._endpoint, _first_line(error)) from error


class _Hidden(Exception):
    """A refusal that is an answer."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def version_row(bucket: str, it: Object) -> Found:
    """The row of an entry in a listing of versions."""
    place = Place(bucket, it.object_name or "", version_text(it.version_id))
    value = listed_marker(it.last_modified) if it.is_delete_marker else listed(it.last_modified, it.size, it.etag)
    return place.row, value


async def finish_future(future: asyncio.Future[Any]) -> None:
    """Returns once the thread behind it has ended, whatever came of it."""
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:  # a thread cannot be stopped; the first cancellation is raised by the caller
            continue
    if not future.cancelled():
        future.exception()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
