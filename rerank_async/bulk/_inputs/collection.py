"""The texts of a BEIR folder by their ids: an SQLite file, so as not to be in memory.

A line belongs here when it is about that file.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import TypeAlias, TypeVar

from rerank_async import trec
from rerank_async.bulk._disk import replacing
from rerank_async.bulk._errors import HaltedError, InputError, JobError, JobFullError
from rerank_async.bulk._files import COMPRESSED, Lines

__all__ = ["Collection", "Digests"]

T = TypeVar("T")

# By its path, what a file was known by when it was read, and the digest of its bytes.
Digests: TypeAlias = dict[Path, tuple[tuple[int, ...], str]]

# So much of a file is read at once, and so many of SQLite's steps are made, before it is asked
# whether that is still wanted: some milliseconds' worth.
_PIECE = 2**17
_STEPS = 100_000

# A change that an older version would misread needs a new number.
_COLLECTION = 1

# SQLite takes as many as 999 values in a question, newer versions more.
_ASKED = 500

_TABLES = """
-- Whether it reaches the disk does not matter before it is whole: a half is thrown away.
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -16000;
PRAGMA temp_store = FILE;
CREATE TABLE documents (line INTEGER PRIMARY KEY, name TEXT NOT NULL, text TEXT NOT NULL);
CREATE TABLE queries (line INTEGER PRIMARY KEY, name TEXT NOT NULL, text TEXT NOT NULL);
CREATE TABLE made_from (files TEXT NOT NULL);
"""


class Collection:
    """The texts of a BEIR folder, by their ids: an SQLite file, so as not to be in memory.

    It is made anew unless there is one of files with the same content, which is read each time: a
    file's size and time may be the old ones although its texts are not. It may be used from several
    threads, one at a time.

    Args:
        folder: the BEIR folder.
        scratch: the directory for the file.
        halted: a function that says whether the collection is not wanted any more.
        digests: the digests of files that were read before; new ones are added. A file is not read
            again as long as its size, its times and its number are the same.

    Attributes:
        corpus: the file of documents.
        queries: the file of queries.
        last_query: the highest number that a query has.

    Raises:
        HaltedError: it is not wanted any more.
        InputError: the folder does not hold what it should.
        JobError: the file cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        scratch: Path,
        halted: Callable[[], bool] = lambda: False,
        digests: Digests | None = None,
    ) -> None:
        self._halted = halted
        digests = {} if digests is None else digests
        self.corpus = _part(folder, "corpus")
        self.queries = _part(folder, "queries")
        path = scratch / "collection.sqlite"
        marks = [_mark(file, halted, digests) for file in (self.corpus, self.queries)]
        files = json.dumps([_COLLECTION, *marks])
        db = _existing(path, files)
        if db is None:
            try:
                scratch.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise JobError(f"{scratch}: {error.strerror or error}") from None
            with replacing(path) as fresh:
                # Another process may have ended half-way.
                fresh.unlink(missing_ok=True)
                self._fill(fresh, files)
            db = _existing(path, files)
            if db is None:
                raise JobError(f"{path} cannot be read although it was written just now")
        self._db, self._path = db, path
        found = db.execute("SELECT coalesce(max(line), 0) FROM queries").fetchone()
        self.last_query: int = found[0]

    def __enter__(self) -> Collection:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def _fill(self, path: Path, files: str) -> None:
        with (
            self._told_unless_halted(path),
            closing(sqlite3.connect(path, isolation_level=None)) as db,
        ):
            # Asked between the steps of a statement: sorting may take long, too.
            db.set_progress_handler(self._halted, _STEPS)
            db.executescript(_TABLES)
            db.execute("BEGIN")
            db.executemany("INSERT INTO documents VALUES (?, ?, ?)", _documents_in(self.corpus))
            db.executemany("INSERT INTO queries VALUES (?, ?, ?)", _queries_in(self.queries))
            # After the rows: sorting once is faster than finding each one's place.
            for table, file in (("documents", self.corpus), ("queries", self.queries)):
                try:
                    db.execute(f"CREATE UNIQUE INDEX {table}_by_name ON {table} (name)")
                except sqlite3.IntegrityError:
                    twice = db.execute(
                        f"SELECT name, min(line), max(line) FROM {table} "  # noqa: S608
                        "GROUP BY name HAVING count(*) > 1 ORDER BY max(line) LIMIT 1"
                    ).fetchone()
                    raise InputError(
                        f"{file}: line {twice[2]}: _id {twice[0]!r} stands in line {twice[1]} "
                        "already"
                    ) from None
            db.execute("INSERT INTO made_from VALUES (?)", (files,))
            db.execute("COMMIT")

    @contextlib.contextmanager
    def _told_unless_halted(self, path: Path) -> Iterator[None]:
        with _told(path):
            try:
                yield
            except sqlite3.OperationalError:
                if self._halted():
                    raise HaltedError from None
                raise

    def query(self, query_id: str) -> tuple[int, str] | None:
        """The number and the text of a query."""
        with _told(self._path):
            found: tuple[int, str] | None = self._db.execute(
                "SELECT line, text FROM queries WHERE name = ?", (query_id,)
            ).fetchone()
        return found

    def documents(self, doc_ids: Sequence[str]) -> dict[str, str]:
        """The texts of documents by their ids; an id that the corpus lacks is not in it."""
        found: dict[str, str] = {}
        with _told(self._path):
            # Asked for together they come several times as fast as one by one.
            for start in range(0, len(doc_ids), _ASKED):
                some = doc_ids[start : start + _ASKED]
                marks = ",".join("?" * len(some))
                found.update(
                    self._db.execute(
                        f"SELECT name, text FROM documents WHERE name IN ({marks})",  # noqa: S608
                        some,
                    )
                )
        return found


def _documents_in(path: Path) -> Iterator[tuple[int, str, str]]:
    for number, line in _each(path, trec.parse_corpus_line):
        yield number, line.doc_id, line.document


def _queries_in(path: Path) -> Iterator[tuple[int, str, str]]:
    for number, line in _each(path, trec.parse_query_line):
        yield number, line.query_id, line.text


def _each(path: Path, parse: Callable[[bytes], T]) -> Iterator[tuple[int, T]]:
    file = Lines(path)
    with closing(file.read()) as numbered:
        for number, line in numbered:
            try:
                yield number, parse(line)
            except ValueError as error:
                if isinstance(error, InputError):
                    raise
                raise file.wrong(number, error) from None


def _part(folder: Path, name: str) -> Path:
    """`corpus.jsonl` or `queries.jsonl` of a BEIR folder; the one that is not compressed first."""
    for suffix in ("", *COMPRESSED):
        path = folder / f"{name}.jsonl{suffix}"
        if path.exists():
            return path
    raise InputError(f"{folder} has no {name}.jsonl (or {name}.jsonl.gz, {name}.jsonl.zst)")


def _mark(path: Path, halted: Callable[[], bool], digests: Digests) -> str:
    """What tells a file from any other one: the digest of its bytes, compressed or not."""
    try:
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            now = stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
            before, digest = digests.get(path, ((), ""))
            if now == before:
                return digest
            hasher = sha256()
            while piece := file.read(_PIECE):
                if halted():
                    raise HaltedError
                hasher.update(piece)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    digests[path] = now, hasher.hexdigest()
    return hasher.hexdigest()


def _existing(path: Path, files: str) -> sqlite3.Connection | None:
    """The collection of these files; None when there is none, another one, or a damaged one."""
    try:
        db = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False
        )
    except sqlite3.Error:
        return None
    try:
        if db.execute("SELECT files FROM made_from").fetchone() == (files,):
            return db
    except sqlite3.Error:
        pass
    db.close()
    return None


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise JobFullError(f"{path.parent}: no room for a copy of the corpus") from None
        raise JobError(f"{path}: {error}") from None
