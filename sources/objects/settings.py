"""What the tables of sources that follow buckets have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from headrace.settings import Duration, Secret, SourceSettings, mistake
from headrace.sources.objects.scope import Scope


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _named(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names or not all(names):
        raise ValueError("must name a bucket")
    for name in names:
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


Texts = Annotated[tuple[str, ...], BeforeValidator(_several, json_schema_input_type=str | list[str])]
"""One text, or several."""
Buckets = Annotated[Texts, AfterValidator(_named)]
Endpoint = Annotated[str, AfterValidator(_endpoint)]


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
        return Scope(self.bucket, self.prefix, self.suffix)

    @property
    def listing_interval(self) -> float:
        """Seconds between two comparisons."""
        return 3600.0 if self.relist is None else self.relist

    def problems_of_files(self, directory: Path) -> dict[str, str]:
        if self.ca_file is not None and not (directory / self.ca_file).is_file():
            return {"ca_file": f"{directory / self.ca_file} does not exist"}
        return {}
