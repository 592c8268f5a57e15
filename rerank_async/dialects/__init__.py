"""How kinds of servers are spoken to: one file per dialect.

A dialect says where a call's words go, with which headers, and turns them into the bytes of a
request; it turns the bytes of an answer into two columns, and an error into what it means.
A dialect that the local server speaks does the same the other way round.
It knows neither HTTP's carriage nor retries, and what it read is checked by others.
To add one, write its file with a class on `Dialect`, and name it in `DIALECTS`.
"""

from __future__ import annotations

from typing import cast

from rerank_async._errors import InvalidRequestError
from rerank_async._private import shown
from rerank_async.dialects import v1
from rerank_async.dialects._dialect import Dialect, ServerDialect
from rerank_async.dialects._reading import (
    Failure,
    Read,
    RefusedError,
    WireRequest,
    error_message,
    read_error,
)

__all__ = [
    "DIALECTS",
    "Dialect",
    "Failure",
    "Read",
    "RefusedError",
    "ServerDialect",
    "WireRequest",
    "error_message",
    "get",
    "get_server",
    "read_error",
]

DIALECTS: dict[str, Dialect] = {"v1": v1.V1()}


def get(dialect: str | Dialect) -> Dialect:
    """The dialect of that name; a dialect of the user's own is handed back.

    Raises:
        InvalidRequestError: naming the dialects there are.
    """
    if isinstance(dialect, Dialect):
        return dialect
    known = DIALECTS.get(dialect) if isinstance(dialect, str) else None
    if known is None:
        what = repr(dialect) if isinstance(dialect, str) else shown(dialect)
        names = ", ".join(sorted(DIALECTS))
        raise InvalidRequestError(
            f"dialect {what} is not known: use one of {names}, or an object of a class on "
            "rerank_async.dialects.Dialect"
        )
    return known


def get_server(name: str) -> ServerDialect:
    """The dialect of that name as servers speak it.

    Raises:
        InvalidRequestError: there is none, or no server here speaks it.
    """
    dialect = get(name)
    if not hasattr(dialect, "decode_request"):
        raise InvalidRequestError(f"dialect {dialect.name!r} is spoken by clients only")
    return cast(ServerDialect, dialect)
