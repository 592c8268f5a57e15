"""`rerank-async rerank` as its users meet it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import orjson
import pytest

from rerank_async.server import App, LocalServer
from rerank_async.server.engines import LexicalEngine
from rerank_async.testing import HttpRequest
from tests.cli.support import (
    DOCUMENTS,
    KEY,
    PROGRAM,
    QUERY,
    RANKING,
    Run,
    on_a_terminal,
    one_line,
    ranking_in,
)


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
