"""The trust boundary: what a dialect read is checked here before anybody believes it.

The client trusts no response, and no dialect either, because users write their own.
A line belongs here when it decides whether an answer is accepted, or in which order its equal
scores stand; what an answer says is read by its dialect.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from math import isfinite

from msgspec import Struct

from rerank_async._errors import ResponseError
from rerank_async._ordering import best_first
from rerank_async._private import Private
from rerank_async.dialects import Read

__all__ = ["Answer", "check_answer"]

# Sets of more indices than this are not kept for comparing.
_MOST_KNOWN = 2000
_WHOLE = {int}
_REAL = {float}


class Answer(Private, Struct, frozen=True):
    """One exchange's scores, checked and in order.

    Attributes:
        indices: positions in the request's own documents, best first, unique and in range.
        scores: the scores, as many as `indices`; finite, never increasing.
        model: the model's name by the server's word, or None.
        total_tokens: the exchange's usage, or None when the server left it out.
    """

    indices: Sequence[int]
    scores: Sequence[float]
    model: str | None
    total_tokens: int | None


def check_answer(read: Read, *, sent: int, top_n: int | None) -> Answer:
    """Accept an answer that covers what was asked for, and put it in order.

    Every one of the `sent` documents must have a score; under `top_n`, `min(top_n, sent)` of them
    will do.
    Where the scores already never increase, the server sorted, and its order of equal scores
    stands; otherwise equal scores go by index.

    Args:
        read: what the dialect read of the answer; nothing about it is taken for granted.
        sent: the number of documents that the request carried.
        top_n: the number of results that it asked for; None means all.

    Raises:
        ResponseError: saying what is wrong with the answer.
    """
    indices, scores = read.indices, read.scores
    count = len(indices)
    # All of them is as good as the best of them: some servers ignore top_n.
    if count != sent or len(scores) != count:
        _check_count(count, len(scores), sent, top_n)
    if count:
        # True is 1 and 1.0 is 1 to a set, and neither is an index.
        if {*map(type, indices)} != _WHOLE:
            raise ResponseError(f"the answer holds an index that is {_other(indices, int)}")
        if {*map(type, scores)} != _REAL:
            scores = _as_floats(scores)
        # One comparison for the answers that most servers give.
        if count != sent or sent > _MOST_KNOWN or set(indices) != _first(sent):
            _check_indices(indices, sent)
        # The sum alone is checked first, a fifth of the cost (`benchmarks/pieces.py`, "decode and
        # check"); a sum of finite scores may overflow.
        total = sum(scores)
        if total - total != 0.0 and not all(map(isfinite, scores)):
            raise ResponseError("the answer holds a score that is not a finite number")
        ordered = sorted(scores, reverse=True)
        if ordered != scores:
            by_index = sorted(range(count), key=indices.__getitem__)
            indices = [indices[place] for place in best_first(scores, by_index)]
            scores = ordered
        if scores[0] >= 0.0 >= scores[-1]:
            # -0.0 equals 0.0 and prints differently: adding 0.0 leaves one zero only.
            scores = [score + 0.0 for score in scores]
    model, tokens = read.model, read.total_tokens
    if type(model) is not str and model is not None:
        raise ResponseError(f"the answer names its model by a {type(model).__name__}")
    # An odd count of tokens is no reason to doubt the scores.
    return Answer(indices, scores, model, tokens if type(tokens) is int and tokens >= 0 else None)


def _check_count(indices: int, scores: int, sent: int, top_n: int | None) -> None:
    if scores != indices:
        raise ResponseError(f"the answer has {indices} indices and {scores} scores")
    wanted = sent if top_n is None else min(top_n, sent)
    if indices != wanted:
        raise ResponseError(f"the answer has {indices} results where {wanted} were asked for")


@lru_cache(maxsize=64)
def _first(count: int) -> frozenset[int]:
    """The indices of so many documents."""
    return frozenset(range(count))


def _check_indices(indices: list[int], sent: int) -> None:
    if len(set(indices)) != len(indices):
        doubled = Counter(indices).most_common(1)[0][0]
        raise ResponseError(f"the answer scores index {doubled} more than once")
    if min(indices) < 0 or max(indices) >= sent:
        outside = next(i for i in indices if not 0 <= i < sent)
        raise ResponseError(
            f"the answer scores index {outside}, but only 0 to {sent - 1} were sent"
        )


def _as_floats(scores: list[float]) -> list[float]:
    """Scores that are whole numbers, as floats; every other kind is refused."""
    try:
        if {*map(type, scores)} <= {int, float}:
            return list(map(float, scores))
    except OverflowError:
        raise ResponseError("the answer holds a score that is not a finite number") from None
    raise ResponseError(f"the answer holds a score that is {_other(scores, float)}")


def _other(values: Sequence[object], kind: type) -> str:
    """The first value that is of another kind, by its kind."""
    other = next(value for value in values if type(value) not in (kind, int))
    return "None" if other is None else f"a {type(other).__name__}"
