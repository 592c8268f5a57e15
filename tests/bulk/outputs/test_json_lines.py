"""JSON lines as output: the journal's own lines, the same bytes for the same job."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import zstandard

from rerank_async.bulk._entries import entry_of, payload_of, ranking_line
from rerank_async.bulk._outputs import write

LINES = [ranking_line(f"q{row}", [0], [row / 7], None, "m", 1) for row in range(100)]


@pytest.mark.parametrize(
    ("suffix", "unpack"),
    [
        ("", bytes),
        (".gz", gzip.decompress),
        (".zst", lambda data: zstandard.ZstdDecompressor().stream_reader(data).read()),
    ],
)
def test_an_entry_is_a_line_as_it_is(tmp_path: Path, suffix: str, unpack: object) -> None:
    entries = [entry_of(payload_of("id:q", b"", 1, 1, line)) for line in LINES]
    first, second = tmp_path / f"a.jsonl{suffix}", tmp_path / f"b.jsonl{suffix}"
    assert write(first, entries, tag="t").rows == 100
    assert callable(unpack)
    assert unpack(first.read_bytes()) == b"".join(line + b"\n" for line in LINES)
    write(second, entries, tag="t")
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [first.name, second.name]
