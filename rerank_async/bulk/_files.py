"""Files by their endings: plain, `.gz`, `.zst`, and `-` for standard input, whole or not at all.

A compressed file that was cut off is an error here; other readers end there without a word.
A line belongs here when it is about bytes and lines; what they mean is in `_inputs`.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import selectors
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from stat import S_ISREG
from typing import IO, Any, Protocol, cast

from attrs import frozen

from rerank_async._paths import STDIN
from rerank_async.bulk._errors import InputError

__all__ = [
    "COMPRESSED",
    "STDIN",
    "Lines",
    "content_ending",
    "is_rereadable",
    "lines",
    "name_of",
    "reading",
    "writing",
]

# Of what is compressed so much is taken at once, and less where it would become more than that.
_PACKED = 2**14
_UNPACKED = 2**18
_FIRST, _LEAST = 2**10, 2**6
# Lines of documents are long: a larger buffer is filled less often.
_BUFFER = 2**17
_BOM = b"\xef\xbb\xbf"


def name_of(path: Path) -> str:
    """What the file is called in messages."""
    return "standard input" if str(path) == STDIN else str(path)


def content_ending(path: Path) -> str:
    """The ending that says what is in the file, without dot: "jsonl" of `x.jsonl.gz`."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSED:
        suffix = Path(path.stem).suffix.lower()
    return suffix.removeprefix(".")


def is_rereadable(path: Path) -> bool:
    """Whether the file may be read more than once: not standard input, and not a pipe.

    A file that cannot be looked at counts as one: who reads it, will be told.
    """
    if str(path) == STDIN:
        return False
    try:
        return S_ISREG(path.stat().st_mode) or path.is_dir()
    except OSError:
        return True


# ── reading ──


def reading(path: Path) -> IO[bytes]:
    """The file, open for reading what it holds uncompressed; a context manager.

    Raises:
        InputError: it cannot be opened, or, while reading, it is damaged or ends too early.
    """
    name = name_of(path)
    suffix = path.suffix.lower()
    # Before the file is opened, so that nobody has to close it.
    compression = _COMPRESSIONS.get(suffix)
    new = None if compression is None else compression.decompressor(name)
    try:
        if str(path) == STDIN:
            # Closed by whoever reads it, so not the one that belongs to the process.
            raw = os.fdopen(os.dup(0), "rb", buffering=0)
        else:
            raw = path.open("rb", buffering=0)
    except OSError as error:
        raise InputError(f"{name}: {_reason(error)}") from None
    if compression is None or new is None:
        return io.BufferedReader(_Told(raw, name), _BUFFER)
    return io.BufferedReader(_Inflated(raw, name, new, pads=compression.pads), _BUFFER)


def lines(path: Path) -> Generator[tuple[int, bytes], None, None]:
    """The lines of a file with their numbers, from 1, without what ends them.

    Lines that are blank are passed over, and a byte order mark before the first. Closing the
    generator closes the file.

    Raises:
        InputError: see `reading`.
    """
    with reading(path) as file:
        first = file.readline().removeprefix(_BOM)
        if not _is_blank(first):
            yield 1, first.rstrip(b"\r\n")
        for number, line in enumerate(file, 2):
            if not _is_blank(line):
                yield number, line.rstrip(b"\r\n")


class Lines:
    """The lines of one file, and what is wrong with one.

    Args:
        path: the file; `-` is standard input.

    Attributes:
        path: the file.
        name: the file's name in messages.
        is_rereadable: whether the file may be read more than once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = name_of(path)
        self.is_rereadable = is_rereadable(path)
        self._was_read = False

    def read(self) -> Generator[tuple[int, bytes], None, None]:
        """See `lines`.

        Raises:
            InputError: it has been read, and can be once only.
        """
        if self._was_read and not self.is_rereadable:
            raise InputError(f"{self.name} can be read once only, and has been")
        self._was_read = True
        return lines(self.path)

    def wrong(self, number: int, what: object) -> InputError:
        """The error that says what is wrong with a line."""
        return InputError(f"{self.name}: line {number}: {what}")


def _is_blank(line: bytes) -> bool:
    return not line or line.isspace()


class _Told(io.RawIOBase):
    """A file whose errors say its name.

    Args:
        raw: the file; it is closed with this one.
        name: the file's name in messages.
    """

    def __init__(self, raw: io.FileIO, name: str) -> None:
        super().__init__()
        self._raw = raw
        self._name = name

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        try:
            while (found := self._raw.readinto(buffer)) is None:
                _wait_for(self._raw)
            return found
        except OSError as error:
            raise InputError(f"{self._name}: {_reason(error)}") from None

    def close(self) -> None:
        self._raw.close()
        super().close()


def _wait_for(raw: io.FileIO) -> None:
    """Wait until there is something to read, on a pipe that its other user made non-blocking.

    Such a pipe says "nothing now" where a file says that it is at its end.
    """
    with selectors.DefaultSelector() as selector:
        selector.register(raw, selectors.EVENT_READ)
        selector.select()


class _Decompressor(Protocol):
    """One member of a compressed file: what `zlib` and `zstandard` have in common."""

    def decompress(self, data: bytes, /) -> bytes: ...

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...


class _Inflated(_Told):
    """A compressed file, read as what it holds: all its members (frames), each to its end.

    Args:
        raw: the file; it is closed with this one.
        name: the file's name in messages.
        new: a function that makes a decompressor for one member.
        pads: whether zeros between and after members are passed over.
    """

    def __init__(
        self, raw: io.FileIO, name: str, new: Callable[[], _Decompressor], *, pads: bool
    ) -> None:
        super().__init__(raw, name)
        self._new = new
        self._pads = pads
        self._member: _Decompressor | None = new()
        # Whether the member has been fed, and whether there has been any before.
        self._begun = self._any = False
        self._packed = b""
        # How many bytes of it to take next.
        self._step = _FIRST
        self._ready = memoryview(b"")

    def readinto(self, buffer: Any, /) -> int | None:
        target = memoryview(buffer).cast("B")
        while not self._ready:
            found = self._more()
            if found is None:
                return 0
            self._ready = memoryview(found)
        size = min(len(target), len(self._ready))
        target[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _more(self) -> bytes | None:
        """The next piece, perhaps empty; None at the end of the file."""
        data = self._taken()
        if not data:
            if self._begun:
                raise InputError(f"{self._name} is cut off: its compressed data end too early")
            if not self._any:
                raise InputError(f"{self._name} is empty: compressed data never are")
            return None
        if self._any and not self._begun and self._pads and not data.strip(b"\0"):
            # Some tapes and disks are filled up with zeros; `gzip` passes over them, too.
            return b""
        if self._member is None:
            self._member = self._new()
        try:
            found = self._member.decompress(data)
        except Exception as error:
            # zlib's and zstandard's own errors have no base in common but this.
            if isinstance(error, (MemoryError, InputError)):
                raise
            raise InputError(f"{self._name} is damaged: {error}") from None
        self._begun = self._any = True
        if self._member.eof:
            self._packed = self._member.unused_data + self._packed
            self._member, self._begun = None, False
        if len(found) > _UNPACKED:
            # A thousand times as much is not uncommon where lines repeat each other.
            self._step = max(_LEAST, len(data) * _UNPACKED // len(found))
        else:
            self._step = min(_PACKED, self._step * 2)
        return found

    def _taken(self) -> bytes:
        """The next piece of what is compressed; empty at the end of the file."""
        try:
            packed = self._packed
            while not packed and (read := self._raw.read(_PACKED)) != b"":
                if read is None:
                    _wait_for(self._raw)
                else:
                    packed = read
        except OSError as error:
            raise InputError(f"{self._name}: {_reason(error)}") from None
        self._packed = packed[self._step :]
        return packed[: self._step]


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, IsADirectoryError):
        return "it is a directory, not a file"
    if isinstance(error, PermissionError):
        return "it may not be read: permission denied"
    return error.strerror or str(error)


# ── writing ──


@contextlib.contextmanager
def writing(path: Path, suffix: str) -> Iterator[IO[bytes]]:
    """A new file, open for writing; what is compressed is the same for the same bytes.

    Args:
        path: the file; what stands there is replaced.
        suffix: the ending that says how the file is compressed; its own name may be a passing one.

    Raises:
        InputError: the package for this ending is missing.
        OSError: it cannot be written.
    """
    compression = _COMPRESSIONS.get(suffix.lower())
    # Before the file is made, so that none is left where the package is missing.
    compress = None if compression is None else compression.compressor(path.name)
    with contextlib.ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(path.open("wb", _BUFFER))
        if compress is not None:
            file = stack.enter_context(io.BufferedWriter(compress(file), _BUFFER))
        yield file


# ── compression ──


@frozen
class _Compression:
    """How the files of one ending are compressed.

    Attributes:
        decompressor: a function that is given the file's name for messages, and returns a function
            that makes a decompressor for one member. It raises InputError where a package is
            missing.
        compressor: a function that is given the file's name for messages, and returns a function
            that makes a stream which compresses into a file. It raises InputError where a package
            is missing.
        pads: whether programs fill such files up with zeros, which are passed over.
    """

    decompressor: Callable[[str], Callable[[], _Decompressor]]
    compressor: Callable[[str], Callable[[IO[bytes]], io.RawIOBase]]
    pads: bool


def _gzip_decompressor(name: str) -> Callable[[], _Decompressor]:
    # 31: the largest window, and a header and checksum of gzip's, which are checked.
    return lambda: cast("_Decompressor", zlib.decompressobj(31))


def _gzip_compressor(name: str) -> Callable[[IO[bytes]], io.RawIOBase]:
    # No name and no time within: neither belongs to what is written.
    return lambda file: cast(
        "io.RawIOBase", gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0)
    )


_WANTED = '{name}: files in .zst need zstandard: pip install "rerank-async[zstd]"'


def _zstandard_decompressor(name: str) -> Callable[[], _Decompressor]:
    try:
        from zstandard import ZstdDecompressor
    except ImportError:
        raise InputError(_WANTED.format(name=name)) from None
    # As much as `zstd --long=31` makes; its memory is taken only where a file asks for it.
    made = ZstdDecompressor(max_window_size=2**31)
    return lambda: cast("_Decompressor", made.decompressobj())


def _zstandard_compressor(name: str) -> Callable[[IO[bytes]], io.RawIOBase]:
    try:
        from zstandard import ZstdCompressor
    except ImportError:
        raise InputError(_WANTED.format(name=name)) from None
    # With a checksum, as the program `zstd` writes it.
    made = ZstdCompressor(write_checksum=True)
    return lambda file: cast("io.RawIOBase", made.stream_writer(file, closefd=False))


# To add a compression, name it here.
_COMPRESSIONS = {
    ".gz": _Compression(_gzip_decompressor, _gzip_compressor, pads=True),
    ".zst": _Compression(_zstandard_decompressor, _zstandard_compressor, pads=False),
}
COMPRESSED = tuple(_COMPRESSIONS)
