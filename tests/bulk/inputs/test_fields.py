"""What more than one input format asks of what it reads."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rerank_async.bulk._inputs.fields import doubled


@given(st.lists(st.none() | st.sampled_from(["a", "7", "8"]) | st.sampled_from([7, 8, 9])))
def test_an_id_is_doubled_when_two_are_the_same_as_text(doc_ids: list[str | int | None]) -> None:
    given_ids = [str(doc_id) for doc_id in doc_ids if doc_id is not None]
    twice = doubled(doc_ids)
    if twice is None:
        assert len(set(given_ids)) == len(given_ids)
    else:
        assert given_ids.count(str(twice)) > 1
