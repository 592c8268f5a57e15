"""The v1 exchange: what this package was written for, exactly as specified.

    POST {base_url}/rerank
    {"model", "query", "documents": [str], "top_n"?}
    → {"object": "list",
       "data": [{"object": "rerank.result", "index", "relevance_score"}],
       "model", "usage": {"total_tokens"}}

Bodies are written with orjson, which keeps the order of fields and refuses text that is not valid
Unicode, and read with msgspec, which checks types as it goes: an index that is a float, a string or
a boolean, a score that is null, NaN or out of range never becomes a Python object.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import orjson

from rerank_async._errors import ResponseError
from rerank_async._private import Private, excerpt
from rerank_async.dialects._dialect import Dialect
from rerank_async.dialects._reading import (
    BOM,
    Read,
    RefusedError,
    WireRequest,
    error_message,
    read_error,
)
from rerank_async.dialects._shapes import looks_like

__all__ = ["V1"]


class _Result(msgspec.Struct, gc=False):
    index: int
    relevance_score: float


class _Body(Private, msgspec.Struct):
    data: list[_Result]
    model: str | None = None
    # Read leniently: an odd count of tokens is no reason to doubt the scores.
    usage: Any = None


_ROOMY = 2**11
# What is written at once of a large body: characters, and texts.
_PIECE = 2**19
_GROUP = 2**13

_decode_body = msgspec.json.Decoder(_Body).decode


class V1(Dialect):
    """The v1 exchange, both directions; see `Dialect` and `ServerDialect` for what is promised."""

    name = "v1"

    def encode_request(
        self, model: str, query: str, documents: Sequence[str], top_n: int | None
    ) -> bytes:
        """The request body; `top_n` is left out when it is None."""
        if not isinstance(documents, (list, tuple)):
            documents = list(documents)
        body: dict[str, Any] = {"model": model, "query": query, "documents": documents}
        if top_n is not None:
            body["top_n"] = top_n
        encoded = orjson.dumps(body)
        # orjson hands out its first buffer as it is, 4 KiB for a body of 100 bytes.
        return encoded if len(encoded) > _ROOMY else bytes(memoryview(encoded))

    def encode_pieces(
        self, model: str, query: str, documents: Sequence[str], top_n: int | None
    ) -> Iterator[bytes]:
        """The bytes of `encode_request`, in pieces of half a million characters."""
        yield b'{"model":' + orjson.dumps(model) + b',"query":'
        yield from _long_text(query)
        yield b',"documents":['
        for number, group in enumerate(_groups(documents)):
            if number:
                yield b","
            if len(group) == 1:
                yield from _long_text(group[0])
            else:
                yield orjson.dumps(group)[1:-1]
        yield b"]}" if top_n is None else b'],"top_n":' + orjson.dumps(top_n) + b"}"

    def document_bytes(self, document: str) -> int:
        """The length of the text as JSON, and a comma."""
        if len(document) <= _PIECE:
            return len(orjson.dumps(document)) + 1
        # A long text is not written whole only to be counted: that would take its memory once more.
        return sum(map(len, _long_text(document))) + 1

    def decode_response(self, body: bytes) -> Read:
        """What the answer says; unknown fields are passed over, `usage` may be absent."""
        try:
            if not body.isascii():
                body = body.removeprefix(BOM)
                # The decoder does not look into the strings that it passes over.
                body.decode()
            answer = _decode_body(body)
        except msgspec.ValidationError as error:
            raise _misread(error, body) from None
        except (ValueError, RecursionError) as error:
            # msgspec's own errors and UnicodeDecodeError are ValueErrors; nesting is not.
            raise ResponseError(
                f"the answer is not JSON ({type(error).__name__}); it says: {error_message(body)}"
            ) from None
        count = len(answer.data)
        # The decoder takes the last of two equal keys. Counting words is cheap and finds every body
        # that may have them; looking for the keys is not, and happens to those alone.
        if (
            body.count(b'"index"') > count
            or body.count(b'"relevance_score"') > count
            # Any key may be spelled with escapes. One byte is found much faster than two
            # (`benchmarks/pieces.py`).
            or (b"\\" in body and b"\\u" in body)
        ):
            _refuse_doubled_keys(body)
        usage, results = answer.usage, answer.data
        tokens = usage.get("total_tokens") if type(usage) is dict else None
        return Read(
            [result.index for result in results],
            [result.relevance_score for result in results],
            answer.model,
            tokens if type(tokens) is int and tokens >= 0 else None,
        )

    def decode_request(self, body: bytes) -> WireRequest:
        """The request, field by field, so that a refusal can name the field."""
        try:
            fields = orjson.loads(body)
        except ValueError:
            raise RefusedError(400, "the body is not JSON", code="invalid_json") from None
        if not isinstance(fields, dict):
            raise RefusedError(400, "the body must be a JSON object")
        model, query = _text(fields, "model"), _text(fields, "query")
        documents = fields.get("documents")
        if not isinstance(documents, list) or not documents:
            raise RefusedError(
                400, "documents must be an array of at least one string", param="documents"
            )
        if not set(map(type, documents)) <= {str}:
            place = next(i for i, document in enumerate(documents) if type(document) is not str)
            raise RefusedError(400, f"documents[{place}] is not a string", param="documents")
        top_n = fields.get("top_n")
        if top_n is not None and (type(top_n) is not int or top_n < 1):
            raise RefusedError(400, "top_n must be a whole number of at least 1", param="top_n")
        return WireRequest(model, query, documents, top_n)

    def encode_response(
        self, model: str, ranking: Sequence[tuple[int, float]], total_tokens: int
    ) -> bytes:
        """The response body of the specification."""
        return orjson.dumps(
            {
                "object": "list",
                "data": [
                    {"object": "rerank.result", "index": index, "relevance_score": score}
                    for index, score in ranking
                ],
                "model": model,
                "usage": {"total_tokens": total_tokens},
            }
        )

    def encode_error(self, refused: RefusedError) -> bytes:
        """The OpenAI shape; the specification leaves error bodies open."""
        kind = "server_error" if refused.status >= 500 else "invalid_request_error"
        return orjson.dumps(
            {
                "error": {
                    "message": refused.message,
                    "type": kind,
                    "param": refused.param,
                    "code": refused.code,
                }
            }
        )


def _groups(documents: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts in a row, as many together as make a piece."""
    start = length = 0
    for stop, document in enumerate(documents):
        length += len(document)
        if stop > start and (length > _PIECE or stop - start == _GROUP):
            yield documents[start:stop]
            start, length = stop, len(document)
    if start < len(documents):
        yield documents[start:]


def _long_text(text: str) -> Iterator[bytes]:
    """The text as JSON; each character is written by itself, so that it may be cut anywhere."""
    if len(text) <= _PIECE:
        yield orjson.dumps(text)
        return
    yield b'"'
    for start in range(0, len(text), _PIECE):
        yield orjson.dumps(text[start : start + _PIECE])[1:-1]
    yield b'"'


def _misread(error: msgspec.ValidationError, body: bytes) -> ResponseError:
    """What is wrong with an answer that is JSON and no v1 response."""
    # Not at the head of the file: most processes that import this package never see one.
    from rerank_async._condemned import condemned_by_words

    wrong = f"the answer is not a v1 rerank response: {error}"
    if (other := looks_like(body)) is not None:
        return ResponseError(
            f"{wrong}; it looks like the answer of {other}, and is not asked for again: use a "
            f"server or a path that speaks v1; it says: {excerpt(body)}"
        ).condemning("session")
    said = read_error(body)
    misread = ResponseError(f"{wrong}; it says: {said.message}")
    # An error under the wrong status: final where its code or its words say so.
    what = condemned_by_words(said.message, said.code, said.param)
    return misread if what is None else misread.condemning(what)


def _refuse_doubled_keys(body: bytes) -> None:
    try:
        json.loads(body, object_pairs_hook=_refuse_doubled_key)
    except (ValueError, RecursionError) as error:
        raise ResponseError(
            f"the answer is JSON that cannot be read ({type(error).__name__})"
        ) from None


def _refuse_doubled_key(pairs: list[tuple[str, Any]]) -> None:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        doubled = excerpt(Counter(keys).most_common(1)[0][0].encode("utf-8", errors="replace"))
        raise ResponseError(f"the answer holds an object with two values for {doubled!r}")


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise RefusedError(400, f"{name} must be a string that is not empty", param=name)
    return value
