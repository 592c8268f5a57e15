"""The documents of a file: plain lines, JSON lines, or one JSON array.

A line belongs here when it says how documents stand in a file, and what is wrong with one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import IO, Any

import orjson

__all__ = ["DocumentsError", "Format", "document_lines", "read_documents"]


class Format(StrEnum):
    """How the documents stand in a file."""

    AUTO = "auto"
    LINES = "lines"
    JSONL = "jsonl"
    JSON = "json"


class DocumentsError(Exception):
    """A file does not hold what its format says."""


def document_lines(file: str) -> IO[str]:
    """The file of that name, `-` being standard input."""
    # utf-8-sig passes over the mark that some editors put before the first line.
    if file == "-":
        # Closed by the caller like any file, so not the one that belongs to the process.
        return os.fdopen(os.dup(0), encoding="utf-8-sig", errors="strict")
    return Path(file).open(encoding="utf-8-sig")


def read_documents(lines: IO[str], file_format: Format, name: str) -> Iterator[str]:
    """The documents of an open file, read as they are asked for; blank lines are passed over.

    Args:
        lines: the open file.
        file_format: the way in which they stand in it.
        name: the file's name, for messages and to tell its format.

    Raises:
        DocumentsError: naming the line that cannot be read, once it is reached.
    """
    try:
        numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
        start = next(numbered, None)
        if start is None:
            return
        advice = ""
        if file_format is Format.AUTO:
            file_format = _guess(start[1], name)
            advice = "; if it is plain text, say --format lines"
        if file_format is Format.JSON:
            text = start[1] + "".join(line for _, line in numbered)
            yield from _array(_parsed(text, name, advice), name)
            return
        for number, line in chain((start,), numbered):
            if file_format is Format.LINES:
                yield line.rstrip("\r\n")
            else:
                where = f"{name}: line {number}"
                yield _text_of(_parsed(line, where, advice), where)
    except UnicodeDecodeError:
        raise DocumentsError(f"{name} is not UTF-8 text") from None


def _guess(first: str, name: str) -> Format:
    suffix = Path(name).suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return Format.JSONL
    if suffix == ".json":
        return Format.JSON
    try:
        value = orjson.loads(first)
    except ValueError:
        # An array over several lines: a bracket, and the beginning of an item if anything.
        return Format.JSON if re.match(r'\s*\[\s*(["{]|$)', first) else Format.LINES
    if isinstance(value, list):
        return Format.JSON
    return Format.JSONL if isinstance(value, (str, dict)) else Format.LINES


def _parsed(text: str, where: str, advice: str) -> Any:
    try:
        return orjson.loads(text)
    except ValueError as error:
        raise DocumentsError(f"{where} is not JSON: {error}{advice}") from None


def _array(items: Any, name: str) -> Iterator[str]:
    if not isinstance(items, list):
        raise DocumentsError(f"{name} is not a JSON array")
    for index, item in enumerate(items):
        yield _text_of(item, f"{name}: item {index}")


def _text_of(item: Any, where: str) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, dict):
        for key in ("text", "document", "content"):
            if isinstance(item.get(key), str):
                found: str = item[key]
                return found
    raise DocumentsError(f"{where} must be a string or an object with a text")
