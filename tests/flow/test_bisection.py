"""`_flow.bisection`: a bad document is found with few requests, and a bad request given up."""

from math import ceil, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_async._flow.bisection import Bisection


class Search:
    """A chunk that was refused, searched in rounds of halves as a call does it."""

    def __init__(self, documents: int, bad: set[int]) -> None:
        self.bad = bad
        self.requests = 0
        self.scored: set[int] = set()
        self.failed: list[range] = []
        self.search = Bisection(documents)
        suspects = [range(documents)]
        while suspects:
            goes_on = self.search.next_round()
            halves: list[range] = []
            for suspect in suspects:
                if len(suspect) > 1 and goes_on and self.search.may_halve():
                    middle = (len(suspect) + 1) // 2
                    halves += [suspect[:middle], suspect[middle:]]
                else:
                    self.failed.append(suspect)
            suspects = [half for half in halves if not self.takes(half)]

    def takes(self, part: range) -> bool:
        self.requests += 1
        if self.bad & set(part):
            return False
        self.search.scored = True
        self.scored |= set(part)
        return True

    @property
    def lost(self) -> set[int]:
        return {index for span in self.failed for index in span}


@given(st.integers(2, 5000), st.data())
def test_one_bad_document_is_found_exactly_with_two_requests_for_each_halving(
    documents: int, data: st.DataObject
) -> None:
    bad = data.draw(st.integers(0, documents - 1))
    found = Search(documents, {bad})
    assert found.lost == {bad}
    assert found.scored == set(range(documents)) - {bad}
    assert found.requests <= 2 * ceil(log2(documents))


@given(st.integers(2, 3000), st.data())
def test_two_or_three_bad_documents_are_found_exactly(documents: int, data: st.DataObject) -> None:
    bad = data.draw(st.sets(st.integers(0, documents - 1), min_size=2, max_size=3))
    found = Search(documents, bad)
    assert found.lost == bad
    assert found.scored == set(range(documents)) - bad
    assert found.requests <= len(bad) * (2 * ceil(log2(documents)) + 2)


@given(st.integers(4, 5000))
def test_where_all_are_refused_the_search_is_over_after_halves_and_quarters(documents: int) -> None:
    found = Search(documents, set(range(documents)))
    assert found.requests == 6
    assert found.lost == set(range(documents))
    assert found.scored == set()


@given(st.integers(1, 2000), st.data())
def test_every_document_is_scored_or_lost_and_the_requests_are_bounded(
    documents: int, data: st.DataObject
) -> None:
    bad = data.draw(st.sets(st.integers(0, documents - 1)))
    found = Search(documents, bad)
    assert found.scored.isdisjoint(found.lost)
    assert found.scored | found.lost == set(range(documents))
    assert bad & found.scored == set()
    assert bad <= found.lost or not bad
    assert found.requests <= 4 * (2 * ceil(log2(max(2, documents))) + 2)


@pytest.mark.parametrize("documents", [256, 1000])
def test_of_many_bad_documents_some_are_found_and_the_rest_are_spans(documents: int) -> None:
    found = Search(documents, set(range(0, documents // 2, 3)))
    assert len(found.failed) > 4
    assert len(found.scored) >= documents // 2
    assert any(len(span) > 1 for span in found.failed)
    assert found.requests <= 4 * (2 * ceil(log2(documents)) + 2)


def test_a_chunk_of_which_something_was_scored_before_is_searched_further() -> None:
    search = Bisection(8)
    search.scored = True
    assert all(search.next_round() for _ in range(5))


def test_without_anything_scored_there_are_two_rounds() -> None:
    search = Bisection(8)
    assert search.next_round()
    assert search.next_round()
    assert not search.next_round()
    search.scored = True
    assert search.next_round()


@pytest.mark.parametrize(("documents", "halvings"), [(1, 4), (2, 8), (8, 16), (1000, 44)])
def test_there_are_halvings_for_about_four_bad_documents(documents: int, halvings: int) -> None:
    search = Bisection(documents)
    assert [search.may_halve() for _ in range(halvings + 2)] == [True] * halvings + [False] * 2
