"""An S3 server through aiobotocore."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Final

from headrace.inventory import Found
from headrace.sources.objects.aws_errors import Hidden, explained
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
from headrace.sources.objects.errors import Denied, not_s3
from headrace.sources.objects.scope import Scope

LIST, LIST_VERSIONS, LIST_ALL = "s3:ListBucket", "s3:ListBucketVersions", "s3:ListAllMyBuckets"
READ_OBJECT, READ_VERSIONING = "s3:GetObject", "s3:GetBucketVersioning"
GONE: Final = frozenset({"404", "405"})


class S3Store:
    """`Store` over a client that somebody else closes. `endpoint` names the server in messages."""

    def __init__(self, client: Any, endpoint: str) -> None:
        self._client = client
        self._endpoint = endpoint

    async def buckets(self) -> Sequence[str]:
        with explained(self._endpoint, LIST_ALL):
            answer = await self._client.list_buckets()
        return [it["Name"] for it in answer.get("Buckets", ())]

    async def exists(self, bucket: str) -> bool:
        try:
            with explained(self._endpoint, LIST, bucket, hides={"404"}):
                await self._client.head_bucket(Bucket=bucket)
        except Hidden:
            return False
        return True

    async def versioned(self, bucket: str) -> bool:
        """False also where the server has no versions, or does not tell this key."""
        try:
            with explained(self._endpoint, READ_VERSIONING, bucket, hides={"501", "405"}):
                answer = await self._client.get_bucket_versioning(Bucket=bucket)
        except (Hidden, Denied):
            return False
        return answer.get("Status") in {"Enabled", "Suspended"}

    async def pages(self, bucket: str, scope: Scope, *, versions: bool) -> AsyncGenerator[Sequence[Found]]:
        for prefix in scope.prefixes:
            found = self._versions(bucket, prefix, scope) if versions else self._current(bucket, prefix, scope)
            async for page in found:
                if page:
                    yield page

    async def _current(self, bucket: str, prefix: str, scope: Scope) -> AsyncGenerator[list[Found]]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        with explained(self._endpoint, LIST, bucket):
            async for answer in pages:
                if "IsTruncated" not in answer:
                    raise not_s3(self._endpoint, "a page that is no listing")
                yield [_row(bucket, it) for it in answer.get("Contents", ()) if scope.shows_key(it["Key"])]

    async def _versions(self, bucket: str, prefix: str, scope: Scope) -> AsyncGenerator[list[Found]]:
        """The versions of a key may go on in the next answer: those of the last key wait for it."""
        pages = self._client.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=prefix)
        rest: list[tuple[str, Found]] = []
        with explained(self._endpoint, LIST_VERSIONS, bucket):
            async for answer in pages:
                rows = rest + _versions_of(bucket, answer, scope)
                last = max((key.encode() for key, _ in rows), default=b"")
                rest = [it for it in rows if it[0].encode() == last]
                yield sorted(row for key, row in rows if key.encode() != last)
            yield sorted(row for _, row in rest)

    async def look(self, place: Place, *, versions: bool) -> Entry | None:
        try:
            it = await self._head(place if place.version or not versions else place._replace(version=NULL))
        except Hidden as hidden:
            return Entry(MARKER | SECOND, 0, 0, "") if hidden.code == "405" else None
        return Entry(SECOND, milliseconds(it["LastModified"]), it["ContentLength"], it.get("ETag", "").strip('"'))

    async def metadata(self, place: Place) -> Mapping[str, str]:
        try:
            found = (await self._head(place)).get("Metadata", {})
        except Hidden:
            return {}
        return {f"x-amz-meta-{name}": str(value) for name, value in found.items()}

    async def _head(self, place: Place) -> Any:
        with explained(self._endpoint, READ_OBJECT, place.bucket, hides=GONE):
            return await self._client.head_object(**_arguments(place))

    async def link(self, place: Place, seconds: int) -> str:
        with explained(self._endpoint, READ_OBJECT, place.bucket):
            url: str = await self._client.generate_presigned_url(
                "get_object", Params=_arguments(place), ExpiresIn=seconds
            )
        return url


def _arguments(place: Place) -> dict[str, str]:
    version = {"VersionId": place.version} if place.version else {}
    return {"Bucket": place.bucket, "Key": place.key} | version


def _row(bucket: str, it: Mapping[str, Any]) -> Found:
    return Place(bucket, it["Key"]).row, listed(it["LastModified"], it["Size"], it.get("ETag"))


def _versions_of(bucket: str, answer: Mapping[str, Any], scope: Scope) -> list[tuple[str, Found]]:
    found: list[tuple[str, Found]] = []
    for it in answer.get("Versions", ()):
        if scope.shows_key(it["Key"]):
            row = Place(bucket, it["Key"], version_text(it.get("VersionId"))).row
            found.append((it["Key"], (row, listed(it["LastModified"], it["Size"], it.get("ETag")))))
    for it in answer.get("DeleteMarkers", ()):
        if scope.shows_key(it["Key"]):
            row = Place(bucket, it["Key"], version_text(it.get("VersionId"))).row
            found.append((it["Key"], (row, listed_marker(it["LastModified"]))))
    return found
