"""How kinds of servers spell the rerank exchange: one file per dialect, both directions.

A dialect turns a call's words into the bytes of a request body and the bytes of an answer into two
columns, and on the server's side the other way round.
It knows neither HTTP's carriage nor retries.
To add one, write its file, give it the methods of `Dialect`, and name it in `DIALECTS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from rerank_async._errors import InvalidRequestError
from rerank_async.dialects import v1
from rerank_async.dialects._reading import (
    Answer,
    ErrorWords,
    RefusedError,
    WireRequest,
    error_message,
    excerpt,
    read_error,
)

__all__ = [
    "DIALECTS",
    "Answer",
    "Dialect",
    "ErrorWords",
    "RefusedError",
    "WireRequest",
    "error_message",
    "excerpt",
    "get",
    "read_error",
]


class Dialect(Protocol):
    """What the session and the server ask of a dialect. Every method is pure."""

    @property
    def name(self) -> str:
        """The word that `RerankSession(dialect=...)` takes."""
        ...

    @property
    def path(self) -> str:
        """What follows `base_url`, with its leading slash."""
        ...

    def encode_request(
        self, model: str, query: str, documents: Sequence[str], top_n: int | None
    ) -> bytes:
        """The body that asks for the scores of `documents`.

        Raises:
            TypeError: some text is not valid Unicode (it holds a lone surrogate).
        """
        ...

    def encode_pieces(
        self, model: str, query: str, documents: Sequence[str], top_n: int | None
    ) -> Iterator[bytes]:
        """The same body in pieces, each made within milliseconds, for what is large.

        Raises:
            TypeError: some text is not valid Unicode.
        """
        ...

    def document_bytes(self, document: str) -> int:
        """How many bytes one document adds to a body, its separator included.

        Raises:
            TypeError: the text is not valid Unicode.
        """
        ...

    def decode_response(self, body: bytes, sent: int, top_n: int | None) -> Answer:
        """The checked answer to a request that carried `sent` documents and asked for `top_n`.

        Raises:
            ResponseError: the answer is not in this dialect, or does not cover exactly the
                documents that were sent.
        """
        ...

    def decode_request(self, body: bytes) -> WireRequest:
        """The server's reading of a request body.

        Raises:
            RefusedError: saying which parameter is wrong and how.
        """
        ...

    def encode_response(
        self, model: str, ranking: Sequence[tuple[int, float]], total_tokens: int
    ) -> bytes:
        """The server's answer: `(index, score)` pairs, best first."""
        ...

    def encode_error(self, refused: RefusedError) -> bytes:
        """The body that goes with a refusal."""
        ...


DIALECTS: dict[str, Dialect] = {"v1": v1.V1()}


def get(name: str) -> Dialect:
    """The dialect of that name.

    Raises:
        InvalidRequestError: naming the dialects there are.
    """
    dialect = DIALECTS.get(name) if isinstance(name, str) else None
    if dialect is None:
        known = ", ".join(sorted(DIALECTS))
        raise InvalidRequestError(f"dialect {name!r} is not known: use one of {known}")
    return dialect
