"""`rerank_dataset`: the batch function as a step of a Ray `Dataset`.

A line belongs here when it is about Ray Data.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import ray.data

from rerank_async._background import in_background
from rerank_async._chunking import ChunkLimits
from rerank_async._columns import batch_of, is_nested
from rerank_async._errors import InvalidRequestError
from rerank_async._options import SessionOptions, as_sealed
from rerank_async._policy import RetryPolicy
from rerank_async.batches import BatchReranker
from rerank_async.dialects import Dialect
from rerank_async.ray._arrow import (
    FLAT,
    NESTED,
    ArrowTable,
    columns_of,
    group_row,
    outcome_table,
    ungrouped,
)
from rerank_async.ray._shares import Shares, positive_whole, reranker_for, shares_of

__all__ = ["rerank_dataset"]

# So many of Ray's tasks are in work at once in an actor, so that a slow row holds up no slot.
_TASKS = 4


class _Worker:
    """What Ray Data makes one of in each actor."""

    def __init__(self, reranker: BatchReranker, is_grouped: bool) -> None:
        self._reranker = reranker
        self._is_grouped = is_grouped

    async def __call__(self, table: ArrowTable) -> ArrowTable:
        # Not on the loop that Ray calls this on: it stands still while its consumer is slow, and
        # answers would be taken for late that were only not read.
        return await asyncio.wrap_future(in_background(self._rerank(table)))

    async def _rerank(self, table: ArrowTable) -> ArrowTable:
        if self._is_grouped:
            table = ungrouped(table)
        columns = columns_of(table, FLAT if self._is_grouped else NESTED)
        batch = batch_of(columns, self._reranker.top_n)
        return outcome_table(batch, table, await self._reranker.outcomes(batch.queries))


def rerank_dataset(
    dataset: ray.data.Dataset,
    *,
    base_url: str | None = None,
    model: str | None = None,
    api_key: str | None = None,
    actors: int = 2,
    concurrency: int = 32,
    rate: float | None = None,
    batch_size: int | None = None,
    top_n: int | None = None,
    dialect: str | Dialect = "v1",
    chunks: ChunkLimits | None = None,
    retry: RetryPolicy | None = None,
    allow_insecure_http: bool = False,
    num_cpus: float = 0,
    options: SessionOptions | None = None,
) -> ray.data.Dataset:
    """Rerank a Ray `Dataset`, lazily: nothing is sent before the result is used.

    What columns it may have and what comes out is said at `BatchReranker`, and so is what becomes
    of failures. A flat dataset, with a row for each document, is grouped by `query_id` first, which
    moves all of it between the machines; then all its columns stay, and the rows of a query stand
    in the order of `doc_id` where there is one. Of a nested one `query_id` stays.

    Ray does lost work again, and so sends it again; whoever reads the result sees every row once.

    Args:
        dataset: rows, nested or flat.
        base_url: argument of `RerankSession`; None is looked up in this process's environment.
        model: argument of `RerankSession`; None likewise.
        api_key: key; None, which is best, means `$RERANK_API_KEY` where the actors run.
        actors: number of processes, somewhere in the cluster.
        concurrency: number of requests on the wire at once, of all actors together. Each has an
            equal share, rounded down.
        rate: requests per second, of all actors together, in equal shares; None means no limit.
        batch_size: number of rows, of a flat dataset of queries, that an actor takes at a time; it
            has a few such batches in work. None: its share of `concurrency`, at least 16.
        top_n: argument of `BatchReranker`.
        dialect: argument of `RerankSession`.
        chunks: limits of what one request may carry.
        retry: argument of `BatchReranker`.
        allow_insecure_http: argument of `RerankSession`.
        num_cpus: processors that Ray reserves for each actor. They mostly wait, and keep them to
            the end: with more than 0, no machine may be left with less than one processor, or Ray,
            which groups where the data is, waits for one for ever.
        options: argument of `BatchReranker`, without `concurrency` and `rate`.

    Returns:
        A `Dataset` with the columns that come out of `BatchReranker`.

    Raises:
        InvalidRequestError: an argument that cannot work, or a column that is missing.
    """
    key = as_sealed(api_key)
    # A traceback shows this frame with its locals.
    del api_key
    shares = shares_of(actors, concurrency, rate, num_cpus)
    reranker = reranker_for(
        shares,
        options,
        base_url,
        model=model,
        api_key=key,
        top_n=top_n,
        dialect=dialect,
        chunks=chunks,
        retry=retry,
        allow_insecure_http=allow_insecure_http,
    )
    size = max(16, shares.share) if batch_size is None else positive_whole("batch_size", batch_size)
    return _reranked(dataset, reranker, shares, size)


def _reranked(
    dataset: ray.data.Dataset, reranker: BatchReranker, shares: Shares, size: int
) -> ray.data.Dataset:
    schema = dataset.schema()
    if schema is None:
        raise InvalidRequestError("dataset: it has no rows, and so no columns to look at")
    nested = is_nested(schema.names)
    if not nested:
        dataset = dataset.groupby("query_id").map_groups(group_row, batch_format="pyarrow")
    strategy, told = _concurrent(shares.actors)
    return dataset.map_batches(
        _Worker,
        fn_constructor_args=(reranker, not nested),
        batch_size=size,
        batch_format="pyarrow",
        compute=strategy,
        num_cpus=shares.num_cpus,
        **told,
    )


def _concurrent(actors: int) -> tuple[Any, dict[str, Any]]:
    """So many actors, each with several tasks at once: how that is said depends on Ray's version.

    The batches of one task overlap by themselves, but small blocks make tasks of one batch each.
    """
    strategy: Any = ray.data.ActorPoolStrategy
    name = "max_concurrent_calls_per_actor"
    if name in inspect.signature(strategy).parameters:
        return strategy(size=actors, **{name: _TASKS}), {}
    return strategy(size=actors), {"max_concurrency": _TASKS}
