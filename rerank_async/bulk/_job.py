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
from typing import Self

import orjson

from rerank_async._version import __version__
from rerank_async.bulk._disk import as_job_error, replace_file, sync_directory
from rerank_async.bulk._entries import Entry, frame, opened, unpacked
from rerank_async.bulk._errors import (
    JobChangedError,
    JobDamagedError,
    JobError,
    JobLockedError,
)
from rerank_async.bulk._index import Index
from rerank_async.bulk._journal import Journal, recover
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
        index: its rows and what became of them.
        dropped: bytes of the journal's last group that had not reached the disk whole.
        skipped: damaged entries that were left out on demand.

    Raises:
        JobLockedError: another process works on it.
        JobError: it cannot be made or opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dropped = self.skipped = 0
        self._journal: Journal | None = None
        self._reading: int | None = None
        try:
            self._is_new = not path.exists()
            path.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(path / "lock")
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
            os.close(self._reading)
            self._reading = None
        if self._lock >= 0:
            self.index.close()
            self._let_go()

    def _let_go(self) -> None:
        with contextlib.suppress(OSError):
            if self._is_new and not self._manifest_path.exists():
                # Nothing was begun: leave no trace.
                (self.path / "lock").unlink(missing_ok=True)
                self.path.rmdir()
        os.close(self._lock)
        self._lock = -1

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
            manifest: what the job is.
            salvage: leave out what is damaged.
            take: is called with every entry, in the journal's order.
            on_durable: is called with the number of entries of each group that reached the disk.

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
            entry = unpacked(payload)
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
                self._reading = os.open(self._journal_path, os.O_RDONLY | os.O_CLOEXEC)
            while True:
                data = os.pread(self._reading, size, offset)
                end = data.find(b"\n") + 1
                if end or len(data) < size:
                    break
                size *= 8
        except OSError as error:
            raise as_job_error(self._journal_path, error) from None
        found = opened(data[:end])
        if found is None:
            raise JobDamagedError(f"{self._journal_path}: the entry at byte {offset} is damaged")
        return unpacked(found[0])

    def outcomes(self) -> Iterator[tuple[Entry, int]]:
        """The entry of every row that has one, and the row's `start`, in the input's order.

        Raises:
            JobDamagedError: an entry is not as it was written.
        """
        for offset, start in self.index.offsets():
            yield self.entry(offset), start


def _locked(path: Path) -> int:
    """Lock a file for as long as this process lives, or until it is closed.

    Raises:
        JobLockedError: somebody else has it.
    """
    import fcntl

    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            has_name = path.exists() and path.stat().st_ino == os.fstat(file).st_ino
        except BlockingIOError:
            holder = os.read(file, 20).decode("ascii", "replace").strip()
            os.close(file)
            raise JobLockedError(
                f"another process{f' ({holder})' if holder else ''} works on the job in "
                f"{path.parent}: wait for it, or give this job another directory (--job)"
            ) from None
        except BaseException:
            os.close(file)
            raise
        if has_name:
            break
        # Its last holder has removed it: what was locked has no name any more.
        os.close(file)
    # For people, and no matter on a full disk: the lock is the system's, and ends with its process.
    with contextlib.suppress(OSError):
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    return file
