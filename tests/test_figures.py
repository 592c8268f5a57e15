"""No count stands in the README or a tutorial that is not computed here from what the product does.

What their Python blocks print is held by `test_docs`, and the README's commands by `test_readme`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from rerank_async import ChunkLimits, FlowControl, RetryPolicy
from rerank_async.server import LocalServer

ROOT = Path(__file__).parent.parent
README, TUTORIAL, BULK = "README.md", "docs/tutorial.md", "docs/tutorial-bulk.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose_of(page: str) -> str:
    """Without code, and without where links lead."""
    text = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`\n]*`", "", text))


def namespace_of(page: str, names: set[str]) -> dict[str, Any]:
    """The simple assignments of a page's Python blocks, in order, up to those that are asked for.

    Blocks that call a server are left out: nothing is sent from here.
    """
    made: dict[str, Any] = {"__name__": "figures"}
    for block in re.findall(r"^```python\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL):
        exec(block.replace("asyncio.run(main())", ""), made)
        if names <= set(made):
            return made
    raise AssertionError(f"{page} makes no {names}")


def python() -> str:
    return str(PROJECT["requires-python"]).removeprefix(">=")


def sightings() -> list[str]:
    found: list[str] = namespace_of(TUTORIAL, {"sightings"})["sightings"]
    return found


def chunks() -> list[int]:
    """The sizes that the list of the tutorial is cut into, of at most 500 each."""
    total = len(sightings())
    pieces = -(-total // 500)
    return [total // pieces + (number < total % pieces) for number in range(pieces)]


def made_rows() -> list[str]:
    """The lines of the file that the bulk tutorial makes."""
    [block] = re.findall(
        r"^```python\n(import json\n.*?)^```$", text_of(BULK), re.MULTILINE | re.DOTALL
    )
    lines: list[str] = []

    class File:
        def __enter__(self) -> File:
            return self

        def __exit__(self, *_: object) -> None: ...

        def write(self, text: str) -> None:
            lines.append(text)

    exec(block, {"open": lambda *_: File()})
    return "".join(lines).splitlines(keepends=True)


def first_row() -> str:
    return made_rows()[0]


def rows() -> tuple[int, int, int]:
    """Of the file that the bulk tutorial makes: its rows, the documents of each, and bytes."""
    made = made_rows()
    [documents] = {len(json.loads(line)["documents"]) for line in made}
    return len(made), documents, sum(map(len, made))


def interrupted() -> list[str]:
    """How many rows were done before the interruption, after it, and together."""
    shown = re.findall(r"^([\d,]+) requests, 0 retries", text_of(BULK), re.MULTILINE)
    before, after = (figure for figure in shown if len(figure) == 5 and figure != "5,064")
    together = int(before.replace(",", "")) + int(after.replace(",", ""))
    return [before, after, f"{together:,}"]


# Each line of prose with figures, told by a few of its words, and what its figures are by the
# product's own count. Names of statuses, licences and ports are what they are.
FIGURES: dict[str, dict[str, Callable[[], list[str]]]] = {
    README: {
        "or later, pip and make": lambda: [python()],
        "another version has other docstrings": lambda: [python()],
        "every tenth answer fails with": lambda: ["429", "503"],
        "Apache-": lambda: ["2.0"],
    },
    TUTORIAL: {
        "no API key and no network service": lambda: [python()],
        "The default is": lambda: [
            f"{ChunkLimits().max_documents:,}",
            "500",
            f"{len(sightings()):,}",
        ],
        "the chunks are as equal as they can be": lambda: [str(size) for size in chunks()],
        "requests are on the wire at once unless": lambda: [str(FlowControl().concurrency.limit)],
        "it makes four attempts": lambda: ["9"],
    },
    BULK: {
        "documents each": lambda: [
            f"{rows()[0]:,}",
            str(rows()[1]),
            str(round(rows()[2] / 1e6, -1)).removesuffix(".0"),
        ],
        "no row was sent twice": interrupted,
        "the local server takes no request of more than": lambda: ["70", "64"],
    },
}


@pytest.mark.parametrize("page", FIGURES)
def test_every_figure_in_the_prose_of_a_page_is_what_the_product_does(page: str) -> None:
    held = dict(FIGURES[page])
    for line in prose_of(page).splitlines():
        figures = re.findall(r"(?<![\w.,])\d(?:[\d,.]*\d)?(?!\w)", line)
        if figures:
            words = [words for words in held if words in line]
            assert words, f"{page}: no test holds a figure of: {line}"
            assert figures == held.pop(words[0])(), line
    assert not held, f"{page} does not say any more: {list(held)}"


def test_four_attempts_are_the_default() -> None:
    assert "it makes four attempts" in text_of(TUTORIAL)
    assert RetryPolicy().attempts == 4


def test_the_demos_last_line_adds_up() -> None:
    [docstrings] = re.findall(r"^([\d,]+) docstrings of", text_of(README), re.MULTILINE)
    questions = int(docstrings.replace(",", "")) * 6
    for counted in re.findall(r"^documents ([\d,]+),", text_of(README), re.MULTILINE):
        assert counted == f"{questions:,}"


def test_the_readme_names_extras_that_there_are_and_all_of_them_but_those_within_all() -> None:
    [block] = re.findall(r"```text\n(pip install .*?)```", text_of(README), re.DOTALL)
    named = {extra for group in re.findall(r"\[(.*?)\]", block) for extra in group.split(",")}
    assert named == set(PROJECT["optional-dependencies"]) - {"speed"}
    for command, extras in (("bench", {"cli", "bench"}), ("eval", {"cli", "eval"})):
        [line] = [line for line in block.splitlines() if f"the command `{command}`" in line]
        assert extras <= set(re.findall(r"\[(.*?)\]", line)[0].split(","))


def test_the_readmes_snippet_runs_as_it_stands_without_a_variable_or_a_server(
    tmp_path: Path,
) -> None:
    [snippet] = re.findall(r"```python\n(.*?)```", text_of(README), re.DOTALL)
    [shown] = re.findall(r"```output\n(.*?)```", text_of(README), re.DOTALL)
    (tmp_path / "first.py").write_text(snippet, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if "RERANK" not in name}
    done = subprocess.run(
        [sys.executable, "first.py"],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == (shown, "")


# ── the bulk tutorial's commands ──

# What these print depends on when a person presses a key or stops a server.
BY_HAND = ("Start the local server", "Interrupt it", "Take the server away")


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.*)$", text_of(BULK), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def masked(text: str, port: int) -> list[str]:
    """Without what depends on the machine, and without the lines of progress of a pipe."""
    text = re.sub(r"in \d+ s\b", "in N s", text.replace(f":{port}/", ":8000/"))
    text = re.sub(r"[\d,]+ documents/s", "N documents/s", text)
    return [line for line in text.splitlines() if " · " not in line]


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    async with LocalServer() as server:
        yield server


async def shell(command: str, server: LocalServer, folder: Path, code: int) -> tuple[str, int]:
    """What a command prints, and its exit code, where that of the one before it was `code`."""
    programs = Path(sys.executable).parent
    process = await asyncio.create_subprocess_shell(
        f"(exit {code}); {command}",
        cwd=folder,
        env=os.environ
        | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "RERANK_BASE_URL": server.url,
            "RERANK_MODEL": "lexical",
            # Both outputs come in one pipe, in the order of a terminal.
            "PYTHONUNBUFFERED": "1",
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return out.decode(), process.returncode


@pytest.mark.timeout(300)
async def test_the_bulk_tutorials_commands_print_what_it_says(
    server: LocalServer, tmp_path: Path
) -> None:
    code, count = 0, 0
    for title, section in sections().items():
        if title == "Write two requests":
            [requests] = re.findall(r"```json\n(.*?)```", section, re.DOTALL)
            (tmp_path / "requests.jsonl").write_text(requests, encoding="utf-8")
        if title in BY_HAND:
            continue
        for block in re.findall(r"```console\n(.*?)```", section, re.DOTALL):
            for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
                printed, code = await shell(command, server, tmp_path, code)
                port = int(server.url.split(":")[2].split("/")[0])
                assert masked(printed, port) == masked(shown, port), command
                count += 1
    assert count > 8


async def test_what_the_bulk_tutorial_shows_of_runs_by_hand_adds_up(
    server: LocalServer, tmp_path: Path
) -> None:
    (tmp_path / "one.jsonl").write_text(first_row(), encoding="utf-8")
    printed, _ = await shell("rerank-async bulk one.jsonl out.jsonl", server, tmp_path, 0)
    [tokens] = re.findall(r"^tokens of all runs of the job: ([\d,]+)$", printed, re.MULTILINE)
    each = int(tokens.replace(",", ""))
    _, documents, _ = rows()
    shown = text_of(BULK).replace(",", "")
    done = re.findall(r"(\d+) of 5000 queries(?: |[^\n]*\ndocuments )(\d+)", shown)
    assert len(done) > 3
    for queries, counted in done:
        assert int(counted) == documents * int(queries)
    paid = re.findall(
        r"^.*?(\d+) of 5000 queries.*?(?:tokens\n|of the job: )(\d+)$",
        shown,
        re.MULTILINE | re.DOTALL,
    )
    assert len(paid) > 3
    for queries, counted in paid:
        assert int(counted) == each * int(queries)
