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
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3 import PoolManager, Retry, Timeout
from urllib3.exceptions import HTTPError

from headrace.inventory import Found
from headrace.sources.objects.entry import MARKER, NULL, SECOND, Entry, Place, milliseconds
from headrace.sources.objects.errors import not_s3, refused, unreachable
from headrace.sources.objects.listing import Page, page_of, query_of
from headrace.sources.objects.request import Server, refusal
from headrace.sources.objects.scope import Scope
from headrace.sources.objects.store import whole_keys
from headrace.threads import finish

CONNECT: Final = 5.0  # seconds
READ: Final = 15.0  # seconds without a byte; also how long a stop waits for a thread at worst
T = TypeVar("T")

LIST, LIST_VERSIONS, LIST_ALL = "s3:ListBucket", "s3:ListBucketVersions", "s3:ListAllMyBuckets"
READ_OBJECT, READ_VERSIONING = "s3:GetObject", "s3:GetBucketVersioning"


class MinioStore:
    """Close it, and its connections are closed."""

    def __init__(self, server: Server, tls: ssl.SSLContext | None) -> None:
        url = urlsplit(server.endpoint)
        retries = Retry(total=2, backoff_factor=0.1, status_forcelist=[500, 502, 503, 504])
        self._pool = PoolManager(
            timeout=Timeout(connect=CONNECT, read=READ), retries=retries, maxsize=10, ssl_context=tls
        )
        self._client = Minio(
            url.netloc,
            secure=url.scheme == "https",
            region=server.region,
            http_client=self._pool,
            credentials=server.credentials,
        )
        self._server = server
        self._endpoint = server.endpoint

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
        for prefix in scope.prefixes:
            pages = self._listing(bucket, prefix, versions=versions)
            for page in whole_keys(pages) if versions else pages:
                if rows := [row for key, row in page if scope.shows_key(key)]:
                    yield rows

    def _listing(self, bucket: str, prefix: str, *, versions: bool) -> Iterator[Sequence[tuple[str, Found]]]:
        page = Page((), [])
        while True:
            query = query_of(prefix, page.following, versions=versions)
            with self._explained(LIST_VERSIONS if versions else LIST, bucket):
                page = page_of(self._get(bucket, query, LIST_VERSIONS if versions else LIST), bucket)
            yield page.entries
            if not page.following:
                return

    def _get(self, bucket: str, query: Sequence[tuple[str, str]], what: str) -> bytes:
        url = self._server.url(bucket, query)
        answer = self._pool.request("GET", url, headers=self._server.headers(url), redirect=False)
        if answer.status != 200:
            code, message = refusal(answer.data)
            raise refused(code or str(answer.status), message, what=what, endpoint=self._endpoint, bucket=bucket)
        return answer.data

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
