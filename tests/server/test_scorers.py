"""Scoring processes: what they are started with, and how they end."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rerank_async.server import LocalServer, _scorers

KEY = "sk-not-for-children-90ab3d"

on_linux = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="there is no /proc")


def memory_of(pid: int) -> list[bytes]:
    """What a process can write to of its own memory."""
    parts = []
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            where, mode = line.split()[:2]
            if mode.startswith("rw"):
                start, end = (int(number, 16) for number in where.split("-"))
                try:
                    memory.seek(start)
                    parts.append(memory.read(end - start))
                except (OSError, OverflowError):
                    continue
    return parts


@on_linux
@pytest.mark.parametrize("variable", ["RERANK_SERVER_API_KEY", "RERANK_API_KEY", "ANY_NAME"])
async def test_a_process_has_the_key_nowhere_in_its_memory(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, KEY)
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--api-key", KEY])
    headers = {"Authorization": f"Bearer {KEY}"}
    async with LocalServer(api_key=KEY, workers=1) as server:
        async with (
            aiohttp.ClientSession(headers=headers) as client,
            client.post(
                f"{server.url}/rerank",
                json={"model": "m", "query": "a needle in here", "documents": ["x"]},
            ) as response,
        ):
            assert response.status == 200
        executor: Any = server._executor
        [process] = executor._processes.values()
        try:
            memory = await asyncio.to_thread(memory_of, process.pid)
        except PermissionError:
            pytest.skip("this system does not show the memory of a child")
        # What was sent to it is still there, so a key would be found.
        assert any(b"a needle in here" in part for part in memory)
        assert not any(KEY.encode() in part for part in memory)
        assert KEY.encode() not in Path(f"/proc/{process.pid}/environ").read_bytes()
    # The server's own process keeps what it had.
    assert os.environ[variable] == KEY
    assert sys.argv[-1] == KEY


def test_a_key_of_one_letter_hides_only_what_is_that_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_WORD", "likely")
    monkeypatch.setenv("THE_KEY", "k")
    monkeypatch.setattr(sys, "argv", ["likely", "--api-key=k", "k"])
    with _scorers._without_keys("k"):
        assert "THE_KEY" not in os.environ
        assert os.environ["A_WORD"] == "likely"
        assert sys.argv == ["likely", "[API key]", "[API key]"]
    assert os.environ["THE_KEY"] == "k"


def test_a_system_without_signal_masks_starts_processes_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("signal.pthread_sigmask")
    with _scorers._without_interrupts():
        pass


async def test_processes_that_score_for_longer_than_the_drain_are_ended() -> None:
    server = await LocalServer(workers=1, drain=0.05).__aenter__()
    executor: Any = server._executor
    [process] = executor._processes.values()
    # Longer than any test: nothing but the end of the process stops it.
    endless: Any = server._submit(executor, time.sleep, 3600)
    jobs: set[Any] = server._jobs
    jobs.add(endless)
    endless.add_done_callback(jobs.discard)
    async with asyncio.timeout(30):
        while not endless.running():
            await asyncio.sleep(0)
        await server.__aexit__(None, None, None)
    assert not process.is_alive()
