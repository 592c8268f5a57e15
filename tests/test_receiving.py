"""`_receiving`: what comes back is an answer that may be believed, or the error that it means.

Blank documents that servers leave out are in `test_blanks`, keys that they quote in `test_private`,
and what a dialect knows of failures in `dialects/test_dialect`.
"""

from typing import Any

import pytest

from rerank_async import RateLimitError, ResponseError, ServerError
from rerank_async._chunking import Chunk
from rerank_async._receiving import dropped, receive
from rerank_async.testing import HttpResponse, MemoryTransport, scoring
from tests.support import KEY, answer_body, number_of, refusal, scored, session_over


async def received(response: HttpResponse, documents: list[str], **options: Any) -> Any:
    async with session_over(MemoryTransport(scoring(number_of))) as session:
        return receive(
            response,
            **{
                "route": session._route,
                "model": "m",
                "chunk": Chunk([3, 7, 9][: len(documents)], documents),
                "top_n": None,
                "partial": False,
                **options,
            },
        )


async def test_an_answer_is_read_and_checked() -> None:
    answer = await received(scored([0.5, 0.75, 0.25]), ["a", "b", "c"])
    assert (list(answer.indices), list(answer.scores)) == ([1, 0, 2], [0.75, 0.5, 0.25])
    with pytest.raises(ResponseError, match="has 2 results where 3 were asked for"):
        await received(scored([0.5, 0.25]), ["a", "b", "c"])


@pytest.mark.parametrize(
    ("status", "kind", "headers", "hint"),
    [
        (429, RateLimitError, {"retry_after": "7"}, 7.0),
        (503, ServerError, {"retry_after": "2.5"}, 2.5),
        (500, ServerError, {}, None),
    ],
)
async def test_a_refusal_is_its_error_with_the_servers_hint(
    status: int,
    kind: type[ServerError] | type[RateLimitError],
    headers: dict[str, str],
    hint: float | None,
) -> None:
    with pytest.raises(kind, match="words") as caught:
        await received(refusal(status, "words", **headers), ["a"])
    assert (caught.value.status, caught.value.retry_after) == (status, hint)


async def test_a_key_in_a_refusal_or_a_models_name_is_not_repeated() -> None:
    with pytest.raises(ServerError) as refused:
        await received(refusal(500, f"key {KEY}", x_echo=KEY), ["a"])
    assert KEY not in str(refused.value)
    assert KEY not in str(refused.value.headers)
    with pytest.raises(ResponseError, match="the answer quotes the API key") as quoted:
        await received(HttpResponse(200, {}, answer_body([0.5], model=KEY)), ["a"])
    assert KEY not in str(quoted.value)


def test_a_blank_document_is_named_by_its_position() -> None:
    error = dropped(Chunk([3, 7], ["a", ""]), 1)
    assert "documents[7]" in str(error)
    assert error.final
    assert not error.omits_blanks
