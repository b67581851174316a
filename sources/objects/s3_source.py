"""The parts of an `s3` source, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore.exceptions import BotoCoreError

from headrace.errors import Fatal
from headrace.protocols import Context
from headrace.sources.objects.doctor import Doctor, Probe, common_probes
from headrace.sources.objects.s3_store import S3Store
from headrace.sources.objects.scope import Scope
from headrace.sources.objects.settings import ObjectSettings
from headrace.sources.objects.source import Objects
from headrace.sources.objects.sqs import SqsStream

AWS: Final = "AWS S3"
DEFAULT_REGION: Final = "us-east-1"


class Server(NamedTuple):
    """Where the buckets are. No endpoint stands for AWS, no region for that of the environment."""

    endpoint: str | None
    region: str | None
    addressing: str


@asynccontextmanager
async def open_s3(
    settings: ObjectSettings, context: Context, server: Server, queue_url: str | None
) -> AsyncIterator[Objects]:
    """The source, and its connections until it is closed."""
    async with AsyncExitStack() as stack:
        client = await _client(stack, "s3", settings, context, server)
        store = S3Store(client, server.endpoint or AWS)
        stream = None
        if queue_url:
            url = urlsplit(queue_url)
            there = server._replace(endpoint=f"{url.scheme}://{url.netloc}")
            stream = SqsStream(await _client(stack, "sqs", settings, context, there), queue_url, context.log)
        yield Objects(settings, context, store, stream, Doctor(partial(_probes, settings.scope, store, stream)))


async def _client(
    stack: AsyncExitStack, service: str, settings: ObjectSettings, context: Context, server: Server
) -> Any:
    session = AioSession()
    if settings.access_key and settings.secret_key is not None:
        token = settings.session_token.get_secret_value() if settings.session_token else None
        session.set_credentials(settings.access_key, settings.secret_key.get_secret_value(), token)
    region = server.region or session.get_config_variable("region") or DEFAULT_REGION
    verify = str(context.directory / settings.ca_file) if settings.ca_file else None
    try:
        client = session.create_client(
            service, region_name=region, endpoint_url=server.endpoint, verify=verify, config=_config(server)
        )
        return await stack.enter_async_context(client)
    except (BotoCoreError, ValueError, OSError) as error:
        raise Fatal(f"no client for {service}: {error}", hint="correct `region`, `endpoint` or `ca_file`") from error


def _config(server: Server) -> AioConfig:
    style = server.addressing
    if style == "auto" and server.endpoint:
        style = "path"  # a name per bucket is what servers on premises seldom have
    return AioConfig(
        connect_timeout=5,
        read_timeout=30,  # longer than a long poll
        retries={"mode": "standard", "max_attempts": 3},
        s3={"addressing_style": style},
    )


async def _probes(scope: Scope, store: S3Store, stream: SqsStream | None) -> list[Probe]:
    probes = await common_probes(scope, store)
    if stream is not None:
        probes.append(Probe("the queue can be read", stream.check))
    return probes
