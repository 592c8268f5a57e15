"""Reading rows ahead, in a thread: a file that is slow, or a pipe that is silent, holds nobody up.

A line belongs here when it is about that thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Generator

from rerank_async.bulk._rows import Row

__all__ = ["Reader"]

# So much may be read ahead: enough to keep the wire busy, little enough for memory.
_ROWS = 256
_DOCUMENTS = 4096


class Reader:
    """The rows of a generator, as an async iterator; ends early when told to.

    Args:
        rows: the generator, which a thread of its own reads and closes.
        can_block: whether reading may wait for ever, as it does on a pipe: then nobody waits for
            the thread.
    """

    def __init__(self, rows: Generator[Row, None, None], *, can_block: bool) -> None:
        self._rows = rows
        self._can_block = can_block
        self._ahead: deque[Row] = deque()
        self._documents = 0
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Future[None] | None = None
        # Guards what both threads touch: all of the above, and the three below.
        self._room = threading.Condition()
        self._stopped = False
        self._over = False
        self._failure: BaseException | None = None
        # Daemon: a process may end although a pipe has not.
        self._thread = threading.Thread(target=self._read, name="rerank-reader", daemon=True)
        self._thread.start()

    def __aiter__(self) -> Reader:
        return self

    async def __anext__(self) -> Row:
        while True:
            with self._room:
                if self._stopped:
                    raise StopAsyncIteration
                if self._ahead:
                    row = self._ahead.popleft()
                    self._documents -= len(row.documents)
                    # Woken for every row, the thread would be woken too often.
                    if len(self._ahead) <= _ROWS // 2 and self._documents <= _DOCUMENTS // 2:
                        self._room.notify()
                    return row
                if self._over:
                    if self._failure is not None:
                        raise self._failure
                    raise StopAsyncIteration
                self._news = self._loop.create_future()
            await self._news

    def stop(self) -> None:
        """End the iteration: what was read and not taken is dropped. Idempotent."""
        with self._room:
            self._stopped = True
            self._room.notify()
        self._tell()

    def close(self) -> None:
        """Stop, and wait until the file is closed, where that cannot take for ever."""
        self.stop()
        if not self._can_block:
            self._thread.join()

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def _read(self) -> None:
        failure: BaseException | None = None
        try:
            for row in self._rows:
                with self._room:
                    was_empty = not self._ahead
                    self._ahead.append(row)
                    self._documents += len(row.documents)
                    del row
                    if was_empty and self._news is not None:
                        self._wake()
                    if len(self._ahead) >= _ROWS or self._documents >= _DOCUMENTS:
                        self._room.wait_for(self._has_room)
                    if self._stopped:
                        break
        except BaseException as error:
            failure = error
        finally:
            # Where that fails the reading was stopped before its end: nobody is left to be told.
            with contextlib.suppress(Exception):
                self._rows.close()
            with self._room:
                self._failure, self._over = failure, True
                self._wake()

    def _has_room(self) -> bool:
        return self._stopped or (
            len(self._ahead) <= _ROWS // 2 and self._documents <= _DOCUMENTS // 2
        )

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._tell)
        except RuntimeError:
            # The loop is closed: nobody is left to read for.
            self._stopped = True
