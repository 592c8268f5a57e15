"""`rerank-async rerank`: one query, the documents of one file, one ranking.

A line belongs here when it reads an option of this command, or shows its ranking.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated

import orjson
import typer
from msgspec import Struct
from msgspec.structs import replace
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rerank_async._cli._documents import (
    DocumentsError,
    Format,
    document_lines,
    read_documents,
)
from rerank_async._cli._options import InsecureOption, ModelOption, UrlOption, takes
from rerank_async._cli._shared import (
    file_named,
    give_up,
    local_server,
    make_session,
    model_to_ask,
    printable,
    run_async,
    say_destination,
)
from rerank_async._cli._signals import stopped_at_once
from rerank_async._errors import InvalidRequestError, RerankError
from rerank_async._models import RerankResponse

if TYPE_CHECKING:
    from rerank_async._session import RerankSession
    from rerank_async.server import LocalServer

__all__ = ["EXAMPLE", "rerank"]

EXAMPLE = 'Example: rerank-async rerank "open a file" notes.txt --top-n 3 --local'


class RerankArguments(Struct, frozen=True):
    """What was asked of `rerank`: each field is one of its arguments or options, with its help."""

    query: Annotated[str, typer.Argument(help="What to compare the documents against.")]
    file: Annotated[str, typer.Argument(help="The documents; - is standard input.")] = "-"
    top_n: Annotated[int | None, typer.Option(min=1, help="How many; all if left out.")] = None
    url: UrlOption = None
    model: ModelOption = None
    file_format: Annotated[
        Format,
        typer.Option(
            "--format",
            help="One document a line, one JSON string or object with a text a line, or one JSON "
            "array of them; auto looks at the file's name and beginning.",
        ),
    ] = Format.AUTO
    as_json: Annotated[bool, typer.Option("--json", help="Print the response as JSON.")] = False
    local: Annotated[
        bool, typer.Option("--local", help="Start the embedded server for this one call.")
    ] = False
    allow_insecure_http: InsecureOption = False


@takes(RerankArguments)
def rerank(asked: RerankArguments) -> None:
    """Rerank the documents of a file, best first.

    The API key is read from RERANK_API_KEY.

    On a terminal it is a table, in a pipe lines of score, index and text with tabs between.
    """
    file = str(file_named("FILE", asked.file))
    asked = replace(asked, model=model_to_ask(asked.model, asked.url, local=asked.local))
    server = local_server() if asked.local else None
    name = "standard input" if file == "-" else file
    with _call_failures_told(name), document_lines(file) as lines:
        documents: Iterable[str] = read_documents(lines, asked.file_format, name)
        if lines.isatty():
            print("reading documents, one a line; Ctrl-D ends them", file=sys.stderr)
            # All at once: inside the event loop, Ctrl-C would not end the wait for a line.
            documents = list(documents)
        with stopped_at_once():
            response = run_async(_rerank_documents(asked, documents, server))
    _show(response, asked.as_json)


@contextmanager
def _call_failures_told(name: str) -> Iterator[None]:
    """Say why there is no ranking, and end the program with the exit code of that error.

    Args:
        name: the documents' source, as the user knows it.
    """
    try:
        yield
    except (InvalidRequestError, DocumentsError) as error:
        raise give_up(str(error), 2) from None
    except OSError as error:
        if isinstance(error, RerankError):
            raise give_up(str(error), 1) from None
        raise give_up(f"{name}: {error.strerror or error}", 2) from None
    except (RerankError, RuntimeError) as error:
        raise give_up(str(error), 1) from None


async def _rerank_documents(
    asked: RerankArguments, documents: Iterable[str], server: LocalServer | None
) -> RerankResponse:
    # It needs what bulk jobs need, which is slow to import (`benchmarks/importing.py`).
    from rerank_async._cli._watching import Waits

    waits = Waits()
    url = asked.url
    async with AsyncExitStack() as stack:
        if server is not None:
            await stack.enter_async_context(server)
            url = server.url
        # The whole file is one call: how long that takes depends on the file.
        session: RerankSession = make_session(
            url,
            model=asked.model,
            timeout=None,
            allow_insecure_http=asked.allow_insecure_http,
            on_event=lambda event: waits(event, session.statistics()),
        )
        if server is None:
            say_destination(url)
        await stack.enter_async_context(session)
        return await session.rerank(
            asked.query, documents, top_n=asked.top_n, return_documents=True
        )


def _show(response: RerankResponse, as_json: bool) -> None:
    """The ranking: as JSON if asked for, a table on a terminal, lines of text in a pipe."""
    if as_json:
        sys.stdout.write(orjson.dumps(response.to_dict(), option=orjson.OPT_INDENT_2).decode())
        sys.stdout.write("\n")
    elif sys.stdout.isatty():
        _show_as_table(response)
    else:
        for result in response.results:
            text = " ".join((result.document or "").split())
            print(f"{result.relevance_score:.6f}\t{result.index}\t{text}")


def _show_as_table(response: RerankResponse) -> None:
    table = Table("", "score", "index", "document", box=None, header_style="bold", expand=True)
    for column in table.columns[:3]:
        column.justify = "right"
    # The other columns take what they need, and this one the rest of the line.
    table.columns[3].ratio = 1
    table.columns[3].no_wrap = True
    table.columns[3].overflow = "ellipsis"
    for place, result in enumerate(response.results, 1):
        text = Text(printable(" ".join((result.document or "").split())))
        table.add_row(str(place), f"{result.relevance_score:.3f}", str(result.index), text)
    Console().print(table)
