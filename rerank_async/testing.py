"""For your own tests: a server in memory, with scripted faults, that `RerankSession` talks to.

    transport = MemoryTransport(scoring(lambda query, document: float(query in document)))
    session = RerankSession("https://rerank.test/v1", model="any", http=transport)

Everything but the network is real: bodies are encoded, answers checked, failures retried.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from rerank_async._errors import RequestTimeoutError, ResponseError
from rerank_async._http import HttpRequest, HttpResponse, Transport
from rerank_async._ordering import best_first
from rerank_async.dialects import RefusedError, get_server

__all__ = [
    "Handler",
    "HttpRequest",
    "HttpResponse",
    "MemoryTransport",
    "Step",
    "Transport",
    "scoring",
]

Handler: TypeAlias = Callable[[HttpRequest], HttpResponse]
Step: TypeAlias = HttpResponse | Exception | None


def scoring(score: Callable[[str, str], float], *, dialect: str = "v1") -> Handler:
    """A handler that answers with the scores of your function.

    Args:
        score: (query, document) → score.
        dialect: the name of the dialect in which requests and answers are spelled.

    Returns:
        A handler for `MemoryTransport`. Its answers are sorted, equal scores by index, and cut to
        `top_n`; `usage.total_tokens` is the number of documents.
    """
    spoken = get_server(dialect)
    headers = {"content-type": "application/json"}

    def handle(request: HttpRequest) -> HttpResponse:
        try:
            wire = spoken.decode_request(request.body)
        except RefusedError as refused:
            return HttpResponse(refused.status, headers, spoken.encode_error(refused))
        scores = [score(wire.query, document) for document in wire.documents]
        ranking = [(index, scores[index]) for index in best_first(scores)[: wire.top_n]]
        return HttpResponse(200, headers, spoken.encode_response(wire.model, ranking, len(scores)))

    return handle


class MemoryTransport:
    """Carries exchanges to a function instead of a network; give it to a session as `http`.

    Args:
        handler: answers each request that the script leaves to it; see `scoring`.
        script: one step for each exchange, in order: a response to give, an exception to raise
            (`TransportError("...")`, say), or None to let the handler answer. When it runs out,
            the handler answers.
        delay: seconds that every exchange takes.

    Attributes:
        requests: every request that came, in order, header names in lower case.
        in_flight: exchanges under way now.
        most_in_flight: the most there were at once.
        closed: whether the session has closed it.
    """

    def __init__(
        self, handler: Handler, *, script: Iterable[Step] = (), delay: float = 0.0
    ) -> None:
        self._handler = handler
        self._script: Iterator[Step] = iter(script)
        self._delay = delay
        self.requests: list[HttpRequest] = []
        self.in_flight: int = 0
        self.most_in_flight: int = 0
        self.closed: bool = False

    async def exchange(
        self, request: HttpRequest, *, body_limit: int, timeout: float | None
    ) -> HttpResponse:
        """Answer `request` after the delay; the script first, then the handler."""
        lower = {name.lower(): value for name, value in request.headers.items()}
        request = HttpRequest(request.method, request.url, lower, request.body)
        self.requests.append(request)
        step = next(self._script, None)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if timeout is not None and timeout < self._delay:
                await asyncio.sleep(timeout)
                raise RequestTimeoutError(f"no answer within {timeout:g} s")
            await asyncio.sleep(self._delay)
            if isinstance(step, Exception):
                raise step
            response = self._handler(request) if step is None else step
        finally:
            self.in_flight -= 1
        if len(response.body) > body_limit:
            error = ResponseError(f"the answer is longer than {body_limit:,} bytes")
            error.final = True
            raise error
        return response

    async def close(self) -> None:
        """Note that the session let go."""
        self.closed = True
