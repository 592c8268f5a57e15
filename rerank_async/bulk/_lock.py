"""The lock of a job's directory, on every system.

A line belongs here when it is about who holds a job. Where the system has locks, it is the
system's, which ends with its process; elsewhere it is a file that names its holder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import warnings
from pathlib import Path

from rerank_async.bulk._errors import JobLockedError

with warnings.catch_warnings():
    # It warns where the system has no locks; what that means for a job, the docs say.
    warnings.simplefilter("ignore", UserWarning)
    from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

__all__ = ["JobLock"]

# The last holder may remove a file between our opening and our locking it, and a soft lock needs
# one try to find that its holder is dead.
_TRIES = 5


class JobLock:
    """A lock on a file, until it is released or this process ends, however it ends.

    Args:
        path: the file, in the job's directory; it holds the process id, for people. Where there
            are no locks, a file of that name and `.holder` is the lock: it names its process and
            machine, so that one that died there holds nobody up.

    Raises:
        JobLockedError: somebody else holds it.
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if FileLock is SoftFileLock:
            self._take_softly()
        else:
            try:
                # A job may be taken up in one thread and closed in another.
                self._take(FileLock(path, thread_local=False, fallback_to_soft=False), path)
            except OSError as error:
                if error.errno != errno.ENOSYS:
                    raise
                # Not every file system has locks where the system has.
                self._take_softly()
            else:
                # No matter on a full disk, or where not even the holder may write what it locked.
                with contextlib.suppress(OSError):
                    path.write_bytes(f"{os.getpid()}\n".encode())

    def _take_softly(self) -> None:
        path = self._path.with_name(self._path.name + ".holder")
        self._take(SoftFileLock(path, thread_local=False), path)

    def _take(self, lock: BaseFileLock, path: Path) -> None:
        for _ in range(_TRIES):
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=0)
                self._lock = lock
                return
        holder = _holder(path)
        raise JobLockedError(
            f"another process{f' ({holder})' if holder else ''} works on the job in "
            f"{path.parent}: wait for it, or give this job another directory (--job)"
        )

    def release(self, *, with_file: bool = False) -> None:
        """Let go of it; idempotent.

        Args:
            with_file: remove the file, too.
        """
        if with_file and self._lock.is_locked:
            # While it is held: a moment later it may be another's. Not on Windows, where the lock
            # itself removes it.
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
        self._lock.release()


def _holder(path: Path) -> str:
    """The process id that stands in the file, or nothing where it cannot be read."""
    with contextlib.suppress(OSError):
        with path.open("rb") as file:
            first = file.read(20).split(b"\n", 1)[0].strip()
        if first.isdigit():
            return first.decode("ascii")
    return ""
