"""Which output format a name asks for, and what each refuses before it is paid for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rerank_async import InvalidRequestError
from rerank_async.bulk import BulkOptions, InputError, rerank_file
from rerank_async.bulk._outputs import output_format
from tests.bulk.support import queries, requests, write_jsonl
from tests.support import memory, session_over


@pytest.mark.parametrize("check_first", [True, False])
@pytest.mark.parametrize(
    ("output", "row", "message"),
    [
        ("out.run", {"query_id": "a b"}, "'a b' holds white space"),
        ("out.run", {"query_id": None}, "needs a query_id for every row"),
        ("out.run", {"documents": [{"doc_id": "a b", "text": "t"}]}, "'a b' holds white space"),
        ("out.run", {"documents": ["t", {"doc_id": "0", "text": "u"}]}, "'0' comes twice"),
        ("out.parquet", {"query_id": 7}, "query_id 7: a column of Parquet"),
        ("out.parquet", {"documents": [{"doc_id": 7, "text": "t"}]}, "doc_id 7: a column"),
    ],
)
async def test_ids_that_the_output_cannot_hold_are_found_before_their_row_is_sent(
    tmp_path: Path, output: str, row: dict[str, Any], message: str, check_first: bool
) -> None:
    rows = [*requests(2), {"query_id": "z", "query": "bad", "documents": ["t"], **row}]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    transport = memory()
    options = BulkOptions(check_first=check_first)
    async with session_over(transport) as session:
        with pytest.raises(InputError, match=message):
            await rerank_file(session, source, tmp_path / output, options=options)
        with pytest.raises(InvalidRequestError, match="tag"):
            await rerank_file(
                session, source, tmp_path / "other.run", options=BulkOptions(tag="a b")
            )
    assert "bad" not in queries(transport)
    assert len(transport.requests) == (0 if check_first else 2)


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("x.jsonl", "JSON lines"),
        ("x.ndjson.zst", "JSON lines"),
        ("x.run", "a TREC run"),
        ("x.trec.gz", "a TREC run"),
        ("x.parquet", "Parquet"),
        ("x.PARQUET", "Parquet"),
    ],
)
def test_a_name_asks_for_a_format(tmp_path: Path, name: str, means: str) -> None:
    assert output_format(tmp_path / name).name == means


@pytest.mark.parametrize("name", ["x", "x.txt", "x.parquet.gz", "x.jsonl.bz2", ".run"])
def test_a_name_that_asks_for_none_is_told_which_there_are(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        output_format(tmp_path / name)
    assert str(caught.value) == (
        f"output {name!r} must end in .jsonl, .run or .parquet, of which .jsonl and .run may be "
        "followed by .gz or .zst"
    )


def test_a_directory_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "x.run").mkdir()
    with pytest.raises(InvalidRequestError, match=r"x\.run is a directory: name a file"):
        output_format(tmp_path / "x.run")
