"""How a signal reaches a command, on loops that watch signals and on loops that do not."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import pytest

from rerank_async._cli._signals import on_stop_signals


def unwatching() -> asyncio.AbstractEventLoop:
    """As the loops of Windows: it watches no signals."""

    def refuse(*args: Any) -> None:
        raise NotImplementedError

    loop = asyncio.SelectorEventLoop()
    for name in ("add_signal_handler", "remove_signal_handler"):
        setattr(loop, name, refuse)
    return loop


LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.SelectorEventLoop, unwatching]


def run(main: Any, loop: Callable[[], asyncio.AbstractEventLoop]) -> Any:
    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(main())


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_each_signal_reaches_the_loop_while_it_waits(
    loop: Callable[[], asyncio.AbstractEventLoop], number: signal.Signals
) -> None:
    async def main() -> list[signal.Signals]:
        heard: asyncio.Queue[signal.Signals] = asyncio.Queue()
        with on_stop_signals(heard.put_nowait):
            signal.raise_signal(number)
            first = await asyncio.wait_for(heard.get(), 10)
            signal.raise_signal(number)
            return [first, await asyncio.wait_for(heard.get(), 10)]

    assert run(main, loop) == [number, number]


@pytest.mark.parametrize("loop", LOOPS)
def test_after_it_the_signals_mean_what_they_did_before(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    def mine(*args: Any) -> None:
        raise AssertionError("nobody raised it")

    before = signal.signal(signal.SIGTERM, mine)
    try:

        async def main() -> None:
            interrupt = signal.getsignal(signal.SIGINT)
            with on_stop_signals(lambda number: None):
                assert signal.getsignal(signal.SIGTERM) is not mine
            assert signal.getsignal(signal.SIGTERM) is mine
            # asyncio's own, which cancels the main task.
            assert signal.getsignal(signal.SIGINT) is interrupt

        run(main, loop)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_windows_ctrl_break_is_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    # There it has the number 21, which is another signal here.
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)

    async def main() -> signal.Signals:
        heard: asyncio.Queue[signal.Signals] = asyncio.Queue()
        with on_stop_signals(heard.put_nowait):
            signal.raise_signal(signal.SIGUSR1)
            return await asyncio.wait_for(heard.get(), 10)

    assert run(main, unwatching) == signal.SIGUSR1
