"""The parts of a `minio` source, put together."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from minio.credentials.providers import ChainedProvider, EnvAWSProvider, EnvMinioProvider, Provider, StaticProvider

from headrace.errors import Fatal, Transient
from headrace.protocols import Context
from headrace.sources.objects.doctor import Doctor, Probe, common_probes
from headrace.sources.objects.hints import Hints
from headrace.sources.objects.listen import HEADERS, HELD_BACK, Connection, Listener, Listeners
from headrace.sources.objects.minio_store import MinioStore
from headrace.sources.objects.request import Server
from headrace.sources.objects.scope import Scope
from headrace.sources.objects.settings import ObjectSettings
from headrace.sources.objects.source import Objects

PROBING = HEADERS + 1  # seconds within which a listen stream must begin


@asynccontextmanager
async def open_minio(settings: ObjectSettings, context: Context, endpoint: str, region: str) -> AsyncIterator[Objects]:
    """The source, and its connections until it is closed."""
    tls = tls_context(settings, context.directory)
    server = Server(endpoint, region, provider(settings))
    store = MinioStore(server, tls)
    listeners = listeners_of(settings.scope, Connection(server, tls), context)
    doctor = Doctor(partial(_probes, settings.scope, store, listeners))
    try:
        yield Objects(settings, context, store, Listeners(listeners), doctor)
    finally:
        store.close()


def tls_context(settings: ObjectSettings, directory: Path) -> ssl.SSLContext | None:
    """What trusts the server's certificate; None where the system's authorities do. Raises `Fatal`."""
    if settings.ca_file is None:
        return None
    try:
        return ssl.create_default_context(cafile=directory / settings.ca_file)
    except OSError as error:
        raise Fatal(f"{settings.ca_file} is no certificate: {error}", hint="correct `ca_file`") from error


def provider(settings: ObjectSettings) -> Provider:
    """The keys of the settings, else those of the environment (`MINIO_…`, `AWS_…`)."""
    if settings.access_key and settings.secret_key is not None:
        token = settings.session_token.get_secret_value() if settings.session_token else None
        return StaticProvider(settings.access_key, settings.secret_key.get_secret_value(), token)
    return ChainedProvider([EnvMinioProvider(), EnvAWSProvider()])


def listeners_of(scope: Scope, connection: Connection, context: Context) -> list[Listener]:
    """The server filters only where there is one prefix and one suffix; what is more is left out here."""
    prefix = scope.prefixes[0] if len(scope.prefixes) == 1 else ""
    suffix = scope.suffixes[0] if len(scope.suffixes) == 1 else ""
    names = [""] if scope.discovers else scope.named
    return [Listener(connection, it, context.log, prefix=prefix, suffix=suffix) for it in names]


async def _probes(scope: Scope, store: MinioStore, listeners: Sequence[Listener]) -> list[Probe]:
    probes = await common_probes(scope, store)
    return [*probes, *(Probe(it.describe(), _listens(it)) for it in listeners)]


def _listens(listener: Listener) -> Callable[[], Awaitable[None]]:
    async def probe() -> None:
        hints = Hints()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(listener.listen(hints), name="probe")
            with suppress(TimeoutError):
                async with asyncio.timeout(PROBING):
                    await hints.woken.wait()
            task.cancel()
        if hints.held_back:
            raise Transient("the server holds notifications back", hint=HELD_BACK)

    return probe
