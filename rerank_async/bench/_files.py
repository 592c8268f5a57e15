"""A report's files: whole or not there, in a directory that is made when it is not there.

A line belongs here when it touches the disk.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from rerank_async._errors import InvalidRequestError

__all__ = ["make_directory", "remove", "write_whole"]


def make_directory(path: Path) -> None:
    """Make a directory and those above it, or use it as it is.

    Raises:
        InvalidRequestError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidRequestError(f"{path}: {error.strerror or error}") from None


def write_whole(path: Path, data: bytes) -> Path:
    """Write a file so that a reader sees the old one or the new one, whole.

    Raises:
        InvalidRequestError: it cannot be written.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        fresh.write_bytes(data)
        fresh.replace(path)
    except OSError as error:
        raise InvalidRequestError(f"{path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
    return path


def remove(paths: Iterable[Path]) -> None:
    """Remove files of an earlier report, where they can be."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
