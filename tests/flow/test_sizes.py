"""`_flow.sizes`: what a server takes is found out by asking, and a wrong lesson is taken back."""

from bisect import bisect_left
from collections.abc import Callable
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from rerank_async._flow.sizes import LearnedSizes


class Server:
    """Takes so many documents and bytes at once, and none that holds a bad document."""

    def __init__(
        self, documents: int | None, size: int | None, sizes: LearnedSizes, weight: int = 10
    ) -> None:
        self.documents = documents
        self.size = size
        self.sizes = sizes
        # Bytes of one document.
        self.weight = weight
        self.refusals = 0

    def refuses(self, documents: int) -> Literal["documents", "bytes"] | None:
        if self.documents is not None and documents > self.documents:
            return "documents"
        if self.size is not None and documents * self.weight > self.size:
            return "bytes"
        return None

    def ask(self, documents: int) -> bool:
        """One request, and the lesson from it."""
        size = documents * self.weight
        reason = self.refuses(documents)
        if reason is None:
            self.sizes.answered(documents, size)
            return True
        self.refusals += 1
        self.sizes.refused(0.0, reason, documents, size)
        return False

    def score(self, documents: int) -> None:
        """A call: in as many pieces as were learned, and in halves when those are refused."""
        pieces = self.sizes.pieces(0.0, documents, documents * self.weight, 0)
        assert 1 <= pieces <= documents
        least, longer = divmod(documents, pieces)
        if pieces > 1:
            for number in range(pieces):
                self.score(least + (number < longer))
        elif not self.ask(documents):
            assert documents > 1, "one document is taken"
            self.score(documents // 2)
            self.score(documents - documents // 2)


class Learning(RuleBasedStateMachine):
    """Calls of all sizes to a server that takes so much and may change."""

    @initialize(
        documents=st.none() | st.integers(1, 2000),
        size=st.none() | st.integers(10, 20_000),
        weight=st.sampled_from([1, 10]),
    )
    def open(self, documents: int | None, size: int | None, weight: int) -> None:
        self.sizes = LearnedSizes()
        self.server = Server(documents, size, self.sizes, weight)

    @rule(documents=st.integers(1, 3000))
    def call(self, documents: int) -> None:
        self.server.score(documents)

    @rule(documents=st.integers(1, 3000))
    def call_again_and_again(self, documents: int) -> None:
        for _ in range(3):
            self.server.score(documents)
        before = self.server.refusals
        self.server.score(documents)
        # What it takes is known by now.
        assert self.server.refusals == before

    @precondition(lambda self: self.server.documents is not None)
    @rule(documents=st.integers(1, 2000))
    def the_server_takes_another_number(self, documents: int) -> None:
        self.server.documents = documents

    @rule(documents=st.integers(1, 3000), measure=st.sampled_from(["documents", "bytes"]))
    def one_is_refused_for_another_reason(
        self, documents: int, measure: Literal["documents", "bytes"]
    ) -> None:
        self.sizes.refused(0.0, measure, documents, documents * self.server.weight)

    @invariant()
    def no_request_has_no_piece_or_more_pieces_than_documents(self) -> None:
        for documents in (1, 2, 3, 50, 3000):
            pieces = self.sizes.pieces(0.0, documents, documents * self.server.weight, 0)
            assert 1 <= pieces <= documents

    @invariant()
    def as_long_as_nothing_was_refused_there_is_one_piece(self) -> None:
        if not self.sizes.is_limited:
            assert limits(self.sizes) == (None, None)


TestLearning = Learning.TestCase


def limits(sizes: LearnedSizes) -> tuple[int | None, int | None]:
    """The most documents, and the most bytes of two documents, that go in one piece."""

    def most(is_whole: Callable[[int], bool]) -> int | None:
        if is_whole(10**9):
            return None
        return bisect_left(range(10**9), True, key=lambda amount: not is_whole(amount)) - 1

    return (
        most(lambda documents: sizes.pieces(0.0, documents, 0, 0) == 1),
        most(lambda size: sizes.pieces(0.0, 2, size, 0) == 1),
    )


def test_at_first_nothing_is_known_and_everything_is_one_piece() -> None:
    sizes = LearnedSizes()
    assert limits(sizes) == (None, None)
    assert not sizes.is_limited
    assert sizes.pieces(0.0, 1, 1, 0) == sizes.pieces(0.0, 10**6, 10**9, 0) == 1
    sizes.answered(1000, 10**6)
    assert limits(sizes) == (None, None)
    assert sizes.pieces(0.0, 2000, 2 * 10**6, 0) == 1


@pytest.mark.parametrize(
    ("answered", "refused", "limit"),
    [
        ([], [1000], 500),
        ([], [1000, 500], 250),
        ([], [500, 1000], 250),
        # Rounded up, for the halves of an odd number are not equal.
        ([], [7], 4),
        ([], [5], 3),
        ([400], [1000], 500),
        ([600], [1000], 600),
        ([999], [1000], 999),
        ([600, 50], [1000], 600),
    ],
)
def test_after_a_refusal_half_is_tried_or_what_was_answered_where_that_is_more(
    answered: list[int], refused: list[int], limit: int
) -> None:
    sizes = LearnedSizes()
    for documents in answered:
        sizes.answered(documents, 10 * documents)
    for documents in refused:
        sizes.refused(0.0, "documents", documents, 10 * documents)
    assert limits(sizes) == (limit, None)
    assert sizes.is_limited


@pytest.mark.parametrize(
    ("documents", "size", "pieces"),
    [
        (1, 10, 1),
        (100, 1000, 1),
        (101, 1010, 2),
        (200, 2000, 2),
        (201, 2010, 3),
        # Few documents, many bytes.
        (10, 6666, 1),
        (10, 6667, 2),
        (10, 13_333, 3),
        (10, 60_000, 10),
        # A document is not cut, however long.
        (10, 500_000, 10),
        (1, 500_000, 1),
        # The stricter of the two.
        (1000, 10_000, 10),
        (150, 60_000, 10),
    ],
)
def test_what_is_larger_goes_in_as_few_pieces_as_fit(
    documents: int, size: int, pieces: int
) -> None:
    sizes = LearnedSizes()
    sizes.refused(0.0, "documents", 200, 10)
    sizes.refused(0.0, "bytes", 10, 10_000)
    assert limits(sizes) == (100, 6666)
    assert sizes.pieces(0.0, documents, size, 0) == pieces


def test_the_two_measures_are_learned_apart() -> None:
    sizes = LearnedSizes()
    sizes.refused(0.0, "bytes", 64, 1000)
    assert limits(sizes) == (None, 666)
    sizes.refused(0.0, "documents", 64, 9000)
    assert limits(sizes) == (32, 666)


def test_the_query_is_part_of_every_piece() -> None:
    sizes = LearnedSizes()
    sizes.refused(0.0, "bytes", 64, 1000)
    # 400 of the bytes are no documents: two thirds of the other 600 fit beside them.
    assert sizes.pieces(0.0, 64, 800, 400) == 1
    assert sizes.pieces(0.0, 64, 801, 400) == 2
    assert sizes.pieces(0.0, 64, 1600, 400) == 3
    # Where there is hardly room beside the query, one document at a time is the least.
    assert sizes.pieces(0.0, 64, 2000, 999) == 64
    # Where there is none, smaller pieces would be refused as well.
    assert sizes.pieces(0.0, 64, 2000, 1000) == 1


@given(st.integers(1, 2000), st.integers(1, 5000))
def test_the_limit_is_found_within_a_few_refusals_and_then_kept(true: int, documents: int) -> None:
    sizes = LearnedSizes()
    server = Server(true, None, sizes)
    server.score(documents)
    # Each refusal halves what is tried.
    assert server.refusals <= max(0, (documents - 1).bit_length() - true.bit_length() + 1)
    found = limits(sizes)[0]
    if documents > true > 1:
        assert found is not None
        assert true / 2 - 1 < found <= true
    before = server.refusals
    for again in (documents, 3 * documents, 1, true, 2 * true, 5000):
        server.score(again)
    assert server.refusals <= before + (0 if documents > true else 15)


def test_a_limit_of_the_caller_that_is_just_too_high_is_learned_with_one_refusal() -> None:
    sizes = LearnedSizes()
    server = Server(32, None, sizes)
    server.score(64)
    server.score(1000)
    assert server.refusals == 1
    assert limits(sizes)[0] == 32


def test_what_is_refused_although_as_much_was_answered_is_no_lesson() -> None:
    sizes = LearnedSizes()
    sizes.answered(100, 1000)
    sizes.refused(0.0, "documents", 100, 1000)
    assert limits(sizes) == (None, None)
    sizes.answered(100, 1000)
    sizes.refused(0.0, "documents", 60, 600)
    assert limits(sizes) == (None, None)


def test_what_is_answered_although_less_was_refused_takes_the_lesson_back() -> None:
    sizes = LearnedSizes()
    sizes.refused(0.0, "documents", 50, 500)
    assert limits(sizes) == (25, None)
    sizes.answered(49, 490)
    assert limits(sizes) == (49, None)
    sizes.answered(50, 500)
    assert limits(sizes) == (None, None)


@given(st.integers(2, 200), st.data())
def test_a_bad_document_does_not_keep_requests_small_for_ever(
    documents: int, data: st.DataObject
) -> None:
    # A server without limits of size calls one document too long, whatever it comes with.
    bad = data.draw(st.integers(0, documents - 1))
    sizes = LearnedSizes()

    def score(start: int, stop: int) -> None:
        if not start <= bad < stop:
            sizes.answered(stop - start, 10 * (stop - start))
            return
        sizes.refused(0.0, "bytes", stop - start, 10 * (stop - start))
        if stop - start > 1:
            middle = (start + stop) // 2
            score(start, middle)
            score(middle, stop)

    score(0, documents)
    # Calls without it follow: soon they are sent whole again.
    for _ in range(3):
        pieces = sizes.pieces(0.0, documents, 10 * documents, 0)
        for _ in range(pieces):
            sizes.answered(documents // pieces, 10 * -(-documents // pieces))
    assert sizes.pieces(0.0, documents, 10 * documents, 0) == 1


def test_a_server_that_takes_less_than_before_is_learned_anew() -> None:
    sizes = LearnedSizes()
    server = Server(1000, None, sizes)
    server.score(1000)
    server.documents = 100
    server.score(1000)
    before = server.refusals
    server.score(1000)
    assert server.refusals == before


def test_one_document_that_is_refused_alone_takes_all_lessons_back() -> None:
    sizes = LearnedSizes()
    sizes.refused(0.0, "documents", 64, 640)
    sizes.refused(0.0, "bytes", 64, 640)
    sizes.refused(0.0, "bytes", 1, 320)
    assert limits(sizes) == (None, None)


def test_a_refusal_is_believed_for_ten_minutes_and_then_the_size_is_tried_again() -> None:
    # Lessons that only an answer takes back last for ever: nothing as large is ever sent.
    for start in (0.0, 1e9):
        sizes = LearnedSizes()
        sizes.refused(start, "documents", 64, 640)
        sizes.refused(start + 300.0, "bytes", 64, 600)
        assert sizes.pieces(start + 599.0, 64, 640, 0) == 2
        assert sizes.documents.refused == 64
        assert sizes.pieces(start + 601.0, 64, 10, 0) == 1
        assert sizes.is_limited
        assert sizes.pieces(start + 901.0, 64, 640, 0) == 1
        assert not sizes.is_limited


def test_each_refusal_that_teaches_something_is_believed_anew() -> None:
    sizes = LearnedSizes()
    for now in (0.0, 500.0, 1000.0):
        sizes.refused(now, "documents", 64, 640)
    assert sizes.pieces(1599.0, 64, 640, 0) == 2


def test_a_size_that_was_answered_after_the_refusal_is_sent_whole_from_then_on() -> None:
    sizes = LearnedSizes()
    sizes.refused(0.0, "documents", 100, 1)
    sizes.refused(0.0, "bytes", 2, 1000)
    assert limits(sizes) == (50, 666)
    sizes.answered(80, 10)
    assert limits(sizes) == (80, 666)
    sizes.answered(1, 900)
    assert limits(sizes) == (80, 900)


def test_nothing_is_limited_before_anything_was_refused() -> None:
    assert not LearnedSizes().is_limited


def test_a_refusal_is_still_believed_when_ten_minutes_are_just_over() -> None:
    sizes = LearnedSizes()
    sizes.refused(0.0, "documents", 64, 640)
    assert sizes.pieces(600.0, 64, 640, 0) == 2


def test_the_answer_that_takes_a_lesson_back_leaves_nothing_limited() -> None:
    sizes = LearnedSizes()
    sizes.refused(0.0, "documents", 64, 640)
    sizes.answered(64, 640)
    assert not sizes.is_limited
