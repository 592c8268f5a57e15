"""Where the local server listens: the addresses behind a name, and who can reach them."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from typing import TypeAlias

try:
    import resource
except ModuleNotFoundError:  # Windows, where descriptors are not counted like this
    _resource = None
else:
    _resource = resource

__all__ = [
    "ACCEPTS",
    "bind",
    "highest_descriptor",
    "is_loopback",
    "is_numeric",
    "listen",
    "resolve",
]

Address: TypeAlias = tuple[socket.AddressFamily, str]

# asyncio accepts as many connections in a row as the backlog that it is told.
ACCEPTS = 16

_BACKLOG = 1024

# What is left for files, pipes and look-ups when connections take nearly all descriptors.
_SPARE = 48


async def resolve(host: str) -> list[Address]:
    """The addresses that `host` stands for.

    Raises:
        OSError: there is no such host.
    """
    found = await asyncio.get_running_loop().getaddrinfo(
        host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    # A scope, as in fe80::1%eth0, is part of an IPv6 address.
    return list(dict.fromkeys((family, str(where[0])) for family, _, _, _, where in found))


def is_numeric(host: str) -> bool:
    """Whether `host` is an address, and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach a numeric address."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped.is_loopback
    return parsed.is_loopback


def bind(addresses: list[Address], port: int) -> list[socket.socket]:
    """Listening sockets, all on one port.

    Args:
        addresses: of `resolve`.
        port: 0 takes a free one, the same for all.

    Raises:
        OSError: an address cannot be listened on.
    """
    sockets: list[socket.socket] = []
    try:
        for family, address in addresses:
            sock = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(sock)
            if os.name == "posix":
                # Elsewhere it would let two programs share a port.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address, port))
            port = sock.getsockname()[1]
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def listen(sockets: list[socket.socket]) -> None:
    """Let more connections wait to be accepted than are accepted at once."""
    for sock in sockets:
        sock.listen(_BACKLOG)


def highest_descriptor() -> int | None:
    """The highest descriptor that is left to connections; None where nobody counts them."""
    if _resource is None:
        return None
    most, _ = _resource.getrlimit(_resource.RLIMIT_NOFILE)
    if most == _resource.RLIM_INFINITY:
        return None
    return int(most) - min(_SPARE, int(most) // 4)
