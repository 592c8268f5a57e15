"""Documents in, chunks out: each chunk fits one request.

A list of known length is cut into chunks of nearly equal size; a stream is cut as it comes.
What fits is said by `ChunkLimits`; what a document weighs is measured by functions that the caller
hands in, so that this file knows no wire.
A line belongs here when it decides where one request's documents end and the next one's begin.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache

from attrs import field, frozen
from msgspec import Struct

from rerank_async._errors import InvalidRequestError
from rerank_async._models import is_unicode
from rerank_async._private import Private, shown

__all__ = [
    "Chunk",
    "ChunkLimits",
    "Chunker",
    "check_types",
    "check_unicode",
    "estimate_tokens",
    "split",
    "stream",
    "whole",
]

_TEXT = {str}
# The positions of lists that are sent whole: calls that wait need not have a range each.
_all_of = lru_cache(maxsize=64)(range)
# White space, control characters, and what takes no room or turns the direction of writing: servers
# differ in which of it they strip.
_NOTHING_TO_SEE = re.compile(
    r"[\s\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2028-\u202e"
    r"\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0]*"
).fullmatch


def estimate_tokens(text: str) -> int:
    """A careful guess at a text's tokens: one for every three bytes of UTF-8, rounded up.

    English comes to about four bytes a token in the usual vocabularies and Chinese to about three,
    so that the guess is more often too high than too low.
    Where a limit is tight, hand the model's own tokenizer to `ChunkLimits(count_tokens=...)`.
    """
    return -(-len(text.encode("utf-8", errors="replace")) // 3)


def _at_least_one(instance: object, attribute: object, value: int | None) -> None:
    name = getattr(attribute, "name", "limit")
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequestError(f"{name} must be a whole number or None, not {shown(value)}")
    if value < 1:
        raise InvalidRequestError(f"{name} must be at least 1, not {value}: use None for no limit")


def _is_callable(instance: object, attribute: object, value: object) -> None:
    if not callable(value):
        raise InvalidRequestError(
            f"count_tokens must be a function from text to a number, not {shown(value)}"
        )


@frozen
class ChunkLimits:
    """What one request may carry; None means no limit.

    Attributes:
        max_documents: documents in one request.
        max_bytes: bytes of the encoded request body, the query and the braces included.
        max_tokens: tokens of one request, counted as the servers that bill by tokens do: the
            query once for every document, plus the documents.
        count_tokens: text → number of tokens, for `max_tokens`; the default is a careful guess,
            one token for every three bytes of UTF-8.
        split_refused: whether a request that the server refuses is sent again in smaller ones, to
            fit what the server takes or to find the document that it refuses. Turn it off for
            models whose scores depend on the other documents of a request.

    Raises:
        InvalidRequestError: a limit below 1 or not a whole number.
    """

    max_documents: int | None = field(default=1000, validator=_at_least_one)
    max_bytes: int | None = field(default=None, validator=_at_least_one)
    max_tokens: int | None = field(default=None, validator=_at_least_one)
    count_tokens: Callable[[str], int] = field(default=estimate_tokens, validator=_is_callable)
    split_refused: bool = True

    def tokens_of(self, text: str) -> int:
        """The tokens of one text by `count_tokens`.

        Raises:
            InvalidRequestError: it did not return a count.
        """
        tokens = self.count_tokens(text)
        if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
            raise InvalidRequestError(
                f"count_tokens must return a whole number of at least 0, not {shown(tokens)}"
            )
        return tokens

    def tokens(self, query: str, documents: Sequence[str]) -> int:
        """The tokens of one request, as `max_tokens` counts them.

        Raises:
            InvalidRequestError: `count_tokens` did not return a count.
        """
        return self.tokens_of(query) * len(documents) + sum(map(self.tokens_of, documents))


class Chunk(Private, Struct, frozen=True, eq=False):
    """Some of one call's documents, to be sent as one request.

    Attributes:
        positions: the caller's index of each document, ascending; a range where the documents stand
            in a row, which costs nothing, and any other sequence where they do not.
        documents: the texts, one for each position; never empty.
    """

    positions: Sequence[int]
    documents: Sequence[str]

    @classmethod
    def in_a_row(cls, start: int, documents: Sequence[str]) -> Chunk:
        """Documents that stand in a row, the first at `start`."""
        return cls(range(start, start + len(documents)), documents)

    @property
    def start(self) -> int:
        """The caller's index of the first document."""
        return self.positions[0]

    @property
    def stop(self) -> int:
        """The index after the caller's index of the last document."""
        return self.positions[-1] + 1

    @property
    def is_in_a_row(self) -> bool:
        """Whether no document of the caller's lies between two of them."""
        return self.stop - self.start == len(self.documents)

    def __str__(self) -> str:
        if self.is_in_a_row:
            return f"documents {self.start} to {self.stop - 1}"
        return f"{len(self.documents)} of the documents {self.start} to {self.stop - 1}"

    def positions_of(self, places: Sequence[int]) -> list[int]:
        """The caller's indices of the documents at these places within the chunk."""
        return list(map(self.positions.__getitem__, places))

    def cut(self, pieces: int) -> Iterator[Chunk]:
        """The chunk in so many pieces of nearly equal size, each with a document at least."""
        size, longer = divmod(len(self.documents), pieces)
        begin = 0
        for number in range(pieces):
            end = begin + size + (number < longer)
            yield Chunk(self.positions[begin:end], self.documents[begin:end])
            begin = end

    def only(self, places: Sequence[int]) -> Chunk:
        """The chunk with the documents at these places alone."""
        return Chunk(self.positions_of(places), [self.documents[place] for place in places])

    def blanks(self) -> list[int]:
        """The places, within the chunk, of documents that are empty or nothing but white space."""
        return [place for place, text in enumerate(self.documents) if not text or text.isspace()]

    def has_blanks(self) -> bool:
        """Whether a server may take some for blank: also those in which nothing can be seen."""
        # Most begin with a letter or a digit.
        return any(not text[:1].isalnum() and _NOTHING_TO_SEE(text) for text in self.documents)


class Chunker:
    """Cuts a stream: feed it documents one by one, and it gives back each chunk that is full.

    Args:
        limits: what one request may carry.
        query: the call's query; it is part of every request.
        envelope_bytes: the length of a request body without documents.
        document_bytes: text → what it adds to a body, a separator of one byte included.
        max_documents: the number of documents in a chunk, for cutting evenly; None means the
            limits' own.

    Raises:
        InvalidRequestError: the query alone is over a limit.
    """

    def __init__(
        self,
        limits: ChunkLimits,
        query: str,
        envelope_bytes: int,
        document_bytes: Callable[[str], int],
        max_documents: int | None = None,
    ) -> None:
        self._limits = limits
        self._max_documents = max_documents or limits.max_documents
        self._document_bytes = document_bytes
        self._envelope = envelope_bytes
        self._query_tokens = 0
        if limits.max_bytes is not None and envelope_bytes >= limits.max_bytes:
            raise InvalidRequestError(
                f"query: without any document the request body already has {envelope_bytes:,} "
                f"bytes, and max_bytes is {limits.max_bytes:,}: shorten the query or raise the "
                "limit"
            )
        if limits.max_tokens is not None:
            self._query_tokens = limits.tokens_of(query)
            if self._query_tokens > limits.max_tokens:
                raise InvalidRequestError(
                    f"query: it has {self._query_tokens:,} tokens by itself, and max_tokens is "
                    f"{limits.max_tokens:,}: shorten the query or raise the limit"
                )
        self._start = 0
        self._clear()

    def _clear(self) -> None:
        self._documents: list[str] = []
        # The first document has no separator before it.
        self._bytes = self._envelope - 1
        self._tokens = 0

    def feed(self, document: str) -> Chunk | None:
        """Take one document; return a chunk when one is full.

        That is the chunk before the document when it did not fit there, or the one that it fills.

        Raises:
            InvalidRequestError: the document is not text or is over a limit all by itself; the
                message names its index.
        """
        size, tokens = self._weigh(document)
        limits = self._limits
        full = None
        if self._documents and (
            (limits.max_bytes is not None and self._bytes + size > limits.max_bytes)
            or (limits.max_tokens is not None and self._tokens + tokens > limits.max_tokens)
        ):
            full = self.flush()
        self._documents.append(document)
        self._bytes += size
        self._tokens += tokens
        # Never both: a chunk that one document fills was never waiting for another.
        if len(self._documents) == self._max_documents:
            return self.flush()
        return full

    def flush(self) -> Chunk | None:
        """Return what has been fed since the last chunk, or None."""
        if not self._documents:
            return None
        chunk = Chunk.in_a_row(self._start, self._documents)
        self._start = chunk.stop
        self._clear()
        return chunk

    def _weigh(self, document: str) -> tuple[int, int]:
        if not isinstance(document, str):
            raise _not_text(self._start + len(self._documents), document)
        limits = self._limits
        size = tokens = 0
        try:
            if limits.max_bytes is not None:
                size = self._document_bytes(document)
                if self._envelope - 1 + size > limits.max_bytes:
                    raise _too_large(
                        self._start + len(self._documents),
                        f"alone makes a request body of {self._envelope - 1 + size:,} bytes",
                        f"max_bytes is {limits.max_bytes:,}",
                    )
            if limits.max_tokens is not None:
                tokens = self._query_tokens + limits.tokens_of(document)
                if tokens > limits.max_tokens:
                    raise _too_large(
                        self._start + len(self._documents),
                        f"makes {tokens:,} tokens with the query",
                        f"max_tokens is {limits.max_tokens:,}",
                    )
        except TypeError:
            if is_unicode(document):
                raise
            raise _not_unicode(self._start + len(self._documents)) from None
        return size, tokens


def stream(documents: Iterable[str], chunker: Chunker) -> Iterator[Chunk]:
    """Cut an iterable as it is read, and no further than it is asked for."""
    for document in documents:
        if (chunk := chunker.feed(document)) is not None:
            yield chunk
    if (chunk := chunker.flush()) is not None:
        yield chunk


def whole(documents: Sequence[str], limits: ChunkLimits) -> Chunk | None:
    """The list as one chunk, where the number of documents alone says that it is one.

    Text that is not valid Unicode is left to the encoder.

    Returns:
        None where there are no documents, or where it takes `split` to decide.

    Raises:
        InvalidRequestError: a document is not text; the message names its index.
    """
    count, most = len(documents), limits.max_documents
    if (
        not count
        or (most is not None and count > most)
        or limits.max_bytes is not None
        or limits.max_tokens is not None
    ):
        return None
    documents = tuple(documents)
    if set(map(type, documents)) != _TEXT:
        check_types(documents)
    return Chunk(_all_of(count), documents)


def split(
    documents: Sequence[str],
    limits: ChunkLimits,
    query: str,
    envelope_bytes: int,
    document_bytes: Callable[[str], int],
    *,
    are_checked: bool = False,
) -> Iterator[Chunk]:
    """Cut a list into as few chunks as fit, of nearly equal numbers of documents.

    1,001 documents under a limit of 1,000 are 501 + 500: two requests that run side by side are
    over when the longer one is.
    Every document is looked at before the first chunk is handed out, and the list may change
    afterwards.

    Args:
        documents: the call's documents, indices from 0.
        limits: what one request may carry.
        query: the call's query.
        envelope_bytes: the length of a request body without documents.
        document_bytes: text → what it adds to a body, a separator of one byte included.
        are_checked: whether the documents are known to be text that can be written.

    Raises:
        InvalidRequestError: a document is not text, or is over a limit all by itself; the message
            names its index.
    """
    documents = tuple(documents)
    if not are_checked:
        check_types(documents)
        check_unicode(documents)
    if limits.max_bytes is None and limits.max_tokens is None:
        most = limits.max_documents
        pieces = 1 if most is None else -(-len(documents) // most)
        return Chunk.in_a_row(0, documents).cut(pieces) if documents else iter(())

    def chunks(max_documents: int | None) -> list[Chunk]:
        chunker = Chunker(limits, query, envelope_bytes, document_bytes, max_documents)
        return list(stream(documents, chunker))

    greedy = chunks(None)
    if len(greedy) < 2:
        return iter(greedy)
    # The same number of chunks, if it can be had, with no more documents in each than their even
    # share; where long documents crowd together it cannot, and the greedy cut stands.
    even = chunks(-(-len(documents) // len(greedy)))
    return iter(even if len(even) == len(greedy) else greedy)


def check_types(documents: Sequence[str], positions: Sequence[int] | None = None) -> None:
    """Refuse documents that are not strings.

    Args:
        documents: what the caller calls documents; at least one.
        positions: the caller's index of each; None means that they are all of them.

    Raises:
        InvalidRequestError: naming the index of the first such document.
    """
    if set(map(type, documents)) != _TEXT:
        for place, document in enumerate(documents):
            if not isinstance(document, str):
                raise _not_text(place if positions is None else positions[place], document)


def check_unicode(documents: Sequence[str], positions: Sequence[int] | None = None) -> None:
    """Refuse documents that no encoder could write.

    Args:
        documents: strings.
        positions: the caller's index of each; None means that they are all of them.

    Raises:
        InvalidRequestError: naming the index of the first such document.
    """
    if not all(map(str.isascii, documents)):
        for place, document in enumerate(documents):
            if not is_unicode(document):
                raise _not_unicode(place if positions is None else positions[place])


def _not_text(index: int, document: object) -> InvalidRequestError:
    return InvalidRequestError(
        f"documents[{index}] must be a string, not {type(document).__name__}"
    )


def _not_unicode(index: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"documents[{index}] is not valid Unicode: it holds a lone surrogate; "
        "decode it with errors='replace'"
    )


def _too_large(index: int, what: str, limit: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"documents[{index}] {what}, and {limit}: shorten the document or raise the limit"
    )
