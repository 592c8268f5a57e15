"""`_answers`: no plug-in and no server gets a wrong score past it."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_async import ResponseError
from rerank_async._answers import Answer, check_answer
from rerank_async.dialects import Read


def checked(
    indices: Sequence[int], scores: Sequence[float], sent: int, top_n: int | None = None
) -> Answer:
    return check_answer(Read(list(indices), list(scores), "m", 7), sent=sent, top_n=top_n)


@pytest.mark.parametrize(
    ("indices", "scores", "expected"),
    [
        # The server sorted: its order of equal scores stands.
        ([2, 0, 1], [0.9, 0.5, 0.1], [2, 0, 1]),
        ([2, 0, 1], [0.5, 0.5, 0.5], [2, 0, 1]),
        ([1, 2, 0], [0.9, 0.5, 0.5], [1, 2, 0]),
        # It did not: equal scores go by index.
        ([0, 1, 2], [0.1, 0.5, 0.9], [2, 1, 0]),
        ([2, 1, 0], [0.5, 0.1, 0.5], [0, 2, 1]),
        ([2, 0, 1], [0.1, 0.9, 0.9], [0, 1, 2]),
        ([1, 0, 2], [-2.0, 3.5, -1.0], [0, 2, 1]),
    ],
)
def test_an_answer_is_put_in_order_best_first(
    indices: list[int], scores: list[float], expected: list[int]
) -> None:
    answer = checked(indices, scores, 3)
    given_scores = dict(zip(indices, scores, strict=True))
    assert list(answer.indices) == expected
    assert list(answer.scores) == [given_scores[index] for index in expected]
    assert (answer.model, answer.total_tokens) == ("m", 7)


@pytest.mark.parametrize(
    ("count", "sent", "top_n"),
    [(3, 3, None), (2, 3, 2), (3, 3, 2), (3, 3, 3), (3, 3, 99), (0, 0, None), (0, 0, 5)],
)
def test_an_answer_covers_all_documents_or_the_best_top_n(
    count: int, sent: int, top_n: int | None
) -> None:
    assert len(checked(range(count), [0.5] * count, sent, top_n).indices) == count


@pytest.mark.parametrize(
    ("count", "sent", "top_n", "wanted"),
    [
        (2, 3, None, 3),
        (0, 3, None, 3),
        (4, 3, None, 3),
        (1, 3, 2, 2),
        (4, 5, 2, 2),
        (3, 5, 2, 2),
        (2, 3, 99, 3),
        (1, 0, None, 0),
    ],
)
def test_too_few_or_too_many_results_are_refused(
    count: int, sent: int, top_n: int | None, wanted: int
) -> None:
    with pytest.raises(
        ResponseError, match=f"^the answer has {count} results where {wanted} were asked for$"
    ):
        checked(range(count), [0.5] * count, sent, top_n)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 1, 1], "scores index 1 more than once"),
        ([2, 2, 2], "scores index 2 more than once"),
        ([0, 1, 3], "scores index 3, but only 0 to 2 were sent"),
        ([0, 1, -1], "scores index -1, but only 0 to 2 were sent"),
        ([10**30, 1, 0], f"scores index {10**30}, but only 0 to 2 were sent"),
    ],
)
def test_an_index_that_names_no_document_of_its_own_is_refused(
    indices: list[int], message: str
) -> None:
    with pytest.raises(ResponseError, match=f"{message}$"):
        checked(indices, [0.9, 0.5, 0.1], 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_score_that_is_not_finite_is_refused(bad: float, place: int) -> None:
    scores = [0.9, 0.5, 0.1]
    scores[place] = bad
    with pytest.raises(ResponseError, match="a score that is not a finite number"):
        checked([0, 1, 2], scores, 3)


def test_infinities_that_cancel_out_are_refused_too() -> None:
    with pytest.raises(ResponseError, match="not a finite number"):
        checked([0, 1], [math.inf, -math.inf], 2)


def test_finite_scores_whose_sum_overflows_are_accepted() -> None:
    assert list(checked([0, 1], [1.7e308, 1.6e308], 2).scores) == [1.7e308, 1.6e308]


@pytest.mark.parametrize("scores", [[-0.0], [1.0, -0.0], [-0.0, -1.0], [-0.0, 0.0], [0.0, -0.0]])
def test_negative_zero_becomes_zero(scores: list[float]) -> None:
    answer = checked(range(len(scores)), scores, len(scores))
    assert "-0.0" not in [str(score) for score in answer.scores]
    assert sorted(answer.scores) == sorted(scores)


@given(st.data(), st.integers(0, 12), st.none() | st.integers(1, 15), st.booleans())
def test_a_good_answer_is_accepted_in_any_order(
    data: st.DataObject, sent: int, top_n: int | None, ignores_top_n: bool
) -> None:
    count = sent if top_n is None or ignores_top_n else min(top_n, sent)
    indices = data.draw(st.permutations(range(sent)))[:count]
    floats = st.sampled_from([-1.0, 0.0, 0.5]) | st.floats(allow_nan=False, allow_infinity=False)
    scores = data.draw(st.lists(floats, min_size=count, max_size=count))
    answer = checked(indices, scores, sent, top_n)
    pairs = list(zip(answer.indices, answer.scores, strict=True))
    assert sorted(pairs) == sorted(zip(indices, scores, strict=True))
    assert all(high >= low for high, low in pairwise(answer.scores))
    if sorted(scores, reverse=True) == scores:
        assert list(answer.indices) == indices
    else:
        assert pairs == sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


@pytest.mark.parametrize(
    ("indices", "kind"),
    [
        ([True, 0, 2], "bool"),
        ([0.0, 1, 2], "float"),
        (["0", 1, 2], "str"),
        ([None, 1, 2], "None"),
        ([[0], 1, 2], "list"),
    ],
)
def test_an_index_of_another_kind_is_refused(indices: list[Any], kind: str) -> None:
    with pytest.raises(ResponseError, match=f"^the answer holds an index that is (a )?{kind}$"):
        checked(indices, [0.9, 0.5, 0.1], 3)


@pytest.mark.parametrize(
    ("score", "kind"), [(True, "bool"), ("0.9", "str"), (None, "None"), ([0.5], "list")]
)
def test_a_score_of_another_kind_is_refused(score: Any, kind: str) -> None:
    with pytest.raises(ResponseError, match=f"^the answer holds a score that is (a )?{kind}$"):
        checked([0, 1], [0.5, score], 2)


def test_scores_that_are_whole_numbers_become_floats() -> None:
    scores = checked([0, 1, 2], [1, 0.5, 0], 3).scores
    assert list(map(str, scores)) == ["1.0", "0.5", "0.0"]
    with pytest.raises(ResponseError, match="not a finite number"):
        checked([0], [10**400], 1)


def test_as_many_scores_as_indices_are_asked_for() -> None:
    with pytest.raises(ResponseError, match=r"^the answer has 2 indices and 1 scores$"):
        checked([0, 1], [0.5], 2)


def test_what_is_said_besides_the_scores_is_checked_too() -> None:
    wrong: Any = 7
    with pytest.raises(ResponseError, match=r"^the answer names its model by a int$"):
        check_answer(Read([0], [0.5], wrong), sent=1, top_n=None)
    for odd in (-1, 1.5, "7", True):
        tokens: Any = odd
        assert check_answer(Read([0], [0.5], "m", tokens), sent=1, top_n=None).total_tokens is None
