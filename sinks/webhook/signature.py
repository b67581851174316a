"""Signatures by Standard Webhooks.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

PREFIX: Final = "whsec_"
_SHORTEST: Final = 24  # bytes, as the specification asks
_LONGEST: Final = 64


def parse_secret(text: str) -> bytes:
    """The key in `whsec_` + base64. Raises `ValueError`, which does not quote it."""
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not text.startswith(PREFIX) or not _SHORTEST <= len(key) <= _LONGEST:
        raise ValueError(f"must be {PREFIX} and the base64 of {_SHORTEST} to {_LONGEST} bytes")
    return key


class Signer:
    """Signs with every key: a receiver that knows one of them accepts, so keys can be rotated without a gap."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        # The key's part of the computation is done once, and copied for each message.
        self._keys = [hmac.new(key, digestmod=hashlib.sha256) for key in keys]

    def headers(self, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
        """The three headers. `timestamp` is of this attempt, in seconds since 1970."""
        signed = f"{message_id}.{timestamp}.".encode() + body
        signatures = " ".join(f"v1,{self._sign(key, signed)}" for key in self._keys)
        return {"webhook-id": message_id, "webhook-timestamp": str(timestamp), "webhook-signature": signatures}

    @staticmethod
    def _sign(key: hmac.HMAC, signed: bytes) -> str:
        code = key.copy()
        code.update(signed)
        return base64.b64encode(code.digest()).decode()


def message_id(*identities: str) -> str:
    """One that stays the same however often the same events are sent; it has no full stop, which delimits."""
    digest = hashlib.sha256("\0".join(identities).encode("utf-8", "surrogatepass")).digest()
    return "msg_" + base64.b32encode(digest[:20]).decode().lower()
