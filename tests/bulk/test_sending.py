"""`_sending`: however little of a row is sent, the ranking is that of the whole row."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_async import RerankError, RerankResponse, ServerError, Usage
from rerank_async._models import Missing, Results
from rerank_async.bulk._rows import Row
from rerank_async.bulk._sending import Ranking, Sending, sending_of

# Few texts and fewer scores, so that many are the same.
TEXTS = "abcdefg"
SCORES = dict(zip(TEXTS, (0.5, 0.25, 0.5, -1.0, 0.0, 0.75, 0.5), strict=True))


def answer(
    sending: Sending, absent: Sequence[tuple[int, int, RerankError]] = (), tokens: int | None = 7
) -> RerankResponse | None:
    """What a pointwise server says to what is sent."""
    documents = sending.documents
    if not documents:
        return None
    missing = Missing(absent)
    order = [index for index in range(len(documents)) if index not in missing]
    order.sort(key=lambda index: -SCORES[documents[index]])
    order = order[: sending.top_n]
    scores = [SCORES[documents[index]] for index in order]
    return RerankResponse(Results(order, scores), "answering", Usage(tokens), missing)


def ranked(sending: Sending) -> Ranking:
    return sending.ranking(answer(sending))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Row, list[float | None] | None]:
    documents = draw(st.lists(st.sampled_from(TEXTS), max_size=12))
    row = Row("q", documents, top_n=draw(st.none() | st.integers(1, 14)))
    if draw(st.booleans()):
        return row, None
    looked_up = draw(st.lists(st.booleans(), min_size=len(documents), max_size=len(documents)))
    return row, [
        SCORES[text] if known else None for text, known in zip(documents, looked_up, strict=True)
    ]


@given(cases(), st.booleans())
def test_the_ranking_is_that_of_the_whole_row_whatever_was_sent(
    case: tuple[Row, list[float | None] | None], identical_once: bool
) -> None:
    row, known = case
    sending = sending_of(row, identical_once=identical_once, known=known)
    found = ranked(sending)
    best = sorted((SCORES[text] for text in row.documents), reverse=True)[: row.top_n]
    # The best scores, best first; each index once and with the score of its own document.
    assert list(found.scores) == best
    assert len(set(found.indices)) == len(found.indices)
    assert [SCORES[row.documents[index]] for index in found.indices] == best
    assert not found.missing


@given(cases())
def test_no_text_is_sent_twice_and_nothing_that_is_known(
    case: tuple[Row, list[float | None] | None],
) -> None:
    row, known = case
    once = sending_of(row, identical_once=True, known=known).documents
    assert len(set(once)) == len(once)
    unknown = [
        text for place, text in enumerate(row.documents) if known is None or known[place] is None
    ]
    assert set(once) == set(unknown)
    assert list(sending_of(row, identical_once=False, known=known).documents) == unknown


@given(cases(), st.booleans(), st.data())
def test_every_document_has_a_score_or_is_missing(
    case: tuple[Row, list[float | None] | None], identical_once: bool, data: st.DataObject
) -> None:
    row, known = case
    row = Row(row.query, row.documents)
    sending = sending_of(row, identical_once=identical_once, known=known)
    bounds = sorted(data.draw(st.sets(st.integers(0, len(sending.documents)), max_size=6)))
    absent = [
        (start, stop, ServerError(f"{start}", status=500))
        for start, stop in zip(bounds[::2], bounds[1::2], strict=False)
    ]
    found = sending.ranking(answer(sending, absent))
    lost = [place for start, stop, _ in found.missing for place in range(start, stop)]
    assert sorted([*found.indices, *lost]) == list(range(len(row.documents)))
    # Each for the reason for which its text has no score.
    reasons = {
        sending.documents[index]: error
        for start, stop, error in absent
        for index in range(start, stop)
    }
    for start, stop, error in found.missing:
        for place in range(start, stop):
            if identical_once:
                assert reasons[row.documents[place]] is error
            assert any(error is one for *_, one in absent)
    # In order, apart, and none that could be one with the next.
    for (_, stop, error), (start, _, other) in zip(found.missing, found.missing[1:], strict=False):
        assert stop < start or (stop == start and error is not other)


# ── what is sent ──


def test_a_row_without_repeated_documents_is_sent_as_it_is() -> None:
    row = Row("q", ["b", "a"], top_n=1)
    for once in (True, False):
        sending = sending_of(row, identical_once=once)
        assert sending.documents is row.documents
        assert (sending.top_n, sending.places, sending.known) == (1, None, None)


def test_repeated_documents_are_sent_in_the_order_of_their_first_places() -> None:
    sending = sending_of(Row("q", ["b", "a", "b", "c", "a"], top_n=2), identical_once=True)
    assert sending.documents == ["b", "a", "c"]
    assert sending.places == [[0, 2], [1, 4], [3]]
    assert sending.top_n == 2


def test_with_a_cache_all_scores_are_asked_for() -> None:
    row = Row("q", ["a", "b", "c"], top_n=1)
    assert sending_of(row, identical_once=True, known=[None] * 3).top_n is None
    assert sending_of(row, identical_once=True).top_n == 1


def test_nothing_is_sent_where_everything_is_known() -> None:
    row = Row("q", ["a", "b", "a"], top_n=2)
    known = [SCORES[text] for text in row.documents]
    sending = sending_of(row, identical_once=True, known=known, known_model="cached")
    assert not sending.documents
    found = sending.ranking(None)
    assert (found.indices, found.scores) == ([0, 2], [0.5, 0.5])
    assert (found.model, found.tokens) == ("cached", 0)


def test_a_row_without_documents_is_a_ranking_without_results() -> None:
    nothing: list[float | None] = []
    for known in (None, nothing):
        sending = sending_of(Row("q", []), identical_once=True, known=known)
        found = sending.ranking(None)
        assert (list(found.indices), list(found.scores), list(found.missing)) == ([], [], [])
        assert found.tokens == 0


# ── what is made of the answer ──


def test_the_answers_model_and_cost_are_told_even_where_some_scores_were_known() -> None:
    row = Row("q", ["a", "b"])
    for known in (None, [0.5, None], [None, None]):
        sending = sending_of(row, identical_once=True, known=known, known_model="cached")
        found = sending.ranking(answer(sending, tokens=11))
        assert (found.model, found.tokens) == ("answering", 11)
        assert sending.ranking(answer(sending, tokens=None)).tokens is None


def test_equal_scores_stand_in_the_answers_order_and_one_texts_places_in_the_rows() -> None:
    sending = sending_of(Row("q", ["a", "c", "a", "f"]), identical_once=True)
    answered = RerankResponse(Results([2, 1, 0], [0.75, 0.5, 0.5]), "m", Usage(1))
    assert list(sending.ranking(answered).indices) == [3, 1, 0, 2]
    unplaced = sending_of(Row("q", ["a", "c", "g"]), identical_once=True)
    answered = RerankResponse(Results([2, 0, 1], [0.5, 0.5, 0.5]), "m", Usage(1))
    assert list(unplaced.ranking(answered).indices) == [2, 0, 1]


def test_with_known_scores_equal_ones_stand_in_the_rows_order() -> None:
    sending = sending_of(
        Row("q", ["a", "c", "f", "g"]), identical_once=True, known=[None, 0.5, None, 0.5]
    )
    answered = RerankResponse(Results([1, 0], [0.75, 0.5]), "m", Usage(1))
    assert sending.ranking(answered).indices == [2, 0, 1, 3]


@pytest.mark.parametrize("top_n", [1, 2, 3, 4, 9])
def test_no_more_results_than_were_wanted_come_of_documents_that_were_sent_once(top_n: int) -> None:
    row = Row("q", ["a", "a", "a", "f"], top_n=top_n)
    found = ranked(sending_of(row, identical_once=True))
    assert list(found.indices) == [3, 0, 1, 2][:top_n]
    assert len(found.scores) == len(found.indices)


def test_a_document_without_a_score_is_missing_at_all_its_places() -> None:
    error, other = ServerError("no", status=500), ServerError("no", status=500)
    row = Row("q", ["a", "b", "b", "a", "c", "b"])
    sending = sending_of(row, identical_once=True)
    answered = RerankResponse(
        Results([0], [0.5]), "m", Usage(1), Missing([(1, 2, error), (2, 3, other)])
    )
    found = sending.ranking(answered)
    assert list(found.indices) == [0, 3]
    # Neighbours with the same error are one span; what looks the same need not be.
    assert list(found.missing) == [(1, 3, error), (4, 5, other), (5, 6, error)]


def test_what_was_known_is_ranked_even_where_the_rest_is_missing() -> None:
    error = ServerError("no", status=500)
    sending = sending_of(Row("q", ["a", "b", "f"]), identical_once=True, known=[0.5, None, 0.75])
    answered = RerankResponse(Results([], []), "m", Usage(0), Missing([(0, 1, error)]))
    found = sending.ranking(answered)
    assert (found.indices, found.scores) == ([2, 0], [0.75, 0.5])
    assert list(found.missing) == [(1, 2, error)]


def test_scores_of_another_model_do_not_go_with_those_that_are_known() -> None:
    row = Row("q", ["a", "b"])
    assert sending_of(row, identical_once=True, known=[0.5, None], known_model="old").mixes("new")
    assert not sending_of(row, identical_once=True, known=[0.5, None], known_model="new").mixes(
        "new"
    )
    assert not sending_of(row, identical_once=True, known=[None, None], known_model="old").mixes(
        "new"
    )
    assert not sending_of(row, identical_once=True).mixes("new")
