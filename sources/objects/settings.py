"""What the tables of sources that follow buckets have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self, runtime_checkable
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from headrace.errors import Permanent
from headrace.protocols import Context
from headrace.settings import Duration, Secret, SourceSettings, mistake
from headrace.sources.objects.entry import Place
from headrace.sources.objects.scope import Scope


def _several(texts: str | tuple[str, ...]) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else texts


def _named(names: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if not names or not all(names):
        raise ValueError("must name a bucket")
    for name in _several(names):
        if "/" in name:
            raise ValueError(f'"{name}": a bucket has no "/"; what follows it belongs to `prefix`')
    return names


def _endpoint(text: str) -> str:
    url = urlsplit(text)
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise ValueError('must be an address such as "http://127.0.0.1:9000"')
    if url.path.strip("/") or url.query or url.username:
        raise ValueError("must be scheme, host and port only; buckets and keys have settings of their own")
    return text.rstrip("/")


Texts = str | tuple[str, ...]
"""One text, or several."""
Buckets = Annotated[Texts, AfterValidator(_named)]
Endpoint = Annotated[str, AfterValidator(_endpoint)]


@runtime_checkable
class LinksObjects(Protocol):
    """A source that can make addresses of objects."""

    async def link(self, place: Place, seconds: int) -> str: ...


class ObjectSettings(SourceSettings):
    """Buckets of one server.

    `bucket` is a name, a pattern (`"img-*"`), or several; `prefix` and `suffix` one text or several, any of which a key
    must have. `versions = "auto"` follows the versions of versioned buckets, `false` only what is current. `metadata`
    adds the user's own to `created`, at the cost of one request each where the server does not tell by itself. Every
    `relist` all is compared, whatever was told. `snapshot = "initial"` tells of what is there at the very first start.
    """

    events: ClassVar[frozenset[str] | None] = frozenset({"created", "deleted"})

    bucket: Buckets
    prefix: Texts = ()
    suffix: Texts = ()
    access_key: str | None = None
    secret_key: Secret | None = None
    session_token: Secret | None = None
    ca_file: Path | None = None
    versions: Literal["auto"] | bool = "auto"
    metadata: bool = False
    relist: Duration | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _both_keys(self) -> Self:
        if self.access_key and self.secret_key is None:
            raise mistake("secret_key", "is needed with access_key")
        if self.secret_key is not None and not self.access_key:
            raise mistake("access_key", "is needed with secret_key")
        return self

    @property
    def scope(self) -> Scope:
        return Scope(_several(self.bucket), _several(self.prefix), _several(self.suffix))

    @property
    def listing_interval(self) -> float:
        """Seconds between two comparisons."""
        return 3600.0 if self.relist is None else self.relist

    async def link(self, context: Context, data: Mapping[str, Any], seconds: int) -> Mapping[str, str]:
        """An address that reads the object of an event, for `event.open()`: that version, where it has one.

        Only of what the source follows: code that may ask for it shall not reach everything that the keys reach.
        """
        place = Place(str(data.get("bucket", "")), str(data.get("key", "")), str(data.get("versionId", "")))
        if not place.bucket or not place.key:
            raise Permanent("the event names no object")
        if not self.scope.shows(place):
            hint = "`event.open()` reads what `bucket`, `prefix` and `suffix` of the source show"
            raise Permanent(f"{place.bucket}/{place.key} is not followed by this source", hint=hint)
        # In a loop of its own: loading an SDK and its models would hold up the daemon's.
        url = await asyncio.to_thread(lambda: asyncio.run(self._link(context, place, seconds)))
        authorities = {"ca_file": str(context.directory / self.ca_file)} if self.ca_file else {}
        return {"url": url} | authorities

    async def _link(self, context: Context, place: Place, seconds: int) -> str:
        async with self.open(context) as source:
            if not isinstance(source, LinksObjects):
                raise Permanent("this source makes no addresses")
            return await source.link(place, seconds)

    def problems_of_files(self, directory: Path) -> dict[str, str]:
        if self.ca_file is not None and not (directory / self.ca_file).is_file():
            return {"ca_file": f"{directory / self.ca_file} does not exist"}
        return {}
