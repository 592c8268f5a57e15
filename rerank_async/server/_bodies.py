"""A request's body on its way in: its content encoding undone, and never more of it than agreed.

Pure: whoever carries the pieces says when they come, and counts what is held over all bodies.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from rerank_async.dialects import RefusedError

__all__ = ["ENCODINGS", "Body", "Budget"]

# The most that one step unpacks: a small piece can hold a thousand times its size.
_STEP = 2**20


def _deflate(first: int) -> int:
    # HTTP means zlib's format; some clients send the bare stream. The header's method is 8.
    return zlib.MAX_WBITS if first & 0x0F == 8 else -zlib.MAX_WBITS


def _gzip(first: int) -> int:
    return zlib.MAX_WBITS | 16


# How zlib is to be told what comes, by the first byte of it; None for what needs no unpacking.
ENCODINGS: Mapping[str, Callable[[int], int] | None] = MappingProxyType(
    {"identity": None, "gzip": _gzip, "x-gzip": _gzip, "deflate": _deflate}
)


class Body:
    """Takes the pieces of one body, and gives it whole.

    Args:
        encoding: a name of `ENCODINGS`.
        max_bytes: the most that it may hold, unpacked; None is no limit.

    """

    def __init__(self, encoding: str, max_bytes: int | None) -> None:
        self._format = ENCODINGS[encoding]
        self._encoding = encoding
        self._max_bytes = max_bytes
        self._whole = bytearray()
        self._rest = b""
        self._ended = False
        # zlib does not name the type of its objects.
        self._unpacker: Any = None

    @staticmethod
    def too_large(max_bytes: int) -> RefusedError:
        """What a body of more than `max_bytes` is answered with."""
        return RefusedError(
            413, f"the body has more than {max_bytes:,} bytes", code="body_too_large"
        )

    @property
    def size(self) -> int:
        """The bytes held so far, unpacked."""
        return len(self._whole)

    @property
    def packed(self) -> bool:
        """Whether its pieces need unpacking, which takes time."""
        return self._format is not None

    def feed(self, piece: bytes) -> bool:
        """Take the next piece, and unpack at most a mebibyte.

        Returns:
            Whether more can be unpacked already; `feed(b"")` goes on with it.

        Raises:
            RefusedError: 413, more than `max_bytes`; 400, not what its encoding says.
        """
        if self._format is None:
            self._whole += piece
        else:
            self._unpack(self._rest + piece)
        self._check_size()
        return bool(self._rest)

    def _check_size(self) -> None:
        if self._max_bytes is not None and len(self._whole) > self._max_bytes:
            self._whole.clear()
            raise self.too_large(self._max_bytes)

    def _unpack(self, packed: bytes) -> None:
        assert self._format is not None
        room = _STEP
        while packed and room > 0:
            if self._unpacker is None:
                self._unpacker = zlib.decompressobj(self._format(packed[0]))
            try:
                part = self._unpacker.decompress(packed, room)
            except zlib.error:
                raise self._wrong("is damaged") from None
            self._whole += part
            room -= len(part)
            packed = self._unpacker.unconsumed_tail
            self._ended = self._unpacker.eof
            if self._ended:
                packed = self._unpacker.unused_data
                if packed and self._format is not _gzip:
                    raise self._wrong("goes on after its end")
                # What is gzip may be several, one after the other.
                self._unpacker = None
        self._rest = packed

    def end(self) -> bytes:
        """The whole body, once its last piece was taken.

        Raises:
            RefusedError: 400, the encoded form is not complete.
        """
        if self._unpacker is not None:
            # A step may stop just before the end: what is left is less than one copy of zlib's.
            try:
                self._whole += self._unpacker.flush()
            except zlib.error:
                raise self._wrong("is damaged") from None
            self._ended = self._unpacker.eof
        if self._format is not None and not self._ended:
            raise self._wrong("ends too early")
        self._check_size()
        whole = bytes(self._whole)
        self._whole.clear()
        return whole

    def _wrong(self, what: str) -> RefusedError:
        return RefusedError(
            400, f"the body is not {self._encoding}: it {what}", code="invalid_encoding"
        )


class Budget:
    """How many bytes all bodies together may hold.

    Attributes:
        total: the most.
        free: what nobody holds.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.free = total

    def take(self, amount: int) -> bool:
        """Take `amount`, if there is as much; whoever took it gives it back."""
        if amount > self.free:
            return False
        self.free -= amount
        return True

    def give_back(self, amount: int) -> None:
        self.free += amount
