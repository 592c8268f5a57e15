"""What several tests of bulk jobs begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bulk.support import written


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "beir set?"
    folder.mkdir()
    written(
        folder / "corpus.jsonl",
        *({"_id": f"d{i}", "title": f"T{i}", "text": f"x{i}"} for i in range(10)),
    )
    written(folder / "queries.jsonl", *({"_id": f"q{i}", "text": f"query {i}"} for i in range(4)))
    return folder
