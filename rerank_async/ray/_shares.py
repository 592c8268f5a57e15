"""How much the whole may do, and what of it is an actor's share.

A line belongs here when it divides a budget, or says what all actors have in common.
"""

from __future__ import annotations

from typing import Any

from attrs import evolve, frozen

from rerank_async._endpoint import default_base_url, default_model
from rerank_async._errors import InvalidRequestError
from rerank_async._flow.limiter import RateLimit
from rerank_async._options import SessionOptions
from rerank_async._private import FramesHidden, Sealed
from rerank_async.batches import BatchReranker, batch_options

__all__ = ["Shares", "positive_whole", "reranker_for", "shares_of"]


@frozen
class Shares:
    """The actors, and what each may do.

    Attributes:
        actors: number of actors.
        share: number of requests on the wire at once, of each.
        rate: limit of what each may send; None means no limit.
        num_cpus: processors that Ray reserves for each.
    """

    actors: int
    share: int
    rate: RateLimit | None
    num_cpus: float


def positive_whole(name: str, value: int) -> int:
    """Refuse what is not a positive whole number.

    Raises:
        InvalidRequestError: naming the argument `name`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidRequestError(f"{name} must be a whole number of at least 1, not {value!r}")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def shares_of(actors: int, concurrency: int, rate: float | None, num_cpus: float) -> Shares:
    """Divide what all actors together may do.

    Raises:
        InvalidRequestError: naming the argument.
    """
    positive_whole("actors", actors)
    positive_whole("concurrency", concurrency)
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
    return Shares(actors, concurrency // actors, each, num_cpus)


def reranker_for(
    shares: Shares,
    options: SessionOptions | None,
    base_url: str | None,
    *,
    api_key: Sealed | None,
    top_n: int | None,
    **arguments: Any,
) -> BatchReranker:
    """One for every actor, with the server and the model that *this* process's environment names.

    They decide about the result, so that they must be the same everywhere; the key need not be.

    Args:
        shares: budget, of which each actor gets its share.
        options: argument of the public function; None means that the rest says it.
        base_url: argument of the public function.
        api_key: key, sealed, or None.
        top_n: argument of the public function.
        arguments: further arguments of `batch_options`, by their names.

    Raises:
        InvalidRequestError: naming the argument.
    """
    with FramesHidden():
        told = batch_options(options, base_url, api_key=api_key, **arguments)
        if options is not None and (options.concurrency is not None or options.rate is not None):
            raise InvalidRequestError(
                "options: their concurrency and rate are those of one session; leave them out, and "
                "pass concurrency= and rate= for all actors together"
            )
        here = evolve(
            told,
            base_url=default_base_url() if told.base_url is None else told.base_url,
            model=default_model() if told.model is None else told.model,
            concurrency=shares.share,
            rate=shares.rate,
        )
        if here.model is None:
            raise InvalidRequestError("model: pass model=, or set RERANK_MODEL")
        return BatchReranker(top_n=top_n, options=here)
