"""`rerank-async serve` as its users meet it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import select
import signal
from collections.abc import AsyncGenerator
from pathlib import Path

import orjson
import pytest
from attrs import frozen

from rerank_async.server import LocalServer
from tests.cli.support import (
    DOCUMENTS,
    KEY,
    PROGRAM,
    QUERY,
    RANKING,
    Run,
    environment,
    one_line,
    ranking_in,
)


@frozen
class Serving:
    """The program while it serves."""

    process: asyncio.subprocess.Process
    url: str
    port: int

    async def line_of_errors(self) -> str:
        assert self.process.stderr is not None
        return (await self.process.stderr.readline()).decode()


@contextlib.asynccontextmanager
async def serving(cwd: Path, *arguments: str, **env: str) -> AsyncGenerator[Serving, None]:
    process = await asyncio.create_subprocess_exec(
        *(*PROGRAM, "serve", "--port", "0", *arguments),
        cwd=cwd,
        env=environment(**env),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        match = re.fullmatch(r"listening on (http://127\.0\.0\.1:(\d+)/v1)\n", line)
        assert match, line
        yield Serving(process, match[1], int(match[2]))
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


class TestServe:
    async def test_answers_at_the_url_it_prints(self, run: Run, tmp_path: Path) -> None:
        text = "\n".join(DOCUMENTS).encode()
        async with serving(tmp_path, RERANK_SERVER_API_KEY=KEY) as server:
            arguments = ("rerank", QUERY, "--url", server.url, "--model", "m")
            done = await run(*arguments, stdin=text, RERANK_API_KEY=KEY)
            assert (done.code, ranking_in(done.out)) == (0, RANKING)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    @pytest.mark.parametrize("workers", ["0", "1"])
    async def test_finishes_the_request_in_work_and_exits_0_on(
        self, tmp_path: Path, number: signal.Signals, workers: str
    ) -> None:
        body = orjson.dumps({"model": "m", "query": QUERY, "documents": DOCUMENTS})
        async with serving(tmp_path, "--workers", workers) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(
                b"POST /v1/rerank HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
                b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
            )
            # So the request is in work, and waits for its body.
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            server.process.send_signal(number)
            assert "stopping" in await server.line_of_errors()
            writer.write(body)
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert len(json.loads(answer.partition(b"\r\n\r\n")[2])["data"]) == 3
            assert await server.process.wait() == 0
            assert await server.line_of_errors() == ""

    async def test_on_a_port_that_is_taken_fails_in_one_line(self, run: Run) -> None:
        async with LocalServer() as taken:
            port = taken.url.rpartition(":")[2].removesuffix("/v1")
            done = await run("serve", "--port", port, "--workers", "0")
        assert done.code == 1
        line = f"rerank-async: cannot listen on 127.0.0.1:{port}: Address already in use"
        assert one_line(done) == line

    async def test_on_a_host_that_there_is_not_fails_in_one_line(self, run: Run) -> None:
        done = await run("serve", "--host", "nowhere.invalid", "--workers", "0")
        assert done.code == 1
        assert "nowhere.invalid" in one_line(done)

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "0", "192.0.2.1", "::ffff:0.0.0.0"])
    async def test_that_others_can_reach_needs_a_key_or_the_word_that_there_is_none(
        self, run: Run, host: str
    ) -> None:
        done = await run("serve", "--host", host, "--port", "0", "--workers", "0")
        assert done.code == 2
        line = one_line(done)
        assert "others than this machine" in line
        assert "RERANK_SERVER_API_KEY" in line
        assert "--no-key" in line
        assert "api_key" not in line

    @pytest.mark.parametrize("key", ["", " ", "\t\n"])
    async def test_with_an_empty_key_says_so(self, run: Run, key: str) -> None:
        done = await run("serve", "--port", "0", "--workers", "0", RERANK_SERVER_API_KEY=key)
        assert done.code == 2
        assert "RERANK_SERVER_API_KEY is empty" in one_line(done)
        done = await run("serve", "--port", "0", "--workers", "0", "--api-key", key)
        assert done.code == 2
        assert "--api-key is empty" in one_line(done)

    @pytest.mark.parametrize(
        "key", ["two words", "schl\N{LATIN SMALL LETTER U WITH DIAERESIS}ssel"]
    )
    async def test_with_a_key_that_no_client_can_send_says_so_without_it(
        self, run: Run, key: str
    ) -> None:
        done = await run("serve", "--port", "0", "--workers", "0", RERANK_SERVER_API_KEY=key)
        assert done.code == 2
        line = one_line(done)
        assert "the API key must be printable ASCII" in line
        assert key not in line

    async def test_with_a_key_and_without_one_asks_which_it_is(self, run: Run) -> None:
        done = await run("serve", "--no-key", "--port", "0", RERANK_SERVER_API_KEY=KEY)
        assert done.code == 2
        assert "which is it?" in one_line(done)
        assert KEY not in done.err

    @pytest.mark.parametrize("variable", [{}, {"RERANK_SERVER_API_KEY": ""}])
    async def test_without_a_key_says_yes_to_everybody_when_told_so(
        self, tmp_path: Path, variable: dict[str, str]
    ) -> None:
        async with serving(tmp_path, "--no-key", "--workers", "0", **variable) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET /v1/models HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
            writer.close()
            await writer.wait_closed()

    @pytest.mark.skipif(
        not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists(),
        reason="this system does not list the children of a process",
    )
    async def test_starts_processes_that_know_no_key(self, tmp_path: Path) -> None:
        keys = {
            "RERANK_SERVER_API_KEY": KEY,
            "RERANK_API_KEY": KEY + "-2",
            "OPENAI_API_KEY": KEY + "-3",
            "SOME_OTHER_NAME": KEY,
        }
        arguments = ("--workers", "2", "--api-key", KEY)
        async with serving(tmp_path, *arguments, **keys) as server:
            children = children_of(server.process.pid)
            assert len(children) >= 2
            for child in children:
                for what in ("environ", "cmdline"):
                    assert KEY.encode() not in Path(f"/proc/{child}/{what}").read_bytes()

    @pytest.mark.skipif(
        not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists(),
        reason="this system does not list the children of a process",
    )
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    async def test_leaves_no_process_behind_on(
        self, tmp_path: Path, number: signal.Signals
    ) -> None:
        async with serving(tmp_path, "--workers", "2") as server:
            children = [os.pidfd_open(child) for child in children_of(server.process.pid)]
            try:
                assert len(children) >= 2
                assert ended(children, 0) == []
                server.process.send_signal(number)
                code = await server.process.wait()
                assert code == (0 if number == signal.SIGTERM else -signal.SIGKILL)
                for child in children:
                    assert await asyncio.to_thread(ended, [child], 20) == [child]
            finally:
                for child in children:
                    os.close(child)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ended(processes: list[int], seconds: float) -> list[int]:
    """Those that have ended, once there is one or the time is up."""
    return select.select(processes, [], [], seconds)[0]
