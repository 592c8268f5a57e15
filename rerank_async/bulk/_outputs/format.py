"""What an output format is, and what is told of a file that was written.

A line belongs here when every output format needs it. The formats are in the files beside, and the
table of them in the package itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from attrs import define, frozen

from rerank_async.bulk._entries import Entry
from rerank_async.bulk._format import FileFormat
from rerank_async.bulk._rows import Row

__all__ = ["OutputFormat", "Written", "takes_any"]


@define
class Written:
    """What a file got.

    Attributes:
        path: the file.
        rows: the number of rows with a whole ranking.
        failed: the number of rows with an error, or with a ranking that lacks documents.
        errors_path: the file with the rows that have an error, where the format of `path` has no
            place for them; None when there are no such rows, or when `path` holds them.
    """

    path: Path
    rows: int = 0
    failed: int = 0
    errors_path: Path | None = None


def takes_any(tag: str, is_one_query: bool) -> Callable[[Row], None]:
    """The check of a format that can hold every row."""
    return lambda row: None


@frozen(kw_only=True)
class OutputFormat(FileFormat):
    """How one kind of output is named, and written.

    Attributes:
        check: a function that is called once, with the tag and with whether the rows are parts of
            one query's corpus. It raises InvalidRequestError where the tag cannot stand in the
            file. It returns a function that is called with every row before the row is paid for,
            and raises InputError where the row's ids cannot stand in the file.
        write: a function that is called with the path to write to, the entries in the order that
            they are to stand in, and the tag. The file appears whole or not at all. It returns the
            file that holds the failed rows where `path` has no place for them, otherwise None.
    """

    check: Callable[[str, bool], Callable[[Row], None]] = takes_any
    write: Callable[[Path, Iterable[Entry], str], Path | None]
