"""Scores that are kept from one job to the next, in an SQLite file.

An experiment that is repeated asks for most of its scores again. Here they are found by everything
that decides about them: endpoint, dialect, the model that was asked for, the model that the server
said had answered, query and document.
A line belongs here when it is about that file; when to ask it is the runner's business.

The file has three tables. `served` names the model that last answered under an endpoint, a dialect
and a model's name; `query` numbers the queries under these four; `score` holds a score for each
number and document:

- The answering model is part of the key. When it changes, the scores of the one before are not
  found any more, so that no ranking holds scores of both; should it come back, they are.
- A query's scores stand side by side, so that a call's documents are found on one or two pages.
- `seal` is the score's 64 bits, combined with the first 64 of the document's key. SQLite notices
  when the structure of its file is damaged, but not when a value in it is.
"""

from __future__ import annotations

import math
import sqlite3
import struct
from array import array
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from itertools import chain, islice
from os import PathLike
from types import TracebackType
from typing import Self, TypeAlias

from msgspec import Struct

from rerank_async._paths import local_path
from rerank_async.bulk._errors import JobDamagedError, JobError, JobFullError

__all__ = ["CacheStatistics", "ScoreCache"]

# Of the file: "RrSc" in its header, where SQLite leaves room for it, and the form of its tables.
_APPLICATION = 0x52725363
_FORMAT = 1

_KEY_BYTES = 16

# What is stored is written once there are so many calls or so many scores of it: a write of a
# thousand scores keeps the event loop for about two milliseconds.
_STORES = 16
_SCORES = 1000

# Rows in one statement, which saves a third of the time; some builds of SQLite take no more than
# 999 parameters.
_ROWS = 100

_TABLES = """
CREATE TABLE served (asked BLOB PRIMARY KEY, answered_model TEXT) WITHOUT ROWID;
CREATE TABLE query (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE);
CREATE TABLE score (
    query INTEGER NOT NULL,
    document BLOB NOT NULL,
    score REAL NOT NULL,
    seal INTEGER NOT NULL,
    PRIMARY KEY (query, document)
) WITHOUT ROWID;
"""
_INSERT = "INSERT OR IGNORE INTO score VALUES (?, ?, ?, ?)"
_INSERT_ROWS = _INSERT + ", (?, ?, ?, ?)" * (_ROWS - 1)
_SELECT = "SELECT document, score, seal FROM score WHERE query = ? "

_FULL = sqlite3.SQLITE_FULL
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_MISMATCH)

_Sealed: TypeAlias = tuple[int, bytes, float, int]


class CacheStatistics(Struct, frozen=True):
    """What a cache was asked for since it was opened.

    Attributes:
        hits: the number of documents whose score was known.
        misses: the number of documents whose score was not known.
    """

    hits: int
    misses: int


class ScoreCache:
    """The scores of one endpoint, dialect and model; a context manager that writes what is left.

    It belongs to the thread that made it. Several processes may share the file.
    What was stored is found at once, and written when there is enough of it: a process that is
    killed loses the last 16 calls' scores at most.

    A ranking must not hold scores of two models. So who has found some of a call's scores, and then
    hears from the server that another model answered for the rest, must ask for all of them:

        scores = cache.lookup(query, documents)
        answered_model = cache.answered_model     # of these scores, before anything is awaited

    Args:
        path: the file's path; the file is made when it does not exist.
        endpoint: the server's URL. Another spelling of it is another endpoint.
        dialect: the name of the dialect.
        model: the model that is asked for.
        patience: the seconds to wait while another process writes; the event loop waits, too. A
            write mostly takes milliseconds.

    Raises:
        InvalidRequestError: the path is a URI of something else than a file of this machine.
        JobError: the file cannot be opened or made, is no cache, or one of another format.
        JobDamagedError: it is not as it was written.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        endpoint: str,
        dialect: str,
        model: str,
        patience: float = 60.0,
    ) -> None:
        self._path = path = local_path("path", path)
        self._patience = patience
        self._asked = _hash_of(endpoint, dialect, model).digest()
        self._is_served = False
        self._answered_model: str | None = None
        # A hash that has taken in all but query and document, and is copied for each call.
        self._base = _hash_of(self._asked, None)
        self._pending: dict[bytes, dict[bytes, float]] = {}
        self._stores = self._scores = 0
        self._hits = self._misses = 0
        self._is_open = False
        with self._translated():
            self._db = sqlite3.connect(path, timeout=patience, isolation_level=None)
        try:
            with self._translated():
                self._prepare()
                self._refresh()
        except BaseException:
            self._db.close()
            raise
        self._is_open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def answered_model(self) -> str | None:
        """The model that the scores of the last `lookup` come from, as the server named it.

        None when the server named none, or has not answered yet.
        """
        return self._answered_model

    def statistics(self) -> CacheStatistics:
        """The counts so far."""
        return CacheStatistics(self._hits, self._misses)

    def lookup(self, query: str, documents: Sequence[str]) -> list[float | None]:
        """The scores that are known, in the order of `documents`, and None for the others.

        Raises:
            JobDamagedError: the file is not as it was written.
            JobError: it cannot be read.
        """
        with self._translated():
            self._refresh()
            number, keys = self._keys(query, documents)
            known = self._written(number, keys)
            waiting = self._pending.get(number)
            # What is written counts before what waits: it was the first.
            if waiting:
                known = waiting | known
        scores = list(map(known.get, keys))
        misses = scores.count(None)
        self._misses += misses
        self._hits += len(scores) - misses
        return scores

    def store(
        self,
        query: str,
        documents: Sequence[str],
        scores: Sequence[float],
        answered_model: str | None,
    ) -> None:
        """Keep the scores of `documents`; a document that has one keeps the one it has.

        Args:
            query: the query of the call.
            documents: the documents that were asked for.
            scores: the score of each document.
            answered_model: the model that answered, by the server's word; None if it did not say.

        Raises:
            ValueError: a score is not finite, or there are not as many as documents. Nothing of the
                call is kept.
            JobError: the file cannot be written; what was stored waits for the next attempt.
        """
        if len(scores) != len(documents):
            raise ValueError(f"{len(documents)} documents have {len(scores)} scores")
        if not all(map(math.isfinite, scores)):
            raise ValueError("a score that is not finite must not be kept")
        if not scores:
            return
        with self._translated():
            self._refresh()
            if answered_model != self._answered_model or not self._is_served:
                self._serve(answered_model)
            number, keys = self._keys(query, documents)
            waiting = self._pending.setdefault(number, {})
            for key, score in zip(keys, scores, strict=True):
                waiting.setdefault(key, score)
            self._stores += 1
            self._scores += len(keys)
            if self._stores >= _STORES or self._scores >= _SCORES:
                self._flush()

    def flush(self) -> None:
        """Write what waits.

        Raises:
            JobError: the file cannot be written; what was stored waits for the next attempt.
        """
        with self._translated():
            self._flush()

    def close(self) -> None:
        """Write what waits, and close the file. Idempotent.

        Raises:
            JobError: what waited could not be written, and is lost.
        """
        if not self._is_open:
            return
        self._is_open = False
        try:
            self.flush()
        finally:
            self._db.close()

    # ── the keys ──

    def _keys(self, query: str, documents: Sequence[str]) -> tuple[bytes, list[bytes]]:
        """The key of the query, and of each document under it."""
        hasher = self._base.copy()
        _feed(hasher, query)
        number = hasher.digest()
        copy = hasher.copy
        keys = []
        for document in documents:
            # The last part needs no length: it is what is left.
            hasher = copy()
            hasher.update(document.encode("utf-8", "surrogatepass"))
            keys.append(hasher.digest())
        return number, keys

    # ── the file ──

    def _prepare(self) -> None:
        """Make the tables in a new file, or see that they are what they should be."""
        run = self._db.execute
        if self._is_new():
            # Readers do not wait for the writer, nor does it wait for them.
            run("PRAGMA journal_mode = WAL")
            with self._transaction():
                # Another process may have made them since.
                if self._is_new():
                    for statement in _TABLES.split(";"):
                        run(statement)
                    run(f"PRAGMA application_id = {_APPLICATION}")
                    run(f"PRAGMA user_version = {_FORMAT}")
        [application] = run("PRAGMA application_id").fetchone()
        [found] = run("PRAGMA user_version").fetchone()
        if application != _APPLICATION:
            raise JobError(f"{self._path} is not a score cache but another SQLite file")
        if found != _FORMAT:
            raise JobError(
                f"{self._path} is a score cache of format {found}, and this version of "
                f"rerank-async reads format {_FORMAT}: name another file"
            )
        # A power failure may undo the last writes, which costs their scores, and damages nothing.
        run("PRAGMA synchronous = NORMAL")

    def _is_new(self) -> bool:
        run = self._db.execute
        [application] = run("PRAGMA application_id").fetchone()
        [tables] = run("SELECT count(*) FROM sqlite_master").fetchone()
        return bool(application == 0 and tables == 0)

    def _refresh(self) -> None:
        """Learn who answers now: another process may have heard it first."""
        found = self._db.execute(
            "SELECT answered_model FROM served WHERE asked = ?", (self._asked,)
        ).fetchone()
        self._is_served = found is not None
        if found is not None:
            self._turn_to(found[0])

    def _serve(self, answered_model: str | None) -> None:
        """Make known, to other processes too, who answers now."""
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO served VALUES (?, ?)", (self._asked, answered_model)
            )
        self._is_served = True
        self._turn_to(answered_model)

    def _turn_to(self, answered_model: str | None) -> None:
        if answered_model != self._answered_model:
            self._base = _hash_of(self._asked, answered_model)
            self._answered_model = answered_model

    def _written(self, number: bytes, keys: list[bytes]) -> dict[bytes, float]:
        """The scores of a query that are in the file, those of `keys` and perhaps some others."""
        run = self._db.execute
        found = run("SELECT id FROM query WHERE key = ?", (number,)).fetchone()
        if found is None:
            return {}
        # To read all scores of a query is six times as fast as to look for each, and mostly these
        # are the ones. A query that was ranked over a whole corpus has too many.
        most = 4 * len(keys)
        rows = run(_SELECT + "LIMIT ?", (*found, most + 1)).fetchall()
        if len(rows) <= most:
            return self._unsealed_scores(rows)
        known: dict[bytes, float] = {}
        rest = iter(keys)
        while some := list(islice(rest, _ROWS)):
            marks = ", ".join("?" * len(some))
            rows = run(f"{_SELECT} AND document IN ({marks})", (*found, *some)).fetchall()
            known.update(self._unsealed_scores(rows))
        return known

    def _unsealed_scores(self, rows: list[tuple[bytes, float, int]]) -> dict[bytes, float]:
        """The scores of rows of the file, each held against its seal."""
        if not rows:
            return {}
        keys, scores, seals = zip(*rows, strict=True)
        try:
            true = _unsealed(keys, seals)
        except (struct.error, TypeError):
            true = ()
        if scores != true:
            raise JobDamagedError(
                f"{self._path}: a score is not as it was written; remove the file to begin anew"
            )
        return dict(zip(keys, true, strict=True))

    def _flush(self) -> None:
        if not self._pending:
            return
        run = self._db.execute
        with self._transaction():
            rows: list[_Sealed] = []
            for query, waiting in self._pending.items():
                run("INSERT OR IGNORE INTO query (key) VALUES (?)", (query,))
                number = run("SELECT id FROM query WHERE key = ?", (query,)).fetchone()
                scores = tuple(waiting.values())
                # Number, key, score and seal of each.
                rows += zip(
                    number * len(scores), waiting, scores, _sealed(waiting, scores), strict=True
                )
            whole = len(rows) - len(rows) % _ROWS
            for start in range(0, whole, _ROWS):
                some = chain.from_iterable(rows[start : start + _ROWS])
                run(_INSERT_ROWS, tuple(some))
            self._db.executemany(_INSERT, rows[whole:])
        self._pending.clear()
        self._stores = self._scores = 0

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # IMMEDIATE: a transaction that turns from reading to writing is refused, not kept waiting.
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            # Some errors have ended the transaction already.
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._error_of(error) from None

    def _error_of(self, error: sqlite3.Error) -> JobError:
        # The lowest byte is the kind of error, the others say more of it.
        kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if kind in _BUSY:
            return JobError(
                f"{self._path}: another process has kept it locked for {self._patience:g} s"
            )
        if kind == sqlite3.SQLITE_NOTADB:
            return JobError(f"{self._path} is not a score cache, or its beginning is damaged")
        if kind in _DAMAGED:
            return JobDamagedError(
                f"{self._path} is damaged ({error}); remove the file to begin anew"
            )
        if kind == _FULL:
            return JobFullError(f"{self._path}: {error}")
        return JobError(f"{self._path}: {error}")


def _feed(hasher: blake2b, part: str | bytes | None) -> None:
    """Take in one part so that no other parts give the same bytes: its length goes first."""
    if part is None:
        hasher.update(b"\xff" * 8)
        return
    data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
    hasher.update(len(data).to_bytes(8, "little"))
    hasher.update(data)


def _hash_of(*parts: str | bytes | None) -> blake2b:
    hasher = blake2b(digest_size=_KEY_BYTES)
    for part in parts:
        _feed(hasher, part)
    return hasher


def _sealed(keys: Collection[bytes], scores: Sequence[float]) -> tuple[int, ...]:
    """The scores' bits, each combined with the first of its document's key."""
    return struct.unpack(f"<{len(scores)}q", _combined(keys, "d", scores))


def _unsealed(keys: Collection[bytes], seals: Sequence[int]) -> tuple[float, ...]:
    """The scores, bit for bit."""
    return struct.unpack(f"<{len(seals)}d", _combined(keys, "q", seals))


def _combined(keys: Collection[bytes], kind: str, numbers: Sequence[float]) -> bytes:
    size = 8 * len(numbers)
    # Every second of the keys' 64-bit words. All at once, as one large number each: a loop over the
    # documents would cost more than reading them from the file.
    words = array("Q", b"".join(keys))[::2].tobytes()
    packed = struct.pack(f"<{len(numbers)}{kind}", *numbers)
    both = int.from_bytes(words, "little") ^ int.from_bytes(packed, "little")
    return both.to_bytes(size, "little")
