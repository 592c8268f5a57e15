"""A job's directory: its lock, its manifest, its journal, and the index of both.

A line belongs here when it is about that directory as a whole.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import orjson

from rerank_async._version import __version__
from rerank_async.bulk._disk import as_job_error, replace_file, sync_directory
from rerank_async.bulk._entries import Entry, entry_of, frame, unframed
from rerank_async.bulk._errors import (
    JobChangedError,
    JobDamagedError,
    JobError,
)
from rerank_async.bulk._index import Index
from rerank_async.bulk._journal import Journal, recover
from rerank_async.bulk._lock import JobLock
from rerank_async.bulk._manifest import Manifest, Words, differences, read, written

__all__ = ["Job"]

# What the entry begins with that says whose journal it is.
_HEAD = b'{"fingerprint":'


class Job:
    """A job's directory, held by this process; a context manager that lets go of it.

    Args:
        path: the directory; made when it does not exist.

    Attributes:
        path: the directory.
        index: the job's rows and what became of them.
        dropped: the bytes of the journal's last group that had not reached the disk whole.
        skipped: the number of damaged entries that were left out on demand.

    Raises:
        JobLockedError: another process works on it.
        JobError: it cannot be made or opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dropped = self.skipped = 0
        self._closed = False
        self._journal: Journal | None = None
        self._reading: BinaryIO | None = None
        try:
            self._is_new = not path.exists()
            path.mkdir(parents=True, exist_ok=True)
            self._lock = JobLock(path / "lock")
        except OSError as error:
            raise as_job_error(path, error) from None
        try:
            self.index = Index(path / "index.sqlite")
        except BaseException:
            self._let_go()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what waits, and let go of the directory. Idempotent."""
        if self._journal is not None:
            self._journal.close()
        if self._reading is not None:
            self._reading.close()
            self._reading = None
        if not self._closed:
            self._closed = True
            self.index.close()
            self._let_go()

    def _let_go(self) -> None:
        # Where nothing was begun, no trace is left.
        begun = not self._is_new or self._manifest_path.exists()
        self._lock.release(with_file=not begun)
        if not begun:
            # Somebody else may have come in meanwhile.
            with contextlib.suppress(OSError):
                self.path.rmdir()

    @property
    def _manifest_path(self) -> Path:
        return self.path / "manifest.json"

    @property
    def _journal_path(self) -> Path:
        return self.path / "journal.log"

    @property
    def journal(self) -> Journal:
        """The journal, once the job is `taken_up`."""
        assert self._journal is not None
        return self._journal

    def check(self, words: Words) -> bool:
        """Whether there is something to go on from, and it was begun with these words.

        Raises:
            JobChangedError: it was begun with others; the message says which.
            JobDamagedError: the manifest is not as it was written, or missing.
        """
        before = self._manifest()
        if before is not None:
            self._compare(before, Manifest(words, before.contents))
        return before is not None

    def _manifest(self) -> Manifest | None:
        try:
            data = self._manifest_path.read_bytes()
        except FileNotFoundError:
            if self._journal_path.exists() and self._journal_path.stat().st_size:
                raise JobDamagedError(
                    f"{self._manifest_path} is missing: without it nobody knows what the journal "
                    "beside it was written for; put it back or use another directory"
                ) from None
            return None
        except OSError as error:
            raise JobError(f"{self._manifest_path}: {error.strerror or error}") from None
        try:
            return read(data)
        except ValueError as error:
            raise JobDamagedError(f"{self._manifest_path}: {error}") from None

    def _compare(self, before: Manifest, now: Manifest) -> None:
        changed = differences(before, now)
        if changed:
            raise JobChangedError(
                f"the job in {self.path} was begun differently: {'; '.join(changed)}. Run it as it "
                "was begun, or give this one another directory (--job)"
            )

    def take_up(
        self,
        manifest: Manifest,
        *,
        salvage: bool = False,
        take: Callable[[Entry], None] = lambda entry: None,
        on_durable: Callable[[int], None] | None = None,
    ) -> None:
        """Begin the job, or go on with it: read what the journal holds and open it for more.

        Args:
            manifest: the manifest of the job as it is now.
            salvage: whether to leave out what is damaged.
            take: a function that is called with every entry, in the journal's order.
            on_durable: a function that is called with the number of entries of each group that
                reached the disk.

        Raises:
            JobChangedError: the directory is another job's.
            JobDamagedError: the journal or the manifest is not as it was written.
            JobFullError: the disk took no more.
            JobError: a file cannot be read or written.
        """
        before = self._manifest()
        if before is not None:
            self._compare(before, manifest)
            # What agrees need not be the same: a word may have come that means nothing here.
            manifest = before
        else:
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            replace_file(
                self._manifest_path,
                written(manifest, created=now, by=f"rerank_async {__version__}"),
            )
        head, has_head = orjson.dumps({"fingerprint": manifest.fingerprint()}), False

        def recovered(offset: int, payload: bytes) -> None:
            nonlocal has_head
            if payload.startswith(_HEAD):
                if payload != head:
                    raise JobDamagedError(
                        f"{self._journal_path} was not written for the job that the manifest "
                        "beside it names; put the right one back or use another directory"
                    )
                has_head = True
                return
            entry = entry_of(payload)
            self.index.recovered(entry.key, offset, entry.failed, entry.documents)
            take(entry)

        found = recover(self._journal_path, recovered, salvage=salvage)
        self.dropped, self.skipped = found.dropped, found.skipped
        end = found.end
        if not has_head:
            if end and not salvage:
                raise JobDamagedError(
                    f"{self._journal_path} does not say which job it was written for; pass salvage "
                    "(--salvage) to take it for the one that the manifest beside it names"
                )
            end = self._begin(head)
        self._journal = Journal(self._journal_path, end, on_durable=on_durable)

    def _begin(self, head: bytes) -> int:
        """Say in the journal whose it is, before anything else is written; its length then.

        Not by way of `Journal`: a job may be taken up in a thread, where no event loop runs.
        """
        try:
            with self._journal_path.open("ab") as file:
                file.write(frame(head, begins=True))
                file.flush()
                os.fsync(file.fileno())
                end = file.tell()
            # The journal's own name must last, too.
            sync_directory(self.path)
        except OSError as error:
            raise as_job_error(self._journal_path, error) from None
        # And the directory's, where whoever runs the job may open the one that it is in.
        with contextlib.suppress(OSError):
            sync_directory(self.path.absolute().parent)
        return end

    def entry(self, offset: int) -> Entry:
        """The entry at an offset of the journal; it must have been written.

        Raises:
            JobDamagedError: it is not as it was written.
            JobError: it cannot be read.
        """
        # Most entries are shorter; one that is longer is read again.
        size = 2**14
        try:
            if self._reading is None:
                self._reading = self._journal_path.open("rb", buffering=0)
            while True:
                self._reading.seek(offset)
                data = self._reading.read(size)
                end = data.find(b"\n") + 1
                if end or len(data) < size:
                    break
                size *= 8
        except OSError as error:
            raise as_job_error(self._journal_path, error) from None
        found = unframed(data[:end])
        if found is None:
            raise JobDamagedError(f"{self._journal_path}: the entry at byte {offset} is damaged")
        return entry_of(found[0])

    def entries(self) -> Iterator[tuple[Entry, int]]:
        """The entry of every row that has one, and the row's `start`, in the input's order.

        Raises:
            JobDamagedError: an entry is not as it was written.
        """
        for offset, start in self.index.offsets():
            yield self.entry(offset), start
