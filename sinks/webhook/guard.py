"""Addresses that events name: never one inside the operator's network.

A name is resolved once, every address is checked, and the connection is made to a checked one. Literal addresses are
checked before the request. An address that the operator typed is not checked: it may well be private.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

_NAT64: Final = IPv6Network("64:ff9b::/96")


class Forbidden(OSError):
    """The address lies inside; an `OSError`, so that the connector passes it on as the reason."""


def check_url(text: object) -> URL:
    """The URL that an event names. Raises `ValueError`."""
    if not isinstance(text, str):
        raise ValueError("the event names no URL")  # noqa: TRY004 - it is the event that is wrong
    url = URL(text)
    if url.scheme not in {"http", "https"} or not url.host or url.user or url.password:
        raise ValueError("the event's URL must be http:// or https:// with a host and without a user")
    try:
        address = ip_address(url.host.partition("%")[0])
    except ValueError:
        return url
    if not is_public(address):
        raise ValueError(f"the event's URL leads inside: {address}")
    return url


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether it is a host anywhere on the internet, also where an IPv6 address wraps an IPv4 one."""
    if isinstance(address, IPv6Address):
        wrapped = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if address in _NAT64:
            wrapped = IPv4Address(int(address) & 0xFFFFFFFF)
        if wrapped is not None:
            return is_public(wrapped)
    return address.is_global and not address.is_multicast


class PublicResolver(AbstractResolver):
    """Resolves to public addresses only; one that is not refuses the whole name."""

    def __init__(self, resolver: AbstractResolver | None = None) -> None:
        self._resolver = resolver or ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        for each in found:
            if not is_public(ip_address(each["host"].partition("%")[0])):
                raise Forbidden(f"{host} leads inside: {each['host']}")
        return found

    async def close(self) -> None:
        await self._resolver.close()
