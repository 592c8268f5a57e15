"""Rows of an input are held against what the job knows of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rerank_async.bulk import InputError
from rerank_async.bulk._index import Index
from rerank_async.bulk._inputs.requests import Requests
from rerank_async.bulk._rows import Row
from rerank_async.bulk._survey import survey_rows
from tests.bulk.support import requests, write_jsonl


@pytest.fixture
def source(tmp_path: Path) -> Requests:
    return Requests(write_jsonl(tmp_path / "in.jsonl", requests(20, documents=3)))


def test_every_row_is_checked_noted_and_counted(tmp_path: Path, source: Requests) -> None:
    index, checked, counts = Index(tmp_path / "index"), list[Row](), list[int]()
    contents = survey_rows(source, index, checked.append, lambda: False, counts.append)
    assert contents is not None
    assert (contents.rows, contents.documents) == (20, 60)
    assert [row.query_id for row in checked] == [f"q{number}" for number in range(20)]
    assert counts == [*range(1, 21)]
    assert all(
        index.is_at(place, row.key(row.digest()), row.digest()) for place, row in enumerate(checked)
    )
    index.close()


def test_a_survey_that_is_not_wanted_any_more_ends_without_contents(
    tmp_path: Path, source: Requests
) -> None:
    index, checked = Index(tmp_path / "index"), list[Row]()
    assert survey_rows(source, index, checked.append, lambda: len(checked) == 7) is None
    assert len(checked) == 7
    index.close()


def test_a_row_that_is_refused_ends_the_survey(tmp_path: Path, source: Requests) -> None:
    index = Index(tmp_path / "index")

    def refuse(row: Row) -> None:
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        survey_rows(source, index, refuse, lambda: False)
    index.close()
