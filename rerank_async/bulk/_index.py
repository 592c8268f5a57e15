"""Which rows there are and what has become of them: an SQLite file beside the journal.

It holds nothing of its own: it is made anew from the input and the journal each time that a job is
taken up, and keeps them out of memory.
A line belongs here when it is about that file.
"""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from rerank_async.bulk._disk import as_job_error
from rerank_async.bulk._errors import InputError, JobError

__all__ = ["Index"]

# What `known.begun` says: still to be done; begun or met since the job was taken up; known from the
# journal and not met yet.
_TO_DO, _MET, _RECOVERED = range(3)

_TABLES = """
-- Whether these reach the disk does not matter: a job that is taken up makes them anew.
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -8000;
PRAGMA temp_store = FILE;
CREATE TABLE rows (
    ordinal INTEGER PRIMARY KEY, key TEXT NOT NULL, start INTEGER NOT NULL, digest BLOB NOT NULL
);
-- Rows without an id are known by their content, and may occur more than once.
CREATE UNIQUE INDEX ids ON rows (key) WHERE key >= 'id:';
CREATE TABLE known (
    key TEXT PRIMARY KEY,
    offset INTEGER,
    failed INTEGER NOT NULL,
    documents INTEGER NOT NULL,
    begun INTEGER NOT NULL
) WITHOUT ROWID;
"""


class Index:
    """The rows of one job, by their keys.

    It may be used from several threads, one at a time.

    Args:
        path: the file's path; a file that is there is replaced.

    Raises:
        JobError: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.unlink(missing_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except OSError as error:
            raise as_job_error(path, error) from None
        except sqlite3.Error as error:
            raise self._as_job_error(error) from None
        try:
            self._db.executescript(_TABLES)
            self._db.execute("BEGIN")
        except sqlite3.Error as error:
            self._db.close()
            raise self._as_job_error(error) from None

    def _run(
        self, statement: str, values: tuple[str | int | bytes | None, ...] = ()
    ) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise self._as_job_error(error) from None

    def _as_job_error(self, error: sqlite3.Error) -> JobError:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return as_job_error(self._path, OSError(errno.ENOSPC, str(error)))
        return JobError(f"{self._path}: {error}")

    def recovered(self, key: str, offset: int, failed: bool, documents: int) -> None:
        """Note an entry of the journal: a success counts before a failure, then the newest."""
        self._run(
            "INSERT INTO known VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (key) DO UPDATE SET offset = excluded.offset, failed = excluded.failed "
            "WHERE known.failed >= excluded.failed",
            (key, offset, failed, documents, _RECOVERED),
        )

    def forgive(self) -> None:
        """Let what failed be done again."""
        self._run("UPDATE known SET begun = ? WHERE failed", (_TO_DO,))

    def row(self, ordinal: int, key: str, start: int, digest: bytes = b"") -> None:
        """Note a row of the input, in the input's order.

        Raises:
            InputError: its id is another row's.
        """
        try:
            self._run("INSERT INTO rows VALUES (?, ?, ?, ?)", (ordinal, key, start, digest))
        except sqlite3.IntegrityError:
            first = self._run("SELECT ordinal FROM rows WHERE key = ?", (key,)).fetchone()[0]
            raise InputError(
                f"query_id {key.removeprefix('id:')!r} stands in rows {first + 1:,} and "
                f"{ordinal + 1:,}: each may occur once"
            ) from None

    def is_at(self, ordinal: int, key: str, digest: bytes) -> bool:
        """Whether the row at that place of the input was noted with that key and that content."""
        found = self._run("SELECT key, digest FROM rows WHERE ordinal = ?", (ordinal,)).fetchone()
        return bool(found == (key, digest))

    def begin(self, key: str) -> bool:
        """Whether a row is still to be done; once asked, it counts as begun."""
        begun = self._run(
            "INSERT INTO known VALUES (?, NULL, 0, 0, ?) "
            "ON CONFLICT (key) DO UPDATE SET begun = excluded.begun WHERE begun = 0",
            (key, _MET),
        )
        if begun.rowcount > 0:
            return True
        self._run("UPDATE known SET begun = ? WHERE key = ? AND begun = 2", (_MET, key))
        return False

    def offset(self, key: str) -> int | None:
        """Where the entry of a row stands in the journal; None if it has none."""
        found = self._run("SELECT offset FROM known WHERE key = ?", (key,)).fetchone()
        return None if found is None else found[0]

    def ended(self, key: str, offset: int, failed: bool) -> None:
        """Note what became of a row that was begun."""
        self._run("UPDATE known SET offset = ?, failed = ? WHERE key = ?", (offset, failed, key))

    def stranger(self) -> str | None:
        """The key of an entry of the journal whose row was not met, or None."""
        found = self._run("SELECT key FROM known WHERE begun <> ? LIMIT 1", (_MET,)).fetchone()
        return None if found is None else str(found[0])

    def over(self) -> tuple[int, int, int]:
        """Of the rows that the journal knew and that need not be done again: how many there are,
        how many of them failed, and how many documents they have.
        """
        found = self._run(
            "SELECT count(*), coalesce(sum(failed), 0), coalesce(sum(documents), 0) FROM known "
            "WHERE begun = ?",
            (_RECOVERED,),
        ).fetchone()
        return int(found[0]), int(found[1]), int(found[2])

    def offsets(self) -> Iterator[tuple[int, int]]:
        """Where each row's entry stands in the journal, and its `start`, in the input's order."""
        yield from self._run(
            "SELECT known.offset, rows.start FROM rows JOIN known USING (key) "
            "WHERE known.offset IS NOT NULL ORDER BY rows.ordinal"
        )

    def close(self) -> None:
        """Close the file and remove it. Idempotent."""
        self._db.close()
        # One that stays is replaced when the job is taken up.
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
