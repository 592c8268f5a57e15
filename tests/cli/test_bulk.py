"""`rerank-async bulk` as its users meet it: exit codes, signals, what it prints, being killed."""

from __future__ import annotations

import ast
import asyncio
import random
import signal
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from attrs import frozen
from typer.testing import CliRunner

import rerank_async._cli  # noqa: F401 — registers the commands
from rerank_async import ChunkLimits, RetryPolicy
from rerank_async._cli._shared import app
from tests.bulk.support import expected, ranking, read_jsonl, requests, write_jsonl
from tests.cli.support import KEY, PROGRAM, Run, environment, on_a_terminal, one_line
from tests.support import PACKAGE, Peer, ScriptedServer, body_of, http, true_answer


async def answering(peer: Peer) -> None:
    while True:
        await peer.send(http(true_answer(await peer.request())))


async def refusing(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.send(http(b'{"error": "no"}', "401 Unauthorized"))


async def silent(peer: Peer) -> None:
    await peer.until_gone()


def arguments(server: ScriptedServer, *more: str) -> tuple[str, ...]:
    return ("bulk", "in.jsonl", "out.jsonl", "--url", server.url, "--model", "m", *more)


async def started(server: ScriptedServer, cwd: Path, *more: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *PROGRAM,
        *arguments(server, *more),
        cwd=cwd,
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_a_file_goes_in_and_a_file_comes_out(tmp_path: Path, run: Run) -> None:
    rows = requests(30)
    write_jsonl(tmp_path / "in.jsonl", rows)
    async with ScriptedServer(answering) as server:
        done = await run(*arguments(server))
    assert done.code == 0
    assert done.out == ""
    assert "30 of 30 queries, 150 documents" in done.err
    assert "written to out.jsonl" in done.err
    lines = read_jsonl(tmp_path / "out.jsonl")
    assert [ranking(line) for line in lines] == [expected(row) for row in rows]


async def test_the_summary_is_json_on_demand_and_nothing_is_shown_if_quiet(
    tmp_path: Path, run: Run
) -> None:
    write_jsonl(tmp_path / "in.jsonl", requests(3))
    async with ScriptedServer(answering) as server:
        done = await run(*arguments(server, "--json", "--quiet"))
    assert done.err == ""
    summary = orjson.loads(done.out)
    assert summary["finished"] is True
    assert (summary["queries"], summary["documents"], summary["failed"]) == (3, 15, 0)


async def test_a_plan_is_printed_and_nothing_is_sent(tmp_path: Path, run: Run) -> None:
    write_jsonl(tmp_path / "in.jsonl", requests(3))
    async with ScriptedServer(answering) as server:
        done = await run(*arguments(server, "--dry-run", "--max-documents", "2"))
        told = await run(*arguments(server, "--dry-run", "--json"))
        assert not server.requests
    assert done.code == 0
    assert done.out.split() == [
        *("rows", "3", "documents", "15,", "of", "which", "15", "are", "to", "be", "sent"),
        *("requests", "9", "tokens", "about"),
        done.out.split()[-1],
    ]
    assert orjson.loads(told.out)["requests"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


async def test_failed_rows_make_exit_code_1(tmp_path: Path, run: Run) -> None:
    write_jsonl(tmp_path / "in.jsonl", [*requests(3), {"query": "no", "documents": ["document 0"]}])

    async def picky(peer: Peer) -> None:
        while True:
            raw = await peer.request()
            if b'"query":"no"' in raw:
                await peer.send(http(b'{"error": "I do not"}', "400 Bad Request"))
            else:
                await peer.send(http(true_answer(raw)))

    async with ScriptedServer(picky) as server:
        done = await run(*arguments(server))
    assert done.code == 1
    assert "1 failed: see out.jsonl; --retry-failed" in done.err
    assert read_jsonl(tmp_path / "out.jsonl")[3]["error"]["type"] == "BadRequestError"


async def test_wrong_use_makes_exit_code_2_and_one_line(tmp_path: Path, run: Run) -> None:
    async with ScriptedServer(answering) as server:
        assert "no such file" in one_line(await run(*arguments(server)))
        write_jsonl(tmp_path / "in.jsonl", requests(3))
        done = await run(*arguments(server)[:2], "out.txt", *arguments(server)[3:])
        assert "must end in .jsonl, .run or .parquet" in one_line(done)
        assert (await run(*arguments(server), "--depth", "3")).code == 2
        assert (await run(*arguments(server))).code == 0
        done = await run(*arguments(server)[:-1], "other")
        assert done.code == 2
        assert "model was 'm', now 'other'" in one_line(done)
        (tmp_path / "out.jsonl.job" / "manifest.json").write_text("{}")
        done = await run(*arguments(server))
        assert done.code == 2
        assert "damaged" in one_line(done)


async def test_a_refused_key_makes_exit_code_3_and_is_not_shown(tmp_path: Path, run: Run) -> None:
    write_jsonl(tmp_path / "in.jsonl", requests(300))
    async with ScriptedServer(refusing) as server:
        done = await run(*arguments(server), RERANK_API_KEY=KEY)
        assert len(server.requests) < 30
    assert done.code == 3
    assert "the server refuses everything" in done.err
    assert "401" in done.err
    assert KEY not in done.err
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()


@pytest.mark.parametrize("options", [(), ("--quiet",)])
async def test_an_outage_that_lasts_makes_exit_code_3_and_no_failed_row(
    tmp_path: Path, run: Run, options: tuple[str, ...]
) -> None:
    rows = requests(30)
    write_jsonl(tmp_path / "in.jsonl", rows)
    server = ScriptedServer(answering)
    async with server:
        port = server.port
    done = await run(*arguments(server, "--max-outage", "0.3", *options))
    assert done.code == 3
    assert "the server did not answer for too long" in done.err
    assert str(port) in done.err
    assert b'"failed":true' not in (tmp_path / "out.jsonl.job" / "journal.log").read_bytes()


async def test_a_server_that_is_never_reached_is_given_up_long_before_an_outage_is(
    tmp_path: Path,
) -> None:
    write_jsonl(tmp_path / "in.jsonl", requests(30))
    server = ScriptedServer(answering)
    async with server:
        pass
    process = await started(server, tmp_path, "--max-outage", "600")
    assert process.stderr is not None
    shown = b""
    # Said while it is waited for, and not only in the end.
    while b"waiting: " not in shown:
        shown = await process.stderr.readline()
    assert b"could not connect: Connection refused" in shown
    # By far less than the ten minutes of --max-outage, however slow the machine is.
    _, rest = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 3
    assert b"could not connect: Connection refused" in rest
    assert b"this server was not reached once" in rest
    assert b'"failed":true' not in (tmp_path / "out.jsonl.job" / "journal.log").read_bytes()


async def test_a_quota_that_is_used_up_ends_the_job_at_once(tmp_path: Path, run: Run) -> None:
    write_jsonl(tmp_path / "in.jsonl", requests(100))

    async def used_up(peer: Peer) -> None:
        error = b'{"error": {"message": "You exceeded your current quota"}}'
        while True:
            await peer.request()
            await peer.send(http(error, "429 Too Many Requests"))

    async with ScriptedServer(used_up) as server:
        done = await run(*arguments(server, "--concurrency", "4"))
        assert len(server.requests) <= 8
    assert done.code == 3
    assert "the server refuses everything" in done.err
    assert "You exceeded your current quota" in done.err


async def test_an_outage_is_waited_out(tmp_path: Path) -> None:
    rows = requests(40)
    write_jsonl(tmp_path / "in.jsonl", rows)
    down = 0

    async def coming_back(peer: Peer) -> None:
        nonlocal down
        while True:
            raw = await peer.request()
            if len(server.requests) >= 10 and down < 30:
                down += 1
                await peer.send(http(b"{}", "503 Service Unavailable"))
            else:
                await peer.send(http(true_answer(raw)))

    async with ScriptedServer(coming_back) as server:
        process = await started(server, tmp_path, "--concurrency", "4", "--max-outage", "60")
        _, err = await process.communicate()
    assert process.returncode == 0, err
    assert down == 30
    assert [ranking(line) for line in read_jsonl(tmp_path / "out.jsonl")] == [
        expected(row) for row in rows
    ]


# ── signals ──


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_signal_lets_the_wire_get_empty_and_the_same_command_goes_on(
    tmp_path: Path, run: Run, number: signal.Signals, code: int
) -> None:
    rows = requests(400)
    write_jsonl(tmp_path / "in.jsonl", rows)
    held = asyncio.Event()

    async def held_back(peer: Peer) -> None:
        while True:
            raw = await peer.request()
            if len(server.requests) > 50:
                await held.wait()
            await peer.send(http(true_answer(raw)))

    async with ScriptedServer(held_back) as server:
        process = await started(server, tmp_path, "--concurrency", "8")
        await asyncio.wait_for(_reached(server, 58), 30)
        process.send_signal(number)
        assert process.stderr is not None
        shown = b""
        while b"stopping" not in shown:
            shown += await process.stderr.readline()
        held.set()
        _, err = await process.communicate()
        assert process.returncode == code
        assert b"stopped: interrupted; run the same command again" in err
        sent = len(server.requests)
        assert sent < 400
        assert not (tmp_path / "out.jsonl").exists()
        done = await run(*arguments(server))
        assert done.code == 0
        # What was on the wire was finished, and nothing is sent twice.
        assert len(server.requests) == 400
    assert f"{sent} queries were done before" in done.err
    assert len(read_jsonl(tmp_path / "out.jsonl")) == 400


async def _reached(server: ScriptedServer, count: int) -> None:
    while len(server.requests) < count:
        await asyncio.sleep(0.001)


async def test_a_second_signal_stops_now(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", requests(20))
    async with ScriptedServer(silent) as server:
        process = await started(server, tmp_path)
        while not server.peers:
            await asyncio.sleep(0.001)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        while b"stopping" not in await process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert err.endswith(b"run the same command again to go on\n")


async def test_a_silent_pipe_does_not_keep_a_signal_from_being_heard(tmp_path: Path) -> None:
    rows = requests(3)
    async with ScriptedServer(answering) as server:
        process = await asyncio.create_subprocess_exec(
            *PROGRAM,
            *("bulk", "-", "out.jsonl", "--url", server.url, "--model", "m"),
            cwd=tmp_path,
            env=environment(),
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(b"".join(orjson.dumps(row) + b"\n" for row in rows))
        # Rows are sent as they come; the pipe stays open.
        await asyncio.wait_for(_reached(server, 3), 30)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        err = await process.stderr.read()
        code = await process.wait()
        process.stdin.close()
    assert code == 130
    assert b"3 queries" in err


# ── being killed ──


@pytest.mark.timeout(120)
async def test_killed_again_and_again_a_job_ends_in_the_same_bytes(tmp_path: Path) -> None:
    dice = random.Random(4)
    rows = requests(600, documents=3)
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "in.jsonl", rows)
    async with ScriptedServer(answering) as server:
        process = await started(server, tmp_path / "calm")
        await process.communicate()
        assert process.returncode == 0
        before = len(server.requests)
        kills, known = 0, 0
        journal = tmp_path / "killed" / "out.jsonl.job" / "journal.log"
        while True:
            process = await started(server, tmp_path / "killed", "--concurrency", "2")
            ending = asyncio.create_task(process.communicate())
            if kills < 8:
                # After so many more answers, wherever that is.
                wanted = len(server.requests) + dice.randrange(1, 150)
                while len(server.requests) < wanted and not ending.done():
                    await asyncio.sleep(0)
                if not ending.done():
                    process.kill()
                    kills += 1
            await ending
            whole = journal.read_bytes().count(b"\n") if journal.exists() else 0
            # What was there is there.
            assert whole >= known
            known = whole
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL
        sent = Counter(orjson.loads(body_of(raw))["query"] for raw in server.requests[before:])
    assert kills >= 4
    assert (tmp_path / "killed" / "out.jsonl").read_bytes() == (
        tmp_path / "calm" / "out.jsonl"
    ).read_bytes()
    assert len(sent) == 600
    # Only what was not on the disk yet is sent again.
    assert sum(sent.values()) - 600 <= kills * (64 + 64 + 4)


# ── what a person sees ──


async def test_a_terminal_shows_a_bar_and_then_the_summary(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", requests(200))
    async with ScriptedServer(answering) as server:
        code, shown = await on_a_terminal(*PROGRAM, *arguments(server), cwd=tmp_path, columns=100)
    assert code == 0
    for word in ("documents", "per second", "in flight", "retries", "throttled", "failed"):
        assert word in shown
    assert "200 of 200 queries, 1,000 documents" in shown
    assert "Traceback" not in shown


async def test_what_is_done_so_far_is_written_on_demand(tmp_path: Path, run: Run) -> None:
    write_jsonl(tmp_path / "in.jsonl", requests(50))
    async with ScriptedServer(answering) as server:
        done = await run(*arguments(server, "--max-tokens", "100"))
        assert done.code == 3
        assert "--max-tokens" in done.err
        sent = len(server.requests)
        assert 0 < sent < 50
        done = await run(*arguments(server, "--export", "--max-tokens", "100"))
        assert done.code == 0
        assert len(server.requests) == sent
    assert len(read_jsonl(tmp_path / "out.jsonl")) == sent


# ── many machines ──


@frozen
class Summary:
    """What a job on a Ray cluster returns, without Ray."""

    rows: int = 3
    rows_total: int = 4
    resumed: int = 1
    sent: int = 2
    tokens: int = 1234
    failed: int = 0
    lost_actors: int = 0
    seconds: float = 2.0
    finished: bool = True
    output: str = "out"
    error: str | None = None


def on_many_machines(
    monkeypatch: pytest.MonkeyPatch, summary: Summary, *options: str
) -> tuple[int, str, dict[str, Any]]:
    """The exit code of the command with `--ray`, what it prints, and what it asked for."""
    given: dict[str, Any] = {}

    def rerank_parquet(source: str, output: str, **more: Any) -> Summary:
        given.update(more, input=source, output=output)
        return summary

    ray = SimpleNamespace(rerank_parquet=rerank_parquet)
    monkeypatch.setitem(sys.modules, "rerank_async.ray", ray)
    command = ["bulk", "in", "out", "--ray", "local", "--url", "http://127.0.0.1:9/v1"]
    done = CliRunner().invoke(app, [*command, "--model", "m", *options])
    return done.exit_code, done.output, given


def test_many_machines_are_asked_for_what_the_options_say(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--actors", "3", "--requests-per-minute", "120", "--max-documents", "50")
    code, _, given = on_many_machines(monkeypatch, Summary(), *options, "--top-n", "7")
    assert code == 0
    assert given == {
        "input": "in",
        "output": "out",
        "address": "local",
        "base_url": "http://127.0.0.1:9/v1",
        "model": "m",
        "actors": 3,
        "concurrency": 32,
        "rate": 2.0,
        "top_n": 7,
        "retry_failed": False,
        "allow_insecure_http": False,
        "chunks": ChunkLimits(max_documents=50),
        "retry": RetryPolicy(max_outage=600.0, attempt_timeout=60.0),
    }


def test_what_many_machines_are_asked_for_is_what_they_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    *_, given = on_many_machines(monkeypatch, Summary())
    tree = ast.parse((PACKAGE / "ray" / "_parquet.py").read_text(encoding="utf-8"))
    [function] = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == "rerank_parquet"
    ]
    taken = {argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)}
    assert given.keys() <= taken


def test_what_became_of_a_job_on_many_machines_is_said_and_decides_the_exit_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, told, _ = on_many_machines(monkeypatch, Summary())
    assert told.splitlines() == [
        "3 of 4 rows in 2 s; 1 were done before",
        "2 queries sent, tokens of all runs of the job: 1,234",
        "written to out",
    ]
    code, told, _ = on_many_machines(monkeypatch, Summary(failed=2, lost_actors=1))
    assert code == 1
    assert "1 actors were lost, and their work done anew" in told
    assert "2 rows failed; --retry-failed does them again" in told
    ended = Summary(finished=False, error="no more disk")
    code, told, _ = on_many_machines(monkeypatch, ended)
    assert code == 3
    assert "stopped: no more disk; run the same command again to go on" in told
    code, told, _ = on_many_machines(monkeypatch, ended, "--json", "--quiet")
    assert orjson.loads(told)["error"] == "no more disk"
