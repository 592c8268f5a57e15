"""Rows from Parquet, batch by batch: what is kept does not grow with the file.

A line belongs here when it is about columns that are read; they are written in
`_outputs/parquet.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

from rerank_async._models import as_top_n
from rerank_async.bulk._errors import InputError
from rerank_async.bulk._inputs.fields import doubled
from rerank_async.bulk._inputs.source import InputFormat
from rerank_async.bulk._rows import Id, Row

__all__ = ["PARQUET", "ParquetRequests"]

# One row of nested documents is many of flat ones.
_NESTED_BATCH = 64
_FLAT_BATCH = 4096
# Of a row group so much is read at once; a group of a gigabyte is not uncommon.
_READ = 2**20

# Not all of these are known to every version.
_TEXTS = ("string", "large_string", "string_view")
_FLAT = ("query_id", "query", "text")

# What is read of a directory.
_FILES = "*.parquet"

# The columns of a batch, by their names.
_Columns: TypeAlias = dict[str, list[Any]]


class ParquetRequests:
    """Requests in Parquet: a file, or all `*.parquet` of a directory, in the order of their names.

    The columns are either `query`, `documents` (a list of texts, or of structs with `text` and
    perhaps `doc_id`), perhaps `query_id` and `top_n`, each row a request; or `query_id`, `query`,
    `text`, perhaps `doc_id`, each row a document, where the rows of one query stand together.
    Other columns are passed over.

    Of flat columns, 64 bits of each query_id are kept, to find one that comes again.

    Args:
        path: the file or directory.
        top_n: the number of results that are wanted where a row does not say it; None wants all.

    Raises:
        InvalidRequestError: `top_n` is no such number.
    """

    is_rereadable = True
    is_one_query = False
    query_id: Id | None = None

    def __init__(self, path: Path, top_n: int | None = None) -> None:
        self._path = path
        self.name = str(path)
        self.top_n = as_top_n(top_n)

    def describe(self) -> dict[str, str | int | None]:
        """The kind, and how many results are wanted of a row that does not say."""
        return {"kind": "requests", "top_n": self.top_n}

    def prepare(self, halted: Callable[[], bool]) -> None:
        """Nothing."""

    def rows(self) -> Generator[Row, None, None]:
        """See `Source`."""
        paths = [self._path]
        if self._path.is_dir():
            paths = sorted(self._path.glob(_FILES))
            if not paths:
                raise InputError(f"{self._path} holds no .parquet files")
        tables = [_Table(path) for path in paths]
        nested = tables[0].is_nested()
        for table in tables[1:]:
            if table.is_nested() != nested:
                raise InputError(
                    f"{table.name} has other columns than {tables[0].name}: all files of a "
                    "directory have documents in lists, or none has"
                )
        with closing(self._nested(tables) if nested else self._flat(tables)) as rows:
            yield from rows

    def _nested(self, tables: Sequence[_Table]) -> Generator[Row, None, None]:
        for table in tables:
            with closing(table.batches(_NESTED_BATCH)) as batches:
                for first, columns in batches:
                    for place, query in enumerate(columns["query"]):
                        yield self._request(table, first + place, query, columns, place)

    def _request(
        self, table: _Table, number: int, query: Any, columns: _Columns, place: int
    ) -> Row:
        if not query:
            raise table.wrong(number, "query is empty")
        given = columns["documents"][place]
        if given is None:
            raise table.wrong(number, "documents is null")
        texts: list[str] = []
        doc_ids: list[Id | None] = []
        for item, document in enumerate(given):
            text, doc_id = document, None
            if isinstance(document, dict):
                text, doc_id = document["text"], document.get("doc_id")
            if text is None:
                raise table.wrong(number, f"documents[{item}] has no text")
            texts.append(text)
            doc_ids.append(doc_id)
        top_n = columns["top_n"][place] if "top_n" in columns else None
        if top_n is not None and top_n < 1:
            raise table.wrong(number, f"top_n must be at least 1, not {top_n}")
        return Row(
            query,
            texts,
            columns["query_id"][place] if "query_id" in columns else None,
            _ids(table, number, doc_ids),
            self.top_n if top_n is None else top_n,
        )

    def _flat(self, tables: Sequence[_Table]) -> Generator[Row, None, None]:
        met: set[int] = set()
        query_id: Id | None = None
        query = ""
        texts: list[str] = []
        doc_ids: list[Id | None] = []
        # Where the query begins, for messages.
        began = tables[0], 1
        for table in tables:
            with closing(table.batches(_FLAT_BATCH)) as batches:
                for first, columns in batches:
                    names = columns.get("doc_id") or [None] * len(columns["text"])
                    items = zip(
                        columns["query_id"], columns["query"], columns["text"], names, strict=True
                    )
                    for number, (new_id, new_query, text, doc_id) in enumerate(items, first):
                        if new_id is None:
                            raise table.wrong(number, "query_id is null")
                        if text is None:
                            raise table.wrong(number, "text is null")
                        if new_id != query_id:
                            if query_id is not None:
                                yield self._group(began, query, texts, query_id, doc_ids)
                            if not new_query:
                                raise table.wrong(number, "query is empty")
                            # As a string: 7 and "7" would be the same in the output.
                            mark = hash(str(new_id))
                            if mark in met:
                                raise table.wrong(
                                    number,
                                    f"query_id {new_id!r} comes again after other queries: sort "
                                    "the rows by query_id",
                                )
                            met.add(mark)
                            query_id, query, began = new_id, new_query, (table, number)
                            texts, doc_ids = [], []
                        elif new_query != query:
                            raise table.wrong(
                                number,
                                f"query_id {new_id!r} has another query here than in the row "
                                "before",
                            )
                        texts.append(text)
                        doc_ids.append(doc_id)
        if query_id is not None:
            yield self._group(began, query, texts, query_id, doc_ids)

    def _group(
        self,
        began: tuple[_Table, int],
        query: str,
        texts: list[str],
        query_id: Id,
        doc_ids: list[Id | None],
    ) -> Row:
        return Row(query, texts, query_id, _ids(*began, doc_ids), self.top_n)


def _ids(table: _Table, number: int, doc_ids: list[Id | None]) -> list[Id | None] | None:
    if all(doc_id is None for doc_id in doc_ids):
        return None
    twice = doubled(doc_ids)
    if twice is not None:
        raise table.wrong(
            number, f"doc_id {twice!r} comes twice for this query: results could not be told apart"
        )
    return doc_ids


class _Table:
    """One Parquet file.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = str(path)

    def wrong(self, number: int, what: str) -> InputError:
        return InputError(f"{self.name}: row {number}: {what}")

    def is_nested(self) -> bool:
        """Whether the documents are in lists.

        Raises:
            InputError: the file cannot be read, or has not the columns.
        """
        with self._open() as file:
            return self._columns(file)[0]

    def batches(self, size: int) -> Generator[tuple[int, _Columns], None, None]:
        """The columns that count, so many rows at a time, each with the first row's number."""
        number = 1
        with self._open() as file:
            _, names = self._columns(file)
            batches = self._told(
                lambda: file.iter_batches(batch_size=size, columns=names, use_threads=False)
            )
            while (batch := self._told(lambda: next(batches, None))) is not None:
                columns = self._told(batch.to_pydict)
                yield number, columns
                number += batch.num_rows

    def _open(self) -> Any:
        parquet = _pyarrow(self.name).parquet
        if not self._path.exists():
            raise InputError(f"{self.name}: there is no such file")
        # Left to itself it reads whole row groups ahead.
        return self._told(
            lambda: parquet.ParquetFile(self._path, buffer_size=_READ, pre_buffer=False)
        )

    def _told(self, do: Callable[[], Any]) -> Any:
        arrow = _pyarrow(self.name)
        try:
            return do()
        except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise InputError(f"{self.name} cannot be read: {_first_line(error)}") from None

    def _columns(self, file: Any) -> tuple[bool, list[str]]:
        """Whether the documents are in lists, and which columns to read."""
        types = _pyarrow(self.name).types
        schema = self._told(lambda: file.schema_arrow)
        fields = {field.name: field.type for field in schema}

        def is_text(type_: Any) -> bool:
            if types.is_dictionary(type_):
                type_ = type_.value_type
            return str(type_) in _TEXTS

        def is_id(type_: Any) -> bool:
            return is_text(type_) or bool(types.is_integer(type_))

        def is_list(type_: Any) -> bool:
            return bool(
                types.is_list(type_)
                or types.is_large_list(type_)
                or types.is_fixed_size_list(type_)
            )

        def check(name: str, good: Callable[[Any], bool], wanted: str) -> None:
            if name in fields and not good(fields[name]):
                raise InputError(f"{self.name}: column {name} must be {wanted}, not {fields[name]}")

        check("query", is_text, "text")
        check("query_id", is_id, "text or whole numbers")
        if "documents" in fields:
            if "query" not in fields:
                raise InputError(f"{self.name} has no column query")
            check("top_n", types.is_integer, "whole numbers")
            check("documents", is_list, "a list")
            item = fields["documents"].value_type
            if types.is_struct(item):
                inner = {field.name: field.type for field in item}
                if "text" not in inner or not is_text(inner["text"]):
                    raise InputError(f"{self.name}: column documents: its structs have no text")
                if "doc_id" in inner and not is_id(inner["doc_id"]):
                    raise InputError(
                        f"{self.name}: column documents: doc_id must be text or whole numbers, not "
                        f"{inner['doc_id']}"
                    )
            elif not is_text(item):
                raise InputError(
                    f"{self.name}: column documents must be a list of text or of structs with a "
                    f"text, not of {item}"
                )
            wanted: tuple[str, ...] = ("query", "documents", "query_id", "top_n")
            return True, [name for name in wanted if name in fields]
        missing = [name for name in _FLAT if name not in fields]
        if missing:
            raise InputError(
                f"{self.name} has no column {' nor '.join(missing)}: it must have query and "
                "documents, or query_id, query and text"
            )
        check("text", is_text, "text")
        check("doc_id", is_id, "text or whole numbers")
        wanted = (*_FLAT, "doc_id")
        return False, [name for name in wanted if name in fields]


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def _pyarrow(name: str) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise PARQUET.lacks_package(name) from None
    return pyarrow


PARQUET = InputFormat(
    name="Parquet",
    endings=("parquet",),
    is_compressible=False,
    package="pyarrow",
    extra="parquet",
    of_directory=lambda path: any(path.glob(_FILES)),
    is_part=lambda path: path.match(_FILES),
    open=lambda path, beside: ParquetRequests(path, beside.top_n),
)
