"""`_entries`: outcomes as bytes and back, and a frame that shows every damage."""

from __future__ import annotations

from typing import Any
from zlib import crc32

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_async import RateLimitError, ServerError
from rerank_async.bulk._entries import (
    Absent,
    Entry,
    LineResult,
    Problem,
    entry_of,
    failed_line,
    frame,
    merged_entry,
    payload_of,
    ranking_line,
    readable,
    unframed,
    view,
)

# Larger than the 64 bits that a fast encoder takes.
HUGE = 2**70

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
IDS = st.none() | TEXTS | st.integers(-(2**80), 2**80)
SCORES = st.floats(allow_nan=False, allow_infinity=False)


# ── lines ──


def test_a_ranking_is_one_line_best_first() -> None:
    line = ranking_line("q", [2, 0], [0.9, 0.5], None, "m", 7)
    assert orjson.loads(line) == {
        "query_id": "q",
        "results": [
            {"index": 2, "relevance_score": 0.9},
            {"index": 0, "relevance_score": 0.5},
        ],
        "model": "m",
        "usage": {"total_tokens": 7},
    }


def test_a_document_with_an_id_is_named_by_it_and_one_without_is_not() -> None:
    line = ranking_line("q", [2, 0], [0.9, 0.5], ["a", "b", None], "m", None)
    assert orjson.loads(line)["results"] == [
        {"index": 2, "relevance_score": 0.9},
        {"index": 0, "doc_id": "a", "relevance_score": 0.5},
    ]
    assert orjson.loads(line)["usage"] == {"total_tokens": None}


def test_documents_without_a_score_stand_in_the_line_with_their_error() -> None:
    error = ServerError("it broke", status=500)
    line = ranking_line("q", [0], [0.9], None, "m", 1, [(1, 3, error)])
    missing = orjson.loads(line)["missing"]
    assert missing == [
        {"start": 1, "stop": 3, "error": {"type": "ServerError", "message": str(error)}}
    ]
    assert b"missing" not in ranking_line("q", [0], [0.9], None, "m", 1)


def test_a_row_without_a_ranking_has_its_error_instead() -> None:
    error = RateLimitError("slowly", status=429)
    line = view(failed_line(3, error))
    assert (line.query_id, line.results) == (3, [])
    assert line.error is not None
    assert (line.error.type, line.error.message) == ("RateLimitError", str(error))


@given(
    IDS,
    st.lists(st.tuples(SCORES, IDS), max_size=6),
    st.none() | TEXTS,
    st.none() | st.integers(0, 2**53),
    st.booleans(),
)
def test_a_line_is_read_back_as_it_was_written(
    query_id: Any, documents: list[tuple[float, Any]], model: Any, tokens: Any, named: bool
) -> None:
    scores = [score for score, _ in documents]
    ids = [its for _, its in documents]
    indices = list(range(len(documents)))[::-1]
    line = ranking_line(query_id, indices, scores, ids if named else None, model, tokens)
    assert b"\n" not in line
    found = view(line)
    assert (found.query_id, found.model, found.usage.total_tokens) == (query_id, model, tokens)
    assert [result.relevance_score for result in found.results] == scores
    assert [result.index for result in found.results] == indices
    assert [result.doc_id for result in found.results] == [
        ids[index] if named else None for index in indices
    ]
    assert (found.missing, found.error) == ([], None)


@pytest.mark.parametrize("huge", [HUGE, -HUGE, 2**64, -(2**63) - 1])
def test_an_id_may_be_larger_than_64_bits(huge: int) -> None:
    found = view(ranking_line(huge, [0], [0.5], [huge], "m", 1))
    assert (found.query_id, found.results[0].doc_id) == (huge, huge)
    assert view(failed_line(huge, ServerError("no", status=500))).query_id == huge


def test_what_a_server_says_is_made_readable_where_utf_8_cannot_write_it() -> None:
    assert readable("plain") == "plain"
    assert readable("größer") == "größer"
    assert readable("half \ud800 of it") == "half ? of it"
    line = failed_line("q", ValueError("half \ud800 of it"))
    assert orjson.loads(line)["error"]["message"] == "half ? of it"


# ── entries ──


@given(
    TEXTS,
    st.binary(min_size=16, max_size=16),
    st.integers(0, 10**9),
    st.integers(0, 10**12),
    st.booleans(),
    st.booleans(),
)
def test_an_entry_is_read_back_as_it_was_packed(
    key: str, digest: bytes, documents: int, tokens: int, is_estimate: bool, failed: bool
) -> None:
    line = ranking_line(key, [0], [0.25], None, "m", tokens)
    payload = payload_of(
        key, digest, documents, tokens, line, is_estimate=is_estimate, failed=failed
    )
    assert b"\n" not in payload
    for data in (payload, memoryview(payload)):
        entry = entry_of(data)
        assert bytes(entry.line) == line
        assert (entry.key, entry.digest) == (key, digest.hex())
        assert (entry.documents, entry.tokens) == (documents, tokens)
        assert (entry.is_estimate, entry.failed) == (is_estimate, failed)


def test_what_is_no_entry_is_not_read_as_one() -> None:
    for payload in (b"", b"{}", b'{"key":"a"}', b"[]", b'{"fingerprint":"f"}'):
        with pytest.raises(msgspec.DecodeError):
            entry_of(payload)


def test_a_ranking_put_together_says_what_its_parts_said() -> None:
    entry = merged_entry(
        "q",
        [LineResult(3, 0.9, "d3"), LineResult(1, 0.5)],
        "m",
        5,
        12,
        is_estimate=False,
        missing=[],
    )
    assert (entry.documents, entry.tokens, entry.failed) == (5, 12, False)
    assert orjson.loads(bytes(entry.line)) == {
        "query_id": "q",
        "results": [
            {"index": 3, "doc_id": "d3", "relevance_score": 0.9},
            {"index": 1, "relevance_score": 0.5},
        ],
        "model": "m",
        "usage": {"total_tokens": 12},
    }


def test_a_ranking_put_together_that_lacks_documents_counts_as_failed() -> None:
    missing = [Absent(0, 2, Problem("ServerError", "no"))]
    entry = merged_entry("q", [], None, 5, 12, is_estimate=True, missing=missing)
    assert entry.failed
    assert entry.is_estimate
    line = view(entry.line)
    assert line.usage.total_tokens is None
    assert [(span.start, span.stop, span.error.type) for span in line.missing] == [
        (0, 2, "ServerError")
    ]


def test_an_entry_takes_no_more_room_than_it_needs() -> None:
    entry = Entry("k", "00", 1, 1, msgspec.Raw(b"{}"))
    assert msgspec.json.encode(entry) == (
        b'{"key":"k","digest":"00","documents":1,"tokens":1,"line":{}}'
    )


# ── frames ──


@given(st.binary(max_size=60).filter(lambda payload: b"\n" not in payload), st.booleans())
def test_what_was_framed_is_opened(payload: bytes, begins: bool) -> None:
    assert unframed(frame(payload, begins=begins)) == (payload, begins)


def test_a_frame_is_the_checksum_of_all_behind_it_a_mark_and_the_payload() -> None:
    assert frame(b"{}", begins=True) == b"%08x={}\n" % crc32(b"={}")
    assert frame(b"{}", begins=False) == b"%08x+{}\n" % crc32(b"+{}")
    # With leading zeros, and as other programs compute it.
    assert frame(b"123456789", begins=True) == b"%08x=123456789\n" % crc32(b"=123456789")


@pytest.mark.parametrize("payload", [b'{"key":"id:q1","tokens":17}', b"", b"0"])
def test_no_damaged_byte_of_a_frame_goes_unseen(payload: bytes) -> None:
    line = frame(payload, begins=True)
    for place in range(len(line)):
        for value in range(256):
            damaged = line[:place] + bytes([value]) + line[place + 1 :]
            assert (unframed(damaged) is None) == (damaged != line)


def test_no_part_of_a_frame_is_taken_for_the_whole() -> None:
    line = frame(b'{"key":"id:q1"}', begins=False)
    for length in range(len(line)):
        assert unframed(line[:length]) is None
    for length in range(len(line) - 1):
        assert unframed(line[:length] + b"\n") is None
    for start in range(1, len(line)):
        assert unframed(line[start:]) is None


def test_a_mark_that_nobody_writes_is_damage_even_where_the_checksum_fits() -> None:
    assert unframed(b"%08x#{}\n" % crc32(b"#{}")) is None
    assert unframed(b"%08X={}\n" % crc32(b"={}")) is None
