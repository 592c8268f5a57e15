"""The journal: an append-only file of checked entries, synced in groups by a thread of its own.

What was acknowledged (`durable`) survives the death of the process and of the machine.
A line belongs here when it is about that file; what an entry says is `_entries`.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from attrs import frozen

from rerank_async.bulk._disk import NO_ROOM, as_job_error, replacing
from rerank_async.bulk._entries import frame, unframed
from rerank_async.bulk._errors import JobDamagedError, JobError, JobFullError

__all__ = ["Journal", "Recovered", "recover"]

# A group is handed to the disk when it has so many entries or bytes, or its first entry has waited
# so long.
_GROUP_ENTRIES = 64
_GROUP_BYTES = 2**20
_GROUP_SECONDS = 0.2
# What waits for the disk may take up so much memory before whoever adds has to wait, too.
_MOST_WAITING = 32 * 2**20

# What an entry may begin with.
_HEAD = re.compile(rb"[0-9a-f]{8}[=+]")


@frozen
class Recovered:
    """How a journal was found.

    Attributes:
        end: the length of the file in bytes, all of which are good.
        dropped: the bytes of a last group that did not reach the disk whole; they were cut off.
        skipped: the number of damaged lines that were left out, because that was asked for.
    """

    end: int
    dropped: int
    skipped: int


def recover(path: Path, take: Callable[[int, bytes], None], *, salvage: bool = False) -> Recovered:
    """Read a journal from its beginning, and mend its end.

    A last group that is not whole was never acknowledged: what is damaged of it, and what follows,
    is cut off.
    Damage before that is no accident of writing.

    Args:
        path: the journal; one that does not exist is empty.
        take: a function that is called with the offset and the payload of every entry, in order,
            after the whole file has been checked.
        salvage: whether to leave damaged lines out instead of raising. Every entry that is whole is
            kept, those of the last group too, and the file is written anew without the others.

    Raises:
        JobDamagedError: naming the offset.
        JobFullError: there is no room to write it anew.
        JobError: the file cannot be read or mended.
    """
    try:
        end, size, skipped = _survey(path, salvage=salvage)
        if skipped and not salvage:
            raise JobDamagedError(
                f"{path}: the entry at byte {skipped[0][0]} is damaged, and whole ones follow it; "
                "pass salvage (--salvage) to leave out what is damaged and send those rows again"
            )
        if skipped:
            size -= sum(stop - start for start, stop in skipped)
            end = _rewrite(path, end, skipped)
        else:
            with path.open("r+b") as file:
                if end < size:
                    file.truncate(end)
                # A process that was killed leaves whole entries that are not on the disk; now they
                # count, and the next group may only begin after them.
                os.fsync(file.fileno())
    except FileNotFoundError:
        return Recovered(0, 0, 0)
    except OSError as error:
        if isinstance(error, JobError):
            raise
        raise as_job_error(path, error) from None
    for offset, _, found in _lines(path):
        assert found is not None
        take(offset, found[0])
    return Recovered(end, size - end, len(skipped))


def _lines(path: Path) -> Iterator[tuple[int, bytes, tuple[bytes, bool] | None]]:
    """Every line with its offset and with what `unframed` makes of it."""
    offset = 0
    with path.open("rb", buffering=2**18) as file:
        for line in file:
            found = unframed(line)
            if found is None and (start := _buried(line)):
                yield offset, line[:start], None
                offset, line = offset + start, line[start:]
                found = unframed(line)
            yield offset, line, found
            offset += len(line)


def _buried(line: bytes) -> int | None:
    """Where in a damaged line a whole entry begins; None if in none.

    A damaged newline joins two lines, and of those the second is as good as it was. Were it taken
    for a part of the damage, the beginning of a group would be overlooked.
    """
    for head in _HEAD.finditer(line):
        if unframed(line[head.start() :]) is not None:
            return head.start()
    return None


def _survey(path: Path, *, salvage: bool) -> tuple[int, int, list[tuple[int, int]]]:
    """Where the good part ends, how long the file is, and which spans before that end are bad."""
    end = offset = 0
    spans: list[tuple[int, int]] = []
    # Damage since the last entry that is surely good. What follows it may be of the same group:
    # that is known only when another group begins.
    doubtful: list[tuple[int, int]] = []
    for offset, line, found in _lines(path):
        stop = offset + len(line)
        if found is None:
            doubtful.append((offset, stop))
        elif not doubtful:
            end = stop
        elif found[1] or salvage:
            # A group begins only after the one before is on the disk.
            spans += doubtful
            doubtful = []
            end = stop
        offset = stop
    return end, offset, spans


def _rewrite(path: Path, end: int, skipped: list[tuple[int, int]]) -> int:
    """Write the good part anew, without the bad spans; its length."""
    begins = {start for start, _ in skipped}
    with replacing(path) as fresh, fresh.open("wb") as file:
        for offset, line, _ in _lines(path):
            if offset >= end:
                break
            if offset not in begins:
                file.write(line)
        return file.tell()


# Windows takes a file for text unless it is told otherwise, and changes its line ends.
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)


class Journal:
    """A journal that is being written; to be used from one event loop.

    Args:
        path: the file; made when it does not exist.
        end: the length of the file in bytes, as `recover` says it.
        on_durable: a function that is called with the number of entries of each group that has
            reached the disk.

    Raises:
        JobError: the file cannot be opened.
    """

    def __init__(
        self, path: Path, end: int, *, on_durable: Callable[[int], None] | None = None
    ) -> None:
        self._path = path
        try:
            self._file = os.open(path, _FLAGS, 0o644)
        except OSError as error:
            raise JobError(f"{path}: {error.strerror or error}") from None
        self._on_durable = on_durable
        # Up to where the file is good and on the disk, and up to where it will be.
        self._synced = self._end = end
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Future[None] | None = None
        # The same without the loop, which may hear of its end late.
        self._handed: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rerank-journal")
        self._failure: JobError | None = None
        self._closed = False

    @property
    def end(self) -> int:
        """The journal's length in bytes once everything has been written."""
        return self._end

    async def add(self, payload: bytes) -> int:
        """Add an entry; it is durable a little later. Waits only when too much waits.

        Returns:
            The offset that the entry will have.

        Raises:
            JobFullError: the disk took no more.
            JobError: the file could not be written, now or before.
        """
        offset = self.add_now(payload)
        while self._end - self._synced > _MOST_WAITING and self._writing is not None:
            await asyncio.wait([self._writing])
            self._check()
        return offset

    def add_now(self, payload: bytes) -> int:
        """As `add`, whatever waits already."""
        self._check()
        line = frame(payload, begins=not self._waiting)
        offset, self._end = self._end, self._end + len(line)
        self._waiting.append(line)
        self._waiting_bytes += len(line)
        self._see_to_it()
        return offset

    async def sync(self) -> None:
        """Wait until everything that was added is durable.

        Raises:
            JobFullError: the disk took no more.
            JobError: the file could not be written, now or before.
        """
        while not (self._failure or self._closed) and (self._waiting or self._writing is not None):
            if self._writing is None:
                self._begin()
            assert self._writing is not None
            await asyncio.wait([self._writing])
        self._check()

    def close(self) -> None:
        """Write what waits and close the file, without the event loop's help. Idempotent.

        It does not raise: what could not be written was not acknowledged.
        """
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        # Waits for the group that is being written.
        self._thread.shutdown(wait=True)
        try:
            # After a group that failed none may follow.
            failed = self._failure is not None or (
                self._handed is not None and self._handed.exception() is not None
            )
            if self._waiting and not failed:
                group = b"".join(self._waiting)
                _write(self._file, group, self._end - self._waiting_bytes)
        except JobError:
            pass
        finally:
            os.close(self._file)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise JobError(f"{self._path}: the journal is closed")

    def _see_to_it(self) -> None:
        """Begin a group, now or in time."""
        if self._writing is not None or not self._waiting:
            return
        if len(self._waiting) >= _GROUP_ENTRIES or self._waiting_bytes >= _GROUP_BYTES:
            self._begin()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_GROUP_SECONDS, self._begin)

    def _begin(self) -> None:
        """Hand everything that waits to the thread, as one group."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writing is not None or not self._waiting or self._closed:
            return
        entries, group = len(self._waiting), b"".join(self._waiting)
        self._waiting, self._waiting_bytes = [], 0
        self._handed = self._thread.submit(_write, self._file, group, self._synced)
        self._writing = asyncio.wrap_future(self._handed)
        self._writing.add_done_callback(lambda done: self._written(done, entries, len(group)))

    def _written(self, done: asyncio.Future[None], entries: int, size: int) -> None:
        self._writing = None
        if done.cancelled():
            return
        error = done.exception()
        if error is not None:
            if not isinstance(error, JobError):
                error = JobError(f"{self._path}: {error}")
            self._failure = error
            return
        self._synced += size
        if self._on_durable is not None:
            self._on_durable(entries)
        if not self._closed:
            self._see_to_it()


def _write(file: int, group: bytes, good: int) -> None:
    """Write a group and sync it; what went wrong is cut off again: nobody was told of it.

    Args:
        file: the journal, opened to append.
        group: the bytes of the group.
        good: the file's length in bytes before.
    """
    done = "written"
    try:
        rest = memoryview(group)
        while rest:
            rest = rest[os.write(file, rest) :]
        done = "synced"
        _sync(file)
    except OSError as error:
        # After a failed sync nobody knows what is on the disk; a second one may say that all is
        # well when it is not, and reading may show what only memory holds.
        try:
            os.ftruncate(file, good)
        except OSError as second:
            raise JobError(f"the journal could not be mended: {second.strerror}") from None
        if error.errno in NO_ROOM:
            raise JobFullError(
                f"the journal could not be {done}: {error.strerror}; make room and run the same "
                "command again: everything that was acknowledged is kept"
            ) from None
        raise JobError(
            f"the journal could not be {done}: {error.strerror}; run the same command again, which "
            "checks what is on the disk"
        ) from None


def _sync(file: int) -> None:
    # Not every system has the cheaper one.
    getattr(os, "fdatasync", os.fsync)(file)
