"""The main job on this machine's own documents: the docstrings of Python's standard library.

The sources are parsed, never imported: some modules act when they are.
A line belongs here when it finds those documents, asks the questions or shows the answers.
"""

from __future__ import annotations

import ast
import asyncio
import sysconfig
import time
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

from attrs import frozen
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from rerank_async._chunking import ChunkLimits
from rerank_async._models import Failed, RerankRequest, RerankResponse
from rerank_async._policy import RetryPolicy
from rerank_async._session import RerankSession
from rerank_async.server import LocalServer

__all__ = ["QUESTIONS", "Docstring", "collect", "demonstrate"]

QUESTIONS = (
    "How do I cancel an asyncio task after a timeout?",
    "compress a file with gzip",
    "parse the arguments of a command line",
    "How can I compute the median of a list of numbers?",
    "send an email over an encrypted SMTP connection",
    "walk a directory tree and list every file",
)

# Not the library: other people's packages, and the library's own tests.
_PASSED_OVER = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test"})


@frozen
class Docstring:
    """A documented thing of the standard library.

    Attributes:
        name: dotted, as in `asyncio.tasks.wait_for`.
        text: the docstring itself, cleaned of indentation.
    """

    name: str
    text: str

    @property
    def first_line(self) -> str:
        """The docstring's first line."""
        return self.text.partition("\n")[0]


def collect(folder: Path | None = None) -> Iterator[Docstring]:
    """Parse every module below `folder` and yield its docstrings, in the order of their paths.

    Args:
        folder: None means this Python's standard library.
    """
    folder = folder or Path(sysconfig.get_path("stdlib"))
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if _PASSED_OVER.isdisjoint(parts):
            yield from _docstrings_of(path, ".".join(p for p in parts if p != "__init__"))


def _docstrings_of(path: Path, module: str) -> Iterator[Docstring]:
    try:
        with tokenize.open(path) as file:
            tree = ast.parse(file.read())
    except (SyntaxError, UnicodeDecodeError):
        # Some files there are templates, or wrong on purpose.
        return
    yield from _docstrings_in(tree, module)


def _docstrings_in(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str
) -> Iterator[Docstring]:
    text = ast.get_docstring(node)
    if text and text.strip():
        yield Docstring(name, text.strip())
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _docstrings_in(child, f"{name}.{child.name}")


async def demonstrate(server: LocalServer, *, out: Console, err: Console) -> int:
    """Rerank all docstrings for every question at once, and print what came first.

    Args:
        server: the server that reranks them; it is started here, once the documents are collected.
        out: the console that the rankings go to.
        err: the console that the progress bar goes to.

    Returns:
        The exit code: 0, or 1 when a question has no ranking.
    """
    with err.status("parsing the standard library"):
        docstrings = []
        for docstring in collect():
            docstrings.append(docstring)
            # Lets Ctrl-C in; a thread would have to be waited for.
            await asyncio.sleep(0)
    # The name is part of what is searched: it often holds the very word that is asked for.
    documents = [f"{docstring.name}\n{docstring.text}" for docstring in docstrings]
    out.print(f"{len(documents):,} docstrings of the standard library, {len(QUESTIONS)} questions")
    requests = [
        RerankRequest(question, documents, top_n=3, query_id=str(number))
        for number, question in enumerate(QUESTIONS)
    ]
    rankings: dict[str, RerankResponse] = {}
    async with (
        server,
        RerankSession(
            server.url,
            model="lexical",
            chunks=ChunkLimits(500),
            # With the usual four, one run in a hundred would meet four faults in a row.
            retry=RetryPolicy(attempts=8),
        ) as session,
    ):
        began = time.perf_counter()
        bar = asyncio.create_task(
            _show_progress(
                lambda: session.statistics().documents, len(documents) * len(requests), err
            )
        )
        try:
            async for outcome in session.rerank_many(requests):
                if isinstance(outcome, Failed):
                    err.print(f"{outcome.request.query}: {outcome.error}", markup=False)
                else:
                    rankings[str(outcome.request.query_id)] = outcome.response
        finally:
            bar.cancel()
            await asyncio.gather(bar, return_exceptions=True)
        seconds = time.perf_counter() - began
        counts = session.statistics()
    for number, question in enumerate(QUESTIONS):
        if (response := rankings.get(str(number))) is not None:
            _show_ranking(question, response, docstrings, out)
    out.print(
        f"\ndocuments {counts.documents:,}, requests {counts.requests}, "
        f"retries {counts.retries}, documents/s {counts.documents / seconds:,.0f}, "
        f"seconds {seconds:.1f}"
    )
    return 0 if len(rankings) == len(QUESTIONS) else 1


def _show_ranking(
    question: str, response: RerankResponse, docstrings: list[Docstring], out: Console
) -> None:
    out.print(f"\n{question}", style="bold", markup=False)
    for place, result in enumerate(response.results, 1):
        found = docstrings[result.index]
        line = Text(f"  {place}. {found.name}  {result.relevance_score:.3f}  ")
        line.append(found.first_line, style="dim")
        if out.is_terminal:
            out.print(line, no_wrap=True, overflow="ellipsis")
        else:
            out.print(line, soft_wrap=True)


async def _show_progress(done: Callable[[], int], total: int, err: Console) -> None:
    """Draw a bar until cancelled; nothing when nobody is watching."""
    if not err.is_terminal:
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err) as progress:
        task = progress.add_task("reranking", total=total)
        try:
            while True:
                progress.update(task, completed=done())
                await asyncio.sleep(1 / progress.live.refresh_per_second)
        finally:
            progress.update(task, completed=done())
