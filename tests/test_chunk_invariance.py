"""End to end over real bytes: with a pointwise engine, how a list is cut does not show."""

import asyncio
from collections.abc import AsyncIterator

from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_async import ChunkLimits, Documents, RerankResponse, RerankSession
from rerank_async.server import App
from rerank_async.server.engines import create
from rerank_async.testing import MemoryTransport

APP = App(create("lexical"))
# Few words, so that many documents have equal scores.
WORDS = ("open", "file", "read", "door", "the", "naïve", "日本")
DOCUMENTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), max_size=40)
LIMITS = st.builds(
    ChunkLimits,
    st.integers(1, 50) | st.none(),
    st.integers(250, 2000) | st.none(),
    st.integers(60, 500) | st.none(),
)


def rerank(
    documents: list[str], limits: ChunkLimits, top_n: int | None, form: str
) -> RerankResponse:
    async def one_by_one() -> AsyncIterator[str]:
        for document in documents:
            yield document

    async def main() -> RerankResponse:
        async with RerankSession(
            "https://rerank.test/v1",
            model="lexical",
            chunks=limits,
            http=MemoryTransport(APP.handle),
        ) as session:
            forms: dict[str, Documents] = {
                "list": documents,
                "iterator": iter(documents),
                "async": one_by_one(),
            }
            return await session.rerank(
                "open a file", forms[form], top_n=top_n, return_documents=True
            )

    return asyncio.run(main())


@settings(deadline=None)
@given(
    documents=DOCUMENTS,
    limits=LIMITS,
    top_n=st.integers(1, 45) | st.none(),
    form=st.sampled_from(["list", "iterator", "async"]),
)
def test_any_chunk_limits_give_the_ranking_of_one_request(
    documents: list[str], limits: ChunkLimits, top_n: int | None, form: str
) -> None:
    whole = rerank(documents, ChunkLimits(None), top_n, "list")
    cut = rerank(documents, limits, top_n, form)
    assert cut == whole
    assert [documents[result.index] for result in cut.results] == [
        result.document for result in cut.results
    ]
