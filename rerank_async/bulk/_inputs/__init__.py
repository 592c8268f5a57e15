"""Input formats: one file for each, and the table of them.

Every source reads as it goes: what it keeps does not grow with its files.
To add a format, write its file, which makes one `InputFormat`, and name that in `INPUTS`.
A line belongs here when it chooses between the formats.
"""

from __future__ import annotations

from pathlib import Path

from rerank_async._errors import InvalidRequestError, RerankError
from rerank_async._paths import STDIN
from rerank_async.bulk._errors import InputError
from rerank_async.bulk._files import is_rereadable
from rerank_async.bulk._format import endings_told, first_endings
from rerank_async.bulk._inputs.candidates import CANDIDATES
from rerank_async.bulk._inputs.corpus import CORPUS, PLAIN_CORPUS
from rerank_async.bulk._inputs.parquet import PARQUET
from rerank_async.bulk._inputs.requests import REQUESTS
from rerank_async.bulk._inputs.source import Beside, InputFormat, Source

__all__ = ["INPUTS", "Beside", "InputFormat", "Source", "input_format", "is_part", "open_source"]

# Where two formats have the same endings, the argument that they need tells them apart.
INPUTS: tuple[InputFormat, ...] = (REQUESTS, CORPUS, PLAIN_CORPUS, PARQUET, CANDIDATES)


def open_source(path: Path, beside: Beside) -> Source:
    """The source that a path and the arguments beside it mean; nothing is read yet.

    Args:
        path: the file or directory; `-` is standard input.
        beside: the arguments.

    Raises:
        InvalidRequestError: see `input_format`; or an argument is out of range.
        InputError: there is no such file.
    """
    return input_format(path, beside).open(path, beside)


def input_format(path: Path, beside: Beside) -> InputFormat:
    """The format that a path and the arguments beside it mean.

    Raises:
        InvalidRequestError: the arguments contradict each other, or the ending says nothing; the
            message names the argument and what to do.
        InputError: there is no such file.
    """
    if beside.query_id is not None and beside.query is None:
        raise InvalidRequestError(
            "query_id is the id of the one query given as query: give that, too, or leave it out"
        )
    if beside.depth is not None and beside.run is None:
        raise InvalidRequestError(
            "depth says how many documents to take of each query of a run: give run, too, or leave "
            "it out"
        )
    if beside.query is not None and beside.run is not None:
        raise InvalidRequestError(
            "query and run contradict each other: a run has its own queries; leave one of them out"
        )
    known = _formats_of(path)
    for one in known:
        if one.needs == beside.asked:
            return one
    raise _misfit(path, beside, known)


def is_part(file: Path, beside: Beside) -> bool:
    """Whether a file would be read as part of the input, were the input the file's directory."""
    return any(one.is_part(file) for one in INPUTS if one.needs == beside.asked)


def _formats_of(path: Path) -> list[InputFormat]:
    """The formats that the path may be of, by its ending or by what a directory holds."""
    if str(path) != STDIN:
        if path.is_dir():
            return [one for one in INPUTS if one.of_directory(path)]
        if known := [one for one in INPUTS if one.has_ending(path)]:
            return known
    # A pipe has no ending: what a shell makes of <(…).
    return [] if is_rereadable(path) else [one for one in INPUTS if one.is_for_pipes]


def _misfit(path: Path, beside: Beside, known: list[InputFormat]) -> RerankError:
    """The error that says why no format fits.

    Args:
        path: the file or directory.
        beside: the arguments.
        known: the formats that the path may be of, none of which takes these arguments.
    """
    if beside.run is not None:
        return InvalidRequestError(
            f"run: its texts are looked up in a BEIR folder, and {path} is "
            f"{'not a directory' if path.exists() else 'not there'}: give the directory that holds "
            "corpus.jsonl and queries.jsonl"
        )
    if str(path) != STDIN and path.is_dir():
        if beside.query is not None:
            return InvalidRequestError(
                f"query: {path} is a directory, and one query is ranked over one file: give the "
                "file (corpus.jsonl of a BEIR folder), or leave query out"
            )
        folders = [one for one in INPUTS if one.takes_directories and one.needs is None]
        return InvalidRequestError(
            f"run: {path} is a directory; if it is a BEIR folder, give a TREC run with the "
            f"candidates of each query, otherwise name a directory of {first_endings(folders)} "
            "files, or one file"
        )
    if known and beside.query is not None:
        corpora = [one for one in INPUTS if one.needs == "query"]
        return InvalidRequestError(
            f"query: a corpus is read from {first_endings(corpora)}, and {path.name} is "
            f"{known[0].name}, which brings its own queries: leave query out"
        )
    if known:
        return InvalidRequestError(
            f"query: {path.name} holds documents only: give the query to rank them for"
        )
    if not path.exists():
        return InputError(f"{path}: there is no such file")
    return InvalidRequestError(
        f"path: what {path.name} holds cannot be told by its ending: it must be "
        + endings_told(INPUTS)
    )
