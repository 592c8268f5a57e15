"""Where the local server listens: the addresses behind a name, who can reach them, who comes in.

Connections are accepted here and not by the event loop, of which one kind repeats an accept that
failed for want of descriptors thousands of times, and another hangs up on whoever comes then.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import Callable
from typing import TypeAlias

try:
    import resource
except ModuleNotFoundError:  # Windows, where descriptors are not counted like this
    _resource = None
else:
    _resource = resource

__all__ = [
    "Listener",
    "bind",
    "highest_descriptor",
    "is_loopback",
    "is_numeric",
    "resolve",
]

Address: TypeAlias = tuple[socket.AddressFamily, str]

_BACKLOG = 1024

# Seconds until the next try where nothing can be accepted, and nobody can go to make room.
_PAUSE = 0.1

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
        addresses: the addresses that `resolve` returned.
        port: 0 takes a free one, the same for all.

    Raises:
        OSError: an address cannot be listened on.
    """
    sockets: list[socket.socket] = []
    try:
        for family, address in addresses:
            sock: socket.socket = _Listening(family, socket.SOCK_STREAM)
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


class _Listening(socket.socket):
    """A listening socket that knows what it accepted until somebody has it."""

    accepted: socket.socket | None = None

    def accept(self) -> tuple[socket.socket, object]:
        self.accepted, where = super().accept()
        return self.accepted, where


class Listener:
    """Accepts connections, one after the other.

    Args:
        sockets: the sockets that `bind` returned.
        protocol: the function that makes what is to speak on a connection.
        make_room: the function that is called where nothing can be accepted for want of descriptors
            or memory; it says whether somebody goes.

    Attributes:
        sockets: what it listens on, until it is closed.
    """

    def __init__(
        self,
        sockets: list[socket.socket],
        protocol: Callable[[], asyncio.BaseProtocol],
        make_room: Callable[[], bool],
    ) -> None:
        self.sockets = sockets
        self._protocol = protocol
        self._make_room = make_room
        for sock in sockets:
            sock.setblocking(False)
            sock.listen(_BACKLOG)
        self._tasks = [asyncio.ensure_future(self._accept_from(sock)) for sock in sockets]

    async def _accept_from(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listening)
            except ConnectionError:
                # It went away again before its turn.
                continue
            except asyncio.CancelledError:
                # The loop loses what it accepted in the moment in which it was told to stop.
                lost = getattr(listening, "accepted", None)
                if lost is not None:
                    lost.close()
                raise
            except OSError:
                await asyncio.sleep(0 if self._make_room() else _PAUSE)
                continue
            if isinstance(listening, _Listening):
                listening.accepted = None
            try:
                await loop.connect_accepted_socket(self._protocol, sock)
            except OSError:
                sock.close()

    def close(self) -> None:
        """Accept no more."""
        for task in self._tasks:
            task.cancel()
        for sock in self.sockets:
            # Not before the loop has let go of it.
            asyncio.get_running_loop().call_soon(sock.close)
        self.sockets = []


def highest_descriptor() -> int | None:
    """The highest descriptor that is left to connections; None where nobody counts them."""
    if _resource is None:
        return None
    most, _ = _resource.getrlimit(_resource.RLIMIT_NOFILE)
    if most == _resource.RLIM_INFINITY:
        return None
    return int(most) - min(_SPARE, int(most) // 4)
