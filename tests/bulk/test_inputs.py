"""Which input format a path and the arguments beside it mean."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from rerank_async import InvalidRequestError
from rerank_async.bulk._errors import InputError
from rerank_async.bulk._inputs import Beside, open_source
from rerank_async.bulk._inputs.candidates import Candidates
from rerank_async.bulk._inputs.corpus import Corpus
from rerank_async.bulk._inputs.parquet import ParquetRequests
from rerank_async.bulk._inputs.requests import Requests


@pytest.fixture
def place(tmp_path: Path, beir: Path) -> Path:
    for name in ("x.jsonl", "x.txt", "x.tsv", "x.parquet.gz"):
        (tmp_path / name).touch()
    beir.rename(tmp_path / "beir")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "part-0.parquet").touch()
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "arguments", "kind"),
    [
        ("x.jsonl", {}, Requests),
        ("x.jsonl.gz", {}, Requests),
        ("x.ndjson.zst", {"top_n": 3}, Requests),
        ("pipe", {}, Requests),
        ("x.parquet", {}, ParquetRequests),
        ("tables", {}, ParquetRequests),
        ("x.jsonl", {"query": "q"}, Corpus),
        ("x.txt.gz", {"query": "q", "query_id": 1}, Corpus),
        ("pipe", {"query": "q"}, Corpus),
        ("beir", {"run": "x.run"}, Candidates),
        ("beir", {"run": "x.run", "depth": 10}, Candidates),
    ],
)
def test_a_path_and_what_is_beside_it_mean_a_source(
    place: Path, path: str, arguments: dict[str, Any], kind: type
) -> None:
    source = open_source(place / path, Beside(**arguments, scratch=place / "scratch"))
    assert type(source) is kind
    # Nothing is read, and nothing written.
    assert not (place / "scratch").exists()


def test_arguments_reach_the_source(place: Path) -> None:
    corpus = open_source(
        place / "x.jsonl",
        Beside(query="q", query_id="q1", top_n=5, documents_per_row=7, scratch=place),
    )
    assert corpus.describe()["documents_per_row"] == 7
    assert (corpus.query_id, corpus.top_n) == ("q1", 5)
    run = open_source(place / "beir", Beside(run=place / "x.run", top_n=5, scratch=place))
    assert (run.describe()["depth"], run.top_n) == (100, 5)
    run = open_source(place / "beir", Beside(run=Path("-"), depth=10, scratch=place))
    assert (run.describe()["depth"], run.is_rereadable, run.name) == (10, False, "standard input")
    assert open_source(place / "x.parquet", Beside(top_n=4, scratch=place)).top_n == 4


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("beir", {}, "^run: .* is a directory; .* give a TREC run"),
        ("beir", {"query": "q"}, "^query: .* is a directory.*: give the file"),
        ("beir", {"run": "x.run", "query": "q"}, "^query and run contradict each other"),
        ("beir", {"depth": 10}, "^depth .* give run"),
        ("beir", {"run": "x.run", "depth": 0}, "^depth must be at least 1"),
        ("beir", {"run": "x.run", "query_id": "q1"}, "^query_id .* give that"),
        ("x.jsonl", {"run": "x.run"}, "^run: .*x.jsonl is not a directory: give the directory"),
        ("absent", {"run": "x.run"}, "^run: .*absent is not there: give the directory"),
        ("x.jsonl", {"depth": 10}, "^depth "),
        ("x.jsonl", {"query_id": "q1"}, "^query_id "),
        ("x.jsonl", {"query": ""}, "^query must not be empty"),
        ("x.jsonl", {"top_n": 0}, "^top_n must be at least 1"),
        ("x.jsonl", {"query": "q", "documents_per_row": 0}, "^documents_per_row must be"),
        ("x.txt", {}, "^query: x.txt holds documents only: give the query"),
        ("x.parquet", {"query": "q"}, "^query: .* leave query out"),
        ("x.tsv", {}, "^path: what x.tsv holds cannot be told by its ending"),
        ("x.tsv", {"query": "q"}, "^path: what x.tsv holds"),
        ("x.parquet.gz", {}, "^path: what x.parquet.gz holds"),
    ],
)
def test_arguments_that_do_not_fit_are_named(
    place: Path, path: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        open_source(place / path, Beside(**arguments, scratch=place / "scratch"))


def test_a_file_that_is_not_there_is_said_to_be_missing(place: Path) -> None:
    with pytest.raises(InputError, match="absent: there is no such file"):
        open_source(place / "absent", Beside(scratch=place))
    with pytest.raises(InputError, match=r"absent\.jsonl: there is no such file"):
        list(open_source(place / "absent.jsonl", Beside(scratch=place)).rows())
