"""Files that all machines see: on a shared disk or in an object store, whole or absent.

A line belongs here when it reads or writes a file by its name, whatever is in it.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from hashlib import file_digest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from rerank_async._errors import InvalidRequestError
from rerank_async._paths import local_path, scheme_of
from rerank_async.bulk._errors import JobError

__all__ = ["Place"]


class Place:
    """A file or a directory: a path, or a URI that pyarrow understands.

    Args:
        name: path or URI, as the user wrote it.

    Attributes:
        name: path or URI, as the user wrote it.
        spec: path or URI that means the same on every machine and in every working directory.
        system: file system of pyarrow.
        path: path within that system.

    Raises:
        InvalidRequestError: nobody knows what it means.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.path: str
        if scheme_of(name) in (None, "file"):
            # A file URI names a path that must be the same everywhere, as a path does.
            self.spec = self.path = str(local_path("path", name).absolute())
            self.system = pyarrow.fs.LocalFileSystem()
            return
        if "://" not in name:
            raise InvalidRequestError(
                f"{name}: a URI has two slashes after its scheme; was it given as a pathlib.Path, "
                "which leaves one of them? Pass it as a string"
            )
        # What stands behind the question mark are options of the file system.
        path, mark, options = name.partition("?")
        self.spec = path.rstrip("/") + mark + options
        try:
            self.system, self.path = pyarrow.fs.FileSystem.from_uri(self.spec)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InvalidRequestError(f"{name}: {error}") from None

    def inside(self, name: str) -> Place:
        """A directory inside."""
        path, mark, options = self.spec, "", ""
        if scheme_of(path) is not None:
            path, mark, options = path.partition("?")
        return Place(f"{path}/{name}{mark}{options}")

    def at(self, name: str) -> str:
        """The full path of something inside; of the place itself where `name` is empty."""
        return f"{self.path}/{name}" if name else self.path

    def files(self) -> list[str]:
        """The names of all files inside, in order; none if there is no such directory.

        What begins with `.` or `_` is passed over, as all readers of Parquet directories do.
        """
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True, recursive=True)
        names = [
            info.path[len(self.path) :].lstrip("/")
            for info in self.system.get_file_info(selector)
            if info.is_file
        ]
        return sorted(
            name for name in names if not any(part[0] in "._" for part in name.split("/"))
        )

    def is_file(self, name: str = "") -> bool:
        """Whether it, or something inside, is a file."""
        return bool(self.system.get_file_info(self.at(name)).is_file)

    def read(self, name: str) -> bytes | None:
        """What is in a file; None if there is none."""
        if not self.is_file(name):
            return None
        with self.system.open_input_file(self.at(name)) as file:
            data: bytes = file.read()
        return data

    def parquet(self, name: str) -> Any:
        """A Parquet file, opened: a context manager. Nothing of it is read ahead."""
        return pq.ParquetFile(self.at(name), filesystem=self.system, pre_buffer=False)

    def footer(self, name: str) -> bytes:
        """The end of a Parquet file, which says where everything in it is, and within which bounds.

        Raises:
            OSError: it is too short to have one.
        """
        with self.system.open_input_file(self.at(name)) as file:
            size = file.size()
            length = int.from_bytes(file.read_at(4, size - 8), "little")
            data: bytes = file.read_at(length, size - 8 - length)
        return data

    def mark(self, name: str) -> tuple[int, ...]:
        """Numbers of which one changes when the file is written to, looked up and not read."""
        if isinstance(self.system, pyarrow.fs.LocalFileSystem):
            stat = Path(self.at(name)).stat()
            # The time of the last change of any kind cannot be set back, as the other one can.
            return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
        info = self.system.get_file_info(self.at(name))
        return info.size or 0, info.mtime_ns or 0

    def fingerprint(self, name: str) -> bytes:
        """What tells a Parquet file from any other one, and from itself before it was changed.

        Of a file on a disk its content, all of which is read. What is in an object store would have
        to be fetched through this one process: there it is the object's size, the time at which the
        store took it, which nobody can set, and the file's footer.

        Raises:
            OSError: it cannot be read.
        """
        if isinstance(self.system, pyarrow.fs.LocalFileSystem):
            with Path(self.at(name)).open("rb") as file:
                return file_digest(file, "sha256").digest()
        return repr(self.mark(name)).encode() + self.footer(name)

    def write(self, name: str, data: bytes) -> None:
        """Write a file so that a reader sees it whole or not at all; replaces one that is there.

        Raises:
            JobError: it cannot be written.
        """
        try:
            if isinstance(self.system, pyarrow.fs.LocalFileSystem):
                _replace(Path(self.at(name)), data)
            else:
                # An object store shows an object when all of it has come.
                with self.system.open_output_stream(self.at(name)) as stream:
                    stream.write(data)
        except OSError as error:
            raise JobError(f"{self.name}: {error}") from None

    def make(self) -> None:
        """Make the directory, and those around it.

        Raises:
            JobError: it cannot be made.
        """
        try:
            self.system.create_dir(self.path, recursive=True)
        except OSError as error:
            raise JobError(f"{self.name}: {error}") from None

    def clear(self) -> None:
        """Remove all that is inside."""
        self.system.delete_dir_contents(self.path, missing_dir_ok=True)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.system.delete_file(self.at(name))


def _replace(path: Path, data: bytes) -> None:
    # A name of its own: where the network is torn, two machines may write the same file.
    fresh = path.with_name(f"_{path.name}.{uuid.uuid4().hex}.new")
    try:
        with fresh.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
