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
