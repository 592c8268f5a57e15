"""Files that are whole or absent, names that last, and what it means when the disk says no.

A line belongs here when every file of a job needs it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from rerank_async.bulk._errors import JobError, JobFullError

__all__ = ["NO_ROOM", "as_job_error", "replace_file", "replacing", "sync_directory"]

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sync_directory(path: Path) -> None:
    """Make the names in a directory last, where a program has a say in that."""
    if not hasattr(os, "O_DIRECTORY"):
        # Windows opens no directory as a file; its file system sees to names by itself.
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; what is written there appears under `path` once it is whole.

    Raises:
        JobFullError: the disk took no more.
        JobError: it cannot be written.
    """
    fresh = path.with_name(path.name + ".new")
    try:
        yield fresh
        # Windows syncs only what is open for writing.
        with fresh.open("r+b") as file:
            os.fsync(file.fileno())
        fresh.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        if isinstance(error, JobError):
            raise
        raise as_job_error(path, error) from None
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, whole.

    Raises:
        JobFullError: the disk took no more.
        JobError: it cannot be written.
    """
    with replacing(path) as fresh:
        fresh.write_bytes(data)


def as_job_error(path: Path, error: OSError) -> JobError:
    """What an error of the system means for a job."""
    if error.errno in NO_ROOM:
        return JobFullError(
            f"{path}: {error.strerror}; make room and run the same command again: everything that "
            "was acknowledged is kept"
        )
    return JobError(f"{path}: {error.strerror or error}")
