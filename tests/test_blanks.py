"""Blank documents that a server leaves out: never a score on the wrong document."""

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rerank_async import ChunkLimits, RerankResponse, ResponseError
from rerank_async._chunking import Chunk
from rerank_async.testing import HttpRequest, HttpResponse, MemoryTransport
from tests.support import numbered, sent_documents, session_over

BLANK = ["", " ", "\t\n", "\u3000", "\xa0 "]


def score_of(document: str) -> float:
    """Another score for every document."""
    return float(int.from_bytes(document.encode()[-6:], "big") + len(document))


def leaving_out(is_left_out: Callable[[str], bool], *, anew: bool) -> MemoryTransport:
    """A server that leaves out some documents.

    Args:
        is_left_out: which.
        anew: whether it counts the others anew; otherwise each keeps its position.
    """

    def handle(request: HttpRequest) -> HttpResponse:
        body = orjson.loads(request.body)
        kept = [
            (place, text) for place, text in enumerate(body["documents"]) if not is_left_out(text)
        ]
        if anew:
            kept = [(place, text) for place, (_, text) in enumerate(kept)]
        ranked = sorted(kept, key=lambda one: -score_of(one[1]))[: body.get("top_n")]
        data = [{"index": place, "relevance_score": score_of(text)} for place, text in ranked]
        return HttpResponse(200, {}, orjson.dumps({"data": data, "model": "m"}))

    return MemoryTransport(handle)


def is_blank(text: str) -> bool:
    return not text.strip()


def assert_true(response: RerankResponse, documents: list[str]) -> None:
    """Fail unless every score is that of the document at its index."""
    for result in response.results:
        assert result.relevance_score == score_of(documents[result.index]), result


async def ranked(
    transport: Any, documents: list[str], top_n: int | None = None, **options: Any
) -> RerankResponse:
    async with session_over(transport, **options) as session:
        return await session.rerank("q", documents, top_n=top_n)


# ── what is certain, and what is asked for again ──


async def test_where_positions_are_kept_the_blank_ones_are_missing_and_nothing_is_sent_again() -> (
    None
):
    documents = ["document 1", "", "document 2", "  ", "document 3"]
    transport = leaving_out(is_blank, anew=False)
    response = await ranked(transport, documents, on_failure="partial")
    assert_true(response, documents)
    assert len(transport.requests) == 1
    assert not response.complete
    assert sorted(response.missing) == [1, 3]
    assert "documents[3], which is blank" in str(response.missing[3])
    assert sorted(response.results.indices) == [0, 2, 4]


@pytest.mark.parametrize("documents", [["", "document 1"], ["document 1", "", "document 22"]])
async def test_where_they_may_be_counted_anew_the_others_are_asked_for_alone(
    documents: list[str],
) -> None:
    transport = leaving_out(is_blank, anew=True)
    response = await ranked(transport, documents, on_failure="partial")
    assert_true(response, documents)
    assert [sent_documents(request) for request in transport.requests] == [
        documents,
        [text for text in documents if text],
    ]
    assert sorted(response.missing) == [documents.index("")]


async def test_a_blank_one_at_the_end_says_nothing_about_positions() -> None:
    documents = ["document 1", "document 22", ""]
    for anew in (False, True):
        transport = leaving_out(is_blank, anew=anew)
        response = await ranked(transport, documents, on_failure="partial")
        assert_true(response, documents)
        assert len(transport.requests) == 2
        assert sorted(response.missing) == [2]


async def test_a_server_that_leaves_out_another_document_is_not_believed() -> None:
    documents = ["document 1", "", "document 22", "document 3"]
    transport = leaving_out(lambda text: text == "document 1", anew=True)
    response = await ranked(transport, documents, on_failure="partial")
    assert_true(response, documents)
    assert sorted(response.missing) == [0, 1, 2, 3]


@pytest.mark.parametrize("anew", [False, True])
async def test_without_partial_the_call_fails_at_once_and_names_the_document(anew: bool) -> None:
    documents = ["document 1", "document 22", " ", "document 3"]
    transport = leaving_out(is_blank, anew=anew)
    with pytest.raises(ResponseError, match=r"documents\[2\], which is blank") as caught:
        await ranked(transport, documents)
    assert len(transport.requests) == 1
    assert caught.value.final


@pytest.mark.parametrize("anew", [False, True])
async def test_nothing_but_blank_documents_has_no_scores(anew: bool) -> None:
    transport = leaving_out(is_blank, anew=anew)
    response = await ranked(transport, ["", " "], on_failure="partial")
    assert (len(response.results), sorted(response.missing)) == (0, [0, 1])
    assert len(transport.requests) == 1


async def test_with_top_n_all_are_asked_for_where_some_are_blank() -> None:
    documents = ["document 1", "", "document 22", "document 3"]
    transport = leaving_out(is_blank, anew=True)
    response = await ranked(transport, documents, 2, on_failure="partial")
    assert_true(response, documents)
    assert "top_n" not in orjson.loads(transport.requests[0].body)
    best = sorted([0, 2, 3], key=lambda index: -score_of(documents[index]))[:2]
    assert list(response.results.indices) == best
    assert sorted(response.missing) == [1]
    # Of others no more is asked for than is wanted.
    plain = leaving_out(is_blank, anew=True)
    await ranked(plain, numbered(4), 2)
    assert orjson.loads(plain.requests[0].body)["top_n"] == 2


@pytest.mark.parametrize("text", ["", " ", "\t\r\n", "\u3000", "a", " a ", "\u200b", "0"])
def test_blank_is_what_is_empty_or_nothing_but_white_space(text: str) -> None:
    chunk = Chunk.in_a_row(7, ["x", text, "y"])
    assert chunk.blanks() == ([] if text.strip() else [1])


@pytest.mark.parametrize(
    ("text", "may_be"),
    [
        *(
            (text, True)
            for text in ("", " ", "\t\r\n", "\u3000", "\u200b", "\ufeff", "\x00", " \xad ")
        ),
        *((text, False) for text in ("a", " a ", "0", "-", "\u200ba", "é", "字", "?!", "🙂")),
    ],
)
async def test_of_a_text_that_a_server_may_strip_to_nothing_all_scores_are_asked_for(
    text: str, may_be: bool
) -> None:
    # Counted anew under top_n, the scores of the others would be on the wrong documents, and
    # nothing in the answer would show it.
    transport = leaving_out(lambda document: document == text and may_be, anew=True)
    documents = ["document 1", text, "document 22", "document 3"]
    if may_be:
        with pytest.raises(ResponseError):
            await ranked(transport, documents, 2)
    else:
        assert_true(await ranked(transport, documents, 2), documents)
    assert ("top_n" in orjson.loads(transport.requests[0].body)) != may_be


# ── any server of the kind ──

texts = st.sampled_from([*BLANK, *numbered(9), "a", "b b"])


@settings(deadline=None, max_examples=300)
@given(
    documents=st.lists(texts, min_size=1, max_size=14),
    anew=st.booleans(),
    left_out=st.sampled_from(["blank", "empty", "ascii"]),
    top_n=st.none() | st.integers(1, 16),
    size=st.integers(1, 14),
    partial=st.booleans(),
    as_stream=st.booleans(),
)
@example(["", "a", "b b"], True, "blank", 1, 9, False, False)
@example(["a", "", "b b"], True, "blank", 1, 9, True, True)
@example(["", "a", "b b", ""], True, "blank", None, 2, True, False)
def test_no_document_ever_has_the_score_of_another(
    documents: list[str],
    anew: bool,
    left_out: str,
    top_n: int | None,
    size: int,
    partial: bool,
    as_stream: bool,
) -> None:
    kinds: dict[str, Callable[[str], bool]] = {
        "blank": is_blank,
        "empty": lambda text: not text,
        "ascii": lambda text: not text.strip(" \t\n"),
    }

    async def main() -> None:
        transport = leaving_out(kinds[left_out], anew=anew)
        async with session_over(
            transport,
            chunks=ChunkLimits(max_documents=size),
            on_failure="partial" if partial else "raise",
        ) as session:
            given: Any = iter(documents) if as_stream else documents
            try:
                response = await session.rerank("q", given, top_n=top_n)
            except ResponseError:
                assert not partial
                assert any(map(is_blank, documents))
                return
        assert_true(response, documents)
        if top_n is None:
            named = [*response.results.indices, *response.missing]
            assert sorted(named) == list(range(len(documents)))

    asyncio.run(main())
