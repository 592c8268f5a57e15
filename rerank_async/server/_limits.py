"""What the local server puts up with from those who connect to it."""

from __future__ import annotations

import math

from attrs import field, frozen
from attrs.validators import gt

__all__ = ["Limits"]


def _seconds_field(default: float) -> float:
    number: float = field(default=default, kw_only=True, validator=[gt(0.0), _finite])
    return number


def _count_field(default: int) -> int:
    number: int = field(default=default, kw_only=True, validator=gt(0))
    return number


def _finite(limits: object, attribute: object, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{getattr(attribute, 'name', 'it')} must be finite, not {value}")


@frozen
class Limits:
    """What the local server puts up with from those who connect to it.

    Args:
        head: seconds for a request's head to arrive, from its first byte; of a new connection
            also for that first byte to come. Then the connection is closed.
        idle: seconds that a connection may stay open between two requests.
        body: seconds for a request's body to arrive. Then it is answered 408.
        write: seconds for the client to take its answer. Then the connection is cut.
        connections: the number of connections that may be open at once. One more takes the place of
            the one that has been without a request for longest. Where all of them are in work, only
            `/health` and `/` are answered to newcomers, and everything else with 503. Fewer are
            open where the process may not have as many descriptors.
        body_bytes: the bytes that the bodies of all requests in work may have together, content
            encodings undone. A request that needs more is answered 503.

    Raises:
        ValueError: one of them is not more than 0, or not finite.
    """

    head: float = _seconds_field(10.0)
    idle: float = _seconds_field(75.0)
    body: float = _seconds_field(60.0)
    write: float = _seconds_field(60.0)
    connections: int = _count_field(1000)
    body_bytes: int = _count_field(256 * 2**20)
