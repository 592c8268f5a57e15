"""How much the whole may do, and what of it is an actor's share.

A line belongs here when it divides a budget, or says what all actors have in common.
"""

from __future__ import annotations

from attrs import frozen

from rerank_async._chunking import ChunkLimits
from rerank_async._errors import InvalidRequestError
from rerank_async._flow.limiter import RateLimit
from rerank_async._policy import RetryPolicy
from rerank_async.batches import BatchReranker

__all__ = ["Pool", "as_count", "pool_of", "reranker_for"]


@frozen
class Pool:
    """The actors, and what each may do.

    Attributes:
        actors: how many.
        share: requests on the wire at once, of each.
        rate: how much each may send; None means no limit.
        num_cpus: what Ray reserves for each.
    """

    actors: int
    share: int
    rate: RateLimit | None
    num_cpus: float


def as_count(name: str, value: int) -> int:
    """Refuse what is not a positive whole number.

    Raises:
        InvalidRequestError: naming the argument `name`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidRequestError(f"{name} must be a whole number of at least 1, not {value!r}")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def pool_of(actors: int, concurrency: int, rate: float | None, num_cpus: float) -> Pool:
    """Divide what all actors together may do.

    Raises:
        InvalidRequestError: naming the argument.
    """
    as_count("actors", actors)
    as_count("concurrency", concurrency)
    if actors > concurrency:
        raise InvalidRequestError(
            f"concurrency: {concurrency} requests at once, over all, are too few for {actors} "
            "actors, of which each must have one at least: lower actors or raise concurrency"
        )
    if rate is not None and not (_is_number(rate) and 0 < rate < 1e9):
        raise InvalidRequestError(f"rate must be a number above 0 or None, not {rate!r}")
    if not (_is_number(num_cpus) and 0 <= num_cpus < 1e9):
        raise InvalidRequestError(f"num_cpus must be a number of at least 0, not {num_cpus!r}")
    each = None if rate is None else RateLimit(requests_per_minute=rate * 60 / actors)
    return Pool(actors, concurrency // actors, each, num_cpus)


def reranker_for(
    pool: Pool,
    base_url: str | None,
    *,
    model: str | None,
    api_key: str | None,
    dialect: str,
    top_n: int | None,
    chunks: ChunkLimits | None,
    retry: RetryPolicy | None,
    allow_insecure_http: bool,
) -> BatchReranker:
    """One for every actor, with the server and the model that *this* process's environment names.

    They decide about the result, so that they must be the same everywhere; the key need not be.

    Raises:
        InvalidRequestError: naming the argument.
    """

    def make(base_url: str | None, model: str | None) -> BatchReranker:
        return BatchReranker(
            base_url,
            model=model,
            api_key=api_key,
            dialect=dialect,
            concurrency=pool.share,
            rate=pool.rate,
            retry=retry,
            chunks=chunks,
            top_n=top_n,
            allow_insecure_http=allow_insecure_http,
        )

    here = make(base_url, model).described()
    if here.model is None:
        raise InvalidRequestError("model: pass model=, or set RERANK_MODEL")
    return make(here.base_url, here.model)
