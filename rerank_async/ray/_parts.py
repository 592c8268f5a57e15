"""What a job consists of, and what of it is done: files, row groups, parts.

A part is the unit of commit: so many rows of one row group of the input, the same in every run,
written whole into one file of the output whose name says where the rows stand. Whoever does a part
again replaces that file. Hence every row is in the output once or not yet, at any moment, whoever
died; and to go on is only to see which names there are.

Ray Data's own writer would not do. A task that Ray runs again writes the same file again, so that
within one run nothing comes twice; but the file has its name from its first byte on, and what a
killed process leaves behind cannot be read, nor told from what another run wrote.
A line belongs here when it says what there is to do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from math import ceil
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from attrs import asdict, frozen

from rerank_async._columns import is_nested
from rerank_async._errors import InvalidRequestError
from rerank_async.bulk._errors import InputError, JobChangedError, JobDamagedError
from rerank_async.ray._places import Place

__all__ = [
    "Counts",
    "File",
    "Input",
    "Unit",
    "check_ids",
    "check_unchanged",
    "counts_of",
    "file_of",
    "in_threads",
    "input_of",
    "part_name",
    "units_of",
]

T = TypeVar("T")

# In the metadata of a part's schema.
_COUNTS = b"rerank_async"
# Units are cut so that an actor gets about so many, and the last ones end at about the same time.
_UNITS_PER_ACTOR = 4


@frozen
class File:
    """A Parquet file of the input: its name there, and the rows of each of its row groups."""

    name: str
    groups: tuple[int, ...]


@frozen
class Input:
    """All files of an input.

    Attributes:
        spec: place where they are.
        files: names and row groups, in the order of the names.
        rows: number of rows of all files together.
        digest: text that is another one when any file is, or holds something else.
        nested: whether a row is a query with all its documents.
        has_doc_ids: whether all files have a column doc_id.
        marks: numbers for each file, by which it is seen that it is changed while the job runs.
    """

    spec: str
    files: tuple[File, ...]
    rows: int
    digest: str
    nested: bool
    has_doc_ids: bool
    marks: tuple[tuple[int, ...], ...] = ()


@frozen
class _Looked:
    """What one look at a file of the input has shown."""

    file: File
    mark: tuple[int, ...]
    fingerprint: bytes
    columns: list[str]


def in_threads(do: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
    """For what mostly waits for a disk or a network."""
    with ThreadPoolExecutor(min(16, len(items) or 1)) as threads:
        return list(threads.map(do, items))


def file_of(place: Place, name: str) -> File:
    """A file by its footer."""
    with place.parquet(name) as parquet:
        meta = parquet.metadata
        groups = tuple(meta.row_group(number).num_rows for number in range(meta.num_row_groups))
    return File(name, groups)


def input_of(name: str) -> Input:
    """Look at all files, and read them for their fingerprints.

    Raises:
        InputError: there is no such input, or its columns cannot be used.
    """
    place = Place(name)
    if place.is_file():
        names = [""]
    else:
        names = [file for file in place.files() if file.endswith((".parquet", ".pq"))]
    if not names:
        raise InputError(f"{name}: there is no Parquet file")

    def look(name: str) -> _Looked:
        try:
            # First: what is changed from now on is seen.
            mark = place.mark(name)
            with place.parquet(name) as parquet:
                columns = parquet.schema_arrow.names
            return _Looked(file_of(place, name), mark, place.fingerprint(name), columns)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{place.at(name)} cannot be read: {error}") from None

    looked = in_threads(look, names)
    digest = sha256()
    kinds = set()
    for one in looked:
        digest.update(f"{one.file.name}\0{len(one.fingerprint)}\0".encode())
        digest.update(one.fingerprint)
        try:
            kinds.add(is_nested(one.columns))
        except InvalidRequestError as error:
            raise InputError(f"{place.at(one.file.name)}: {error}") from None
        if "query_id" not in one.columns:
            raise InputError(
                f"{place.at(one.file.name)} has no column query_id, by which its rows are known"
            )
    if len(kinds) > 1:
        raise InputError(f"{name}: some files have a column documents, and some have not")
    return Input(
        spec=place.spec,
        files=tuple(one.file for one in looked),
        rows=sum(sum(one.file.groups) for one in looked),
        digest=digest.hexdigest()[:32],
        nested=kinds.pop(),
        has_doc_ids=all("doc_id" in one.columns for one in looked),
        marks=tuple(one.mark for one in looked),
    )


def check_unchanged(given: Input) -> None:
    """See that the files are as they were when they were looked at.

    Raises:
        JobChangedError: one is not, so that some results may be of other texts than others.
    """
    place = Place(given.spec)

    def mark(file: File) -> tuple[int, ...] | None:
        try:
            return place.mark(file.name)
        except OSError:
            return None

    for file, before, now in zip(
        given.files, given.marks, in_threads(mark, given.files), strict=True
    ):
        if now != before:
            raise JobChangedError(
                f"{place.at(file.name)} was changed while the job read it: some results are of "
                "what it held before; give the changed input another output"
            )


def check_ids(given: Input) -> None:
    """See that every row of a nested input has a query_id, and no two the same.

    Raises:
        InputError: one has not; the message names it.
    """
    place = Place(given.spec)
    columns = []
    for file in given.files:
        with place.parquet(file.name) as parquet:
            columns.append(parquet.read(["query_id"])["query_id"])
    if len({column.type for column in columns}) > 1:
        raise InputError(f"{given.spec}: query_id is not of one type in all files")
    chunks = [chunk for column in columns for chunk in column.chunks]
    ids = pa.chunked_array(chunks, columns[0].type)
    if ids.null_count:
        raise InputError(f"{given.spec}: {ids.null_count:,} rows have no query_id")
    counted = pc.value_counts(ids)
    often = counted.filter(pc.greater(counted.field("counts"), 1))
    if len(often):
        raise InputError(
            f"{given.spec}: query_id {often[0]['values'].as_py()!r} comes "
            f"{often[0]['counts'].as_py()} times: results could not be told apart"
        )


# ── parts ──


@frozen
class Counts:
    """What a part holds; it stands in the part itself.

    Attributes:
        rows: number of its rows.
        failed: number of rows with an error.
        refused: number of those rows whose error was not their own: they are not done.
        tokens: cost of the rows, as far as the server said.
    """

    rows: int
    failed: int = 0
    refused: int = 0
    tokens: int = 0

    def is_done(self, retry_failed: bool) -> bool:
        """Whether nothing of it is to be done again."""
        return not self.refused and not (retry_failed and self.failed)

    def metadata(self) -> dict[bytes, bytes]:
        """For the part's schema."""
        return {_COUNTS: json.dumps(asdict(self)).encode()}


def part_name(file: int, group: int, number: int) -> str:
    """The name of a part, by where its rows stand."""
    return f"part-{file:05}-{group:05}-{number:06}.parquet"


def counts_of(place: Place, name: str) -> Counts | None:
    """What a part holds; None if it has not been written.

    Raises:
        JobDamagedError: it is not as it was written.
    """
    try:
        with place.parquet(name) as parquet:
            return Counts(**json.loads(parquet.schema_arrow.metadata[_COUNTS]))
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        raise JobDamagedError(
            f"{place.at(name)} is not as it was written: remove it, and it is done again"
        ) from None


@frozen
class Unit:
    """Work for an actor: parts of one row group, by their numbers."""

    file: int
    name: str
    group: int
    numbers: tuple[int, ...]


def units_of(
    given: Input, held: Mapping[str, Counts], size: int, actors: int, *, retry_failed: bool
) -> list[Unit]:
    """What is to be done, in units of about the same number of parts.

    Args:
        given: input that is nested, or grouped.
        held: counts of the parts that were written, by their names.
        size: number of rows in a part.
        actors: number of actors that will work.
        retry_failed: whether rows with an error are to be done again.
    """

    def is_done(name: str) -> bool:
        counts = held.get(name)
        return counts is not None and counts.is_done(retry_failed)

    todo: list[tuple[int, str, int, list[int]]] = []
    for number, file in enumerate(given.files):
        for group, rows in enumerate(file.groups):
            parts = range(ceil(rows / size))
            left = [part for part in parts if not is_done(part_name(number, group, part))]
            todo.append((number, file.name, group, left))
    each = max(1, ceil(sum(len(left) for *_, left in todo) / (actors * _UNITS_PER_ACTOR)))
    return [
        Unit(number, name, group, tuple(left[start : start + each]))
        for number, name, group, left in todo
        for start in range(0, len(left), each)
    ]
