"""The signals that ask a command to stop, on every system and event loop.

A line belongs here when it is about how such a signal reaches a command; what the command does
then is its own.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["on_stop_signals", "stopped_at_once"]


def _stop_signals() -> list[signal.Signals]:
    found = [signal.SIGINT, signal.SIGTERM]
    # What a supervisor on Windows can send; its SIGTERM ends a process without a word.
    if hasattr(signal, "SIGBREAK"):
        found.append(signal.Signals(signal.SIGBREAK))
    return found


@contextmanager
def stopped_at_once() -> Iterator[None]:
    """Let a signal that asks to stop end what is done inside, whatever it waits for.

    asyncio's own answer to Ctrl-C waits for the event loop, which does not come to it as long as a
    document is read from a silent pipe. It must be entered on the main thread.

    Raises:
        KeyboardInterrupt: by Ctrl-C.
        SystemExit: by another signal, with the code that says so; meanwhile what was started is
            ended, other processes too.
    """

    def end(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in _stop_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


@contextmanager
def on_stop_signals(asked: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Call `asked` in the running loop, with the signal, for each signal that asks to stop.

    It must be entered on the main thread. Outside the block the signals mean what they did before.
    """
    loop = asyncio.get_running_loop()
    before: dict[signal.Signals, Any] = {}
    added: list[signal.Signals] = []

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(asked, signal.Signals(number))

    try:
        for number in _stop_signals():
            before[number] = signal.getsignal(number)
            try:
                loop.add_signal_handler(number, asked, number)
                added.append(number)
            except NotImplementedError:
                # Windows' loops watch no signals; this handler runs between two of the loop's
                # steps, which the signal itself brings about.
                signal.signal(number, handle)
        yield
    finally:
        for number in added:
            loop.remove_signal_handler(number)
        for number, handler in before.items():
            # None: it was set by something that is not Python, and cannot be set again from here.
            if handler is not None:
                signal.signal(number, handler)
