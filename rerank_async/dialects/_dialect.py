"""What the session asks of a dialect, and what the local server asks of one that it speaks.

A line belongs here when it is a promise that every dialect makes; the defaults are those of most
servers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Protocol

import orjson

from rerank_async._chunking import ChunkLimits
from rerank_async.dialects._reading import Failure, Read, RefusedError, WireRequest, read_error

__all__ = ["Dialect", "ServerDialect"]


class Dialect(ABC):
    """How one kind of server is spoken to: where, with which headers, in which words.

    Every method is pure.
    A dialect of your own is a class with `name`, `encode_request` and `decode_response`; whatever
    else its server does in its own way, it overrides.
    It cannot hand out a wrong score: what it reads is checked by the session.

    Attributes:
        name: the word that `RerankSession(dialect=...)` takes, and that `session.dialect` says.
        path: what follows `base_url`, with its leading slash.
        limits: what one request may carry by the server's documentation; a session that is given
            no `chunks` keeps to it.
    """

    name: ClassVar[str]
    path: ClassVar[str] = "/rerank"
    limits: ClassVar[ChunkLimits] = ChunkLimits()

    def url(self, base_url: str, model: str) -> str:
        """Where requests for a model go.

        Args:
            base_url: the session's base URL, without a slash at its end.
            model: the model id; some servers have it in the path.
        """
        return base_url + self.path

    def headers(self, key: str | None) -> Mapping[str, str]:
        """The headers of every request, beside `Content-Type`, `Accept` and `User-Agent`.

        Args:
            key: the API key; None where there is none.
        """
        return {} if key is None else {"Authorization": f"Bearer {key}"}

    @abstractmethod
    def encode_request(
        self, model: str, query: str, documents: Sequence[str], top_n: int | None
    ) -> bytes:
        """The body that asks for the scores of `documents`.

        Raises:
            TypeError: some text is not valid Unicode (it holds a lone surrogate).
        """

    @abstractmethod
    def decode_response(self, body: bytes) -> Read:
        """What an answer with status 200 says; nothing of it need be checked.

        Raises:
            ResponseError: the answer is not in this dialect.
            RerankError: the answer is a refusal in spite of its status: the error that it means,
                from `classify`, say.
        """

    def classify(self, status: int, body: bytes) -> Failure:
        """What an answer with another status says and means.

        Args:
            status: the HTTP status code.
            body: the answer's body, without the API key where the server quoted it.
        """
        return read_error(body)

    def encode_pieces(
        self, model: str, query: str, documents: Sequence[str], top_n: int | None
    ) -> Iterator[bytes]:
        """The body of `encode_request` in pieces, for what is large.

        Each piece should be made within milliseconds: the event loop goes on between them.

        Raises:
            TypeError: some text is not valid Unicode.
        """
        yield self.encode_request(model, query, documents, top_n)

    def document_bytes(self, document: str) -> int:
        """How many bytes one document adds to a body, its separator included.

        Raises:
            TypeError: the text is not valid Unicode.
        """
        return len(orjson.dumps(document)) + 1


class ServerDialect(Protocol):
    """What the local server and `rerank_async.testing` ask of a dialect. Every method is pure."""

    @property
    def name(self) -> str:
        """The dialect's name."""
        ...

    @property
    def path(self) -> str:
        """What follows the server's base URL, with its leading slash."""
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
