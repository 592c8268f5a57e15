"""`_manifest`: what two runs of a job must have in common, said in words, and damage seen."""

from __future__ import annotations

import random
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_async.bulk._manifest import (
    FORMAT,
    Contents,
    Manifest,
    Tally,
    differences,
    read,
    written,
)
from rerank_async.bulk._rows import Row

WORDS = {"endpoint": "https://a.test/v1", "model": "m", "top_n": None, "identical_once": True}
CONTENTS = Contents(3, 17, "0" * 31 + "a")
MANIFEST = Manifest(WORDS, CONTENTS)

VALUES = (st.none() | st.booleans() | st.integers(-(2**53), 2**53)) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=8
)
MANIFESTS = st.builds(
    Manifest,
    st.dictionaries(st.sampled_from(["endpoint", "model", "query", "depth", "x"]), VALUES),
    st.none()
    | st.builds(
        Contents,
        st.integers(0, 10**12),
        st.integers(0, 10**12),
        st.integers(0, 2**128 - 1).map(lambda number: f"{number:032x}"),
    ),
)


# ── the file ──


@given(MANIFESTS)
def test_a_manifest_is_read_back_as_it_was_written(manifest: Manifest) -> None:
    found = read(written(manifest, created="today", by="somebody"))
    assert found == manifest
    assert found.fingerprint() == manifest.fingerprint()
    assert differences(found, manifest) == []


def test_people_can_read_it() -> None:
    data = written(MANIFEST, created="today", by="somebody")
    assert data.endswith(b"}\n")
    body = orjson.loads(data)
    assert body["format"] == FORMAT
    assert (body["created"], body["by"]) == ("today", "somebody")
    assert body["words"] == WORDS
    assert body["contents"] == {"rows": 3, "documents": 17, "digest": CONTENTS.digest}
    assert body["fingerprint"] == MANIFEST.fingerprint()


def test_no_damaged_byte_goes_unseen() -> None:
    data = written(MANIFEST, created="today", by="somebody")
    for place in range(len(data)):
        for mask in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            damaged = bytearray(data)
            damaged[place] ^= mask
            try:
                found = read(bytes(damaged))
            except ValueError:
                continue
            # A space may have become another.
            assert found == MANIFEST
            assert damaged[place] in b" \t\r\n"


def test_no_part_of_it_is_taken_for_the_whole() -> None:
    data = written(MANIFEST)
    for length in range(len(data) - 1):
        with pytest.raises(ValueError, match="damaged"):
            read(data[:length])
    # But for the newline at its end.
    assert read(data[:-1]) == MANIFEST


@pytest.mark.parametrize("data", [b"", b"\0" * 50, b"[]", b'"text"', b"1", b"null", b"{}", b"\xff"])
def test_what_is_no_manifest_is_damaged(data: bytes) -> None:
    with pytest.raises(ValueError, match="it is damaged"):
        read(data)


def test_another_format_is_named() -> None:
    body = orjson.loads(written(MANIFEST))
    body["format"] = 99
    with pytest.raises(ValueError, match="it is of format 99, and this version reads 1"):
        read(orjson.dumps(body))


def test_a_value_that_somebody_changed_by_hand_is_seen() -> None:
    body = orjson.loads(written(MANIFEST))
    body["words"]["model"] = "another"
    with pytest.raises(ValueError, match="its checksum does not fit"):
        read(orjson.dumps(body))


# ── fingerprints ──


def test_fingerprints_do_not_depend_on_the_order_of_the_words() -> None:
    turned = Manifest(dict(reversed(WORDS.items())), CONTENTS)
    assert turned.fingerprint() == MANIFEST.fingerprint()
    assert len(MANIFEST.fingerprint()) == 64


@given(MANIFESTS, MANIFESTS)
def test_two_manifests_have_one_fingerprint_exactly_when_they_are_the_same(
    one: Manifest, other: Manifest
) -> None:
    # Python takes 1 for True, and the file does not.
    same = repr(sorted(one.words.items())) == repr(sorted(other.words.items()))
    same = same and one.contents == other.contents
    assert (one.fingerprint() == other.fingerprint()) == same


# ── differences ──


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ({**WORDS, "model": "n"}, "model was 'm', now 'n'"),
        (
            {**WORDS, "endpoint": "https://b.test/v1"},
            "the server was 'https://a.test/v1', now 'https://b.test/v1'",
        ),
        ({**WORDS, "top_n": 5}, "top_n was not given, now 5"),
        ({**WORDS, "query": "why?"}, "the query was not given, now 'why?'"),
        (
            {**WORDS, "identical_once": False},
            "whether identical documents are sent once was True, now False",
        ),
        (
            {name: value for name, value in WORDS.items() if name != "model"},
            "model was 'm', now not given",
        ),
    ],
)
def test_a_word_that_differs_is_told_with_both_its_values(now: dict[str, Any], told: str) -> None:
    assert differences(MANIFEST, Manifest(now, CONTENTS)) == [told]


def test_a_word_that_came_later_and_says_nothing_is_no_difference() -> None:
    assert differences(MANIFEST, Manifest({**WORDS, "novel": None}, CONTENTS)) == []


def test_every_difference_is_told() -> None:
    now = Manifest({**WORDS, "model": "n", "depth": 5}, Contents(4, 1_700, "f" * 32))
    assert differences(MANIFEST, now) == [
        "model was 'm', now 'n'",
        "the depth was not given, now 5",
        "the input's number of rows was 3, now 4",
        "the input's number of documents was 17, now 1,700",
    ]


def test_other_rows_of_the_same_number_are_another_content() -> None:
    other = Manifest(WORDS, Contents(3, 17, "f" * 32))
    assert differences(MANIFEST, other) == ["the input's content is another"]


def test_whether_the_input_is_checked_first_is_a_difference() -> None:
    unchecked = Manifest(WORDS, None)
    assert differences(MANIFEST, unchecked) == [
        "the input was checked first, now it is read as it comes"
    ]
    assert differences(unchecked, MANIFEST) == [
        "the input was read as it came, now it is checked first"
    ]
    assert differences(unchecked, unchecked) == []


def test_a_long_value_is_told_by_its_beginning() -> None:
    (told,) = differences(MANIFEST, Manifest({**WORDS, "query": "x" * 500}, CONTENTS))
    assert told.endswith("xxx…")
    assert len(told) < 130


# ── what an input holds ──


def rows(count: int) -> list[Row]:
    return [Row(f"query {number}", ["a", "b"][: number % 3]) for number in range(count)]


def tallied(some: list[Row]) -> Contents:
    tally = Tally()
    for row in some:
        tally.add(row.digest(), len(row.documents))
    return tally.contents()


def test_contents_do_not_depend_on_the_order_of_the_rows() -> None:
    some = rows(20)
    mixed = some.copy()
    random.Random(1).shuffle(mixed)
    assert tallied(mixed) == tallied(some)
    assert tallied(some).rows == 20
    assert tallied(some).documents == sum(len(row.documents) for row in some)


def test_contents_see_a_row_that_changed_came_went_or_occurs_twice() -> None:
    some = rows(6)
    before = tallied(some)
    other = Row("another query", some[5].documents)
    for changed in ([*some[:5], other], some[:5], [*some, other], [*some[:5], some[4]]):
        assert tallied(changed).digest != before.digest
    assert tallied([]) == Contents(0, 0, "0" * 32)


def test_a_digest_of_contents_has_32_digits_however_many_rows_there_are() -> None:
    tally = Tally()
    for _ in range(5):
        tally.add(b"\xff" * 16, 0)
    assert tally.contents().digest == f"{5 * (2**128 - 1) % 2**128:032x}"
    assert len(tally.contents().digest) == 32
