"""Rankings as JSON lines: the journal's own lines, as they are.

A line belongs here when it is about how such a file is written; what a line says is in `_entries`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rerank_async.bulk._disk import replacing
from rerank_async.bulk._entries import Entry
from rerank_async.bulk._files import writing
from rerank_async.bulk._outputs.format import OutputFormat

__all__ = ["JSON_LINES"]


def _write_json_lines(path: Path, entries: Iterable[Entry], tag: str) -> None:
    with replacing(path) as fresh, writing(fresh, path.suffix) as file:
        for entry in entries:
            file.write(entry.line)
            file.write(b"\n")


JSON_LINES = OutputFormat(name="JSON lines", endings=("jsonl", "ndjson"), write=_write_json_lines)
