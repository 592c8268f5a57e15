"""`benchmarks.peers`: the stub answers what the clients check, and the page says what was found."""

import asyncio
import json
from pathlib import Path

import pytest

from benchmarks.peers.clients import CLIENTS, CORPUS, corpus_order, corpus_score
from benchmarks.peers.page import tables
from benchmarks.peers.work import best_first, documents, order_of, score_of
from benchmarks.stub import stub_process

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "peers.json"
PAGE = ROOT / "docs" / "explanation" / "measurements.md"
HERE = ["hand-written", "transport", "checks", "rerank_async"]


def test_scores_of_a_corpus_differ_and_are_in_no_order() -> None:
    scores = [score_of(number) for number in range(200_000)]
    assert len(set(scores)) == len(scores)
    assert best_first(5) == sorted(range(5), key=lambda number: -score_of(number))
    assert best_first(1000) != list(range(1000))


@pytest.mark.parametrize("count", [1, 2, 20, 1000, 7919])
def test_the_order_of_an_answer_has_every_index_once(count: int) -> None:
    assert sorted(order_of(count)) == list(range(count))


def test_what_the_clients_give_is_what_the_stub_said() -> None:
    async def ask(origin: str) -> None:
        texts = documents(20)
        for name in HERE:
            client = CLIENTS[name](origin)
            await client.open(20)
            assert client.order(await client.rank(texts)) == order_of(20)
            await client.close()

    with stub_process() as (origin, _):
        asyncio.run(ask(origin))


def test_a_corpus_comes_back_whole_and_in_order() -> None:
    texts = documents(300)

    async def ask(origin: str) -> None:
        for name in ("hand-written", "rerank_async"):
            async with CORPUS[name](origin, texts, 100) as go:
                answer = await go()
            assert corpus_order(name, answer) == best_first(300)
            scores = corpus_score(name, answer)
            assert scores == {number: pytest.approx(score_of(number)) for number in range(300)}

    with stub_process() as (origin, _):
        asyncio.run(ask(origin))


def published() -> dict[str, object]:
    results: dict[str, object] = json.loads(RESULTS.read_text())
    return results


def test_the_page_is_what_the_figures_say() -> None:
    assert PAGE.read_text() == tables(published(), markdown=True), (
        "run python -m benchmarks.peers.page"
    )


def test_the_page_says_what_is_missed_and_what_could_not_be_measured() -> None:
    results = published()
    results["missing"] = {"cohere": "no such version"}
    page = tables(results, markdown=True)
    assert "- cohere: no such version" in page
    assert "MISSED" in page
    assert "reached" in page
