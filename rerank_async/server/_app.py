"""What the local server answers: an `HttpRequest` in, an `HttpResponse` out, nothing else.

No sockets, no event loop: `_serve` carries the requests here, and tests call it as it is.
A head is judged apart from its body, so that whoever carries requests keeps no byte of a body
that nobody is going to read. Scoring is a step of its own, so that another process can do it.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from types import MappingProxyType

import orjson

from rerank_async._http import HttpRequest, HttpResponse
from rerank_async._ordering import best_first
from rerank_async._private import SecretBytes
from rerank_async.dialects import RefusedError, ServerDialect, get_server
from rerank_async.server._bodies import ENCODINGS, Body
from rerank_async.server.engines import Engine

__all__ = ["App", "is_open", "refusal"]

_JSON: Mapping[str, str] = {"content-type": "application/json"}

# What is answered without a key.
_OPEN = ("/", "/health")

# What a header can carry and `Authorization: Bearer KEY` can be split into.
_KEY = re.compile(r"[!-~]+")

_CHARSETS = ("", "utf-8", "utf8", "us-ascii", "ascii")

# The most characters of a request that an answer repeats.
_SHOWN = 100


def refusal(
    dialect: ServerDialect, refused: RefusedError, more: Mapping[str, str] = MappingProxyType({})
) -> HttpResponse:
    """The response that says no, with `Retry-After` where a later try may be let in."""
    headers = {**_JSON, **more}
    if refused.retry_after is not None:
        headers["retry-after"] = str(max(1, round(refused.retry_after)))
        headers["retry-after-ms"] = str(round(refused.retry_after * 1000))
    if refused.status == 401:
        headers["www-authenticate"] = "Bearer"
    return HttpResponse(refused.status, headers, dialect.encode_error(refused))


def is_open(head: HttpRequest) -> bool:
    """Whether `head` asks for a path that needs no key."""
    return _path_of(head.url) in _OPEN


def _path_of(url: str) -> str:
    """The path as it is spelled: nothing is decoded, so that two spellings are two paths."""
    if not url.startswith("/"):
        # A client in memory names the whole URL, and so may a request line.
        _, separator, rest = url.partition("://")
        if not separator:
            return url
        authority = re.split("[/?#]", rest, maxsplit=1)[0]
        url = rest[len(authority) :]
        if not url.startswith("/"):
            return "/"
    return re.split("[?#]", url, maxsplit=1)[0]


def _quoted(text: str) -> str:
    """`text` as JSON can hold it, and not at length: what comes in a head need not be UTF-8."""
    text = text.encode(errors="replace").decode()
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "\N{HORIZONTAL ELLIPSIS}"


class App:
    """The v1 exchange over one engine, plus `GET /health` and `GET /v1/models`.

    It judges a request in two steps. `answer_at_once` needs the head alone; where it has no
    answer, `body` takes the body in pieces, and `score` answers. `handle` does all of it.

    Args:
        engine: what scores.
        api_key: the key that is asked of every request but those for `/` and `/health`; None asks
            for none.
        max_documents: the most in one request; None is no limit.
        max_bytes: the most bytes of one body, content encodings undone; None is no limit.

    Raises:
        ValueError: `api_key` is empty, or holds what a header cannot carry.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        api_key: str | None = None,
        max_documents: int | None = None,
        max_bytes: int | None = None,
    ) -> None:
        if api_key is not None and not _KEY.fullmatch(api_key):
            # The key itself is no part of the message, nor of this frame.
            del api_key
            raise ValueError(
                "api_key must be printable ASCII without spaces or line ends, and not empty: "
                "leave it out to ask for none"
            )
        self._engine = engine
        self._key = None if api_key is None else SecretBytes(api_key.encode())
        self._max_documents = max_documents
        self._max_bytes = max_bytes
        self.dialect: ServerDialect = get_server("v1")
        self._rerank_path = "/v1" + self.dialect.path
        self._methods = {"/health": "GET", "/v1/models": "GET", self._rerank_path: "POST"}

    def handle(self, request: HttpRequest) -> HttpResponse:
        """Answer anything; errors are answers too."""
        answer = self.answer_at_once(request)
        if answer is not None:
            return answer
        body = self.body(request)
        try:
            behind = body.feed(request.body)
            while behind:
                behind = body.feed(b"")
            whole = body.end()
        except RefusedError as refused:
            return refusal(self.dialect, refused)
        return self.score(HttpRequest(request.method, request.url, {}, whole))

    def answer_at_once(self, request: HttpRequest) -> HttpResponse | None:
        """The answer, if the head decides it; None when the body is to be read, and scored.

        Nothing of `request` but its method, URL and headers is looked at.
        """
        try:
            return self._answer_at_once(request)
        except RefusedError as refused:
            return refusal(self.dialect, refused)

    def _answer_at_once(self, head: HttpRequest) -> HttpResponse | None:
        path = _path_of(head.url)
        if path not in _OPEN:
            # Before anything else: who may not ask does not learn what there is.
            self._authenticate(head.headers.get("authorization", ""))
        method = self._methods.get(path)
        if method is None:
            raise RefusedError(
                404,
                f"there is nothing at {_quoted(path)}; there is POST {self._rerank_path}",
                code="not_found",
            )
        if head.method != method and (head.method, method) != ("HEAD", "GET"):
            refused = RefusedError(
                405,
                f"{path} takes {method}, not {_quoted(head.method)}",
                code="method_not_allowed",
            )
            # RFC 9110, section 15.5.6: this answer must say what is allowed.
            return refusal(self.dialect, refused, {"allow": method})
        if head.headers.get("expect", "100-continue").lower() != "100-continue":
            raise RefusedError(
                417,
                "the only expectation that can be met is 100-continue",
                code="expectation_failed",
            )
        if path == "/health":
            return HttpResponse(200, _JSON, b'{"status":"ok"}')
        if path == "/v1/models":
            model = {"id": self._engine.name, "object": "model", "owned_by": "rerank_async"}
            return HttpResponse(200, _JSON, orjson.dumps({"object": "list", "data": [model]}))
        return self._refuse_body(head.headers)

    def _authenticate(self, authorization: str) -> None:
        if self._key is None:
            return
        scheme, _, key = authorization.partition(" ")
        # In constant time: how long it takes does not tell how much of the key was right.
        same = hmac.compare_digest(key.strip().encode("utf-8", "surrogateescape"), self._key)
        if scheme.lower() != "bearer" or not same:
            raise RefusedError(
                401,
                "the API key is missing or wrong: send Authorization: Bearer KEY",
                code="invalid_api_key",
            )

    def _refuse_body(self, headers: Mapping[str, str]) -> HttpResponse | None:
        """What is wrong with a body, by what the head says of it; None if nothing is."""
        media_type, _, parameters = headers.get("content-type", "").partition(";")
        media_type = media_type.strip().lower()
        if media_type != "application/json":
            came = _quoted(media_type) or "of no media type"
            raise RefusedError(
                415,
                f"the body must be application/json, not {came}",
                code="unsupported_media_type",
            )
        charset = _charset(parameters)
        if charset not in _CHARSETS:
            raise RefusedError(
                415,
                f"the body must be UTF-8, not {_quoted(charset)}",
                code="unsupported_media_type",
            )
        encoding = _encoding(headers)
        if encoding not in ENCODINGS:
            refused = RefusedError(
                415,
                f"a body is taken as it is, or encoded once with gzip or deflate, not with "
                f"{_quoted(encoding)}",
                code="unsupported_encoding",
            )
            # RFC 9110, section 15.5.16: so that the client knows that it is about the encoding.
            return refusal(self.dialect, refused, {"accept-encoding": "gzip, deflate"})
        transfer = headers.get("transfer-encoding", "chunked").lower()
        if transfer != "chunked":
            raise RefusedError(
                501,
                f"the one transfer encoding that is taken is chunked, not {_quoted(transfer)}",
                code="unsupported_encoding",
            )
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            raise RefusedError(400, "Content-Length must be a whole number", code="invalid_length")
        # Python does not read a number of more than 4,300 digits.
        if self._max_bytes is not None and int(length[:4000]) > self._max_bytes:
            raise Body.too_large(self._max_bytes)
        return None

    def body(self, head: HttpRequest) -> Body:
        """What takes the body of a request whose head was let in, piece by piece."""
        return Body(_encoding(head.headers), self._max_bytes)

    def score(self, request: HttpRequest) -> HttpResponse:
        """The ranking that the body asks for, content encodings undone, or what is wrong with it.

        Nothing of `request` but its body is looked at.
        """
        try:
            wire = self.dialect.decode_request(request.body)
            if self._max_documents is not None and len(wire.documents) > self._max_documents:
                raise RefusedError(
                    413,
                    f"too many documents: {len(wire.documents)}, and at most "
                    f"{self._max_documents} are taken",
                    param="documents",
                    code="too_many_documents",
                )
        except RefusedError as refused:
            return refusal(self.dialect, refused)
        scored = self._engine.score(wire.query, wire.documents)
        scores = scored.scores
        ranking = [(index, scores[index]) for index in best_first(scores)[: wire.top_n]]
        body = self.dialect.encode_response(wire.model, ranking, scored.total_tokens)
        return HttpResponse(200, _JSON, body)


def _charset(parameters: str) -> str:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return value.strip().strip('"').lower()
    return ""


def _encoding(headers: Mapping[str, str]) -> str:
    encoding = headers.get("content-encoding", "").strip().lower()
    return encoding or "identity"
