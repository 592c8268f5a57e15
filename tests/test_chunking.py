from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rerank_async import ChunkLimits, InvalidRequestError
from rerank_async._chunking import (
    Chunk,
    Chunker,
    check_types,
    check_unicode,
    estimate_tokens,
    split,
    stream,
)
from rerank_async.dialects import get

V1 = get("v1")
MODEL, QUERY = "m", "what is it?"
ENVELOPE = len(V1.encode_request(MODEL, QUERY, (), None))

# Short enough to crowd, long enough to differ; quotes and umlauts grow when they are written.
TEXTS = st.text(alphabet='ab"\\\n\0é検😀', max_size=12)
LIMITS = st.builds(
    ChunkLimits,
    max_documents=st.none() | st.integers(1, 9),
    max_bytes=st.none() | st.integers(ENVELOPE + 80, ENVELOPE + 300),
    max_tokens=st.none() | st.integers(30, 120),
)


def body_bytes(documents: Sequence[str]) -> int:
    return len(V1.encode_request(MODEL, QUERY, documents, None))


def body_tokens(documents: Sequence[str]) -> int:
    query = estimate_tokens(QUERY)
    return sum(query + estimate_tokens(document) for document in documents)


def cut(documents: Sequence[str], limits: ChunkLimits, query: str = QUERY) -> list[Chunk]:
    envelope = len(V1.encode_request(MODEL, query, (), None))
    return list(split(documents, limits, query, envelope, V1.document_bytes))


def chunker(limits: ChunkLimits, query: str = QUERY) -> Chunker:
    envelope = len(V1.encode_request(MODEL, query, (), None))
    return Chunker(limits, query, envelope, V1.document_bytes)


def cut_as_a_stream(
    documents: Sequence[str], limits: ChunkLimits, query: str = QUERY
) -> list[Chunk]:
    return list(stream(iter(documents), chunker(limits, query)))


BOTH = pytest.mark.parametrize("cutting", [cut, cut_as_a_stream], ids=["list", "stream"])


def sizes(chunks: Sequence[Chunk]) -> list[int]:
    return [len(chunk.documents) for chunk in chunks]


def assert_partition(chunks: Sequence[Chunk], documents: Sequence[str]) -> None:
    assert [text for chunk in chunks for text in chunk.documents] == list(documents)
    assert all(chunk.documents for chunk in chunks)
    assert all(chunk.start == 0 for chunk in chunks[:1])
    assert all(before.stop == after.start for before, after in pairwise(chunks))


# ── how many, how long ──


@pytest.mark.parametrize(
    ("count", "limit", "expected"),
    [
        (0, 1000, []),
        (1, 1000, [1]),
        (999, 1000, [999]),
        (1000, 1000, [1000]),
        (1001, 1000, [501, 500]),
        (2000, 1000, [1000, 1000]),
        (2001, 1000, [667, 667, 667]),
        (10, 4, [4, 3, 3]),
        (3, 1, [1, 1, 1]),
        (5000, None, [5000]),
    ],
)
def test_a_list_is_cut_into_few_chunks_of_even_size(
    count: int, limit: int | None, expected: list[int]
) -> None:
    documents = [f"{i}" for i in range(count)]
    chunks = cut(documents, ChunkLimits(max_documents=limit))
    assert sizes(chunks) == expected
    assert_partition(chunks, documents)


@pytest.mark.parametrize(
    ("count", "limit", "expected"),
    [(0, 4, []), (1, 4, [1]), (4, 4, [4]), (5, 4, [4, 1]), (9, 4, [4, 4, 1]), (3, 1, [1, 1, 1])],
)
def test_a_stream_fills_one_chunk_after_the_other(
    count: int, limit: int, expected: list[int]
) -> None:
    documents = [f"{i}" for i in range(count)]
    chunks = cut_as_a_stream(documents, ChunkLimits(max_documents=limit))
    assert sizes(chunks) == expected
    assert_partition(chunks, documents)


def test_without_a_limit_a_stream_is_one_chunk() -> None:
    assert sizes(cut_as_a_stream(["a"] * 3000, ChunkLimits(max_documents=None))) == [3000]


def test_the_default_limit_is_a_thousand_documents() -> None:
    assert ChunkLimits() == ChunkLimits(max_documents=1000, max_bytes=None, max_tokens=None)


def test_even_chunks_are_cut_under_a_limit_of_bytes_too() -> None:
    limits = ChunkLimits(max_documents=100, max_bytes=10_000)
    assert sizes(cut(["text"] * 101, limits)) == [51, 50]


def test_where_even_chunks_would_be_more_the_greedy_cut_stands() -> None:
    # Three long texts fill a chunk of their own; an even share of three would split them badly.
    limits = ChunkLimits(max_documents=None, max_tokens=12, count_tokens=len)
    documents = ["aaaa", "aaaa", "aaaa", "a", "a", "a", "a", "a", "a", "a", "a", "a", "a", "a"]
    chunks = cut(documents, limits, query="")
    assert sizes(chunks) == [3, 11]


@given(st.lists(TEXTS, max_size=60), LIMITS)
def test_the_chunks_of_a_list_partition_it_within_every_limit(
    documents: list[str], limits: ChunkLimits
) -> None:
    check_limits(cut(documents, limits), documents, limits)


@given(st.lists(TEXTS, max_size=60), LIMITS)
def test_the_chunks_of_a_stream_partition_it_within_every_limit(
    documents: list[str], limits: ChunkLimits
) -> None:
    check_limits(cut_as_a_stream(documents, limits), documents, limits)


def check_limits(chunks: list[Chunk], documents: list[str], limits: ChunkLimits) -> None:
    assert_partition(chunks, documents)
    for chunk in chunks:
        if limits.max_documents is not None:
            assert len(chunk.documents) <= limits.max_documents
        if limits.max_bytes is not None:
            assert body_bytes(chunk.documents) <= limits.max_bytes
        if limits.max_tokens is not None:
            assert body_tokens(chunk.documents) <= limits.max_tokens


@given(st.lists(TEXTS, max_size=60), LIMITS)
def test_a_list_is_never_cut_into_more_chunks_than_a_stream(
    documents: list[str], limits: ChunkLimits
) -> None:
    # Filling each chunk before the next is opened is optimal when the order is fixed.
    assert len(cut(documents, limits)) == len(cut_as_a_stream(documents, limits))


@given(st.lists(TEXTS, max_size=60), st.integers(1, 9))
def test_under_a_limit_of_documents_alone_chunks_differ_by_one_at_most(
    documents: list[str], limit: int
) -> None:
    found = sizes(cut(documents, ChunkLimits(max_documents=limit)))
    assert len(found) == -(-len(documents) // limit)
    assert not found or max(found) - min(found) <= 1
    assert found == sorted(found, reverse=True)


@given(st.lists(TEXTS, min_size=1, max_size=40), LIMITS)
def test_no_chunk_of_a_stream_could_have_taken_the_next_document(
    documents: list[str], limits: ChunkLimits
) -> None:
    for chunk, following in pairwise(cut_as_a_stream(documents, limits)):
        longer = [*chunk.documents, following.documents[0]]
        assert (
            (limits.max_documents is not None and len(longer) > limits.max_documents)
            # Each document is counted with a comma, the last one's included.
            or (limits.max_bytes is not None and body_bytes(longer) + 1 > limits.max_bytes)
            or (limits.max_tokens is not None and body_tokens(longer) > limits.max_tokens)
        )


# ── bytes ──


@BOTH
def test_a_document_whose_body_has_exactly_max_bytes_is_sent(cutting: Any) -> None:
    documents = ["é" * 10]
    assert sizes(cutting(documents, ChunkLimits(max_bytes=body_bytes(documents)))) == [1]


@BOTH
def test_a_document_over_max_bytes_is_refused_by_its_index(cutting: Any) -> None:
    documents = ["a", "b", '"' * 500, "c"]
    limits = ChunkLimits(max_documents=2, max_bytes=body_bytes(documents[2:3]) - 1)
    with pytest.raises(InvalidRequestError, match=r"^documents\[2\] .*max_bytes"):
        cutting(documents, limits)


@BOTH
def test_a_query_over_max_bytes_is_refused_by_its_name(cutting: Any) -> None:
    query = "long " * 100
    with pytest.raises(InvalidRequestError, match=r"^query: .*max_bytes is 300"):
        cutting(["a"], ChunkLimits(max_bytes=300), query)


def test_a_query_over_max_bytes_is_refused_before_the_stream_is_read() -> None:
    with pytest.raises(InvalidRequestError, match=r"^query"):
        chunker(ChunkLimits(max_bytes=ENVELOPE))


def test_an_oversized_document_of_a_list_is_refused_before_the_first_chunk() -> None:
    limits = ChunkLimits(max_documents=1, max_bytes=ENVELOPE + 20)
    with pytest.raises(InvalidRequestError, match=r"^documents\[1\]"):
        split(["a", "b" * 99], limits, QUERY, ENVELOPE, V1.document_bytes)


# ── tokens ──


def test_the_query_counts_once_for_every_document() -> None:
    limits = ChunkLimits(max_documents=None, max_tokens=30, count_tokens=len)
    # 4 + 6 tokens for each pair: three pairs fill 30.
    assert sizes(cut_as_a_stream(["a" * 6] * 7, limits, query="four")) == [3, 3, 1]
    assert sizes(cut(["a" * 6] * 7, limits, query="four")) == [3, 3, 1]


@BOTH
def test_a_document_over_max_tokens_with_the_query_is_refused_by_its_index(cutting: Any) -> None:
    limits = ChunkLimits(max_tokens=10, count_tokens=len)
    assert sizes(cutting(["aaaaaa"], limits, "four")) == [1]
    with pytest.raises(InvalidRequestError, match=r"^documents\[1\] makes 11 tokens .*is 10"):
        cutting(["aaaaaa", "aaaaaaa"], limits, "four")


def test_the_tokenizer_sees_the_query_once_and_each_document() -> None:
    seen: list[str] = []

    def count(text: str) -> int:
        seen.append(text)
        return 1

    limits = ChunkLimits(max_tokens=100, count_tokens=count)
    cut_as_a_stream(["a", "b"], limits, "the query")
    assert seen == ["the query", "a", "b"]


def test_without_max_tokens_the_tokenizer_is_never_asked() -> None:
    def count(text: str) -> int:
        raise AssertionError(text)

    limits = ChunkLimits(max_documents=1, max_bytes=500, count_tokens=count)
    assert sizes(cut(["a", "b"], limits)) == [1, 1]


def test_an_error_of_the_tokenizer_is_not_taken_for_bad_text() -> None:
    def count(text: str) -> int:
        return len(text) if text == QUERY else len(None)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="NoneType"):
        cut_as_a_stream(["fine"], ChunkLimits(max_tokens=100, count_tokens=count))


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 0), ("a", 1), ("abc", 1), ("abcd", 2), ("検", 1), ("検索", 2)]
)
def test_a_token_is_guessed_for_every_three_bytes(text: str, tokens: int) -> None:
    assert estimate_tokens(text) == tokens


@given(st.lists(st.text(max_size=9), max_size=9), st.text(max_size=9))
def test_the_tokens_of_a_request_are_what_the_chunker_counts(
    documents: list[str], query: str
) -> None:
    limits = ChunkLimits(count_tokens=len)
    total = limits.tokens(query, documents)
    assert total == sum(len(query) + len(document) for document in documents)
    if total:
        exactly = ChunkLimits(max_documents=None, max_tokens=total, count_tokens=len)
        assert len(cut(documents, exactly, query)) == 1


# ── one chunk in pieces ──


@given(st.integers(0, 5000), st.data())
def test_a_chunk_is_cut_into_so_many_even_pieces_that_are_the_chunk(
    start: int, data: st.DataObject
) -> None:
    documents = [f"{i}" for i in range(data.draw(st.integers(1, 50)))]
    pieces = data.draw(st.integers(1, len(documents)))
    found = list(Chunk.in_a_row(start, documents).cut(pieces))
    assert len(found) == pieces
    assert [text for piece in found for text in piece.documents] == documents
    assert found[0].start == start
    assert all(before.stop == after.start for before, after in pairwise(found))
    assert found[-1].stop == start + len(documents)
    assert sizes(found) == sorted(sizes(found), reverse=True)
    assert max(sizes(found)) - min(sizes(found)) <= 1
    assert min(sizes(found)) >= 1


# ── what is no document ──

BYTES = ChunkLimits(max_documents=1, max_bytes=500)
TOKENS = ChunkLimits(max_documents=None, max_tokens=20)


@BOTH
@pytest.mark.parametrize("limits", [ChunkLimits(), ChunkLimits(max_documents=1), BYTES, TOKENS])
@pytest.mark.parametrize(
    ("wrong", "name"), [(None, "NoneType"), (7, "int"), (b"x", "bytes"), (["x"], "list")]
)
def test_what_is_not_a_string_is_refused_by_its_index(
    cutting: Any, limits: ChunkLimits, wrong: Any, name: str
) -> None:
    with pytest.raises(InvalidRequestError, match=rf"^documents\[2\] must be a string, not {name}"):
        cutting(["a", "b", wrong, "d"], limits)


@BOTH
@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_a_lone_surrogate_is_refused_by_its_index_where_bytes_are_counted(
    cutting: Any, text: str
) -> None:
    with pytest.raises(InvalidRequestError, match=r"^documents\[2\] .*lone surrogate"):
        cutting(["a", "é", text, "d"], BYTES)


@pytest.mark.parametrize("limits", [ChunkLimits(max_documents=2), BYTES, TOKENS])
def test_a_lone_surrogate_in_a_list_of_several_chunks_is_refused_before_the_first(
    limits: ChunkLimits,
) -> None:
    with pytest.raises(InvalidRequestError, match=r"^documents\[4\] .*lone surrogate"):
        split(["some text"] * 4 + ["\ud800"], limits, QUERY, ENVELOPE, V1.document_bytes)


def test_a_subclass_of_string_is_a_document() -> None:
    class Text(str):
        __slots__ = ()

    documents = [Text("a"), Text("b")]
    check_types(documents)
    assert sizes(cut(documents, ChunkLimits(max_documents=1))) == [1, 1]


def test_the_check_of_a_later_slice_names_the_callers_index() -> None:
    check_unicode(["é", "検", ""])
    with pytest.raises(InvalidRequestError, match=r"^documents\[1002\]"):
        check_unicode(["a", "é", "\udc80"], range(1000, 1003))
    with pytest.raises(InvalidRequestError, match=r"^documents\[9\]"):
        check_unicode(["a", "\udc80"], [2, 9])


@given(st.lists(st.text(max_size=3), max_size=5))
def test_text_that_can_be_written_is_never_refused(documents: list[str]) -> None:
    assume(all(not 0xD800 <= ord(letter) < 0xE000 for text in documents for letter in text))
    check_unicode(documents)


# ── when things are read ──


def test_a_list_may_change_once_its_cutting_has_begun() -> None:
    documents = [f"{i}" for i in range(10)]
    chunks = split(documents, ChunkLimits(max_documents=4), QUERY, ENVELOPE, V1.document_bytes)
    documents[:] = ["changed"]
    assert_partition(list(chunks), [f"{i}" for i in range(10)])


def test_a_list_may_change_once_its_cutting_by_bytes_has_begun() -> None:
    documents = [f"{i}" for i in range(10)]
    limits = ChunkLimits(max_documents=4, max_bytes=500)
    chunks = split(documents, limits, QUERY, ENVELOPE, V1.document_bytes)
    documents[:] = ["changed"]
    assert_partition(list(chunks), [f"{i}" for i in range(10)])


def test_a_stream_is_read_no_further_than_it_is_asked_for() -> None:
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield f"{read}"

    chunks = stream(texts(), chunker(ChunkLimits(max_documents=3)))
    assert read == 0
    for asked in (1, 2, 3):
        assert next(chunks).start == 3 * (asked - 1)
        assert read == 3 * asked


def test_a_stream_cut_by_bytes_reads_one_document_ahead_at_most() -> None:
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        for _ in range(9):
            read += 1
            yield "a" * 10

    chunks = stream(texts(), chunker(ChunkLimits(max_documents=None, max_bytes=ENVELOPE + 30)))
    assert len(next(chunks).documents) == 2
    assert read == 3


def test_a_bad_document_late_in_a_stream_leaves_the_chunks_before_it() -> None:
    texts: list[Any] = ["a", "b", "c", None]
    chunks = stream(texts, chunker(ChunkLimits(max_documents=2)))
    assert list(next(chunks).documents) == ["a", "b"]
    with pytest.raises(InvalidRequestError, match=r"^documents\[3\]"):
        next(chunks)


def test_flushing_an_empty_chunker_gives_nothing() -> None:
    empty = chunker(ChunkLimits())
    assert empty.flush() is None
    assert empty.feed("a") is None
    last = empty.flush()
    assert last is not None
    assert (last.start, last.stop) == (0, 1)
    assert empty.flush() is None


# ── limits ──


@pytest.mark.parametrize("name", ["max_documents", "max_bytes", "max_tokens"])
@pytest.mark.parametrize("value", [0, -1, True, 1.5, "10", float("inf")])
def test_a_limit_that_is_no_positive_whole_number_is_refused_by_its_name(
    name: str, value: Any
) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{name} must be"):
        ChunkLimits(**{name: value})
