"""The command line as its users meet it: the real program, as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import sys
import termios
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import IO, Any, TypeAlias

import orjson
import pytest
import typer.main
from attrs import frozen

from rerank_async import __version__
from rerank_async._cli import Format, InputError, app, read_documents
from rerank_async.server import App, LocalServer
from rerank_async.server.engines import LexicalEngine
from rerank_async.testing import HttpRequest
from tests.support import PACKAGE

PROGRAM = (sys.executable, "-m", "rerank_async")
KEY = "sk-for-the-command-line-4be2"
QUERY = "open a file"
DOCUMENTS = ["close the door", "open a file for reading", "read a file line by line"]
RANKING = [1, 2, 0]


@frozen
class Done:
    """A program that has ended."""

    code: int
    out: str
    err: str


def environment(**more: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RERANK_") and name not in ("OPENAI_API_KEY", "COLUMNS", "LINES")
    }
    # Also where the package is not installed.
    return kept | {"PYTHONPATH": str(PACKAGE.parent), "TERM": "xterm"} | more


async def execute(*command: str, cwd: Path, stdin: bytes = b"", **env: str) -> Done:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=environment(**env),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(stdin)
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


Run: TypeAlias = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the program in an empty folder with these arguments."""

    async def run(*arguments: str, stdin: bytes = b"", **env: str) -> Done:
        return await execute(*PROGRAM, *arguments, cwd=tmp_path, stdin=stdin, **env)

    return run


def ranking_in(output: str) -> list[int]:
    return [int(line.split("\t")[1]) for line in output.splitlines()]


def one_line(done: Done) -> str:
    """What stood on standard error, which must be one line of ours."""
    [line] = done.err.splitlines()
    assert line.startswith("rerank-async: ")
    assert done.out == ""
    return line


async def test_the_version_is_printed(run: Run) -> None:
    assert await run("--version") == Done(0, f"rerank-async {__version__}\n", "")


class TestHelp:
    @pytest.mark.parametrize(
        ("command", "options"),
        [
            (
                "rerank",
                (
                    *("--top-n", "--url", "--model", "--format"),
                    *("--json", "--local", "--allow-insecure-http"),
                ),
            ),
            (
                "serve",
                (
                    *("--host", "--port", "--engine", "--api-key"),
                    *("--max-documents", "--workers", "--queue", "--faults"),
                ),
            ),
            ("demo", ("--faults",)),
        ],
    )
    async def test_of_a_command_names_every_option(
        self, run: Run, command: str, options: tuple[str, ...]
    ) -> None:
        done = await run(command, "--help", COLUMNS="100")
        assert done.code == 0
        for option in options:
            assert re.search(rf"(?m)^\W*{option}\b", done.out), option
        assert f"Example: rerank-async {command}" in done.out

    def test_says_something_about_every_option_there_is(self) -> None:
        group: Any = typer.main.get_command(app)
        for name, command in group.commands.items():
            assert command.help, name
            for parameter in command.params:
                assert parameter.help, f"{name} {parameter.name}"

    async def test_lists_the_commands(self, run: Run) -> None:
        done = await run("--help")
        assert done.code == 0
        for command in ("rerank", "serve", "demo"):
            assert re.search(rf"(?m)^\W*{command}\b", done.out), command


class TestRerank:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("notes.txt", "\n".join(DOCUMENTS)),
            ("strings.jsonl", "\n".join(map(json.dumps, DOCUMENTS))),
            ("objects", "\n".join(json.dumps({"id": 7, "text": text}) for text in DOCUMENTS)),
            ("array", json.dumps(DOCUMENTS)),
            ("pretty.json", json.dumps([{"text": text} for text in DOCUMENTS], indent=2)),
        ],
    )
    async def test_reads_a_file_of_any_format(
        self, run: Run, tmp_path: Path, name: str, text: str
    ) -> None:
        (tmp_path / name).write_text(text)
        done = await run("rerank", QUERY, name, "--local")
        assert (done.code, done.err) == (0, "")
        assert ranking_in(done.out) == RANKING

    @pytest.mark.parametrize("arguments", [["-"], []])
    async def test_reads_standard_input(self, run: Run, arguments: list[str]) -> None:
        text = "\n".join(DOCUMENTS).encode()
        done = await run("rerank", QUERY, *arguments, "--local", stdin=text)
        assert (done.code, ranking_in(done.out)) == (0, RANKING)

    async def test_writes_score_index_and_text_with_tabs_into_a_pipe(self, run: Run) -> None:
        text = b'"open\\ta\\n file"\n"a door"\n'
        done = await run("rerank", QUERY, "--local", "--top-n", "1", stdin=text)
        assert re.fullmatch(r"0\.\d{6}\t0\topen a file\n", done.out)

    async def test_writes_the_body_of_the_specification_as_json(
        self, run: Run, tmp_path: Path
    ) -> None:
        (tmp_path / "notes.txt").write_text("\n".join(DOCUMENTS))
        done = await run("rerank", QUERY, "notes.txt", "--local", "--json", "--top-n", "2")
        body = orjson.dumps(
            {"model": "lexical", "query": QUERY, "documents": DOCUMENTS, "top_n": 2}
        )
        request = HttpRequest("POST", "/v1/rerank", {"content-type": "application/json"}, body)
        expected = json.loads(App(LexicalEngine()).handle(request).body)
        assert (done.code, json.loads(done.out)) == (0, expected)

    @pytest.mark.parametrize("arguments", [[], ["--json"]])
    async def test_of_no_documents_is_an_empty_ranking(
        self, run: Run, arguments: list[str]
    ) -> None:
        done = await run("rerank", QUERY, "--local", *arguments, stdin=b"\n \n")
        assert (done.code, done.err) == (0, "")
        assert (json.loads(done.out)["data"] == []) if arguments else (done.out == "")

    async def test_shows_a_table_on_a_terminal(self, tmp_path: Path) -> None:
        tail = "and then some more words that do not fit into a line of eighty columns"
        documents = [*DOCUMENTS, f"open a \x1b[31mfile {tail}"]
        (tmp_path / "notes.txt").write_text("\n".join(documents))
        code, screen = await on_a_terminal(
            *PROGRAM, "rerank", QUERY, "notes.txt", "--local", cwd=tmp_path, columns=80
        )
        lines = screen.splitlines()
        assert code == 0
        assert lines[0].split() == ["score", "index", "document"]
        assert len(lines) == 5
        places = [re.match(r" *(\d+)  (\d\.\d{3}) +(\d)  (.+)", line) for line in lines[1:]]
        assert [match[1] for match in places if match] == ["1", "2", "3", "4"]
        assert max(map(len, lines)) <= 80
        [cut] = [line for line in lines if "\N{HORIZONTAL ELLIPSIS}" in line]
        # A document's escape codes are not the terminal's.
        assert "open a \N{REPLACEMENT CHARACTER}[31mfile and then" in cut
        assert "open a file for reading" in screen


async def on_a_terminal(*command: str, cwd: Path, columns: int) -> tuple[int, str]:
    """The exit code and the screen, without the codes for bold and the like."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (24, columns))
    try:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=cwd, env=environment(), stdin=its, stdout=its, stderr=its
        )
    finally:
        os.close(its)
    try:
        shown = await asyncio.to_thread(read_to_the_end, ours)
        code = await process.wait()
    finally:
        os.close(ours)
    return code, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode()).replace("\r\n", "\n")


def read_to_the_end(descriptor: int) -> bytes:
    read = b""
    # The end of a terminal is an error.
    with contextlib.suppress(OSError):
        while data := os.read(descriptor, 65536):
            read += data
    return read


class TestRerankOverTheNetwork:
    async def test_asks_the_server_at_the_url(self, run: Run) -> None:
        text = "\n".join(DOCUMENTS).encode()
        async with LocalServer(api_key=KEY) as server:
            arguments = ("rerank", QUERY, "--url", server.url, "--model", "m", "--json")
            done = await run(*arguments, stdin=text, RERANK_API_KEY=KEY)
        assert (done.code, done.err) == (0, "")
        body = json.loads(done.out)
        assert body["model"] == "m"
        assert [result["index"] for result in body["data"]] == RANKING

    async def test_finds_everything_in_the_environment(self, run: Run) -> None:
        text = "\n".join(DOCUMENTS).encode()
        async with LocalServer(api_key=KEY) as server:
            env = {"RERANK_API_KEY": KEY, "RERANK_BASE_URL": server.url, "RERANK_MODEL": "m"}
            done = await run("rerank", QUERY, stdin=text, **env)
        assert (done.code, ranking_in(done.out)) == (0, RANKING)

    async def test_with_a_wrong_key_says_so_in_one_line_without_the_key(self, run: Run) -> None:
        async with LocalServer(api_key=KEY) as server:
            done = await run(
                *("rerank", QUERY, "--url", server.url, "--model", "m"),
                stdin=b"text\n",
                RERANK_API_KEY="sk-this-is-wrong",
            )
        assert done.code == 1
        line = one_line(done)
        assert "401" in line
        assert "API key" in line
        assert "sk-this-is-wrong" not in line
        assert KEY not in line

    async def test_where_nobody_listens_fails_in_one_line(self, run: Run) -> None:
        async with LocalServer() as server:
            url = server.url
        done = await run("rerank", QUERY, "--url", url, "--model", "m", stdin=b"text\n")
        assert done.code == 1
        assert url in one_line(done)


class TestWrongUse:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["q", "--local", "--url", "http://127.0.0.1:1/v1"], ["--local", "--url"]),
            (
                ["q", "--url", "http://127.0.0.1:1/v1"],
                ["no model: pass --model or set RERANK_MODEL"],
            ),
            (
                ["q", "--model", "m"],
                ["--url", "--local", "RERANK_BASE_URL", "RERANK_API_KEY"],
            ),
            (["q", "--url", "nonsense", "--model", "m"], ["the URL must be", "nonsense"]),
            (["", "--local"], ["query"]),
            (["q", "nowhere.txt", "--local"], ["nowhere.txt", "No such file"]),
            (["q", ".", "--local"], ["directory"]),
            (["q", "latin.txt", "--local"], ["latin.txt", "UTF-8"]),
            (["q", "broken.jsonl", "--local"], ["broken.jsonl", "line 3"]),
            (["q", "--url", "http://a:b@h/v1", "--model", "m"], ["the URL", "set RERANK_API_KEY"]),
        ],
    )
    async def test_of_rerank_is_one_line_and_exit_2(
        self, run: Run, tmp_path: Path, arguments: list[str], words: list[str]
    ) -> None:
        (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
        (tmp_path / "broken.jsonl").write_text('"one"\n\n{"text": \n"four"\n')
        done = await run("rerank", *arguments, stdin=b"text\n")
        assert done.code == 2
        line = one_line(done)
        for word in words:
            assert word in line

    @pytest.mark.parametrize(
        ("arguments", "word"),
        [
            (["serve", "--engine", "nonsense"], "lexical"),
            (["serve", "--faults", "1"], "faults"),
            (["serve", "--host", ""], "host"),
            (["demo", "--faults", "-0.5"], "faults"),
        ],
    )
    async def test_of_another_command_is_one_line_and_exit_2(
        self, run: Run, arguments: list[str], word: str
    ) -> None:
        done = await run(*arguments)
        assert done.code == 2
        assert word in one_line(done)

    async def test_of_a_key_is_one_line_and_exit_2(self, run: Run) -> None:
        done = await run("rerank", "q", "--local", stdin=b"text\n", RERANK_API_KEY="two words")
        assert done.code == 2
        assert one_line(done).startswith("rerank-async: the API key must be")

    async def test_is_a_key_over_plain_http_unless_it_is_allowed(self, run: Run) -> None:
        # No host has this address.
        arguments = ("rerank", "q", "--url", "http://0.0.0.0:1/v1", "--model", "m")
        done = await run(*arguments, stdin=b"text\n", RERANK_API_KEY=KEY)
        assert done.code == 2
        assert "pass --allow-insecure-http for" in one_line(done)
        done = await run(*arguments, "--allow-insecure-http", stdin=b"text\n", RERANK_API_KEY=KEY)
        assert done.code == 1
        assert "http://0.0.0.0:1/v1" in one_line(done)

    async def test_of_top_n_is_exit_2(self, run: Run) -> None:
        done = await run("rerank", "q", "--local", "--top-n", "0")
        assert done.code == 2
        assert "--top-n" in done.err


def documents(text: str, file_format: Format = Format.AUTO, name: str = "a file") -> list[str]:
    return list(read_documents(io.StringIO(text), file_format, name))


class TestReadDocuments:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", []),
            ("\n \n\t\n", []),
            ("one\n\n  two \r\nthree", ["one", "  two ", "three"]),
            ("[sic] a line\n2\n", ["[sic] a line", "2"]),
            ("42\n43\n", ["42", "43"]),
            ("{curly}\n", ["{curly}"]),
            ('"one"\n\n"two"\n', ["one", "two"]),
            ('{"text": "one"}\n{"document": "two"}\n{"content": "three"}\n"4"', None),
            ('["one", {"text": "two"}]', ["one", "two"]),
            ('[\n  "one",\n\n  "two"\n]\n', ["one", "two"]),
            ('\n["one",\n"two"]', ["one", "two"]),
            ('[{"text": "one"},\n{"text": "two"}]', ["one", "two"]),
            ("[]", []),
            ('"line\\u2028 end"\n', ["line\u2028 end"]),
            ("line\u2028 end\n", ["line\u2028 end"]),
        ],
    )
    def test_guesses_the_format_from_the_beginning(
        self, text: str, expected: list[str] | None
    ) -> None:
        assert documents(text) == (["one", "two", "three", "4"] if expected is None else expected)

    @pytest.mark.parametrize("name", ["a.jsonl", "a.NDJSON"])
    def test_believes_the_name_of_a_jsonl_file(self, name: str) -> None:
        with pytest.raises(InputError, match="line 1 is not JSON"):
            documents("plain\n", name=name)

    def test_believes_the_name_of_a_json_file(self) -> None:
        with pytest.raises(InputError, match=r"^a\.json is not a JSON array$"):
            documents('"one"', name="a.json")

    def test_believes_the_caller_more_than_anything(self) -> None:
        assert documents('"one"\n[2]\n', Format.LINES, "a.json") == ['"one"', "[2]"]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ('\n\n"one"\n\n{"text": 1}\n', "a file: line 5 must be"),
            ('"one"\nnot json\n', "a file: line 2 is not JSON"),
            ('"one"\n[1]\n', "a file: line 2 must be"),
            ('{"title": "one"}\n', "a file: line 1 must be"),
            ('["one", 2]', "a file: item 1 must be"),
            ('[\n"one"\n"two"\n]', "a file is not JSON"),
        ],
    )
    def test_names_the_place_of_what_it_cannot_read(self, text: str, words: str) -> None:
        with pytest.raises(InputError) as caught:
            documents(text)
        assert str(caught.value).startswith(words)

    @pytest.mark.parametrize("first", ['["sic"] a line', '[{"curly"}] a line', '"one"'])
    def test_says_what_to_do_when_it_has_guessed_wrongly(self, first: str) -> None:
        with pytest.raises(InputError, match=r"; if it is plain text, say --format lines$"):
            documents(f"{first}\nanother\n")
        assert documents(f"{first}\nanother\n", Format.LINES) == [first, "another"]

    @pytest.mark.parametrize("file_format", [Format.JSON, Format.JSONL])
    def test_does_not_doubt_what_the_caller_said(self, file_format: Format) -> None:
        with pytest.raises(InputError, match="is not JSON") as caught:
            documents("plain\n", file_format)
        assert "--format" not in str(caught.value)

    def test_gives_what_stands_before_the_bad_line_first(self) -> None:
        found = read_documents(io.StringIO('"one"\n"two"\nbad\n'), Format.AUTO, "a file")
        assert [next(found), next(found)] == ["one", "two"]
        with pytest.raises(InputError):
            next(found)

    def test_reads_no_further_than_asked(self) -> None:
        read: list[int] = []

        def lines() -> Any:
            for number in range(100):
                read.append(number)
                yield f"line {number}\n"

        source: IO[str] = lines()
        found = read_documents(source, Format.LINES, "a file")
        assert next(found) == "line 0"
        assert next(found) == "line 1"
        assert len(read) <= 3

    async def test_passes_over_a_byte_order_mark(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "notes").write_text(json.dumps(DOCUMENTS), encoding="utf-8-sig")
        done = await run("rerank", QUERY, "notes", "--local")
        assert (done.code, ranking_in(done.out)) == (0, RANKING)


# ── serve ──


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


class TestAMissingExtra:
    @pytest.mark.parametrize(
        ("module", "extra", "arguments"),
        [
            ("typer", "cli", ["--version"]),
            ("rich", "cli", ["--version"]),
            ("Stemmer", "server", ["serve", "--port", "0"]),
            ("Stemmer", "server", ["rerank", "q", "--local"]),
            ("Stemmer", "server", ["demo"]),
        ],
    )
    async def test_is_named_with_the_command_that_installs_it(
        self, tmp_path: Path, module: str, extra: str, arguments: list[str]
    ) -> None:
        program = (
            "import sys, tokenize\n"
            f"sys.modules[{module!r}] = None\n"
            # The demo says it before it reads the standard library.
            "tokenize.open = None\n"
            "from rerank_async.__main__ import main\n"
            f"sys.argv = ['rerank-async', *{arguments!r}]\n"
            "sys.exit(main())\n"
        )
        done = await execute(sys.executable, "-c", program, cwd=tmp_path)
        assert (done.code, done.out) == (2, "")
        [line] = done.err.splitlines()
        assert f'pip install "rerank-async[{extra}]"' in line
