"""`_rows`: what a row is known by, and that its digest sees everything but where it stands."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_async.bulk._rows import Row

# Few characters, those among them that the digest writes itself: so that texts run into each other.
TEXTS = st.text("\0,:1a'[]", max_size=4)
IDS = st.none() | st.integers(-1, 12) | st.sampled_from(["", "1", "a", "None", "a\0", "1\0None"])


@st.composite
def rows(draw: st.DrawFn) -> Row:
    documents = draw(st.lists(TEXTS, max_size=3))
    count = len(documents)
    return Row(
        draw(TEXTS),
        documents,
        query_id=draw(IDS),
        doc_ids=draw(st.none() | st.lists(IDS, min_size=count, max_size=count)),
        top_n=draw(st.none() | st.integers(1, 12)),
        start=draw(st.integers(0, 3)),
    )


@given(rows(), rows())
def test_two_rows_have_one_digest_exactly_when_they_differ_in_their_place_alone(
    one: Row, other: Row
) -> None:
    same = msgspec.structs.replace(one, start=0) == msgspec.structs.replace(other, start=0)
    assert (one.digest() == other.digest()) == same


@given(rows())
def test_a_digest_does_not_depend_on_where_the_row_stands_or_what_holds_its_parts(row: Row) -> None:
    moved = msgspec.structs.replace(
        row,
        start=row.start + 1000,
        documents=tuple(row.documents),
        doc_ids=None if row.doc_ids is None else tuple(row.doc_ids),
    )
    assert moved.digest() == row.digest()
    assert len(row.digest()) == 16


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Row("q", ["a\0b"]), Row("q", ["a", "b"])),
        (Row("q", ["ab", "c"]), Row("q", ["a", "bc"])),
        (Row("q", ["a", "b"]), Row("q", ["b", "a"])),
        (Row("q", []), Row("q", [""])),
        (Row("q", ["a"]), Row("qa", [])),
        (Row("q\x00a", ["b"]), Row("q", ["a\0b"])),
        (Row("q", ["a"], query_id=1), Row("q", ["a"], query_id="1")),
        (Row("q", ["a"], query_id="None"), Row("q", ["a"])),
        (Row("q", ["a"], doc_ids=[None]), Row("q", ["a"])),
        (Row("q", ["a"], doc_ids=["1"]), Row("q", ["a"], doc_ids=[1])),
        (Row("q", ["a"], top_n=1), Row("q", ["a"])),
        (Row("q", ["\ud800\udc00"]), Row("q", ["\U00010000"])),
    ],
)
def test_what_looks_alike_has_digests_of_its_own(one: Row, other: Row) -> None:
    assert one.digest() != other.digest()


def test_digests_stay_what_they_are_because_jobs_on_disk_hold_them() -> None:
    row = Row("what?", ["one", "two"], query_id="q1", doc_ids=["d1", None], top_n=2)
    assert row.digest().hex() == "2c7db26bbefb731927e93878253d65d0"
    assert Row("what?", ["one"]).digest().hex() == "454bda011127394eceec11fc69292775"


def test_a_row_is_known_by_its_id_and_otherwise_by_its_content() -> None:
    digest = Row("q", ["a"]).digest()
    assert Row("q", ["a"], query_id="x").key(digest) == "id:x"
    assert Row("q", ["a"], query_id=7).key(digest) == "id:7"
    assert Row("q", ["a"], query_id="").key(digest) == "id:"
    assert Row("q", ["a"]).key(digest) == f"content:{digest.hex()}"


def test_no_id_makes_a_key_that_a_content_could_have() -> None:
    digest = bytes(16)
    content = Row("q", []).key(digest)
    assert Row("q", [], query_id=content).key(digest) != content
    # The index tells the two kinds apart by their order.
    assert content < "id:" <= Row("q", [], query_id="").key(digest)
