import copy
import json
import pickle
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_async import (
    InvalidRequestError,
    Missing,
    RerankError,
    RerankRequest,
    RerankResponse,
    RerankResult,
    Results,
    ServerError,
    Usage,
)

A, B = ServerError("a", status=500), ServerError("b", status=502)


def results(count: int) -> Results:
    return Results(
        list(range(count))[::-1],
        [1.0 - place / 16 for place in range(count)],
        [f"text {place}" for place in range(count)],
    )


class Words:
    """Neither a list nor a generator, but one can walk along it."""

    def __iter__(self) -> Iterator[str]:
        return iter(("one", "two"))


async def words() -> AsyncIterator[str]:
    yield "one"


# ── RerankRequest ──


@pytest.mark.parametrize(
    ("documents", "hint"),
    [
        ("one string", "not one str: put it in a list"),
        (b"one string", "not one bytes: put it in a list"),
        (bytearray(b"one"), "not one bytearray: put it in a list"),
        ({"id": "text"}, "a dict is not: pass a list"),
        ({"text"}, "a set is not: pass a list"),
        (frozenset({"text"}), "a frozenset is not: pass a list"),
        (None, "not NoneType"),
        (7, "not int"),
        (len, "not builtin_function_or_method"),
    ],
)
def test_what_only_looks_like_documents_is_refused(documents: Any, hint: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^documents must be") as refused:
        RerankRequest("query", documents)
    assert hint in str(refused.value)


@pytest.mark.parametrize(
    "documents", [["one"], ("one",), [], iter(["one"]), Words(), words(), {"a": 1}.keys()]
)
def test_documents_in_an_order_are_taken_as_they_are(documents: Any) -> None:
    assert RerankRequest("query", documents).documents is documents


@pytest.mark.parametrize("top_n", [True, False, 0, -1, 1.5, 1.0, "3", [3], float("nan")])
def test_a_top_n_that_is_no_positive_whole_number_is_refused(top_n: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"^top_n must be"):
        RerankRequest("query", ["one"], top_n=top_n)


@pytest.mark.parametrize("top_n", [None, 1, 10**30])
def test_a_top_n_of_at_least_one_or_none_is_taken(top_n: int | None) -> None:
    assert RerankRequest("query", ["one"], top_n=top_n).top_n == top_n


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("", "must not be empty"),
        ("before \ud800 after", "lone surrogate"),
        ("\udfff", "lone surrogate"),
        (None, "must be a string, not NoneType"),
        (b"query", "must be a string, not bytes"),
        (["query"], "must be a string, not list"),
    ],
)
def test_a_query_that_cannot_be_written_is_refused(query: Any, why: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^query ") as refused:
        RerankRequest(query, ["one"])
    assert why in str(refused.value)


@pytest.mark.parametrize("query", [" ", "\0", "\uffff", "\U0001f600", "\u202e", "検索"])
def test_an_unusual_query_is_kept_as_it_is(query: str) -> None:
    assert RerankRequest(query, ["one"]).query == query


def test_a_request_is_frozen_and_hands_back_what_it_was_given() -> None:
    request = RerankRequest("q", ["one"], model="m", query_id="q7")
    assert (request.model, request.query_id, request.top_n) == ("m", "q7", None)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        request.query = "other"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        request.colour = "red"  # type: ignore[attr-defined]


# ── Results ──


@pytest.mark.parametrize("count", [0, 1, 3, 8])
def test_results_read_like_the_list_of_their_items(count: int) -> None:
    ranking = results(count)
    items = [
        RerankResult(count - 1 - place, 1.0 - place / 16, f"text {place}") for place in range(count)
    ]
    assert list(ranking) == items
    assert len(ranking) == count
    assert list(reversed(ranking)) == items[::-1]
    for place in range(-count, count):
        assert ranking[place] == items[place]
    for place in (count, -count - 1):
        with pytest.raises(IndexError):
            ranking[place]
    assert ranking.indices == tuple(item.index for item in items)
    assert ranking.scores == tuple(item.relevance_score for item in items)
    for item in items:
        assert item in ranking


@given(
    count=st.integers(0, 9),
    cut=st.builds(
        slice, *[st.none() | st.integers(-12, 12)] * 2, st.none() | st.sampled_from([-3, -1, 1, 2])
    ),
)
def test_a_slice_of_results_is_results_and_agrees_with_a_list(count: int, cut: slice) -> None:
    ranking = results(count)
    assert isinstance(ranking[cut], Results)
    assert list(ranking[cut]) == list(ranking)[cut]


def test_results_cannot_be_changed() -> None:
    ranking = results(3)
    with pytest.raises(TypeError):
        ranking[0] = ranking[1]  # type: ignore[index]
    with pytest.raises(TypeError):
        del ranking[0]  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        ranking.append(ranking[1])  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        ranking.note = "mine"  # type: ignore[attr-defined]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        ranking[0].index = 9  # type: ignore[misc]


def test_results_are_equal_and_hash_alike_when_their_items_are() -> None:
    lists = Results([1, 0], [0.5, 0.25])
    tuples = Results((1, 0), (0.5, 0.25))
    assert lists == tuples
    assert hash(lists) == hash(tuples)
    for other in (
        Results([0, 1], [0.5, 0.25]),
        Results([1, 0], [0.5, 0.125]),
        Results([1], [0.5]),
        Results([1, 0], [0.5, 0.25], ["a", "b"]),
        [RerankResult(1, 0.5), RerankResult(0, 0.25)],
    ):
        assert lists != other


def test_results_survive_pickle_and_copy() -> None:
    for twin in (pickle.loads(pickle.dumps(results(4))), copy.deepcopy(results(4))):
        assert twin == results(4)


def test_the_representation_of_many_results_is_short() -> None:
    assert repr(Results([], [])) == "Results([])"
    one = "RerankResult(index=7, relevance_score=0.5, document=None)"
    assert repr(Results([7], [0.5])) == f"Results([{one}])"
    assert repr(Results([7] * 3, [0.5] * 3)) == f"Results([{one}, {one}, {one}])"
    assert repr(Results([7] * 1003, [0.5] * 1003)) == (
        f"Results([{one}, {one}, {one}, … 1000 more])"
    )


# ── Missing ──


def test_missing_finds_the_error_of_an_index_and_nothing_at_the_borders() -> None:
    missing = Missing([(20, 22, B), (3, 6, A)])
    assert missing[3] is missing[5] is A
    assert missing[20] is missing[21] is B
    for outside in (-1, 0, 2, 6, 19, 22, 10**9):
        assert outside not in missing
        with pytest.raises(KeyError, match=f"^{outside}$"):
            missing[outside]
    assert list(missing) == [3, 4, 5, 20, 21]
    assert len(missing) == 5
    assert missing


def test_no_missing_documents_are_an_empty_mapping() -> None:
    missing = Missing()
    assert not missing
    assert dict(missing) == {}
    assert repr(missing) == "Missing()"
    with pytest.raises(KeyError):
        missing[0]


def test_a_million_missing_documents_print_as_their_spans() -> None:
    assert repr(Missing([(10**6, 2 * 10**6, B), (0, 10**6, A)])) == (
        "Missing(0 to 999999: ServerError; 1000000 to 1999999: ServerError)"
    )


@st.composite
def spans(draw: st.DrawFn) -> list[tuple[int, int, RerankError]]:
    borders = sorted(draw(st.sets(st.integers(0, 60), max_size=12)))
    pairs = list(pairwise(borders))
    kept = [(start, stop, RerankError(f"{start}")) for start, stop in pairs if draw(st.booleans())]
    return draw(st.permutations(kept))


@given(spans())
def test_missing_agrees_with_a_dict(pieces: list[tuple[int, int, RerankError]]) -> None:
    model = {i: error for start, stop, error in pieces for i in range(start, stop)}
    missing = Missing(pieces)
    assert isinstance(missing, Mapping)
    assert missing == model
    assert list(missing) == sorted(model)
    assert len(missing) == len(model)
    for index in range(-2, 64):
        assert (index in missing) == (index in model)
        assert missing.get(index) is model.get(index)


# ── RerankResponse ──


def test_a_response_as_a_dict_is_exactly_the_v1_body() -> None:
    response = RerankResponse(
        Results([2, 0], [0.95, 0.72], ["a text", "another"]), "rerank-model", Usage(150)
    )
    assert json.dumps(response.to_dict()) == (
        '{"object": "list", "data": ['
        '{"object": "rerank.result", "index": 2, "relevance_score": 0.95}, '
        '{"object": "rerank.result", "index": 0, "relevance_score": 0.72}], '
        '"model": "rerank-model", "usage": {"total_tokens": 150}}'
    )


def test_an_empty_response_without_usage_is_still_a_v1_body() -> None:
    assert RerankResponse(Results([], []), "m", Usage(None)).to_dict() == {
        "object": "list",
        "data": [],
        "model": "m",
        "usage": {"total_tokens": None},
    }


def test_a_response_is_complete_and_misses_nothing_unless_told() -> None:
    response = RerankResponse(Results([0], [0.5]), "m", Usage(3))
    assert response.complete
    assert dict(response.missing) == {}


def test_a_one_shot_iterable_is_not_read_by_making_a_request() -> None:
    read: list[str] = []

    def texts() -> Iterable[str]:
        read.append("one")
        yield "one"

    RerankRequest("query", texts())
    assert read == []


def test_a_response_can_be_hashed() -> None:
    error = ServerError("down", status=500)
    ranking = Results([0], [1.0])
    missing = Missing([(1, 3, error)])
    one = RerankResponse(ranking, "m", Usage(1), missing, False)
    assert hash(one) == hash(RerankResponse(ranking, "m", Usage(1), missing, False))


def test_what_is_no_index_is_not_missing() -> None:
    missing: Mapping[Any, RerankError] = Missing([(0, 2, ServerError("down", status=500))])
    assert "a" not in missing
    assert None not in missing


def test_a_model_that_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="model"):
        RerankRequest("q", ["d"], model=5)  # type: ignore[arg-type]  # that is the point
