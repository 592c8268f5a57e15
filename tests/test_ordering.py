"""`_ordering`: best first, and equal ones as they were given."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from rerank_async._ordering import best_first

SCORES = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), max_size=12)


def test_the_highest_score_goes_first_and_equal_ones_keep_their_order() -> None:
    assert best_first([0.5, 2.0, 0.5, -1.0]) == [1, 0, 2, 3]
    assert best_first([0.5, 2.0, 0.5, -1.0], [2, 0, 3]) == [2, 0, 3]
    assert best_first([]) == []


@given(SCORES, st.randoms(use_true_random=False))
def test_it_is_the_order_by_score_then_by_where_a_place_was_given(
    scores: list[float], random: Random
) -> None:
    places = list(range(len(scores)))
    random.shuffle(places)
    expected = sorted(places, key=lambda place: (-scores[place], places.index(place)))
    assert best_first(scores, places) == expected
    assert best_first(scores) == sorted(
        range(len(scores)), key=lambda place: (-scores[place], place)
    )
