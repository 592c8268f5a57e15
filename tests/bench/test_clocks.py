"""The probe of the event loop."""

from __future__ import annotations

import asyncio

import pytest

from rerank_async.bench._clocks import LagProbe


async def test_a_delay_counts_for_all_the_times_that_it_swallowed() -> None:
    now = 0.0
    probe = LagProbe(lambda: now)
    probe.start()
    now = 0.01 + 0.055
    while not probe.lags:
        await asyncio.sleep(0.001)
    probe.stop()
    assert list(probe.lags[:6]) == pytest.approx([0.055, 0.045, 0.035, 0.025, 0.015, 0.005])


async def test_a_machine_that_slept_does_not_fill_the_memory() -> None:
    now = 0.0
    probe = LagProbe(lambda: now)
    probe.start()
    now = 1e9
    while not probe.lags:
        await asyncio.sleep(0.001)
    probe.stop()
    assert len(probe.lags) <= 6001
