"""The attacks of `benchmarks/server_exposed.py` in small, and a server short of descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import server_exposed
from tests.support import PACKAGE

MIB = 2**20

on_linux = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="memory is read from /proc"
)


@on_linux
def test_refused_bodies_take_no_memory() -> None:
    with server_exposed.serving() as (pid, port):
        # So that what a first request loads is loaded.
        asyncio.run(server_exposed.flood(port, 1, MIB))
        before = server_exposed.peak_mib(pid)
        # 800 MiB where they were kept until the key was looked at.
        outcomes = asyncio.run(server_exposed.flood(port, 40, 20 * MIB))
        assert server_exposed.peak_mib(pid) - before < 32
    assert sum(outcomes.values()) == 120
    assert set(outcomes) <= {"401 Unauthorized", "reset"}
    assert outcomes["401 Unauthorized"] > 0


@on_linux
def test_slow_heads_leave_the_health_check_an_answer() -> None:
    server_exposed.raise_descriptors(2000)
    with server_exposed.serving() as (_, port):
        # More than the server lets in at once.
        times, cuts = asyncio.run(server_exposed.besiege(port, 1100, 1.0, once_cut=True))
    assert " 0 failed;" in times
    assert cuts > 0


_SERVER = """
import asyncio, resource, sys
from rerank_async.server import LocalServer

async def main():
    async with LocalServer() as server:
        print(server.url, flush=True)
        await asyncio.to_thread(sys.stdin.readline)

factory = None
if sys.argv[1] == "uvloop":
    import uvloop
    factory = uvloop.new_event_loop
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
with asyncio.Runner(loop_factory=factory) as runner:
    runner.run(main())
"""


@contextlib.contextmanager
def with_few_descriptors(loop: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER, loop],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process, int(process.stdout.readline().rpartition(":")[2].partition("/")[0])
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_server_with_few_descriptors_goes_on_answering_in_silence(loop: str) -> None:
    pytest.importorskip("resource")
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    with with_few_descriptors(loop) as (process, port), contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
                client.sendall(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n")
                assert client.recv(100).startswith(b"HTTP/1.1 200 ")
        _, errors = process.communicate("\n", timeout=30)
        assert process.returncode == 0
        assert errors == ""
