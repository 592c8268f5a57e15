"""The clients, each behind the same two questions: rank these documents, rank this corpus.

Whoever writes such a client by hand, or reads its documentation, writes what stands here.
Nothing of a client is imported before it is asked for: most live in the peers' environment alone.
"""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from importlib import import_module
from operator import attrgetter, itemgetter
from typing import Any, ClassVar, TypeAlias

from benchmarks.peers.work import WORKERS

# The best documents first, by their indices.
Indices: TypeAlias = list[int]
# Asks once for a whole corpus; what comes of it is the client's own.
Ask: TypeAlias = Callable[[], Awaitable[Any]]
QUERY = "a question"


class Client(ABC):
    """One client.

    Args:
        origin: of the stub.
    """

    # What has to be installed for it, and what its user imports.
    packages: tuple[str, ...]
    modules: tuple[str, ...]
    # Whether it is measured on uvloop, or on asyncio's own loop.
    is_on_uvloop: ClassVar[bool] = True

    def __init__(self, origin: str) -> None:
        self.origin = origin

    @abstractmethod
    async def open(self, size: int) -> None:
        """Be ready for requests of so many documents."""

    @abstractmethod
    async def rank(self, texts: list[str]) -> Any:
        """One request: whatever the client gives its user, in the order of relevance."""

    @abstractmethod
    def order(self, answer: Any) -> Indices:
        """What `rank` returned, as indices. It is not measured."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of connections."""


class Floor(Client):
    """A hand-written loop of aiohttp and orjson: no checks, no retries, no deadline of its own."""

    packages: tuple[str, ...] = ("aiohttp", "orjson")
    modules: tuple[str, ...] = ("aiohttp", "orjson")

    async def open(self, size: int) -> None:
        import aiohttp

        self._url = f"{self.origin}/{size}/v1/rerank"
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        self._headers = {"Content-Type": "application/json", "Authorization": "Bearer key"}

    async def rank(self, texts: list[str]) -> Any:
        import orjson

        body = orjson.dumps({"model": "stub", "query": QUERY, "documents": texts})
        async with self._http.post(self._url, data=body, headers=self._headers) as response:
            response.raise_for_status()
            data = orjson.loads(await response.read())["data"]
        data.sort(key=itemgetter("relevance_score"), reverse=True)
        return data

    def order(self, answer: Any) -> Indices:
        return [entry["index"] for entry in answer]

    async def close(self) -> None:
        await self._http.close()


class Ours(Client):
    """`RerankSession.rerank`."""

    packages = ("rerank-async",)
    modules = ("rerank_async",)

    async def open(self, size: int) -> None:
        from rerank_async import ChunkLimits, RerankSession

        self.session = RerankSession(
            f"{self.origin}/{size}/v1",
            api_key="key",
            model="stub",
            concurrency=WORKERS,
            chunks=ChunkLimits(1000),
        )

    async def rank(self, texts: list[str]) -> Any:
        return (await self.session.rerank(QUERY, texts)).results

    def order(self, answer: Any) -> Indices:
        return list(answer.indices)

    async def close(self) -> None:
        await self.session.close()


class FloorOnAsyncio(Floor):
    """The hand-written loop without uvloop."""

    is_on_uvloop = False


class OursOnAsyncio(Ours):
    """`RerankSession.rerank` without uvloop."""

    is_on_uvloop = False


class Transported(Floor):
    """The floor's loop, on this package's transport: what the wire costs by itself here."""

    packages = ("rerank-async",)
    modules = ("rerank_async",)

    async def open(self, size: int) -> None:
        from rerank_async._transport import AiohttpTransport

        await super().open(size)
        self._transport = AiohttpTransport(None, self._headers)

    async def rank(self, texts: list[str]) -> Any:
        import orjson

        from rerank_async._http import HttpRequest

        body = orjson.dumps({"model": "stub", "query": QUERY, "documents": texts})
        request = HttpRequest("POST", self._url, self._headers, body)
        response = await self._transport.exchange(request, body_limit=2**30, timeout=30.0)
        data = orjson.loads(response.body)["data"]
        data.sort(key=itemgetter("relevance_score"), reverse=True)
        return data

    async def close(self) -> None:
        await self._transport.close()
        await super().close()


class Checked(Transported):
    """The same with this package's encoding, decoding and checks: without flow control."""

    async def open(self, size: int) -> None:
        from rerank_async._answers import check_answer
        from rerank_async.dialects.v1 import V1

        await super().open(size)
        self._dialect, self._check = V1(), check_answer

    async def rank(self, texts: list[str]) -> Any:
        from rerank_async._http import HttpRequest

        body = self._dialect.encode_request("stub", QUERY, texts, None)
        request = HttpRequest("POST", self._url, self._headers, body)
        response = await self._transport.exchange(request, body_limit=2**30, timeout=30.0)
        return self._check(
            self._dialect.decode_response(response.body), sent=len(texts), top_n=None
        )

    def order(self, answer: Any) -> Indices:
        return list(answer.indices)


class Httpx(Client):
    """httpx as most people use it: `json=` and `.json()`."""

    packages = ("httpx",)
    modules = ("httpx",)

    async def open(self, size: int) -> None:
        httpx: Any = import_module("httpx")
        self._http = httpx.AsyncClient(headers={"Authorization": "Bearer key"}, timeout=60.0)
        self._url = f"{self.origin}/{size}/v1/rerank"

    async def rank(self, texts: list[str]) -> Any:
        body = {"model": "stub", "query": QUERY, "documents": texts}
        response = await self._http.post(self._url, json=body)
        response.raise_for_status()
        return response.json()["data"]

    def order(self, answer: Any) -> Indices:
        return [entry["index"] for entry in answer]

    async def close(self) -> None:
        await self._http.aclose()


class Cohere(Client):
    """cohere's `AsyncClientV2.rerank`."""

    packages = ("cohere",)
    modules = ("cohere",)

    async def open(self, size: int) -> None:
        cohere: Any = import_module("cohere")
        self._client = cohere.AsyncClientV2("key", base_url=f"{self.origin}/{size}/cohere")

    async def rank(self, texts: list[str]) -> Any:
        return (await self._client.rerank(model="stub", query=QUERY, documents=texts)).results

    def order(self, answer: Any) -> Indices:
        return [result.index for result in answer]

    async def close(self) -> None:
        """It has no way to close what it opened; the process ends soon."""


class Voyage(Client):
    """voyageai's `AsyncClient.rerank`."""

    packages = ("voyageai",)
    modules = ("voyageai",)

    async def open(self, size: int) -> None:
        voyageai: Any = import_module("voyageai")
        self._client = voyageai.AsyncClient("key", base_url=f"{self.origin}/{size}/voyage")

    async def rank(self, texts: list[str]) -> Any:
        return (await self._client.rerank(QUERY, texts, "stub")).results

    def order(self, answer: Any) -> Indices:
        return [result.index for result in answer]

    async def close(self) -> None:
        """It keeps nothing open between requests."""


class Baseten(Client):
    """baseten-performance-client, in Rust: one request at a time in a batch of its own."""

    packages = ("baseten-performance-client",)
    modules = ("baseten_performance_client",)
    # Without it no request carries more than 8,000 characters, whatever the batch.
    limits: ClassVar[dict[str, int]] = {"max_chars_per_request": 1_048_576}

    async def open(self, size: int) -> None:
        module: Any = import_module("baseten_performance_client")
        # It warns in an environment variable's absence otherwise.
        os.environ.setdefault("BASETEN_API_KEY", "key")
        self._client = module.PerformanceClient(f"{self.origin}/{size}/tei", "key")
        self._preference = module.RequestProcessingPreference(
            max_concurrent_requests=WORKERS, batch_size=size, **self.limits
        )

    async def rank(self, texts: list[str]) -> Any:
        preference = self._preference
        return (await self._client.async_rerank(QUERY, texts, preference=preference)).data

    def order(self, answer: Any) -> Indices:
        return [result.index for result in answer]

    async def close(self) -> None:
        """The process ends soon."""


class BasetenSorted(Baseten):
    """The same, with the one line that its user writes to have one ranking."""

    async def rank(self, texts: list[str]) -> Any:
        return sorted(await super().rank(texts), key=attrgetter("score"), reverse=True)


class BasetenByDefault(Baseten):
    """The same with its own limit of characters, which makes smaller requests of large batches."""

    limits: ClassVar[dict[str, int]] = {}


CLIENTS: dict[str, type[Client]] = {
    "hand-written": Floor,
    "transport": Transported,
    "checks": Checked,
    "rerank_async": Ours,
    "hand-written-asyncio": FloorOnAsyncio,
    "rerank_async-asyncio": OursOnAsyncio,
    "httpx": Httpx,
    "cohere": Cohere,
    "voyageai": Voyage,
    "baseten": Baseten,
    "baseten-sorted": BasetenSorted,
    "baseten-default": BasetenByDefault,
}


# ── one query over a corpus ──


@asynccontextmanager
async def corpus_by_hand(origin: str, texts: list[str], batch: int) -> AsyncGenerator[Ask, None]:
    """The floor's loop over a corpus, results merged by score."""
    import aiohttp
    import orjson

    http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    url = f"{origin}/corpus/{batch}/v1/rerank"
    headers = {"Content-Type": "application/json", "Authorization": "Bearer key"}

    async def go() -> Any:
        merged: list[tuple[float, int]] = []

        async def work(starts: Iterable[int]) -> None:
            for start in starts:
                part = texts[start : start + batch]
                body = orjson.dumps({"model": "stub", "query": QUERY, "documents": part})
                async with http.post(url, data=body, headers=headers) as response:
                    response.raise_for_status()
                    data = orjson.loads(await response.read())["data"]
                merged.extend((entry["relevance_score"], start + entry["index"]) for entry in data)

        starts = iter(range(0, len(texts), batch))
        await asyncio.gather(*(work(starts) for _ in range(WORKERS)))
        merged.sort(reverse=True)
        return merged

    async with http:
        yield go


@asynccontextmanager
async def corpus_by_us(origin: str, texts: list[str], batch: int) -> AsyncGenerator[Ask, None]:
    """`RerankSession.rerank` over a corpus, all results returned."""
    from rerank_async import ChunkLimits, RerankSession

    session = RerankSession(
        f"{origin}/corpus/{batch}/v1",
        api_key="key",
        model="stub",
        concurrency=WORKERS,
        chunks=ChunkLimits(batch),
        timeout=None,
    )

    async def go() -> Any:
        return (await session.rerank(QUERY, texts)).results

    async with session:
        yield go


@asynccontextmanager
async def corpus_by_rust(
    kind: type[Baseten], origin: str, texts: list[str], batch: int
) -> AsyncGenerator[Ask, None]:
    """The Rust client over a corpus."""
    client = kind(f"{origin}/corpus")
    await client.open(batch)
    yield partial(client.rank, texts)


def corpus_order(name: str, answer: Any) -> Indices:
    """The order of a corpus as a client merged it."""
    if name == "hand-written":
        return [index for _, index in answer]
    if name == "rerank_async":
        return list(answer.indices)
    return [result.index for result in answer]


def corpus_score(name: str, answer: Any) -> dict[int, float]:
    """The score that a client gives each document."""
    if name == "hand-written":
        return {index: score for score, index in answer}
    if name == "rerank_async":
        return dict(zip(answer.indices, answer.scores, strict=True))
    return {result.index: result.score for result in answer}


CORPUS: dict[str, Callable[[str, list[str], int], AbstractAsyncContextManager[Ask]]] = {
    "hand-written": corpus_by_hand,
    "rerank_async": corpus_by_us,
    "baseten": partial(corpus_by_rust, Baseten),
    "baseten-sorted": partial(corpus_by_rust, BasetenSorted),
    "baseten-default": partial(corpus_by_rust, BasetenByDefault),
}
