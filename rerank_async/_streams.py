"""Reading what others hand us, a stream in and a stream out: bounded, and closed at the end.

Nothing here knows what is reranked.
A line belongs here when it is about iterating: who closes an iterator, how much is in work at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
)
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

__all__ = ["Room", "as_completed", "closing_iterator", "iterate"]

T = TypeVar("T")
R = TypeVar("R")


@asynccontextmanager
async def closing_iterator(iterable: AsyncIterable[T]) -> AsyncGenerator[AsyncIterator[T], None]:
    """The iterator of an async iterable, closed at the end where it can be."""
    iterator = aiter(iterable)
    try:
        yield iterator
    finally:
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()


async def iterate(items: Iterable[T] | AsyncIterable[T]) -> AsyncGenerator[T, None]:
    """The items of an iterable of either kind; an async generator is closed at the end."""
    if isinstance(items, AsyncIterable):
        async with closing_iterator(items) as iterator:
            async for item in iterator:
                yield item
    else:
        for item in items:
            yield item


class Room:
    """So many at once, where that number may change; one task enters, any number leave.

    Args:
        limit: a function that returns how many there may be now.
    """

    __slots__ = ("_inside", "_limit", "_turn")

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._inside = 0
        self._turn: asyncio.Future[None] | None = None

    async def enter(self) -> None:
        """Wait until there is room, and take it."""
        while self._inside >= self._limit():
            self._turn = asyncio.get_running_loop().create_future()
            await self._turn
        self._inside += 1

    def leave(self) -> None:
        """Give it back; whoever waits looks again."""
        self._inside -= 1
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)


async def as_completed(
    items: Iterable[T] | AsyncIterable[T],
    work: Callable[[int, T], Awaitable[R]],
    *,
    limit: Callable[[], int],
    is_over: Callable[[], bool] = lambda: False,
    stop: asyncio.Event | None = None,
    on_stop: Callable[[], None] = lambda: None,
) -> AsyncGenerator[R, None]:
    """Do the work on every item, and yield each result as it comes.

    At most `limit()` items are in work, or done and not yet taken, so that a slow consumer slows
    the reading.
    The first error, of the items or of the work, ends it all and is raised.

    Args:
        items: any iterable or async iterable.
        work: the function that is called with an item's number, from 0, and the item.
        limit: a function that returns how many; at least 1 at all times.
        is_over: a function that is asked before each item and after each piece of work; once it is
            True nothing more is read, and what was read is worked on to its end.
        stop: an event that is set from outside when it may be over although nothing happens;
            None when never.
        on_stop: a function that is called then, before `is_over` is asked.
    """
    crew = _Crew(work, limit, is_over)
    crew.start(items, stop, on_stop)
    taken = 0
    is_read = False
    try:
        # The reader's last word is waited for, not the reader: it may be done while its error still
        # lies in the queue.
        while taken < crew.begun or not is_read:
            result = await crew.finished.get()
            if isinstance(result, BaseException):
                raise result
            if result is None:
                is_read = True
            else:
                taken += 1
                crew.room.leave()
                yield result[0]
    finally:
        await crew.end()


class _Crew(Generic[T, R]):
    """The tasks behind `as_completed`: one reads, one for each item works, and one may watch.

    Attributes:
        room: the room for items in work, or done and not yet taken.
        finished: the results as they come, each in a tuple; an error ends it all, and None says
            that nothing more is read.
        begun: the number of items whose work was begun.
    """

    def __init__(
        self,
        work: Callable[[int, T], Awaitable[R]],
        limit: Callable[[], int],
        is_over: Callable[[], bool],
    ) -> None:
        self.room = Room(limit)
        self.finished: asyncio.Queue[tuple[R] | BaseException | None] = asyncio.Queue()
        self.begun = 0
        self._work = work
        self._is_over = is_over
        self._working: set[asyncio.Task[None]] = set()
        # Whether the reader waits for an item, and holds none.
        self._is_waiting = False

    def start(
        self,
        items: Iterable[T] | AsyncIterable[T],
        stop: asyncio.Event | None,
        on_stop: Callable[[], None],
    ) -> None:
        """Begin to read, and to watch for `stop`."""
        self._reader = asyncio.create_task(self._read(items))
        self._watching = [] if stop is None else [asyncio.create_task(self._watch(stop, on_stop))]

    async def end(self) -> None:
        """Cancel whoever is still at work, and wait until nobody is."""
        tasks = (self._reader, *self._watching, *self._working)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, items: Iterable[T] | AsyncIterable[T]) -> None:
        source = iterate(items)
        try:
            while not self._is_over():
                self._is_waiting = True
                try:
                    item = await anext(source)
                except StopAsyncIteration:
                    break
                finally:
                    self._is_waiting = False
                await self.room.enter()
                task = asyncio.create_task(self._do(self.begun, item))
                self.begun += 1
                self._working.add(task)
                task.add_done_callback(self._working.discard)
            self.finished.put_nowait(None)
        except BaseException as error:
            was_told = isinstance(error, asyncio.CancelledError) and self._is_over()
            self.finished.put_nowait(None if was_told else error)
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
        finally:
            await source.aclose()

    async def _do(self, number: int, item: T) -> None:
        try:
            self.finished.put_nowait((await self._work(number, item),))
        except BaseException as error:
            # Whatever it is, the consumer must hear of it or wait for ever. A cancellation may be
            # the work's own; when it is ours, nobody reads this.
            self.finished.put_nowait(error)
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
        self._stop_reading_if_over()

    async def _watch(self, stop: asyncio.Event, on_stop: Callable[[], None]) -> None:
        await stop.wait()
        on_stop()
        self._stop_reading_if_over()

    def _stop_reading_if_over(self) -> None:
        if self._is_waiting and self._is_over():
            self._reader.cancel()
