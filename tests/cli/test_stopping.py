"""One signal ends every command: at once when nothing is on the wire, whatever it waits for.

Each program waits for something that does not come, or not for a long time; that it ends at all
before it comes is what is seen. The bounds are far from both ends: an end at once takes tenths of
a second, and the drain of a job thirty.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import termios
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.bulk.support import read_jsonl, requests, write_jsonl
from tests.cli.support import PROGRAM, Run, environment
from tests.support import Peer, ScriptedServer, http, true_answer

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
# A loaded machine takes long for anything; a job that is parked or drained takes thirty seconds.
SOON = 15.0


@asynccontextmanager
async def program(
    *arguments: str, cwd: Path, stdin: int | None = asyncio.subprocess.DEVNULL
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *PROGRAM,
        *arguments,
        cwd=cwd,
        env=environment(),
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(40):
        while not condition():
            await asyncio.sleep(0.01)


async def shown(process: asyncio.subprocess.Process, words: bytes) -> None:
    """Read standard error until it says so."""
    assert process.stderr is not None
    async with asyncio.timeout(40):
        while words not in await process.stderr.readline():
            assert not process.stderr.at_eof()


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    _, err = await asyncio.wait_for(process.communicate(), SOON)
    assert b"Traceback" not in err
    return process.returncode, err.decode()


def bulk(server: ScriptedServer, *more: str) -> tuple[str, ...]:
    return ("bulk", "in.jsonl", "out.jsonl", "--url", server.url, "--model", "m", *more)


async def answering(peer: Peer) -> None:
    while True:
        await peer.send(http(true_answer(await peer.request())))


def unwilling(status: str, *headers: str) -> Callable[[Peer], Awaitable[None]]:
    async def unwilling(peer: Peer) -> None:
        head = "".join(f"{header}\r\n" for header in headers)
        while True:
            await peer.request()
            await peer.send(
                f"HTTP/1.1 {status}\r\n{head}Content-Length: 2\r\n\r\n".encode() + b"{}"
            )

    return unwilling


@pytest.mark.parametrize(("number", "code"), SIGNALS)
@pytest.mark.parametrize("wait", ["parked", "gate", "rate"])
async def test_a_job_that_waits_ends_at_once_and_notes_no_failure(
    wait: str, number: signal.Signals, code: int, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "in.jsonl", requests(30))
    scripts = {
        "parked": unwilling("503 Service Unavailable"),
        "gate": unwilling("429 Too Many Requests", "Retry-After: 100"),
        "rate": answering,
    }
    more = ("--requests-per-minute", "1") if wait == "rate" else ()
    async with (
        ScriptedServer(scripts[wait]) as server,
        program(*bulk(server, *more), cwd=tmp_path) as process,
    ):
        if wait == "rate":
            await until(lambda: bool(server.requests))
        else:
            await shown(process, b"waiting: ")
        process.send_signal(number)
        returncode, err = await ended(process)
    assert returncode == code
    assert "stopped: interrupted; run the same command again to go on" in err
    assert b'"failed":true' not in (tmp_path / "out.jsonl.job" / "journal.log").read_bytes()


@pytest.mark.parametrize(("number", "code"), SIGNALS)
async def test_of_a_job_what_is_on_the_wire_is_finished_and_the_rest_is_not_waited_for(
    number: signal.Signals, code: int, tmp_path: Path, run: Run
) -> None:
    rows = requests(30)
    write_jsonl(tmp_path / "in.jsonl", rows)
    held = asyncio.Event()
    refused = 0

    async def slow(peer: Peer) -> None:
        nonlocal refused
        while True:
            raw = await peer.request()
            if b'"query 3"' in raw or held.is_set():
                await held.wait()
                await peer.send(http(true_answer(raw)))
            else:
                refused += 1
                await peer.send(http(b"{}", "503 Service Unavailable"))

    async with ScriptedServer(slow) as server:
        async with program(*bulk(server, "--concurrency", "8"), cwd=tmp_path) as process:
            await shown(process, b"waiting: ")
            await until(lambda: any(b'"query 3"' in raw for raw in server.requests))
            process.send_signal(number)
            await shown(process, b"stopping")
            before = len(server.requests)
            held.set()
            returncode, err = await ended(process)
            # Nothing was sent any more although the server would have answered it.
            assert len(server.requests) <= before + 1
        assert returncode == code
        assert "1 of 30 queries" in err
        done = await run(*bulk(server))
    assert done.code == 0
    assert "1 queries were done before" in done.err
    assert len(read_jsonl(tmp_path / "out.jsonl")) == 30


@pytest.mark.parametrize(("number", "code"), SIGNALS)
@pytest.mark.parametrize(
    "command",
    [
        ("rerank", "query", "-"),
        ("bulk", "-", "out.jsonl"),
        ("bench", "--requests", "-"),
        ("eval", "-", "qrels.tsv"),
    ],
    ids=lambda command: command[0],
)
async def test_a_silent_pipe_keeps_no_command_from_ending(
    command: tuple[str, ...], number: signal.Signals, code: int, tmp_path: Path
) -> None:
    (tmp_path / "qrels.tsv").write_text("1 0 d 1\n")
    reading, writing = os.pipe()
    # A line that has not come to its end.
    os.write(writing, b"{")
    try:
        async with ScriptedServer(answering) as server:
            url = () if command[0] == "eval" else ("--url", server.url, "--model", "m")
            async with program(*command, *url, cwd=tmp_path, stdin=reading) as process:
                pid = process.pid
                await until(lambda: _is_read(reading) and _sleeps(pid))
                process.send_signal(number)
                returncode, _ = await ended(process)
    finally:
        os.close(reading)
        os.close(writing)
    # What does nothing that would have to be ended in order is ended by the signal itself.
    assert returncode in (code, -number)


def _is_read(pipe: int) -> bool:
    """Whether somebody has taken everything out of it, and so waits for more."""
    unread = array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, unread)
    return unread[0] == 0


def _sleeps(pid: int) -> bool:
    """Whether the process waits for something; True where the system does not tell.

    A signal that comes between two reads is not noticed before the second one ends: Python looks
    for signals when a read is interrupted, and not before it begins one.
    """
    try:
        state = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return state.rpartition(")")[2].split()[0] == "S"


@pytest.mark.parametrize(("number", "code"), SIGNALS)
async def test_a_benchmark_does_not_wait_for_its_own_server_or_its_requests(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    async def silent(peer: Peer) -> None:
        await peer.until_gone()

    async with ScriptedServer(silent) as server:
        arguments = ("bench", "--url", server.url, "--model", "m", "--quiet")
        async with program(*arguments, cwd=tmp_path) as process:
            await until(lambda: bool(server.peers))
            process.send_signal(number)
            returncode, err = await ended(process)
    assert returncode == code
    assert "stopped before anything was measured" in err


@pytest.mark.parametrize(("number", "code"), SIGNALS)
async def test_a_job_does_not_wait_for_a_connection(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "in.jsonl", requests(30))

    async def silent(peer: Peer) -> None:
        await peer.until_gone()

    # It takes the connection, and has nothing to say about TLS.
    async with ScriptedServer(silent) as server:
        url = server.url.replace("http://", "https://")
        arguments = ("bulk", "in.jsonl", "out.jsonl", "--url", url, "--model", "m")
        async with program(*arguments, cwd=tmp_path) as process:
            await until(lambda: bool(server.peers))
            process.send_signal(number)
            await shown(process, b"stopping")
            # Before the ten seconds are over that a connection may take.
            returncode, err = await asyncio.wait_for(ended(process), 8)
    assert returncode == code
    assert "stopped: interrupted" in err


async def test_a_second_signal_does_not_wait_for_the_wire_either(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", requests(30))

    async def silent(peer: Peer) -> None:
        await peer.until_gone()

    async with (
        ScriptedServer(silent) as server,
        program(*bulk(server), cwd=tmp_path) as process,
    ):
        await until(lambda: bool(server.peers))
        process.send_signal(signal.SIGTERM)
        await shown(process, b"stopping")
        process.send_signal(signal.SIGTERM)
        returncode, _ = await ended(process)
    assert returncode == 130


@pytest.mark.parametrize("more", [(), ("--json",)])
async def test_a_call_says_at_once_why_it_waits(more: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("number 1\nnumber 2\n")
    refusing = unwilling("429 Too Many Requests", "Retry-After: 100")
    async with ScriptedServer(refusing) as server:
        arguments = ("rerank", "q", "notes.txt", "--url", server.url, "--model", "m", *more)
        async with program(*arguments, cwd=tmp_path) as process:
            await shown(process, b"waiting: the server asks to wait 1 min ")
            pid = process.pid
            await until(lambda: _sleeps(pid))
            process.send_signal(signal.SIGINT)
            out, err = await asyncio.wait_for(process.communicate(), SOON)
    assert (process.returncode, out, err) == (130, b"", b"")


async def test_what_a_call_says_of_a_wait_changes_nothing_else(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("number 1\nnumber 2\n")
    results = []
    for first in (busy_for_a_second, answering):
        async with ScriptedServer(first, answering) as server:
            results.append(
                await run("rerank", "q", "notes.txt", "--url", server.url, "--model", "m")
            )
    waited, served = results
    assert (waited.code, waited.out) == (served.code, served.out) == (0, served.out)
    assert waited.err == "waiting: the server asks to wait 1 s\n"
    assert served.err == ""


async def busy_for_a_second(peer: Peer) -> None:
    await peer.request()
    await peer.send(http(b"{}", "429 Too Many Requests", "Retry-After: 1"))
    await answering(peer)
