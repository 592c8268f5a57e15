"""The documentation keeps its word: its code runs, its options and names exist, its links lead.

The Python blocks of a page are executed in order in one namespace, as if typed one after the
other, so that a later block may use what an earlier one defined.
A block in the language `output` is what the Python block before it must have printed, exactly.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import CodeType
from typing import Any
from urllib.parse import unquote

import pytest
from aiohttp.test_utils import TestClient, TestServer
from attrs import frozen

import rerank_async
from rerank_async.server import LocalServer

ROOT = Path(__file__).parents[1]
PACKAGE = Path(rerank_async.__file__).parent
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
PAGES = sorted(
    [path for path in DOCS.rglob("*.md") if "_build" not in path.parts] + list(ROOT.glob("*.md"))
)

_FENCE = re.compile(
    r"^(?P<fence>`{3,}|~{3,})(?P<info>[^\n]*)\n(?P<text>.*?)^(?P=fence) *$",
    re.MULTILINE | re.DOTALL,
)
_LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


@frozen
class Block:
    """A fenced block: its language, its text, and the line of its first line of text."""

    language: str
    text: str
    line: int


def blocks_of(path: Path) -> Iterator[Block]:
    text = path.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        words = match["info"].split()
        line = text.count("\n", 0, match.start("text")) + 1
        yield Block(words[0] if words else "", match["text"], line)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ── the code ──


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    """A local server with a loop and a thread of its own: the blocks run loops themselves."""
    url: Future[str] = Future()
    stopped = threading.Event()

    async def serve() -> None:
        async with LocalServer() as server:
            url.set_result(server.url)
            await asyncio.to_thread(stopped.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        yield url.result(timeout=30)
    finally:
        stopped.set()
        thread.join()


def with_own_numbers(text: str) -> str:
    """Calls numbered from 1 in each block: their numbers depend on what the process did before."""
    numbers: dict[str, int] = {}
    return re.sub(
        r"\bcall (\d+)", lambda m: f"call {numbers.setdefault(m[1], len(numbers) + 1)}", text
    )


def run_in_a_thread(code: CodeType, namespace: dict[str, object]) -> None:
    """Execute it where `asyncio.run` cannot take away the loop of the tests' own thread."""
    with ThreadPoolExecutor(1) as executor:
        executor.submit(exec, code, namespace).result()


@pytest.mark.parametrize(
    "path",
    [path for path in PAGES if any(block.language == "python" for block in blocks_of(path))],
    ids=name_of,
)
def test_the_python_blocks_of_a_page_run_in_order_and_print_what_it_says(
    path: Path,
    server_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Some pages write files.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RERANK_BASE_URL", server_url)
    monkeypatch.setenv("RERANK_MODEL", "lexical")
    namespace: dict[str, object] = {"__name__": "__main__"}
    printed: str | None = None
    for block in blocks_of(path):
        where = f"{name_of(path)}, line {block.line}"
        if block.language == "python":
            # Empty lines in front, so that a traceback names the page's own line.
            source = "\n" * (block.line - 1) + block.text
            run_in_a_thread(compile(source, str(path), "exec"), namespace)
            printed = capsys.readouterr().out
        elif block.language == "output":
            assert printed is not None, f"{where}: no Python block stands before it"
            assert with_own_numbers(printed) == with_own_numbers(block.text), where


async def test_the_handler_of_the_service_answers_503_when_nothing_could_be_ranked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with LocalServer() as stopped:
        monkeypatch.setenv("RERANK_BASE_URL", stopped.url)
    monkeypatch.setenv("RERANK_MODEL", "lexical")
    first = next(b for b in blocks_of(DOCS / "how-to/service.md") if b.language == "python")
    namespace: dict[str, Any] = {"__name__": "service"}
    exec(first.text, namespace)
    async with TestClient(TestServer(namespace["make_app"]())) as client:
        for candidates, status in (["Opening files."], 503), ([], 200):
            question = {"question": "open a file", "candidates": candidates}
            async with client.post("/search", json=question) as answer:
                assert answer.status == status


# ── the source distribution ──


def test_the_source_distribution_holds_what_its_tests_and_its_makefile_read() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = set(project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"])
    # The build adds the README and pyproject.toml by itself.
    pages = {path.name for path in ROOT.glob("*.md")} - {"README.md"}
    folders = {"rerank_async", "tests", "docs", "benchmarks", "lanes", "mutants", ".ci"}
    assert included == pages | folders | {"LICENSE", "Makefile"}


# ── the command line ──


def help_of(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "rerank_async", *command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb", "PYTHONPATH": str(ROOT)},
    )
    return done.stdout


def commands() -> list[str]:
    listed = help_of().partition("Commands")[2]
    return re.findall(r"^\W*([a-z][a-z-]*)  ", listed, re.MULTILINE)


def section_of(command: str) -> str:
    text = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    found = re.search(
        rf"^## rerank-async {command}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
    )
    assert found is not None, f"reference/cli.md has no section on {command}"
    return found[1]


def test_every_command_and_each_of_its_options_is_in_the_reference_and_no_others() -> None:
    names = commands()
    assert {"rerank", "serve", "demo"} <= set(names)
    for name in names:
        offered = set(_OPTION.findall(help_of(name)))
        assert "--help" in offered
        documented = set(re.findall(r"^\| `(--[a-z-]+)", section_of(name), re.MULTILINE))
        assert documented == offered - {"--help"}, name


def test_the_options_without_a_command_are_in_the_reference() -> None:
    text = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    for option in set(_OPTION.findall(help_of())):
        assert f"`{option}`" in text, option


# ── the links and the names ──


def slug(heading: str) -> str:
    """The anchor that GitHub and myst-parser give to a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text))


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_relative_link_and_image_of_a_page_leads_somewhere(path: Path) -> None:
    for target in _LINK.findall(without_code(path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z][a-z+.-]*:", target):
            continue
        file, _, anchor = unquote(target).partition("#")
        other = (path.parent / file).resolve() if file else path
        if other.is_relative_to(ROOT / "rerank_async"):
            # In a lane the package is not beside the pages: it is installed.
            other = PACKAGE / other.relative_to(ROOT / "rerank_async")
        assert other.exists(), f"{target} leads nowhere"
        if anchor and other.suffix == ".md":
            text = _FENCE.sub("", other.read_text(encoding="utf-8"))
            headings = re.findall(r"^#{1,6} (.*)$", text, re.MULTILINE)
            assert anchor in map(slug, headings), f"{target}: no such heading"


def test_every_page_of_docs_is_in_a_table_of_contents() -> None:
    listed: set[Path] = set()
    for path in PAGES:
        for block in blocks_of(path):
            if block.language == "{toctree}":
                for line in block.text.splitlines():
                    if line and not line.startswith(":"):
                        page = re.sub(r"^.*<(.*)>$", r"\1", line.strip())
                        listed.add((path.parent / f"{page}.md").resolve())
    pages = {path for path in PAGES if DOCS in path.parents} - {DOCS / "index.md"}
    assert listed == pages


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_no_page_is_only_a_heading(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert any(line.strip() and not line.startswith("#") for line in lines)


@pytest.mark.parametrize("name", rerank_async.__all__)
def test_every_public_name_is_in_the_reference(name: str) -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in REFERENCE.glob("*.md"))
    assert re.search(rf"^\.\. (?:auto|py:)\w+:: {re.escape(name)}\b", text, re.MULTILINE)
