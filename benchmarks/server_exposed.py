"""What strangers cost the local server: memory for bodies that it refuses, and its health check.

python -m benchmarks.server_exposed [--connections 200] [--mib 50] [--slow 2000] [--seconds 10]

`rerank-async serve` runs as it is, with a key, in a process of its own. First many connections
with a wrong key send large bodies at once: plain, in chunks, and as gzip bombs. Then thousands
send their heads byte by byte, and connect again when they are cut off, while another process asks
`/health` on fresh connections.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import gzip
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from benchmarks.machine import heading

MEMORY_TARGET = 32.0
HEALTH_TARGET = 100.0

_KEY = "sk-of-this-benchmark-5d1e"
_HEALTH = b"GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
_PIECE = bytes(2**18)


def raise_descriptors(wanted: int) -> int:
    """Ask for as many descriptors; returns how many there are."""
    try:
        import resource
    except ModuleNotFoundError:
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        soft = min(wanted, hard) if hard != resource.RLIM_INFINITY else wanted
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


def family(pid: int) -> list[int]:
    """A process and what it started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in family(int(child)))]


def peak_mib(pid: int) -> float:
    """The most memory that a process and its children have had, each at its own time."""
    kib = 0
    for one in family(pid):
        status = Path(f"/proc/{one}/status").read_text()
        kib += int(re.findall(r"VmHWM:\s+(\d+)", status)[0])
    return kib / 1024


@contextlib.contextmanager
def serving() -> Iterator[tuple[int, int]]:
    """The command, serving; its process and its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rerank_async", "serve", "--port", "0"],
        env={**os.environ, "RERANK_SERVER_API_KEY": _KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield process.pid, int(re.findall(r":(\d+)/v1", line)[0])
    finally:
        process.terminate()
        process.communicate()


def head(*more: str) -> bytes:
    """The head of a request with a wrong key."""
    lines = ["POST /v1/rerank HTTP/1.1", "Host: h", "Authorization: Bearer wrong"]
    return "\r\n".join([*lines, "Content-Type: application/json", *more, "", ""]).encode()


async def plain(size: int) -> AsyncIterator[bytes]:
    yield head(f"Content-Length: {size}")
    for _ in range(size // len(_PIECE)):
        yield _PIECE


async def in_chunks(size: int) -> AsyncIterator[bytes]:
    yield head("Transfer-Encoding: chunked")
    for _ in range(size // len(_PIECE)):
        yield b"%x\r\n" % len(_PIECE) + _PIECE + b"\r\n"
    yield b"0\r\n\r\n"


@functools.cache
def packed_zeros(size: int) -> bytes:
    return gzip.compress(bytes(size))


async def bomb(size: int) -> AsyncIterator[bytes]:
    packed = packed_zeros(size)
    yield head(f"Content-Length: {len(packed)}", "Content-Encoding: gzip")
    yield packed


async def one_flood(port: int, pieces: AsyncIterator[bytes], outcomes: Counter[str]) -> None:
    """Send everything, whatever is answered meanwhile, and note the status that came back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = asyncio.ensure_future(reader.readline())
    try:
        with contextlib.suppress(ConnectionError):
            async for piece in pieces:
                writer.write(piece)
                await writer.drain()
        outcomes[(await answer).decode().partition(" ")[2].strip() or "closed"] += 1
    except ConnectionError:
        outcomes["reset"] += 1
    finally:
        writer.transport.abort()


async def flood(port: int, connections: int, size: int) -> Counter[str]:
    """All kinds of bodies, one kind after the other, each on many connections at once."""
    outcomes: Counter[str] = Counter()
    for kind in (plain, in_chunks, bomb):
        await asyncio.gather(*(one_flood(port, kind(size), outcomes) for _ in range(connections)))
    return outcomes


async def drip(port: int, cuts: Counter[str]) -> None:
    """Send a head byte by byte, for ever; when that is cut off, begin again."""
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.1)
            continue
        ended = asyncio.ensure_future(reader.read())
        try:
            for byte in head("X-Slow: " + "y" * 1000):
                writer.write(bytes([byte]))
                done, _ = await asyncio.wait([ended], timeout=0.5)
                if done:
                    break
        finally:
            writer.transport.abort()
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)
        cuts["cut"] += 1


async def besiege(
    port: int, slow: int, seconds: float, *, once_cut: bool = False
) -> tuple[str, int]:
    """The health check's times while slow connections are held, and how often one was cut.

    Args:
        port: the server's port on loopback.
        slow: the number of slow connections.
        seconds: the time for which the health check is asked.
        once_cut: whether it is asked only once a slow connection was cut, however long a busy
            machine takes to open as many as the server lets in.
    """
    cuts: Counter[str] = Counter()
    drips = [asyncio.create_task(drip(port, cuts)) for _ in range(slow)]
    try:
        while once_cut and not cuts["cut"]:  # noqa: ASYNC110  # a thousand tasks count there
            await asyncio.sleep(0.01)
        # In a process of its own, whose time is not taken by two thousand tasks.
        prober = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.server_exposed", "--probe", str(port)),
            *("--seconds", str(seconds)),
            stdout=asyncio.subprocess.PIPE,
        )
        printed, _ = await prober.communicate()
    finally:
        for one in drips:
            one.cancel()
        await asyncio.gather(*drips, return_exceptions=True)
    return printed.decode().strip(), cuts["cut"]


def probe(port: int, seconds: float) -> str:
    """Ask `/health` on fresh connections, one after the other; milliseconds."""
    times = []
    failed = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.monotonic()
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
                sock.sendall(_HEALTH)
                if not sock.recv(100).startswith(b"HTTP/1.1 200 "):
                    failed += 1
        except OSError:
            failed += 1
        times.append((time.monotonic() - start) * 1000)
        time.sleep(0.02)
    times.sort()
    at = {share: times[min(len(times) - 1, int(len(times) * share))] for share in (0.5, 0.99)}
    return (
        f"{len(times)} asked, {failed} failed; "
        f"p50 {at[0.5]:.1f} ms, p99 {at[0.99]:.1f} ms, max {times[-1]:.1f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--mib", type=int, default=50)
    parser.add_argument("--slow", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--probe", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe:
        print(probe(options.probe, options.seconds))
        return
    if not Path("/proc/self/task").exists():
        print("What strangers cost the local server: not measured, memory is read from /proc")
        return
    print("What strangers cost the local server")
    print(heading("aiohttp", "uvloop"))
    with serving() as (pid, port):
        print(f"/health alone: {probe(port, 1.0)}")
        before = peak_mib(pid)
        outcomes = asyncio.run(flood(port, options.connections, options.mib * 2**20))
        after = peak_mib(pid)
        print(
            f"{options.connections} connections with a wrong key and {options.mib} MiB each, "
            f"plain, in chunks and as gzip bombs: {before:.1f} MiB, then {after:.1f}: "
            f"{after - before:+.1f} (target: less than {MEMORY_TARGET:g})"
        )
        print(f"they heard: {', '.join(f'{many} × {what}' for what, many in outcomes.items())}")
    slow = options.slow
    there = raise_descriptors(slow + 200)
    if there < slow + 200:
        slow = there - 200
        print(f"only {there} descriptors are to be had, so {slow} slow connections")
    with serving() as (pid, port):
        before = peak_mib(pid)
        times, cuts = asyncio.run(besiege(port, slow, options.seconds))
        print(
            f"/health among {slow:,} slow connections: {times} (target: max {HEALTH_TARGET:g} ms); "
            f"{cuts:,} were cut off; memory {peak_mib(pid) - before:+.1f} MiB"
        )


if __name__ == "__main__":
    main()
