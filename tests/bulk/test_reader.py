"""`_reader`: rows are read ahead, not too far, and whoever waits can be told to stop."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterable

import pytest

from rerank_async.bulk import InputError
from rerank_async.bulk import _reader as reader_module
from rerank_async.bulk._reader import Reader
from rerank_async.bulk._rows import Row
from tests.support import steps, until

SECONDS = 20.0


class Rows:
    """A generator of rows that tells what became of it."""

    def __init__(
        self,
        rows: Iterable[Row],
        *,
        error: Exception | None = None,
        closing: Exception | None = None,
    ) -> None:
        self._rows = rows
        self._error = error
        self._closing = closing
        self.read = 0
        self.closed_by: str | None = None

    def __call__(self) -> Generator[Row, None, None]:
        try:
            for row in self._rows:
                self.read += 1
                yield row
            if self._error is not None:
                raise self._error
        finally:
            self.closed_by = threading.current_thread().name
            if self._closing is not None:
                raise self._closing


def endless(documents: int = 1) -> Generator[Row, None, None]:
    number = 0
    while True:
        yield Row(f"query {number}", ["text"] * documents)
        number += 1


def some(count: int) -> list[Row]:
    return [Row(f"query {number}", ["text"]) for number in range(count)]


def is_waiting_for_room(reader: Reader) -> bool:
    # It has the lock from the row that is one too many until it waits.
    with reader._room:
        ahead, documents = len(reader._ahead), reader._documents
    return ahead >= reader_module._ROWS or documents >= reader_module._DOCUMENTS


def ended(reader: Reader) -> bool:
    reader._thread.join(SECONDS)
    return not reader._thread.is_alive()


# ── in order, and all of them ──


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 2000])
async def test_every_row_comes_once_and_in_order(count: int) -> None:
    rows = Rows(some(count))
    reader = Reader(rows(), can_block=False)
    assert [row async for row in reader] == some(count)
    reader.close()
    assert rows.closed_by == "rerank-reader"


async def test_rows_are_read_and_closed_in_a_thread_of_their_own() -> None:
    seen: list[str] = []

    def rows() -> Generator[Row, None, None]:
        seen.append(threading.current_thread().name)
        yield Row("q", [])

    reader = Reader(rows(), can_block=False)
    assert [row.query async for row in reader] == ["q"]
    assert seen == ["rerank-reader"]
    reader.close()


async def test_whoever_waits_for_a_row_gets_it_when_it_comes() -> None:
    gate = threading.Semaphore(0)

    def rows() -> Generator[Row, None, None]:
        for row in some(5):
            gate.acquire()
            yield row
        gate.acquire()

    reader = Reader(rows(), can_block=False)
    for row in some(5):
        coming = asyncio.ensure_future(anext(reader))
        await steps(5)
        assert not coming.done()
        gate.release()
        assert await coming == row
    end = asyncio.ensure_future(anext(reader, None))
    await steps(5)
    assert not end.done()
    gate.release()
    assert await end is None
    reader.close()


async def test_after_the_end_it_stays_at_its_end() -> None:
    reader = Reader(Rows(some(1))(), can_block=False)
    assert await anext(reader, None) is not None
    assert await anext(reader, None) is None
    assert await anext(reader, None) is None
    reader.close()


# ── not too far ahead ──


async def test_no_more_rows_are_read_ahead_than_may_be() -> None:
    rows = Rows(endless())
    reader = Reader(rows(), can_block=False)
    await until(lambda: is_waiting_for_room(reader))
    assert rows.read == reader_module._ROWS
    # Half of them are taken before the thread is woken.
    for _ in range(reader_module._ROWS // 2 - 1):
        await anext(reader)
    assert rows.read == reader_module._ROWS
    await anext(reader)
    await until(lambda: rows.read == reader_module._ROWS * 3 // 2)
    reader.close()
    assert rows.closed_by == "rerank-reader"


async def test_no_more_documents_are_read_ahead_than_may_be() -> None:
    each = reader_module._DOCUMENTS // 4
    rows = Rows(endless(each))
    reader = Reader(rows(), can_block=False)
    await until(lambda: is_waiting_for_room(reader))
    assert rows.read == 4
    await anext(reader)
    assert rows.read == 4
    await anext(reader)
    await until(lambda: rows.read == 6)
    reader.close()


async def test_a_row_with_more_documents_than_may_be_read_ahead_comes_all_the_same() -> None:
    large = reader_module._DOCUMENTS * 3
    rows = Rows([*some(2), Row("large", ["text"] * large), *some(2), Row("", ["text"] * large)])
    reader = Reader(rows(), can_block=False)
    await until(lambda: is_waiting_for_room(reader))
    assert rows.read == 3
    assert [row.query async for row in reader] == [
        "query 0",
        "query 1",
        "large",
        "query 0",
        "query 1",
        "",
    ]
    reader.close()


# ── stopping ──


async def test_when_stopped_it_ends_at_once_and_what_was_read_is_dropped() -> None:
    rows = Rows(endless())
    reader = Reader(rows(), can_block=False)
    await until(lambda: is_waiting_for_room(reader))
    reader.stop()
    assert await anext(reader, None) is None
    reader.stop()
    assert ended(reader)
    assert rows.read == reader_module._ROWS
    assert rows.closed_by == "rerank-reader"
    reader.close()
    reader.close()


async def test_closing_waits_until_the_rows_are_closed() -> None:
    rows = Rows(endless())
    reader = Reader(rows(), can_block=False)
    reader.close()
    assert not reader._thread.is_alive()
    assert rows.closed_by == "rerank-reader"


@pytest.fixture
def pipe() -> Generator[tuple[Callable[[], Generator[Row, None, None]], int], None, None]:
    """Rows that are read from a pipe, and where to write them."""
    source, target = os.pipe()
    writable = [target]

    def rows() -> Generator[Row, None, None]:
        with os.fdopen(source) as lines:
            for line in lines:
                yield Row(line.strip(), ["text"])

    yield rows, target
    for file in writable:
        os.close(file)


async def test_a_silent_pipe_keeps_nobody_from_stopping(
    pipe: tuple[Callable[[], Generator[Row, None, None]], int],
) -> None:
    rows, target = pipe
    reader = Reader(rows(), can_block=True)
    os.write(target, b"one\n")
    assert (await anext(reader)).query == "one"
    waiting = asyncio.ensure_future(anext(reader, None))
    await steps(5)
    assert not waiting.done()
    reader.stop()
    assert await waiting is None
    # It does not wait for the thread, which waits for the pipe.
    reader.close()
    assert reader._thread.is_alive()
    os.write(target, b"two\n")
    assert ended(reader)
    assert await anext(reader, None) is None


async def test_whoever_waits_may_be_cancelled_and_another_goes_on(
    pipe: tuple[Callable[[], Generator[Row, None, None]], int],
) -> None:
    rows, target = pipe
    reader = Reader(rows(), can_block=True)
    waiting = asyncio.ensure_future(anext(reader))
    await steps(5)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    os.write(target, b"one\ntwo\n")
    assert (await anext(reader)).query == "one"
    assert (await anext(reader)).query == "two"
    reader.stop()
    os.write(target, b"three\n")
    assert ended(reader)


ENDING = """
import asyncio, os, sys
from rerank_async.bulk._reader import Reader
from rerank_async.bulk._rows import Row

def rows():
    for line in sys.stdin:
        yield Row(line.strip(), ["text"])

async def main():
    reader = Reader(rows(), can_block=True)
    print((await anext(reader)).query)
    reader.close()

asyncio.run(main())
"""


async def test_a_process_can_end_although_the_pipe_that_it_reads_has_not() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        ENDING,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"one\n")
    try:
        async with asyncio.timeout(SECONDS):
            assert await process.stdout.readline() == b"one\n"
            assert await process.wait() == 0
    finally:
        process.stdin.close()
        if process.returncode is None:
            process.kill()
            await process.wait()


# ── errors ──


@pytest.mark.parametrize("count", [0, 1, 300])
async def test_an_error_comes_after_the_rows_before_it(count: int) -> None:
    rows = Rows(some(count), error=InputError("line 7 is bad"))
    reader = Reader(rows(), can_block=False)
    seen = []
    with pytest.raises(InputError, match="line 7 is bad"):
        async for row in reader:
            seen.append(row)  # noqa: PERF401 - what came before the error counts
    assert seen == some(count)
    with pytest.raises(InputError, match="line 7 is bad"):
        await anext(reader)
    reader.close()
    assert rows.closed_by == "rerank-reader"


async def test_an_error_that_nobody_has_come_to_is_dropped_when_it_is_stopped() -> None:
    reader = Reader(Rows(some(3), error=InputError("bad"))(), can_block=False)
    assert ended(reader)
    reader.stop()
    assert await anext(reader, None) is None
    reader.close()


async def test_an_error_while_closing_ends_the_thread_all_the_same() -> None:
    rows = Rows(endless(), closing=OSError("the file could not be closed"))
    reader = Reader(rows(), can_block=False)
    assert (await anext(reader)).query == "query 0"
    reader.close()
    assert not reader._thread.is_alive()
    assert rows.closed_by == "rerank-reader"
    assert await anext(reader, None) is None


async def test_an_error_while_closing_after_the_last_row_is_told() -> None:
    rows = Rows(some(1), closing=OSError("the file could not be closed"))
    reader = Reader(rows(), can_block=False)
    assert (await anext(reader)).query == "query 0"
    with pytest.raises(OSError, match="could not be closed"):
        await anext(reader)
    reader.close()


# ── a loop that is gone ──


def test_a_loop_that_is_closed_meanwhile_ends_the_reading() -> None:
    gate = threading.Event()
    closed = threading.Event()

    def rows() -> Generator[Row, None, None]:
        try:
            gate.wait(SECONDS)
            yield from endless()
        finally:
            closed.set()

    async def begin() -> Reader:
        reader = Reader(rows(), can_block=True)
        waiting = asyncio.ensure_future(anext(reader))
        await steps(5)
        waiting.cancel()
        return reader

    reader = asyncio.run(begin())
    gate.set()
    assert ended(reader)
    assert closed.is_set()
    reader.close()


def test_a_reader_can_be_closed_after_its_loop() -> None:
    rows = Rows(endless())

    async def begin() -> Reader:
        return Reader(rows(), can_block=False)

    reader = asyncio.run(begin())
    reader.close()
    assert rows.closed_by == "rerank-reader"
