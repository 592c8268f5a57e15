"""`rerank-async bench` as its users meet it: exit codes, signals, what it prints and writes."""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from rerank_async.bench import read_benchmark, to_json
from rerank_async.server import LocalServer
from tests.bench import made
from tests.cli.support import KEY, PROGRAM, Run, environment, execute, on_a_terminal, one_line
from tests.support import Peer, ScriptedServer, body_of, http, true_answer

SHORT = ("--duration", "300ms", "--warm-up", "100ms", "--documents", "3")
# The scripted server scores documents by the number in them, which made ones do not have.
REQUESTS = [
    {"query": "q", "documents": [f"document {number}", {"text": "document 77"}], "top_n": top_n}
    for number, top_n in ((1, 1), (2, None))
]


async def answering(peer: Peer) -> None:
    while True:
        await peer.send(http(true_answer(await peer.request())))


async def refusing(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.send(http(b'{"error": "no"}', "401 Unauthorized"))


async def silent(peer: Peer) -> None:
    await peer.until_gone()


def at(server: Any, *more: str) -> tuple[str, ...]:
    return ("bench", "--url", server.url, "--model", "m", *more)


@pytest.fixture
def requests_file(tmp_path: Path) -> str:
    (tmp_path / "requests.jsonl").write_bytes(b"\n".join(map(orjson.dumps, REQUESTS)))
    return "requests.jsonl"


class TestBench:
    async def test_prints_a_summary_on_standard_output_and_a_line_for_each_level(
        self, run: Run
    ) -> None:
        async with LocalServer() as server:
            done = await run(*at(server, *SHORT, "--concurrency", "1,2"))
        assert done.code == 0
        first, second = done.err.splitlines()
        assert first.startswith("1 at once: ")
        assert second.startswith("2 at once: ")
        assert "failed 0" in second
        assert "req/s" in done.out

    @pytest.mark.parametrize(("what", "mode"), [("concurrency", "closed"), ("rate", "open")])
    async def test_sweeps_over_concurrency_or_rate(self, run: Run, what: str, mode: str) -> None:
        brief = ("--count", "3", "--warm-up", "0s", "--documents", "3", "--timeout", "2s")
        async with LocalServer() as server:
            done = await run(*at(server, *brief, "--sweep", what, "--json", "--quiet"))
        told = orjson.loads(done.out)
        assert (done.code, told["levels"][0]["mode"]) == (0, mode)
        assert len(told["levels"]) > 2

    async def test_prints_json_that_can_be_read_again(self, run: Run, tmp_path: Path) -> None:
        async with LocalServer() as server:
            done = await run(
                *at(server, *SHORT, "--rate", "40", "--json", "--quiet", "--name", "n"),
                *("--arrivals", "constant", "--goodput", "p50:10s"),
            )
        assert (done.code, done.err) == (0, "")
        (tmp_path / "a.json").write_text(done.out)
        benchmark = read_benchmark(tmp_path / "a.json")
        [level] = benchmark.levels
        assert (level.mode, level.rate, level.requests) == ("open", 40.0, 12)
        assert level.succeeded == level.requests == level.attempts
        assert level.goodput is not None
        assert level.goodput.is_met
        assert benchmark.target.url == f"{server.url}/rerank"
        assert (benchmark.name, benchmark.arrivals) == ("n", "constant")

    async def test_asks_an_embedded_server_in_processes_of_its_own(self, run: Run) -> None:
        done = await run("bench", "--local", *SHORT, "--concurrency", "2", "--json")
        assert done.code == 0
        benchmark = json.loads(done.out)
        assert benchmark["target"]["model"] == "lexical"
        assert benchmark["levels"][0]["succeeded"] > 0

    async def test_sends_the_requests_of_a_file_each_as_one(
        self, run: Run, requests_file: str
    ) -> None:
        async with ScriptedServer(answering) as server:
            done = await run(
                *at(server, "--requests", requests_file, "--warm-up", "0s", "--count", "6"),
                *("--concurrency", "2", "--json"),
            )
            sent = [orjson.loads(body_of(request)) for request in server.requests]
        assert done.code == 0
        benchmark = json.loads(done.out)
        assert benchmark["levels"][0]["attempts"] == 6
        assert benchmark["workload"]["source"] == requests_file
        assert "each was sent about 3 times" in " ".join(benchmark["notes"])
        assert len(sent) == 7
        assert {"model": "m", "query": "q", "documents": ["document 2", "document 77"]} in sent
        assert [body.get("top_n") for body in sent].count(1) == 4

    async def test_reads_requests_from_standard_input(self, run: Run) -> None:
        stdin = b"\n".join(map(orjson.dumps, REQUESTS))
        async with ScriptedServer(answering) as server:
            done = await run(
                *at(server, "--requests", "-", "--warm-up", "0", "--count", "2"),
                *("--concurrency", "1", "--json"),
                stdin=stdin,
            )
        assert done.code == 0
        assert json.loads(done.out)["workload"]["source"] == "standard input"

    async def test_writes_a_report_and_puts_two_side_by_side(
        self, run: Run, tmp_path: Path
    ) -> None:
        async with LocalServer() as server:
            for name in ("before", "after"):
                done = await run(
                    *at(server, *SHORT, "--concurrency", "2", "--output", name, "--name", name)
                )
                assert done.code == 0
                assert f"written: {name}" in done.err
        reports = [next((tmp_path / name).glob("*.json")) for name in ("before", "after")]
        assert [read_benchmark(report).name for report in reports] == ["before", "after"]
        done = await run("bench", "--compare", *map(str, reports), "--output", "both")
        assert done.code == 0
        assert "before" in done.out
        assert "after" in done.out
        assert list((tmp_path / "both").iterdir())

    async def test_shows_a_table_while_it_runs_on_a_terminal(self, tmp_path: Path) -> None:
        async with LocalServer() as server:
            code, screen = await on_a_terminal(
                *PROGRAM, *at(server, *SHORT, "--concurrency", "1,2"), cwd=tmp_path, columns=80
            )
        assert code == 0
        assert "level 2 of 2, measuring, 0 s left; Ctrl-C stops and reports" in screen
        assert "in flight" in screen
        assert all(len(line) <= 80 for line in screen.splitlines())


class TestFailures:
    async def test_are_counted_by_kind_and_some_do_not_make_exit_code_1(self, run: Run) -> None:
        async with LocalServer(faults=0.3) as server:
            done = await run(*at(server, *SHORT, "--concurrency", "2", "--json"))
        assert done.code == 0
        [level] = json.loads(done.out)["levels"]
        assert {"HTTP 429", "HTTP 503", "TransportError"} == set(level["failures"])
        assert level["failed"] / level["requests"] == pytest.approx(0.3, abs=0.1)
        assert level["attempts"] == level["requests"]
        assert level["throttles"] > 0

    async def test_of_connections_that_were_used_before_are_counted_as_sent_again(
        self, run: Run, requests_file: str
    ) -> None:
        async def once(peer: Peer) -> None:
            await peer.send(http(true_answer(await peer.request())))
            await peer.request()
            peer.reset()

        brief = (
            "--count",
            "10",
            "--warm-up",
            "0s",
            "--concurrency",
            "1",
            "--requests",
            requests_file,
        )
        async with ScriptedServer(*[once] * 20) as server:
            done = await run(*at(server, *brief, "--json"))
            received = len(server.requests)
        assert done.code == 0
        [level] = json.loads(done.out)["levels"]
        assert (level["failed"], level["retries"]) == (0, 0)
        assert level["resent"] >= 9
        # One more was sent before, to see whether anybody is there.
        assert level["attempts"] == level["requests"] + level["resent"] == received - 1

    async def test_of_the_server_end_a_search_without_a_knee(
        self, run: Run, requests_file: str
    ) -> None:
        async def vanishing(peer: Peer) -> None:
            await peer.request()
            server.refuse()
            peer.reset()

        # The request before, one at once, and two at once.
        async with ScriptedServer(answering, answering, vanishing) as server:
            brief = ("--count", "20", "--warm-up", "0s", "--requests", requests_file, "--json")
            done = await run(*at(server, *brief, "--sweep", "concurrency"))
        told = json.loads(done.out)
        assert told["knee"] is None
        assert "could not be reached any more" in " ".join(told["notes"])
        assert len(told["levels"]) == 2

    async def test_to_print_do_not_cost_the_report(self, tmp_path: Path) -> None:
        async with LocalServer() as server:
            words = shlex.join(at(server, *SHORT, "--output", "report", "--quiet"))
            program = f"{sys.executable} -m rerank_async {words}"
            gone = await execute("sh", "-c", f"{program} | true", cwd=tmp_path)
            assert "Traceback" not in gone.err
            assert (tmp_path / "report" / "benchmark.json").exists()
            (tmp_path / "report" / "benchmark.json").unlink()
            full = await execute("sh", "-c", f"{program} > /dev/full", cwd=tmp_path)
        assert full.code == 1
        assert "standard output: No space left on device" in one_line(full)
        assert (tmp_path / "report" / "benchmark.json").exists()

    async def test_of_everything_make_exit_code_1_and_a_report(self, run: Run) -> None:
        async with ScriptedServer(silent) as server:
            done = await run(
                *at(server, *SHORT, "--timeout", "200ms", "--concurrency", "2", "--json")
            )
        assert done.code == 1
        [level] = json.loads(done.out)["levels"]
        assert list(level["failures"]) == ["timeout"]
        assert level["succeeded"] == 0

    async def test_of_the_goodput_at_every_load_make_exit_code_1(self, run: Run) -> None:
        async with LocalServer() as server:
            arguments = at(server, *SHORT, "--concurrency", "1,2", "--quiet")
            assert (await run(*arguments, "--goodput", "p99:0.001ms")).code == 1
            assert (await run(*arguments, "--goodput", "p50:10s")).code == 0

    async def test_of_the_key_end_it_at_once_in_one_line_without_the_key(self, run: Run) -> None:
        async with ScriptedServer(refusing) as server:
            done = await run(*at(server, "--concurrency", "4"), RERANK_API_KEY=KEY)
            assert len(server.requests) == 1
        assert done.code == 1
        line = one_line(done)
        assert "401" in line
        assert KEY not in line

    async def test_to_connect_end_it_at_once_in_one_line(self, run: Run) -> None:
        async with LocalServer() as server:
            arguments = at(server)
        done = await run(*arguments)
        assert done.code == 1
        assert server.url in one_line(done)


class TestInterruption:
    async def started(self, cwd: Path, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *PROGRAM,
            *arguments,
            cwd=cwd,
            env=environment(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def test_reports_what_was_measured_and_makes_exit_code_130(self, tmp_path: Path) -> None:
        async with LocalServer() as server:
            process = await self.started(
                tmp_path,
                *at(server, "--warm-up", "0s", "--duration", "300ms", "--concurrency", "1-4"),
                *("--output", "report", "--json", "--documents", "2"),
            )
            assert process.stderr is not None
            await process.stderr.readline()
            process.send_signal(signal.SIGINT)
            out, err = await process.communicate()
        assert process.returncode == 130
        benchmark = json.loads(out)
        assert benchmark["levels"][0]["succeeded"] > 0
        assert "it was interrupted" in " ".join(benchmark["notes"])
        assert b"written: report" in err
        assert b"Traceback" not in err
        assert list((tmp_path / "report").glob("*.json"))

    async def test_before_anything_was_measured_is_one_line(self, tmp_path: Path) -> None:
        async with ScriptedServer(silent) as server:
            process = await self.started(tmp_path, *at(server))
            while not server.peers:
                await asyncio.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            out, err = await process.communicate()
        assert process.returncode == 143
        assert (out, err) == (b"", b"rerank-async: stopped before anything was measured\n")


class TestWrongUse:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--concurrency", "0"], "--concurrency must be"),
            (["--concurrency", "many"], "--concurrency must be like 16 or 1,2,4,8"),
            (["--rate", "0"], "--rate must be above 0"),
            (["--rate", "5", "--concurrency", "5"], "--concurrency and --rate exclude each other"),
            (["--sweep", "rate", "--rate", "10-50"], "--sweep rate is --rate auto"),
            (["--sweep", "rate", "--concurrency", "8"], "--sweep rate is --rate auto"),
            (["--duration", "5s", "--count", "5"], "--duration and --count exclude each other"),
            (["--duration", "soon"], "--duration must be a time like 500ms"),
            (["--warm-up", "-1s"], "--warm-up must be a time"),
            (["--timeout", "2h"], "--timeout must be from"),
            (["--documents", "few"], "--documents must be like 100"),
            (["--document-words", "normal:0,1"], "--document-words"),
            (["--query-words", "0"], "--query-words must be from 1"),
            (["--goodput", "fast"], "--goodput must be like p99:500ms"),
            (["--dialect", "klingon"], "dialect"),
            (["--requests", "nowhere.jsonl"], "nowhere.jsonl"),
            (["--requests", "r.jsonl", "--documents", "5"], "leave out --documents"),
            (["--requests", "wrong.jsonl"], "wrong.jsonl: line 1"),
            (["--local"], "--local and --url exclude each other"),
            (["--output", "wrong.jsonl"], "wrong.jsonl"),
        ],
    )
    async def test_is_one_line_and_exit_2(
        self, run: Run, tmp_path: Path, arguments: list[str], words: str
    ) -> None:
        (tmp_path / "wrong.jsonl").write_text('{"query": "q"}\n')
        done = await run("bench", "--url", "http://127.0.0.1:1/v1", "--model", "m", *arguments)
        assert done.code == 2
        assert words in one_line(done)

    async def test_is_to_ask_for_more_connections_than_may_be_opened(self, tmp_path: Path) -> None:
        program = f"ulimit -n 300; exec {sys.executable} -m rerank_async"
        command = f"{program} bench --url http://127.0.0.1:1/v1 --model m --concurrency 280"
        done = await execute("sh", "-c", command, cwd=tmp_path)
        assert done.code == 2
        assert "--concurrency 280 needs more than the 236 connections" in one_line(done)

    async def test_of_a_comparison_is_one_line_and_exit_2(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text("{}")
        done = await run("bench", "--compare", "a.json", "b.json")
        assert done.code == 2
        assert "a.json is not a benchmark's JSON" in one_line(done)
        no_load = to_json(made.benchmark(made.level())).replace(
            b'"concurrency": 16', b'"concurrency": null'
        )
        (tmp_path / "a.json").write_bytes(no_load)
        done = await run("bench", "--compare", "a.json", "a.json")
        assert done.code == 2
        assert "levels[0] must have either a concurrency or a rate" in one_line(done)
        done = await run("bench", "--compare", "a.json", "a.json", "--rate", "5")
        assert done.code == 2
        assert "--compare sends nothing: leave out --rate" in one_line(done)
