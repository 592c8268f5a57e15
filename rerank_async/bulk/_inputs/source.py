"""What an input format is, and what is read of one: a source of rows.

A line belongs here when every input format needs it. The formats are in the files beside, and the
table of them in the package itself.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Literal, Protocol

from attrs import field, frozen
from attrs.converters import optional

from rerank_async.bulk._format import FileFormat
from rerank_async.bulk._rows import Id, Row

__all__ = ["Beside", "InputFormat", "Source"]


class Source(Protocol):
    """Rows, to be read as often as their files allow.

    Attributes:
        name: the input's name, for messages.
        is_rereadable: whether `rows` may be called more than once.
        is_one_query: whether all rows are parts of one query's documents.
        query_id: the id of that one query; None when it has none, or each row has its own.
        top_n: the number of results that are wanted: of all rows together where `is_one_query`,
            elsewhere of each row that does not say it itself. None wants all.
    """

    @property
    def name(self) -> str: ...

    @property
    def is_rereadable(self) -> bool: ...

    @property
    def is_one_query(self) -> bool: ...

    @property
    def query_id(self) -> Id | None: ...

    @property
    def top_n(self) -> int | None: ...

    def describe(self) -> dict[str, str | int | None]:
        """What decides about the result besides the content of the rows: words for a manifest."""
        ...

    def prepare(self, halted: Callable[[], bool]) -> None:
        """Do beforehand what takes long, in a thread; most sources have nothing to do.

        Raises:
            HaltedError: `halted` said that the rows are not wanted any more.
        """
        ...

    def rows(self) -> Generator[Row, None, None]:
        """The rows, from the beginning; closing the generator closes the files.

        Raises:
            InputError: a file cannot be read, or does not hold what its format says; the message
                names the file and the line.
        """
        ...


@frozen(kw_only=True)
class Beside:
    """What a caller says beside the input's name.

    Attributes:
        query: the one query for a whole corpus; None when the input brings its queries.
        query_id: the id of that query.
        run: a TREC run with the candidates of each query; None when there is none.
        depth: the number of candidates of each query of the run; None is 100.
        top_n: the number of results that are wanted; None wants all.
        documents_per_row: the number of documents of a corpus that make a row.
        scratch: a directory that a source may write to.
    """

    query: str | None = None
    query_id: Id | None = None
    run: Path | None = field(default=None, converter=optional(Path))
    depth: int | None = None
    top_n: int | None = None
    documents_per_row: int = 1000
    scratch: Path = field(converter=Path)

    @property
    def asked(self) -> Literal["query", "run"] | None:
        """The argument that decides how the input is read."""
        if self.run is not None:
            return "run"
        return None if self.query is None else "query"


def _never(path: Path) -> bool:
    return False


@frozen(kw_only=True)
class InputFormat(FileFormat):
    """How one kind of input is known, and read.

    Attributes:
        needs: the argument that says what the input's documents are ranked for, "query" or "run";
            None where the input brings its own queries, and takes neither.
        is_for_pipes: whether standard input, and a pipe without an ending, is of this format.
        of_directory: a function that says whether a directory is an input of this format.
        is_part: a function that says whether a file of such a directory is read with it.
        open: a function that makes the source of a path; it reads nothing yet.
    """

    needs: Literal["query", "run"] | None = None
    is_for_pipes: bool = False
    of_directory: Callable[[Path], bool] = _never
    is_part: Callable[[Path], bool] = _never
    open: Callable[[Path, Beside], Source]

    @property
    def takes_directories(self) -> bool:
        """Whether a directory can be an input of this format."""
        return self.of_directory is not _never
