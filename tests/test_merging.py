import math
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rerank_async import (
    ChunkLimits,
    RerankResponse,
    RerankResult,
    ResponseError,
    ServerError,
    Usage,
    _merging,
)
from rerank_async._answers import Answer
from rerank_async._chunking import Chunk, split
from rerank_async._merging import Merger, ranking_of
from rerank_async._ordering import best_first
from rerank_async.dialects import v1
from tests.support import believed

V1 = v1.V1()


class Part(NamedTuple):
    chunk: Chunk
    answer: Answer


def part(
    start: int,
    scores: Sequence[float],
    indices: Sequence[int] | None = None,
    model: str | None = "m",
    tokens: int | None = 1,
) -> Part:
    """The answer to a chunk of as many documents as there are scores, best first."""
    documents = [f"text {start + place}" for place in range(len(scores))]
    order = list(range(len(scores)) if indices is None else indices)
    return Part(Chunk.in_a_row(start, documents), Answer(order, list(scores), model, tokens))


def merged(
    parts: Sequence[Part], top_n: int | None = None, *, keep_documents: bool = False
) -> RerankResponse:
    merger = Merger(top_n, keep_documents=keep_documents)
    for chunk, answer in parts:
        merger.add(chunk, answer)
    return merger.finish("asked for")


BOTH_MODES = pytest.mark.parametrize("top_n", [None, 100], ids=["columns", "heap"])


@st.composite
def answered(draw: st.DrawFn) -> list[Part]:
    """Chunks side by side with answers as checks leave them: any order among equal scores."""
    parts: list[Part] = []
    start = 0
    for length in draw(st.lists(st.integers(1, 6), max_size=6)):
        scores = draw(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), min_size=length))[:length]
        indices = draw(st.permutations(range(length)))
        parts.append(part(start, sorted(scores, reverse=True), indices))
        # What is missing between two chunks was not scored.
        start += length + draw(st.integers(0, 2))
    return parts


# ── order ──


@given(st.data(), answered(), st.none() | st.integers(1, 30), st.booleans())
def test_the_order_of_arrival_does_not_matter(
    data: st.DataObject, parts: list[Part], top_n: int | None, keep_documents: bool
) -> None:
    shuffled = data.draw(st.permutations(parts))
    assert merged(shuffled, top_n, keep_documents=keep_documents) == merged(
        parts, top_n, keep_documents=keep_documents
    )


@given(answered(), st.integers(1, 40), st.booleans())
def test_the_heap_keeps_what_sorting_everything_and_cutting_keeps(
    parts: list[Part], top_n: int, keep_documents: bool
) -> None:
    everything = merged(parts, keep_documents=keep_documents).results
    assert merged(parts, top_n, keep_documents=keep_documents).results == everything[:top_n]


@given(answered())
def test_a_ranking_falls_by_score_then_by_chunk_then_by_the_answers_order(
    parts: list[Part],
) -> None:
    expected = [
        (chunk.start + index, score)
        for score, _, _, chunk, index in sorted(
            (
                (score, chunk.start, place, chunk, answer.indices[place])
                for chunk, answer in parts
                for place, score in enumerate(answer.scores)
            ),
            key=lambda entry: (-entry[0], entry[1], entry[2]),
        )
    ]
    results = merged(parts).results
    assert list(zip(results.indices, results.scores, strict=True)) == expected


@BOTH_MODES
def test_across_chunks_the_earlier_goes_first_among_equals(top_n: int | None) -> None:
    late, early = part(2, [0.5, 0.5]), part(0, [0.5, 0.5])
    assert merged([late, early], top_n).results.indices == (0, 1, 2, 3)


@BOTH_MODES
def test_within_a_chunk_the_servers_order_stands_among_equals(top_n: int | None) -> None:
    parts = [part(0, [0.5, 0.5, 0.5], [2, 0, 1]), part(3, [0.5, 0.5], [1, 0])]
    assert merged(parts, top_n).results.indices == (2, 0, 1, 4, 3)


def test_at_the_cut_the_earlier_chunk_keeps_its_place_whoever_answers_first() -> None:
    early, late = part(0, [0.5]), part(1, [0.5])
    assert merged([late, early], 1).results.indices == (0,)
    assert merged([early, late], 1).results.indices == (0,)


# ── any chunk sizes, one ranking ──

Serving = Callable[[list[float], int | None], list[tuple[int, float]]]


def sorted_and_cut(scores: list[float], top_n: int | None) -> list[tuple[int, float]]:
    order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
    return [(index, scores[index]) for index in order[:top_n]]


def sorted_and_top_n_ignored(scores: list[float], top_n: int | None) -> list[tuple[int, float]]:
    return sorted_and_cut(scores, None)


def in_the_order_of_input(scores: list[float], top_n: int | None) -> list[tuple[int, float]]:
    return list(enumerate(scores))


def best_ones_in_the_order_of_input(
    scores: list[float], top_n: int | None
) -> list[tuple[int, float]]:
    return sorted(sorted_and_cut(scores, top_n))


def score_of(query: str, document: str) -> float:
    """Pointwise, with many ties and both signs of zero."""
    return (sum(map(ord, query + document)) % 5 - 2) * -0.5


def over_the_wire(documents: Sequence[str], top_n: int | None, serving: Serving) -> Answer:
    """One exchange: both directions of the dialect, and a server that scores each text alone."""
    wire = V1.decode_request(V1.encode_request("m", "query", documents, top_n))
    scores = [score_of(wire.query, document) for document in wire.documents]
    ranking = serving(scores, wire.top_n)
    body = V1.encode_response(wire.model, ranking, len(wire.documents))
    return believed(body, len(documents), top_n)


@given(
    data=st.data(),
    documents=st.lists(st.text(max_size=4), min_size=1, max_size=40),
    limit=st.integers(1, 12),
    max_bytes=st.none() | st.integers(120, 200),
    top_n=st.none() | st.integers(1, 45),
    serving=st.sampled_from(
        [
            sorted_and_cut,
            sorted_and_top_n_ignored,
            in_the_order_of_input,
            best_ones_in_the_order_of_input,
        ]
    ),
    keep_documents=st.booleans(),
)
def test_any_chunk_sizes_give_the_ranking_of_one_request(
    data: st.DataObject,
    documents: list[str],
    limit: int,
    max_bytes: int | None,
    top_n: int | None,
    serving: Serving,
    keep_documents: bool,
) -> None:
    limits = ChunkLimits(max_documents=limit, max_bytes=max_bytes)
    envelope = len(V1.encode_request("m", "query", (), top_n))
    merger = Merger(top_n, keep_documents=keep_documents)
    # A chunk may be cut again on the way, and perhaps once more.
    pieces = [
        piece
        for chunk in split(documents, limits, "query", envelope, V1.document_bytes)
        for piece in chunk.cut(data.draw(st.integers(1, len(chunk.documents))))
    ]
    for chunk in data.draw(st.permutations(pieces)):
        wanted = None if top_n is None else min(top_n, len(chunk.documents))
        merger.add(chunk, over_the_wire(chunk.documents, wanted, serving))
    in_chunks = merger.finish("m")

    wanted = None if top_n is None else min(top_n, len(documents))
    at_once = ranking_of(
        Chunk.in_a_row(0, documents),
        over_the_wire(documents, wanted, serving),
        top_n,
        keep_documents,
        "m",
    )
    scores = [score_of("query", document) for document in documents]
    order = sorted(range(len(documents)), key=lambda index: (-scores[index], index))
    expected = [
        RerankResult(index, scores[index], documents[index] if keep_documents else None)
        for index in order[:top_n]
    ]
    assert list(in_chunks.results) == expected
    assert list(at_once.results) == expected
    assert in_chunks.usage == at_once.usage == Usage(len(documents))
    assert in_chunks.complete


# ── what is cut, what is kept ──


@pytest.mark.parametrize("top_n", [None, 1, 2, 4, 5])
@pytest.mark.parametrize("keep_documents", [False, True])
def test_one_request_ranks_as_a_merger_with_one_answer_does(
    top_n: int | None, keep_documents: bool
) -> None:
    chunk, answer = part(0, [3.0, 2.0, 2.0, 1.0], [3, 2, 0, 1], None, 7)
    merger = Merger(top_n, keep_documents=keep_documents)
    merger.add(chunk, answer)
    alone = ranking_of(chunk, answer, top_n, keep_documents, "asked for")
    assert merger.finish("asked for") == alone
    assert alone.results.indices == (3, 2, 0, 1)[:top_n]
    assert alone.model == "asked for"


@BOTH_MODES
def test_documents_ride_along_only_when_they_are_wanted(top_n: int | None) -> None:
    parts = [part(0, [0.25, 0.125], [1, 0]), part(2, [0.5])]
    kept = merged(parts, top_n, keep_documents=True).results
    assert [result.document for result in kept] == ["text 2", "text 1", "text 0"]
    assert [result.index for result in kept] == [2, 1, 0]
    left = merged(parts, top_n).results
    assert [result.document for result in left] == [None, None, None]


@BOTH_MODES
def test_an_empty_document_is_kept_as_an_empty_string(top_n: int | None) -> None:
    merger = Merger(top_n, keep_documents=True)
    merger.add(Chunk.in_a_row(0, [""]), Answer([0], [0.5], "m", 1))
    assert merger.finish("m").results[0].document == ""


@BOTH_MODES
@pytest.mark.parametrize("zeros", [[-0.0], [0.5, -0.0], [0.0, -0.0], [-0.0, -0.5]])
def test_a_negative_zero_on_the_wire_is_a_zero_in_the_ranking(
    top_n: int | None, zeros: list[float]
) -> None:
    body = V1.encode_response("m", list(enumerate(zeros)), 1)
    answer = believed(body, len(zeros), None)
    merger = Merger(top_n)
    merger.add(Chunk.in_a_row(0, ["text"] * len(zeros)), answer)
    merger.add(Chunk.in_a_row(len(zeros), ["text"]), Answer([0], [0.0], "m", 1))
    results = merger.finish("m").results
    assert all(math.copysign(1.0, score) == 1.0 for score in results.scores if score == 0.0)
    # The zeros of both chunks are equal: the earlier chunk's go first.
    indices = [result.index for result in results if result.relevance_score == 0.0]
    assert indices == sorted(indices)


# ── usage, model, what is missing ──


@pytest.mark.parametrize(
    ("tokens", "total"),
    [
        ([], 0),
        ([5], 5),
        ([5, 7], 12),
        ([0, 0], 0),
        ([5, None], None),
        ([None, 5], None),
        ([None, None, 5], None),
    ],
)
@BOTH_MODES
def test_usage_is_summed_and_unknown_as_soon_as_one_part_is(
    top_n: int | None, tokens: list[int | None], total: int | None
) -> None:
    parts = [part(n, [0.5], tokens=count) for n, count in enumerate(tokens)]
    assert merged(parts, top_n).usage == Usage(total)


@BOTH_MODES
def test_answers_of_two_models_are_not_merged(top_n: int | None) -> None:
    merger = Merger(top_n)
    merger.add(*part(0, [0.5, 0.25], model="small"))
    with pytest.raises(
        ResponseError, match="'large' answered for documents 2 to 4, and 'small'"
    ) as caught:
        merger.add(*part(2, [0.5, 0.25, 0.125], model="large"))
    assert caught.value.final


@pytest.mark.parametrize(
    ("models", "shown"),
    [
        ([], "asked for"),
        ([None, None], "asked for"),
        ([None, "served"], "served"),
        (["served", None, "served"], "served"),
    ],
)
@BOTH_MODES
def test_the_model_is_the_servers_word_where_it_gave_one(
    top_n: int | None, models: list[str | None], shown: str
) -> None:
    parts = [part(n, [0.5], model=model) for n, model in enumerate(models)]
    assert merged(parts, top_n).model == shown


@BOTH_MODES
def test_what_failed_is_missing_and_the_rest_is_ranked(top_n: int | None) -> None:
    error = ServerError("busy", status=503)
    merger = Merger(top_n)
    merger.fail(range(2, 4), error)
    merger.add(*part(0, [0.5, 0.25]))
    response = merger.finish("m")
    assert not response.complete
    assert dict(response.missing) == {2: error, 3: error}
    assert response.results.indices == (0, 1)


@BOTH_MODES
def test_a_call_without_failures_is_complete_unless_documents_were_left_unread(
    top_n: int | None,
) -> None:
    merger = Merger(top_n)
    merger.add(*part(0, [0.5]))
    assert merger.finish("m").complete
    unread = merger.finish("m", complete=False)
    assert not unread.complete
    assert dict(unread.missing) == {}


@BOTH_MODES
def test_without_answers_the_ranking_is_empty_and_complete(top_n: int | None) -> None:
    response = merged([], top_n)
    assert list(response.results) == []
    assert response.complete


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.integers(1, 9))
@example([1e308, 1e308, -1e308], 2)
def test_scores_come_out_as_they_went_in(scores: list[float], top_n: int) -> None:
    ordered = sorted(scores, reverse=True)
    results = merged([part(0, ordered)], top_n).results
    assert list(results.scores) == ordered[:top_n]


# ── long rankings, step by step ──


@given(
    parts=answered(),
    step=st.integers(1, 8),
    sampled=st.integers(1, 3),
    keep_documents=st.booleans(),
    cut=st.integers(0, 3),
)
def test_a_ranking_made_in_steps_is_the_ranking(
    parts: list[Part], step: int, sampled: int, keep_documents: bool, cut: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_merging, "_STEP", step)
        patch.setattr(_merging, "_SAMPLED", sampled)
        merger = Merger(None, keep_documents=keep_documents)
        for chunk, answer in parts[cut:]:
            merger.add(chunk, answer)
        for _ in merger.steps():
            pass
        # What comes after it counts too.
        for chunk, answer in parts[:cut]:
            merger.add(chunk, answer)
        assert merger.finish("asked for") == merged(parts, keep_documents=keep_documents)


@pytest.mark.parametrize("keep_documents", [False, True])
def test_a_long_ranking_made_in_steps_is_the_ranking(keep_documents: bool) -> None:
    dice = random.Random(1)
    parts = []
    for start in range(0, 60_000, 1000):
        scores = sorted((dice.choice([0.0, 0.5, dice.random()]) for _ in range(1000)), reverse=True)
        parts.append(part(start, scores, dice.sample(range(1000), 1000)))
    merger = Merger(None, keep_documents=keep_documents)
    for chunk, answer in parts:
        merger.add(chunk, answer)
    steps = sum(1 for _ in merger.steps())
    assert steps > 3
    assert merger._ranked is not None
    assert len(merger._ranked[0]) == 60_000
    assert merger.finish("asked for") == merged(parts, keep_documents=keep_documents)


# ── chunks that are no slices ──


def dealt(documents: Sequence[str], hands: Sequence[Sequence[int]]) -> list[Chunk]:
    """Chunks with the documents at these positions."""
    return [Chunk(hand, [documents[position] for position in hand]) for hand in hands if hand]


@given(
    data=st.data(),
    documents=st.lists(st.text(max_size=4), min_size=1, max_size=30),
    count=st.integers(1, 6),
    top_n=st.none() | st.integers(1, 35),
    serving=st.sampled_from([sorted_and_cut, in_the_order_of_input]),
)
def test_documents_that_are_dealt_to_chunks_keep_their_own_scores(
    data: st.DataObject, documents: list[str], count: int, top_n: int | None, serving: Serving
) -> None:
    owners = data.draw(
        st.lists(st.integers(0, count - 1), min_size=len(documents), max_size=len(documents))
    )
    hands = [[p for p, owner in enumerate(owners) if owner == hand] for hand in range(count)]
    merger = Merger(top_n, keep_documents=True)
    for chunk in data.draw(st.permutations(dealt(documents, hands))):
        for piece in chunk.cut(data.draw(st.integers(1, len(chunk.documents)))):
            wanted = None if top_n is None else min(top_n, len(piece.documents))
            merger.add(piece, over_the_wire(piece.documents, wanted, serving))
    response = merger.finish("m")
    scores = [score_of("query", document) for document in documents]
    assert list(response.results.scores) == sorted(scores, reverse=True)[:top_n]
    for result in response.results:
        assert result.relevance_score == scores[result.index]
        assert result.document == documents[result.index]
    assert len(set(response.results.indices)) == len(response.results)
    assert response.complete


@given(
    data=st.data(),
    documents=st.lists(st.text(max_size=4), min_size=1, max_size=20),
    top_n=st.none() | st.integers(1, 25),
)
def test_a_document_in_several_chunks_counts_once_with_its_highest_score(
    data: st.DataObject, documents: list[str], top_n: int | None
) -> None:
    every = range(len(documents))
    some = st.lists(st.sampled_from(every), min_size=1, unique=True).map(sorted)
    hands = [*data.draw(st.lists(some, min_size=1, max_size=5))]
    parts: list[tuple[Chunk, Answer | None]] = []
    best: dict[int, float] = {}
    for chunk in dealt(documents, hands):
        if data.draw(st.booleans()):
            parts.append((chunk, None))
            continue
        # One server scores a document another time as it likes.
        scores = [float(data.draw(st.integers(-2, 2))) for _ in chunk.documents]
        order = best_first(scores)
        parts.append((chunk, Answer(order, [scores[place] for place in order], "m", 1)))
        for position, score in zip(chunk.positions, scores, strict=True):
            best[position] = max(score, best.get(position, score))
    error = ServerError("down", status=500)
    finished = []
    for arrival in (parts, data.draw(st.permutations(parts))):
        merger = Merger(top_n, keep_documents=True, overlap=True)
        for chunk, answer in arrival:
            if answer is None:
                merger.fail(chunk.positions, error)
            else:
                merger.add(chunk, answer)
        finished.append(merger.finish("m"))
    response, other = finished
    assert list(response.results) == list(other.results)
    assert list(response.results.scores) == sorted(best.values(), reverse=True)[:top_n]
    assert all(best[result.index] == result.relevance_score for result in response.results)
    assert all(documents[result.index] == result.document for result in response.results)
    assert len(set(response.results.indices)) == len(response.results)
    failed = {p for chunk, answer in parts if answer is None for p in chunk.positions}
    assert set(response.missing) == set(other.missing) == failed - set(best)
    assert response.complete == (not failed - set(best))


def test_what_a_scattered_chunk_failed_to_score_is_missing_by_its_positions() -> None:
    error = ServerError("down", status=500)
    merger = Merger(None)
    merger.fail([1, 2, 5, 7, 8, 9], error)
    merger.fail(range(3, 5), error)
    missing = merger.finish("m").missing
    assert list(missing) == [1, 2, 3, 4, 5, 7, 8, 9]
    assert repr(missing).count("ServerError") == 4
    assert 6 not in missing


def test_a_scattered_chunk_is_named_by_its_ends() -> None:
    chunk = Chunk([2, 5, 9], ["a", "b", "c"])
    assert (chunk.start, chunk.stop, chunk.is_in_a_row) == (2, 10, False)
    assert str(chunk) == "3 of the documents 2 to 9"
    assert str(Chunk.in_a_row(2, ["a", "b"])) == "documents 2 to 3"
    assert [list(piece.positions) for piece in chunk.cut(2)] == [[2, 5], [9]]
    assert chunk.only([0, 2]).positions == [2, 9]
    assert chunk.positions_of([2, 0]) == [9, 2]
    assert Chunk(range(2, 8, 2), ["a", "b", "c"]).positions_of([1, 2]) == [4, 6]
    merger = Merger(None)
    merger.add(chunk, Answer([0, 1, 2], [0.5, 0.5, 0.5], "one", 1))
    with pytest.raises(ResponseError, match="answered for 2 of the documents 1 to 6, and 'one'"):
        merger.add(Chunk([1, 6], ["a", "b"]), Answer([0, 1], [0.5, 0.5], "two", 1))
