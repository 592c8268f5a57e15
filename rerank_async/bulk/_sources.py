"""Where rows come from: files of requests, one query over a corpus, the candidates of a run.

Every source reads as it goes: what it keeps does not grow with its files.
A line belongs here when it turns lines of a file into rows, or says which kind of source a file is;
how files are opened is in `_files`, Parquet in `_parquet`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar, cast

import msgspec
from msgspec import Meta, Struct

from rerank_async import trec
from rerank_async._errors import InvalidRequestError
from rerank_async._jsonl import json_kind, parsed_json
from rerank_async._models import as_text, as_top_n
from rerank_async._private import Private
from rerank_async.bulk import _files
from rerank_async.bulk._collection import Collection, Digests
from rerank_async.bulk._errors import InputError
from rerank_async.bulk._fields import as_count, doubled
from rerank_async.bulk._files import Lines
from rerank_async.bulk._parquet import ParquetRequests
from rerank_async.bulk._rows import Id, Row

__all__ = ["Candidates", "Corpus", "Requests", "Source", "open_source"]

T = TypeVar("T")


class Source(Protocol):
    """Rows, to be read as often as its files allow.

    Attributes:
        name: of the input, for messages.
        is_rereadable: whether `rows` may be called more than once.
        is_one_query: whether all rows are parts of one query's documents.
        query_id: that one query's id; None when it has none, or each row its own.
        top_n: how many results are wanted of the whole where `is_one_query`; elsewhere of each row
            that does not say itself. None wants all.
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
        """Do beforehand what takes long, in a thread; for most kinds there is nothing.

        Raises:
            HaltedError: `halted` said that it is not wanted any more.
        """
        ...

    def rows(self) -> Generator[Row, None, None]:
        """The rows, from the beginning; closing the generator closes the files.

        Raises:
            InputError: a file cannot be read, or does not hold what its format says; the message
                names the file and the line.
        """
        ...


# ── requests: each line a query and its documents ──


class _Document(Private, Struct, gc=False):
    text: str
    doc_id: str | int | None = None


class _Request(Private, Struct, gc=False):
    query: Annotated[str, Meta(min_length=1)]
    documents: list[str | _Document]
    query_id: str | int | None = None
    top_n: Annotated[int, Meta(ge=1)] | None = None


_decode_request = msgspec.json.Decoder(_Request).decode


class Requests:
    """A file of requests, each line one as JSON:
    `{"query_id", "query", "documents": [text | {"doc_id", "text"}], "top_n"}`.

    `query_id`, `doc_id` and `top_n` may be left out; ids are strings or whole numbers; what else
    there is, is passed over.

    Args:
        path: the file; `-` is standard input.
        top_n: how many results are wanted where a line does not say; None wants all.

    Raises:
        InvalidRequestError: `top_n` is no such number.
    """

    is_one_query = False
    query_id: Id | None = None

    def __init__(self, path: Path, top_n: int | None = None) -> None:
        self._file = Lines(path)
        self.name = self._file.name
        self.is_rereadable = self._file.is_rereadable
        self.top_n = as_top_n(top_n)

    def describe(self) -> dict[str, str | int | None]:
        """The kind, and how many results are wanted of a row that does not say."""
        return {"kind": "requests", "top_n": self.top_n}

    def prepare(self, halted: Callable[[], bool]) -> None:
        """Nothing."""

    def rows(self) -> Generator[Row, None, None]:
        """See `Source`."""
        top_n = self.top_n
        with closing(self._file.read()) as numbered:
            for number, line in numbered:
                try:
                    request = _decode_request(line)
                except (ValueError, RecursionError) as error:
                    raise self._file.wrong(number, _request_problem(line, error)) from None
                documents, doc_ids = _texts_and_ids(request.documents)
                if doc_ids is not None and (twice := doubled(doc_ids)) is not None:
                    raise self._file.wrong(
                        number, f"doc_id {twice!r} comes twice: results could not be told apart"
                    )
                yield Row(
                    request.query,
                    documents,
                    request.query_id,
                    doc_ids,
                    top_n if request.top_n is None else request.top_n,
                    content=line,
                )


def _texts_and_ids(
    documents: list[str | _Document],
) -> tuple[list[str], list[Id | None] | None]:
    # Most lines have one kind of document, and there are many in a line.
    kinds = set(map(type, documents))
    if _Document not in kinds:
        return cast("list[str]", documents), None
    if str in kinds:
        documents = [_Document(item) if isinstance(item, str) else item for item in documents]
    named = cast("list[_Document]", documents)
    doc_ids: list[Id | None] = [document.doc_id for document in named]
    has_ids = any(doc_id is not None for doc_id in doc_ids)
    return [document.text for document in named], doc_ids if has_ids else None


def _request_problem(line: bytes, error: Exception) -> str:
    """What is wrong with a line that was refused with `error`."""
    try:
        request = parsed_json(line)
    except ValueError as problem:
        return str(problem)
    return _not_a_request(request) or str(error)


def _not_a_request(request: Any) -> str | None:
    if not isinstance(request, dict):
        return f"a request must be an object, not {json_kind(request)}"
    for name in ("query", "documents"):
        if name not in request:
            return f"it has no {name}"
    query, documents = request["query"], request["documents"]
    if not isinstance(query, str) or not query:
        return f"query must be a string that is not empty, not {json_kind(query)}"
    if not _is_id(request.get("query_id")):
        return f"query_id must be a string or a whole number, not {json_kind(request['query_id'])}"
    top_n = request.get("top_n")
    if top_n is not None and (type(top_n) is not int or top_n < 1):
        return f"top_n must be a whole number of at least 1, not {json_kind(top_n)}"
    if not isinstance(documents, list):
        return f"documents must be a list, not {json_kind(documents)}"
    for place, document in enumerate(documents):
        where = f"documents[{place}]"
        if isinstance(document, str):
            continue
        if not isinstance(document, dict):
            return f"{where} must be a string or an object with a text, not {json_kind(document)}"
        if "text" not in document:
            return f"{where} has no text"
        if not isinstance(document["text"], str):
            return f"{where}.text must be a string, not {json_kind(document['text'])}"
        if not _is_id(document.get("doc_id")):
            given = json_kind(document["doc_id"])
            return f"{where}.doc_id must be a string or a whole number, not {given}"
    return None


def _is_id(value: object) -> bool:
    return value is None or type(value) in (str, int)


# ── a corpus: one query, each line a document ──


class _Passage(Private, Struct, gc=False):
    text: str | None = None
    title: str | None = None
    # A file may have several, of which one counts; the others may be anything.
    beir_id: Any = msgspec.field(name="_id", default=None)
    doc_id: Any = None
    id: Any = None


_decode_passage = msgspec.json.Decoder(str | _Passage).decode


class Corpus:
    """One query over all documents of a file, in rows of so many documents each.

    The file holds JSON lines, each a text or an object with `text`, perhaps `title`, and perhaps an
    id in `_id`, `doc_id` or `id`, the first of these that is there (a BEIR corpus is such a file);
    or, ending in `.txt`, plain lines. Whether an id comes twice is not looked at: that would take
    as much memory as the corpus has ids.

    The rows have no query_id, for by it they could not be told apart; `query_id` is kept here. It
    is not among the words of `describe`: nothing that was scored depends on it.

    Args:
        path: the file; `-` is standard input, which holds JSON lines.
        query: the query.
        query_id: its id.
        top_n: how many results are wanted of the whole; None wants all.
        documents_per_row: how many documents make a row.

    Raises:
        InvalidRequestError: an argument could not be used; the message names it.
    """

    is_one_query = True

    def __init__(
        self,
        path: Path,
        query: str,
        *,
        query_id: Id | None = None,
        top_n: int | None = None,
        documents_per_row: int = 1000,
    ) -> None:
        self._file = Lines(path)
        self.name = self._file.name
        self.is_rereadable = self._file.is_rereadable
        self.query_id = query_id
        self.top_n = as_top_n(top_n)
        self._query = as_text("query", query)
        self._documents_per_row = as_count("documents_per_row", documents_per_row)
        self._is_plain = _files.kind_of(path) == "txt"

    def describe(self) -> dict[str, str | int | None]:
        """The query, how many results are wanted, and how the corpus is divided."""
        return {
            "kind": "corpus",
            "query": self._query,
            "top_n": self.top_n,
            "documents_per_row": self._documents_per_row,
        }

    def prepare(self, halted: Callable[[], bool]) -> None:
        """Nothing."""

    def rows(self) -> Generator[Row, None, None]:
        """See `Source`."""
        start = 0
        texts: list[str] = []
        doc_ids: list[Id | None] = []
        with closing(self._file.read()) as numbered:
            for number, line in numbered:
                try:
                    text, doc_id = (line.decode(), None) if self._is_plain else _passage(line)
                except UnicodeDecodeError as error:
                    problem = f"not UTF-8 text (byte {error.start + 1})"
                    raise self._file.wrong(number, problem) from None
                except ValueError as error:
                    raise self._file.wrong(number, error) from None
                texts.append(text)
                doc_ids.append(doc_id)
                if len(texts) == self._documents_per_row:
                    yield self._row(texts, doc_ids, start)
                    start += len(texts)
                    texts, doc_ids = [], []
        if texts:
            yield self._row(texts, doc_ids, start)

    def _row(self, texts: list[str], doc_ids: list[Id | None], start: int) -> Row:
        return Row(
            self._query,
            texts,
            None,
            doc_ids if any(doc_id is not None for doc_id in doc_ids) else None,
            None if self.top_n is None else min(self.top_n, len(texts)),
            start,
        )


def _passage(line: bytes) -> tuple[str, Id | None]:
    """The text and the id of a line of a corpus.

    Raises:
        ValueError: it has none, or they are of the wrong kind; the message says which.
    """
    try:
        passage = _decode_passage(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(_not_a_passage(parsed_json(line)) or str(error)) from None
    if isinstance(passage, str):
        return passage, None
    if passage.text is None and passage.title is None:
        raise ValueError("it has neither text nor title")
    for name, doc_id in (
        ("_id", passage.beir_id),
        ("doc_id", passage.doc_id),
        ("id", passage.id),
    ):
        if doc_id is not None:
            if not _is_id(doc_id):
                raise ValueError(
                    f"{name} must be a string or a whole number, not {json_kind(doc_id)}"
                )
            return trec.joined(passage.title, passage.text), doc_id
    return trec.joined(passage.title, passage.text), None


def _not_a_passage(value: Any) -> str | None:
    if not isinstance(value, dict):
        return f"a document must be a string or an object with a text, not {json_kind(value)}"
    for name in ("text", "title"):
        if not isinstance(value.get(name), str | None):
            return f"{name} must be a string, not {json_kind(value[name])}"
    return None


# ── a run: the candidates of each query, their texts in a BEIR folder ──


class Candidates:
    """A BEIR folder and a TREC run: each query of the run with its best documents, to be reranked.

    The folder holds `corpus.jsonl` and `queries.jsonl`, perhaps with `.gz` or `.zst` behind. The
    run's order of queries is the rows'; a query's documents are the first `depth` in the order of
    `trec.in_order`, so that the ranks that the run states do not count. All lines of a query must
    stand together. The folder's queries that the run does not have are not in the rows.

    Args:
        folder: the BEIR folder.
        run: the run; `-` is standard input.
        depth: how many documents of each query.
        top_n: how many results are wanted of each query; None wants all.
        scratch: a directory for the texts in a form in which they can be looked up: as large as
            they are, and kept for the next time. Made when it does not exist.

    Raises:
        InvalidRequestError: `depth` or `top_n` is no such number.
    """

    is_one_query = False
    query_id: Id | None = None

    def __init__(
        self,
        folder: Path,
        run: Path,
        *,
        depth: int = 100,
        top_n: int | None = None,
        scratch: Path,
    ) -> None:
        self._file = Lines(run)
        self.name = self._file.name
        self.is_rereadable = self._file.is_rereadable
        self.top_n = as_top_n(top_n)
        self._folder = folder
        self._depth = as_count("depth", depth)
        self._scratch = scratch
        # Of the folder's files, as they were when they were read last.
        self._digests: Digests = {}

    def describe(self) -> dict[str, str | int | None]:
        """How many documents there are of each query, and how many results are wanted."""
        return {"kind": "run", "depth": self._depth, "top_n": self.top_n}

    def prepare(self, halted: Callable[[], bool]) -> None:
        """Read the texts, and bring them into a form in which they can be looked up.

        Raises:
            HaltedError: `halted` said that it is not wanted any more.
            InputError: the folder does not hold what it should.
            JobError: the scratch directory cannot be used.
        """
        with Collection(self._folder, self._scratch, halted, self._digests):
            pass

    def rows(self) -> Generator[Row, None, None]:
        """See `Source`.

        Raises:
            JobError: the scratch directory cannot be used.
        """
        with ExitStack() as stack:
            collection = stack.enter_context(
                Collection(self._folder, self._scratch, digests=self._digests)
            )
            numbered = stack.enter_context(closing(self._file.read()))
            # One byte for each query of the folder: whether the run has had it.
            met = bytearray(collection.last_query + 1)
            query_id: str | None = None
            query = ""
            # The query's documents, each with its score and its line in the run.
            found: dict[str, tuple[float, int]] = {}
            for number, line in numbered:
                try:
                    read = trec.parse_run_line(line)
                except ValueError as error:
                    raise self._file.wrong(number, error) from None
                if read.query_id != query_id:
                    if query_id is not None:
                        yield self._row(collection, query_id, query, found)
                    query_id, found = read.query_id, {}
                    place, query = self._query(collection, query_id, number)
                    if met[place]:
                        raise self._file.wrong(
                            number,
                            f"query_id {query_id!r} comes again after other queries: sort the run "
                            "by query_id",
                        )
                    met[place] = 1
                if read.doc_id in found:
                    raise self._file.wrong(
                        number,
                        f"doc_id {read.doc_id!r} stands in line {found[read.doc_id][1]} already, "
                        f"for the same query_id {query_id!r}",
                    )
                found[read.doc_id] = read.score, number
            if query_id is not None:
                yield self._row(collection, query_id, query, found)

    def _query(self, collection: Collection, query_id: str, number: int) -> tuple[int, str]:
        query = collection.query(query_id)
        if query is None:
            raise self._file.wrong(number, f"query_id {query_id!r} is not in {collection.queries}")
        return query

    def _row(
        self,
        collection: Collection,
        query_id: str,
        query: str,
        found: Mapping[str, tuple[float, int]],
    ) -> Row:
        best = trec.in_order((doc_id, score) for doc_id, (score, _) in found.items())
        doc_ids = [doc_id for doc_id, _ in best[: self._depth]]
        texts = collection.documents(doc_ids)
        if len(texts) < len(doc_ids):
            absent = min(
                (doc_id for doc_id in doc_ids if doc_id not in texts),
                key=lambda doc_id: found[doc_id][1],
            )
            raise self._file.wrong(
                found[absent][1], f"doc_id {absent!r} is not in {collection.corpus}"
            )
        return Row(query, [texts[doc_id] for doc_id in doc_ids], query_id, doc_ids, self.top_n)


# ── which one ──


def open_source(
    path: Path | str,
    *,
    query: str | None = None,
    query_id: Id | None = None,
    run: Path | str | None = None,
    depth: int | None = None,
    top_n: int | None = None,
    documents_per_row: int = 1000,
    scratch: Path | str,
) -> Source:
    """The source that a path and the arguments beside it mean; nothing is read yet.

    | path | beside it | |
    |---|---|---|
    | `.jsonl`, `.ndjson`, `-` | | `Requests` |
    | `.parquet`, a directory of them | | `ParquetRequests` |
    | `.jsonl`, `.ndjson`, `.txt`, `-` | `query`, perhaps `query_id` | `Corpus` |
    | a BEIR folder | `run`, perhaps `depth` | `Candidates` |

    All but Parquet may have `.gz` or `.zst` behind.

    Args:
        path: the file or directory; `-` is standard input, which holds JSON lines.
        query: one query for a whole corpus.
        query_id: that query's id.
        run: a TREC run with the candidates.
        depth: how many candidates of each query; None is 100.
        top_n: how many results are wanted; None wants all.
        documents_per_row: how many documents of a corpus make a row.
        scratch: a directory that a source may use.

    Raises:
        InvalidRequestError: the arguments contradict each other, or the ending says nothing; the
            message names the argument and what to do.
        InputError: there is no such file.
    """
    path = Path(path)
    if query_id is not None and query is None:
        raise InvalidRequestError(
            "query_id is the id of the one query given as query: give that, too, or leave it out"
        )
    if depth is not None and run is None:
        raise InvalidRequestError(
            "depth says how many documents to take of each query of a run: give run, too, or leave "
            "it out"
        )
    if query is not None and run is not None:
        raise InvalidRequestError(
            "query and run contradict each other: a run has its own queries; leave one of them out"
        )
    if str(path) != _files.STDIN and path.is_dir():
        return _of_directory(path, query, run, depth, top_n, Path(scratch))
    if run is not None:
        raise InvalidRequestError(
            f"run: its texts are looked up in a BEIR folder, and {path} is "
            f"{'not a directory' if path.exists() else 'not there'}: give the directory that holds "
            "corpus.jsonl and queries.jsonl"
        )
    kind = _kind(path)
    if query is not None:
        if kind == "parquet":
            raise InvalidRequestError(
                f"query: a corpus is read from .jsonl or .txt, and {path.name} is Parquet, which "
                "brings its own queries: leave query out"
            )
        return Corpus(
            path, query, query_id=query_id, top_n=top_n, documents_per_row=documents_per_row
        )
    if kind == "txt":
        raise InvalidRequestError(
            f"query: {path.name} holds documents only: give the query to rank them for"
        )
    return ParquetRequests(path, top_n) if kind == "parquet" else Requests(path, top_n)


def _of_directory(
    path: Path,
    query: str | None,
    run: Path | str | None,
    depth: int | None,
    top_n: int | None,
    scratch: Path,
) -> Source:
    if query is not None:
        raise InvalidRequestError(
            f"query: {path} is a directory, and one query is ranked over one file: give the file "
            "(corpus.jsonl of a BEIR folder), or leave query out"
        )
    if run is not None:
        return Candidates(
            path,
            Path(run),
            depth=100 if depth is None else depth,
            top_n=top_n,
            scratch=scratch,
        )
    if any(path.glob("*.parquet")):
        return ParquetRequests(path, top_n)
    raise InvalidRequestError(
        f"run: {path} is a directory; if it is a BEIR folder, give a TREC run with the candidates "
        "of each query, otherwise name a directory of .parquet files, or one file"
    )


_KINDS = {"jsonl": "jsonl", "ndjson": "jsonl", "txt": "txt", "parquet": "parquet"}


def _kind(path: Path) -> str:
    if str(path) == _files.STDIN:
        return "jsonl"
    kind = _KINDS.get(_files.kind_of(path))
    if kind is not None and (kind != "parquet" or path.suffix.lower() == ".parquet"):
        return kind
    if not path.exists():
        raise InputError(f"{path}: there is no such file")
    if not _files.is_rereadable(path):
        # A pipe has no ending: what a shell makes of <(…).
        return "jsonl"
    raise InvalidRequestError(
        f"path: what {path.name} holds cannot be told by its ending: it must be .jsonl, .ndjson or "
        ".txt, perhaps with .gz or .zst behind, or .parquet"
    )
