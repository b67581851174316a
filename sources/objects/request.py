"""Signed GET requests, for what the `minio` SDK does too slowly itself: listening, and reading listings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlencode, urlsplit
from xml.etree import ElementTree as ET

from minio.credentials.providers import Provider
from minio.helpers import sha256_hash
from minio.signer import sign_v4_s3
from minio.time import to_amz_date, utcnow


class Server(NamedTuple):
    """Where it is, and the keys to it."""

    endpoint: str
    region: str
    credentials: Provider | None

    def url(self, bucket: str, query: Sequence[tuple[str, str]]) -> str:
        """As it is signed: sorted, a space as %20."""
        return f"{self.endpoint}/{bucket}?{urlencode(sorted(query)).replace('+', '%20')}"

    def headers(self, url: str) -> dict[str, str]:
        """What a GET of it needs, its signature with it."""
        date, parts = utcnow(), urlsplit(url)
        headers = {"Host": parts.netloc, "x-amz-date": to_amz_date(date), "x-amz-content-sha256": sha256_hash(None)}
        # MinIO compresses for whoever takes it, and then holds keepalives and events back in its buffer (tried).
        headers["Accept-Encoding"] = "identity"
        credentials = self.credentials.retrieve() if self.credentials else None
        if credentials is None:
            return headers
        if credentials.session_token:
            headers["X-Amz-Security-Token"] = credentials.session_token
        signed = sign_v4_s3(
            method="GET",
            url=parts,
            region=self.region,
            headers=dict(headers),
            credentials=credentials,
            content_sha256=headers["x-amz-content-sha256"],
            date=date,
        )
        return {name: str(value) for name, value in signed.items()}


def refusal(body: str | bytes) -> tuple[str, str]:
    """Code and message of an error's XML; no code where it is none."""
    try:
        root = ET.fromstring(body)  # noqa: S314 -- expat of today refuses entity bombs, and the body is bounded
    except ET.ParseError:
        return "", str(body[:100])
    return root.findtext("{*}Code") or "", root.findtext("{*}Message") or ""
