"""How a job is done: what its caller may choose besides what it computes.

A line belongs here when it is such a choice, or checks one.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from attrs import field, frozen

from rerank_async._errors import InvalidRequestError
from rerank_async._paths import local_path

__all__ = ["BulkOptions"]


def _positive_or_none(instance: object, attribute: object, value: int | None) -> None:
    name = getattr(attribute, "name", "it")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise InvalidRequestError(
            f"{name} must be a whole number of at least 1, or None for no limit, not {value!r}"
        )


def _as_cache(name: str | PathLike[str] | None) -> Path | None:
    return None if name is None else local_path("cache", name)


@frozen(kw_only=True)
class BulkOptions:
    """How a job is done; what it computes is said by the session and the input.

    Attributes:
        identical_once: whether documents that are repeated within a row are sent once, and each
            gets the score. This is right for pointwise models, whose scores depend on the query and
            one document.
        cache: a file that keeps scores for other jobs; it is made when it does not exist. None: no
            cache. With a cache, all documents' scores are asked for, whatever `top_n` says.
        max_tokens: the number of tokens that the job as a whole may cost; it stops before it costs
            more. None: no limit.
        max_failures: the number of rows that may fail one after another before the job stops; None:
            any number.
        check_first: whether the whole input is read before anything is sent: then bad rows, doubled
            ids and a changed input are found while they cost nothing, and the total is known.
            Standard input cannot be read twice, and is checked as it comes.
        retry_failed: whether rows that failed in earlier runs are done again.
        salvage: whether to go on with a journal that is damaged, without what is damaged.
        overwrite: whether to replace an output that no job of this directory wrote.
        tag: the last word of the lines of a TREC run.
        drain: the seconds that requests on the wire have to finish in when the run is asked to
            stop.

    Raises:
        InvalidRequestError: a value out of range; the message names it.
    """

    identical_once: bool = True
    cache: Path | None = field(default=None, converter=_as_cache)
    max_tokens: int | None = field(default=None, validator=_positive_or_none)
    max_failures: int | None = field(default=100, validator=_positive_or_none)
    check_first: bool = True
    retry_failed: bool = False
    salvage: bool = False
    overwrite: bool = False
    tag: str = "rerank_async"
    drain: float = 30.0
