"""The program where everything is missing that Windows lacks: each command does its work.

What was taken away, and what cannot be shown so, `tests/without_posix.py` says.
"""

from __future__ import annotations

import ast
import asyncio
import signal
import sys
from pathlib import Path

import orjson
import pytest

from tests.bulk.support import read_jsonl, requests, write_jsonl
from tests.cli.support import (
    DOCUMENTS,
    PROGRAM,
    QUERY,
    RANKING,
    Done,
    environment,
    execute,
    ranking_in,
)
from tests.support import (
    PACKAGE,
    Peer,
    ScriptedServer,
    answer_body,
    body_of,
    http,
    score,
    true_answer,
)

WITHOUT = (sys.executable, str(Path(__file__).with_name("without_posix.py")), "-m", "rerank_async")
ROWS = requests(40)


async def without_posix(*arguments: str, cwd: Path) -> Done:
    return await execute(*WITHOUT, *arguments, cwd=cwd)


@pytest.fixture
def input_file(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "in.jsonl", ROWS)


def bulk(url: str) -> tuple[str, ...]:
    return ("bulk", "in.jsonl", "out.jsonl", "--url", url, "--model", "m", "--quiet")


async def test_rerank_prints_its_ranking(tmp_path: Path) -> None:
    (tmp_path / "documents.txt").write_text("document 1\ndocument 3\ndocument 2\n")
    async with ScriptedServer(score) as server:
        asked = ("rerank", "q", "documents.txt", "--url", server.url, "--model", "m")
        done = await without_posix(*asked, cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert ranking_in(done.out) == [1, 2, 0]


async def test_bulk_finishes_a_job_that_a_system_with_posix_began(
    tmp_path: Path, input_file: Path
) -> None:
    begun = asyncio.Event()

    async def slow(peer: Peer) -> None:
        while True:
            raw = await peer.request()
            if len(server.requests) == 21:
                begun.set()
                await peer.until_gone()
                return
            await peer.send(http(true_answer(raw)))

    async with ScriptedServer(slow) as server:
        process = await asyncio.create_subprocess_exec(
            *PROGRAM, *bulk(server.url), "--concurrency", "1", cwd=tmp_path, env=environment()
        )
        await begun.wait()
        # The head, and a first group.
        journal = tmp_path / "out.jsonl.job" / "journal.log"
        while journal.read_bytes().count(b"\n") < 3:
            await asyncio.sleep(0.01)
        process.kill()
        await process.wait()
        done = await without_posix(*bulk(server.url), cwd=tmp_path)
        assert (done.code, done.err) == (0, "")
        # What was acknowledged was not sent again.
        assert len(ROWS) < len(server.requests) < 21 + len(ROWS)
    assert [row["query_id"] for row in read_jsonl(tmp_path / "out.jsonl")] == [
        row["query_id"] for row in ROWS
    ]


async def test_bulk_stops_at_a_signal_and_goes_on_later(tmp_path: Path, input_file: Path) -> None:
    begun, free = asyncio.Event(), asyncio.Event()

    async def held(peer: Peer) -> None:
        while True:
            raw = await peer.request()
            if len(server.requests) == 2:
                begun.set()
            await free.wait()
            await peer.send(http(true_answer(raw)))

    async with ScriptedServer(held) as server:
        process = await asyncio.create_subprocess_exec(
            *(*WITHOUT, *bulk(server.url), "--concurrency", "2"), cwd=tmp_path, env=environment()
        )
        await begun.wait()
        # Nothing else wakes it: its loop waits for answers that do not come.
        process.send_signal(signal.SIGTERM)
        free.set()
        assert await process.wait() == 128 + signal.SIGTERM
        done = await without_posix(*bulk(server.url), cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert len(read_jsonl(tmp_path / "out.jsonl")) == len(ROWS)


async def test_bench_measures(tmp_path: Path) -> None:
    asked = ("--count", "20", "--warm-up", "0", "--concurrency", "2", "--json", "--model", "m")

    async def answer(peer: Peer) -> None:
        while True:
            documents = orjson.loads(body_of(await peer.request()))["documents"]
            await peer.send(http(answer_body(range(len(documents)))))

    async with ScriptedServer(answer) as server:
        done = await without_posix("bench", "--url", server.url, *asked, cwd=tmp_path)
    assert done.code == 0, done.err
    assert orjson.loads(done.out)["levels"][0]["succeeded"] > 0


@pytest.mark.parametrize("workers", ["0", "1"])
async def test_serve_scores_until_a_signal_ends_it(tmp_path: Path, workers: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(*WITHOUT, "serve", "--port", "0", "--workers", workers),
        cwd=tmp_path,
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        url = (await process.stdout.readline()).decode().removeprefix("listening on ").strip()
        (tmp_path / "documents.txt").write_text("\n".join(DOCUMENTS))
        asked = ("rerank", QUERY, "documents.txt", "--url", url, "--model", "lexical")
        done = await without_posix(*asked, cwd=tmp_path)
        assert (done.code, ranking_in(done.out)) == (0, RANKING)
        # Nothing else wakes it.
        process.send_signal(signal.SIGTERM)
        _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, said.count(b"\n")) == (0, 1), said.decode()


def test_the_package_names_nothing_of_posix_without_asking_whether_it_is_there() -> None:
    """A name that only some systems have is looked up, and not taken for granted."""
    only_some = {
        *("pread", "pwrite", "fork", "sched_getaffinity", "register_at_fork", "getuid", "geteuid"),
        *("killpg", "setsid", "fdatasync", "pthread_sigmask", "pthread_kill", "sigwait", "mkfifo"),
        *("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGCHLD", "epoll"),
        *("O_CLOEXEC", "O_NONBLOCK", "O_DIRECTORY", "O_NOFOLLOW", "O_BINARY", "SO_REUSEPORT"),
        *("poll", "kqueue", "AF_UNIX", "fchmod", "chown", "getpgid", "getrusage", "uname"),
    }
    modules = {"os", "signal", "select", "socket", "resource"}
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        asked = {
            node.args[1].value
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Call)
            and getattr(node.func, "id", "") in ("hasattr", "getattr")
            and isinstance(node.args[1], ast.Constant)
        }
        found += [
            f"{path.relative_to(PACKAGE)}:{node.lineno} {node.attr}"
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in modules
            and node.attr in only_some - asked
        ]
    assert found == []
