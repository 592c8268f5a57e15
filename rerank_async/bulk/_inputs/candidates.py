"""A BEIR folder and a TREC run: each query of the run with its best documents.

A line belongs here when it says which documents of a run are reranked; the texts of the folder are
looked up in `collection`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

from rerank_async import trec
from rerank_async._models import as_top_n
from rerank_async.bulk._files import Lines
from rerank_async.bulk._inputs.collection import Collection, Digests
from rerank_async.bulk._inputs.fields import as_positive
from rerank_async.bulk._inputs.source import Beside, InputFormat
from rerank_async.bulk._rows import Id, Row

__all__ = ["CANDIDATES", "Candidates"]

_DEPTH = 100
# The files of a BEIR folder, by their names without any ending.
_PARTS = ("corpus", "queries")


class Candidates:
    """A BEIR folder and a TREC run: each query of the run with its best documents, to be reranked.

    The folder holds `corpus.jsonl` and `queries.jsonl`, perhaps with `.gz` or `.zst` behind. The
    run's order of queries is the rows'; a query's documents are the first `depth` in the order of
    `trec.in_order`, so that the ranks that the run states do not count. All lines of a query must
    stand together. The folder's queries that the run does not have are not in the rows.

    Args:
        folder: the BEIR folder.
        run: the run; `-` is standard input.
        depth: the number of documents of each query.
        top_n: the number of results that are wanted of each query; None wants all.
        scratch: a directory for a copy of the texts, in which they can be looked up. The copy is
            kept for the next time. The directory is made when it does not exist.

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
        depth: int = _DEPTH,
        top_n: int | None = None,
        scratch: Path,
    ) -> None:
        self._file = Lines(run)
        self.name = self._file.name
        self.is_rereadable = self._file.is_rereadable
        self.top_n = as_top_n(top_n)
        self._folder = folder
        self._depth = as_positive("depth", depth)
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


def _open_candidates(path: Path, beside: Beside) -> Candidates:
    assert beside.run is not None
    return Candidates(
        path,
        beside.run,
        depth=_DEPTH if beside.depth is None else beside.depth,
        top_n=beside.top_n,
        scratch=beside.scratch,
    )


CANDIDATES = InputFormat(
    name="a BEIR folder",
    needs="run",
    # What is missing in the folder is said when it is read.
    of_directory=lambda path: True,
    is_part=lambda path: path.name.partition(".")[0] in _PARTS,
    open=_open_candidates,
)
