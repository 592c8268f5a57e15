"""What a benchmark asks: sizes, texts, pools, files of requests."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path
from random import Random
from statistics import mean, median, stdev
from typing import Any

import orjson
import pytest

from rerank_async import InvalidRequestError
from rerank_async.bench._workload import RequestPool, file_pool, made_pool, parse_sizes, word_of
from rerank_async.bulk import InputError
from rerank_async.dialects import get as get_dialect


def drawn(text: str, count: int = 4000) -> list[int]:
    sizes, dice = parse_sizes("documents", text), Random(3)
    return [sizes.draw(dice) for _ in range(count)]


def made(**options: Any) -> RequestPool:
    sizes = {"documents": "5", "document_words": "7", "query_words": "3"}
    return made_pool(
        **{**sizes, "top_n": None, "seed": 1, "model": "m", "dialect": "v1", **options}
    )


class TestSizes:
    def test_a_number_is_always_that_number(self) -> None:
        assert set(drawn("100")) == {100}

    def test_uniform_has_both_its_ends_and_all_between(self) -> None:
        assert set(drawn("uniform:10-14")) == {10, 11, 12, 13, 14}
        assert set(drawn("uniform:3-3")) == {3}

    def test_normal_has_its_mean_and_deviation(self) -> None:
        sizes = drawn("normal:100,20")
        assert mean(sizes) == pytest.approx(100, rel=0.02)
        assert stdev(sizes) == pytest.approx(20, rel=0.05)

    def test_what_would_be_below_1_is_1(self) -> None:
        assert min(drawn("normal:2,50")) == 1

    def test_lognormal_has_its_median_and_a_long_tail(self) -> None:
        sizes = drawn("lognormal:100,0.5")
        assert median(sizes) == pytest.approx(100, rel=0.05)
        assert mean(sizes) == pytest.approx(100 * 2.71828 ** (0.5**2 / 2), rel=0.05)

    def test_a_choice_is_drawn_as_often_as_its_share(self) -> None:
        sizes = Counter(drawn("10:0.8, 1000:0.2"))
        assert set(sizes) == {10, 1000}
        assert sizes[10] / sizes.total() == pytest.approx(0.8, abs=0.03)
        assert set(drawn("7:3")) == {7}

    @pytest.mark.parametrize(
        "text",
        [
            *("", "x", "0", "-1", "1.5", "1000001", "uniform:10", "uniform:0-4", "uniform:5-4"),
            *("normal:100", "normal:0.5,1", "lognormal:10,6", "10:0", "10:0.5,", "10,20"),
            "normal:100,-1",
        ],
    )
    def test_what_is_not_in_the_grammar_is_refused_by_the_name_of_the_option(
        self, text: str
    ) -> None:
        with pytest.raises(InvalidRequestError, match=r"^documents"):
            parse_sizes("documents", text)


class TestMadeRequests:
    def test_have_the_sizes_that_were_asked_for(self) -> None:
        pool = made()
        for _ in range(3):
            request = pool.take()
            assert len(request.query.split()) == 3
            assert [len(document.split()) for document in request.documents] == [7] * 5

    def test_hold_no_document_twice_and_ask_no_query_twice(self) -> None:
        pool = made(document_words="1", query_words="1")
        taken = [pool.take() for _ in range(2 * len(pool))]
        assert len({request.query for request in taken}) == len(taken)
        documents = [d for request in taken[: len(pool)] for d in request.documents]
        assert len(set(documents)) == len(documents)

    def test_are_the_same_for_the_same_seed_only(self) -> None:
        first, same, other = made().take(), made().take(), made(seed=2).take()
        assert first == same
        assert first.query != other.query
        assert first.documents != other.documents

    def test_are_bounded_in_number_and_size(self) -> None:
        assert len(made()) == 256
        large = made(documents="2000", document_words="500")
        assert 1 <= len(large) < 32

    def test_are_described_as_they_are_sent(self) -> None:
        pool = made(documents="uniform:1-9", top_n=2)
        sizes, bodies = [], []
        for _ in range(len(pool)):
            request = pool.take()
            sizes.append(len(request.documents))
            body = get_dialect("v1").encode_request(
                "m", request.query, request.documents, request.top_n
            )
            bodies.append(len(body))
            assert request.top_n == 2
        assert pool.workload.mean_documents == mean(sizes)
        assert pool.workload.mean_body_bytes == mean(bodies)
        assert (pool.workload.source, pool.workload.documents) == ("generated", "uniform:1-9")

    def test_say_how_often_each_was_sent(self) -> None:
        pool = made()
        for _ in range(len(pool)):
            pool.take()
        assert pool.repeats() is None
        for _ in range(len(pool) * 11):
            pool.take()
        assert "about 12 times, each time with another query" in str(pool.repeats())

    def test_begin_with_words_that_do_not_come_again(self) -> None:
        assert len({word_of(number) for number in range(20_000)}) == 20_000
        assert {len(word_of(number)) for number in range(100)} == {8}


class TestFilesOfRequests:
    def read(self, path: Path, top_n: int | None = None) -> RequestPool:
        return file_pool(path, top_n=top_n, seed=0, model="m", dialect="v1")

    def test_are_sent_in_turn_and_again_from_the_first(self, tmp_path: Path) -> None:
        rows: list[dict[str, Any]] = [
            {"query": "a", "documents": ["x", {"text": "y"}], "top_n": 1},
            {"query": "b", "documents": ["z"]},
        ]
        path = tmp_path / "r.jsonl.gz"
        path.write_bytes(gzip.compress(b"\n".join(map(orjson.dumps, rows))))
        pool = self.read(path, top_n=5)
        taken = [pool.take() for _ in range(3)]
        assert [request.query for request in taken] == ["a", "b", "a"]
        assert (taken[0].documents, taken[0].top_n) == (["x", "y"], 1)
        assert taken[1].top_n == 5
        assert pool.workload.source == str(path)
        assert pool.workload.mean_documents == 1.5
        assert pool.workload.documents is None
        assert "each was sent about 1.5 times; a server that caches" in str(pool.repeats())

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("", "holds no requests"),
            ('{"query": "q", "documents": []}', "request 1 has no documents"),
        ],
    )
    def test_that_cannot_be_measured_are_refused(
        self, tmp_path: Path, content: str, words: str
    ) -> None:
        (tmp_path / "r.jsonl").write_text(content)
        with pytest.raises(InvalidRequestError, match=words):
            self.read(tmp_path / "r.jsonl")

    def test_that_are_none_are_refused_by_line(self, tmp_path: Path) -> None:
        (tmp_path / "r.jsonl").write_text('{"query": "q", "documents": ["d"]}\n{"query": "q"}\n')
        with pytest.raises(InputError, match=r"line 2.*documents"):
            self.read(tmp_path / "r.jsonl")

    def test_beyond_the_bound_are_left_out_with_a_note(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("rerank_async.bench._workload._READ", 3)
        row = '{"query": "q", "documents": ["d"]}\n'
        (tmp_path / "r.jsonl").write_text(row * 3)
        assert self.read(tmp_path / "r.jsonl").notes == ()
        (tmp_path / "r.jsonl").write_text(row * 4)
        pool = self.read(tmp_path / "r.jsonl")
        assert len(pool) == 3
        assert "only the first 3 requests" in pool.notes[0]
