"""`rerank_dataset`: the batch function as a step of a Ray `Dataset`.

A line belongs here when it is about Ray Data.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import ray.data

from rerank_async._chunking import ChunkLimits
from rerank_async._errors import InvalidRequestError
from rerank_async._policy import RetryPolicy
from rerank_async._private import Secret
from rerank_async.batches import BatchReranker, in_background, is_nested, parsed
from rerank_async.ray._arrow import FLAT, NESTED, Table, columns_of, outcome_table, packed, unpacked
from rerank_async.ray._pool import as_count, pool_of, reranker_for

__all__ = ["rerank_dataset"]

# So many of Ray's tasks are in work at once in an actor, so that a slow row holds up no slot.
_TASKS = 4


class _Worker:
    """What Ray Data makes one of in each actor."""

    def __init__(self, reranker: BatchReranker, is_packed: bool) -> None:
        self._reranker = reranker
        self._is_packed = is_packed

    async def __call__(self, table: Table) -> Table:
        # Not on the loop that Ray calls this on: it stands still while its consumer is slow, and
        # answers would be taken for late that were only not read.
        return await asyncio.wrap_future(in_background(self._work(table)))

    async def _work(self, table: Table) -> Table:
        if self._is_packed:
            table = unpacked(table)
        columns = columns_of(table, FLAT if self._is_packed else NESTED)
        work = parsed(columns, self._reranker.top_n)
        return outcome_table(work, table, await self._reranker.outcomes(work.rows))


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
    dialect: str = "v1",
    chunks: ChunkLimits | None = None,
    retry: RetryPolicy | None = None,
    allow_insecure_http: bool = False,
    num_cpus: float = 0,
) -> ray.data.Dataset:
    """Rerank a Ray `Dataset`, lazily: nothing is sent before the result is used.

    What columns it may have and what comes out is said at `BatchReranker`, and so is what becomes
    of failures. A flat dataset, with a row for each document, is grouped by `query_id` first, which
    moves all of it between the machines; then all its columns stay, and the rows of a query stand
    in the order of `doc_id` where there is one. Of a nested one `query_id` stays.

    Ray does lost work again, and so sends it again; whoever reads the result sees every row once.

    Args:
        dataset: nested or flat.
        base_url: as in `RerankSession`; None is looked up in this process's environment.
        model: as there; None likewise.
        api_key: None, which is best, means `$RERANK_API_KEY` in the environment of the actors.
        actors: how many; each is a process, somewhere in the cluster.
        concurrency: requests on the wire at once, of all actors together. Each has an equal share,
            rounded down.
        rate: requests per second, of all actors together, in equal shares; None means no limit.
        batch_size: rows, of a flat dataset queries, that an actor takes at a time; a few such
            batches are in work at once. None: the actor's share of `concurrency`, at least 16.
        top_n: as in `BatchReranker`.
        dialect: as in `RerankSession`.
        chunks: what one request may carry.
        retry: as in `BatchReranker`.
        allow_insecure_http: as in `RerankSession`.
        num_cpus: what Ray reserves for each actor. They mostly wait, and keep what they have to the
            end: with more than 0, no machine may be left with less than one processor, for Ray's
            grouping wants one where the data is, and would wait for it for ever.

    Returns:
        A `Dataset` with the columns that come out of `BatchReranker`.

    Raises:
        InvalidRequestError: an argument that cannot work, or a column that is missing.
    """
    if isinstance(api_key, str):
        # A traceback that shows the values of names would show it.
        api_key = Secret(api_key)
    pool = pool_of(actors, concurrency, rate, num_cpus)
    reranker = reranker_for(
        pool,
        base_url,
        model=model,
        api_key=api_key,
        dialect=dialect,
        top_n=top_n,
        chunks=chunks,
        retry=retry,
        allow_insecure_http=allow_insecure_http,
    )
    size = max(16, pool.share) if batch_size is None else as_count("batch_size", batch_size)
    schema = dataset.schema()
    if schema is None:
        raise InvalidRequestError("dataset: it has no rows, and so no columns to look at")
    nested = is_nested(schema.names)
    if not nested:
        dataset = dataset.groupby("query_id").map_groups(packed, batch_format="pyarrow")
    strategy, options = _concurrent(pool.actors)
    return dataset.map_batches(
        _Worker,
        fn_constructor_args=(reranker, not nested),
        batch_size=size,
        batch_format="pyarrow",
        compute=strategy,
        num_cpus=pool.num_cpus,
        **options,
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
