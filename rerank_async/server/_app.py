"""What the local server answers: an `HttpRequest` in, an `HttpResponse` out, nothing else.

No sockets, no event loop: `_serve` carries the requests here, and tests call it as it is.
Scoring is kept apart from everything that can be answered at once, so that it can be done in
another process.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from types import MappingProxyType
from urllib.parse import urlsplit

import orjson

from rerank_async._http import HttpRequest, HttpResponse
from rerank_async.dialects import Dialect, RefusedError
from rerank_async.dialects import get as get_dialect
from rerank_async.server.engines import Engine

__all__ = ["App", "refusal"]

_JSON: Mapping[str, str] = {"content-type": "application/json"}


def refusal(
    dialect: Dialect, refused: RefusedError, more: Mapping[str, str] = MappingProxyType({})
) -> HttpResponse:
    """The response that says no, with `Retry-After` where a later try may be let in."""
    headers = {**_JSON, **more}
    if refused.retry_after is not None:
        headers["retry-after"] = str(max(1, round(refused.retry_after)))
        headers["retry-after-ms"] = str(round(refused.retry_after * 1000))
    if refused.status == 401:
        headers["www-authenticate"] = "Bearer"
    return HttpResponse(refused.status, headers, dialect.encode_error(refused))


def _shown(text: str) -> str:
    """`text` as JSON can hold it: what came in a head need not be UTF-8."""
    return text.encode(errors="replace").decode()


class App:
    """The v1 exchange over one engine, plus `GET /health` and `GET /v1/models`.

    Args:
        engine: what scores.
        api_key: asked of every `/v1` request; None asks for none.
        max_documents: the most in one request; None is no limit.
    """

    def __init__(
        self, engine: Engine, *, api_key: str | None = None, max_documents: int | None = None
    ) -> None:
        self._engine = engine
        self._key = None if api_key is None else api_key.encode()
        self._max_documents = max_documents
        self.dialect: Dialect = get_dialect("v1")
        self._rerank_path = "/v1" + self.dialect.path
        self._methods = {"/health": "GET", "/v1/models": "GET", self._rerank_path: "POST"}

    def handle(self, request: HttpRequest) -> HttpResponse:
        """Answer anything; errors are answers too."""
        return self.answer_at_once(request) or self.score(request)

    def answer_at_once(self, request: HttpRequest) -> HttpResponse | None:
        """The answer, if it needs no scoring; None when `score` is to give it."""
        try:
            return self._answer_at_once(request)
        except RefusedError as refused:
            return refusal(self.dialect, refused)

    def _answer_at_once(self, request: HttpRequest) -> HttpResponse | None:
        # A client in memory names the whole URL, a socket's request line the path alone.
        path = urlsplit(request.url).path
        method = self._methods.get(path)
        if method is None:
            raise RefusedError(
                404,
                f"there is nothing at {_shown(path)}; there is POST {self._rerank_path}",
                code="not_found",
            )
        if path != "/health":
            self._authenticate(request.headers.get("authorization", ""))
        if request.method != method:
            refused = RefusedError(
                405, f"{path} takes {method}, not {request.method}", code="method_not_allowed"
            )
            # RFC 9110, section 15.5.6: this answer must say what is allowed.
            return refusal(self.dialect, refused, {"allow": method})
        if path == "/health":
            return HttpResponse(200, _JSON, b'{"status":"ok"}')
        if path == "/v1/models":
            model = {"id": self._engine.name, "object": "model", "owned_by": "rerank_async"}
            return HttpResponse(200, _JSON, orjson.dumps({"object": "list", "data": [model]}))
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            came = _shown(media_type) or "of no media type"
            raise RefusedError(
                415,
                f"the body must be application/json, not {came}",
                code="unsupported_media_type",
            )
        return None

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

    def score(self, request: HttpRequest) -> HttpResponse:
        """The ranking that `request` asks for, or what is wrong with it."""
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
        # Stable, so that equal scores stand in the documents' order.
        order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
        ranking = [(index, scores[index]) for index in order[: wire.top_n]]
        body = self.dialect.encode_response(wire.model, ranking, scored.total_tokens)
        return HttpResponse(200, _JSON, body)
