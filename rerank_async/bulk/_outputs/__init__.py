"""Output formats, made from the journal's entries: one file for each, and the table of them.

A file appears under its name only when it is whole.
To add a format, write its file, which makes one `OutputFormat`, and name that in `OUTPUTS`.
A line belongs here when it chooses between the formats, or holds for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from rerank_async._errors import InvalidRequestError
from rerank_async.bulk._entries import Entry
from rerank_async.bulk._files import COMPRESSED
from rerank_async.bulk._format import first_endings, listed
from rerank_async.bulk._outputs.format import OutputFormat, Written
from rerank_async.bulk._outputs.json_lines import JSON_LINES
from rerank_async.bulk._outputs.parquet import PARQUET
from rerank_async.bulk._outputs.run import RUN
from rerank_async.bulk._rows import Row

__all__ = ["OUTPUTS", "OutputFormat", "Written", "check_of", "output_format", "write"]

OUTPUTS: tuple[OutputFormat, ...] = (JSON_LINES, RUN, PARQUET)


def output_format(path: Path) -> OutputFormat:
    """The format that an output's name asks for.

    Raises:
        InvalidRequestError: the name asks for none, or is a directory's.
    """
    for one in OUTPUTS:
        if one.has_ending(path):
            if path.is_dir():
                raise InvalidRequestError(f"output {path} is a directory: name a file")
            return one
    compressible = [one for one in OUTPUTS if one.is_compressible]
    raise InvalidRequestError(
        f"output {path.name!r} must end in {first_endings(OUTPUTS)}, of which "
        f"{first_endings(compressible, 'and')} may be followed by {listed(COMPRESSED)}"
    )


def check_of(path: Path, tag: str, *, is_one_query: bool) -> Callable[[Row], None]:
    """The function that refuses a row whose ids cannot stand in the output.

    It is to be called with every row before the row is paid for, and raises InputError.

    Args:
        path: the output; its name says the format.
        tag: the last word of a run's lines.
        is_one_query: whether the rows are parts of one query's corpus.

    Raises:
        InvalidRequestError: the name asks for no format, or the tag cannot stand in a run.
    """
    return output_format(path).check(tag, is_one_query)


def write(path: Path, entries: Iterable[Entry], *, tag: str) -> Written:
    """Write the file, whole or not at all.

    Args:
        path: the output; its name says the format. What stands there is replaced.
        entries: the entries, in the order that they are to stand in.
        tag: the last word of a run's lines.

    Raises:
        InputError: an id cannot stand in this format; the message names it.
        JobFullError: the disk took no more.
        JobError: the file cannot be written.
    """
    done = Written(path)
    done.errors_path = output_format(path).write(path, map(_counted(done), entries), tag)
    return done


def _counted(done: Written) -> Callable[[Entry], Entry]:
    def count(entry: Entry) -> Entry:
        if entry.failed:
            done.failed += 1
        else:
            done.rows += 1
        return entry

    return count
