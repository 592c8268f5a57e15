"""`rerank-async rerank`: one query, the documents of one file, one ranking.

A line belongs here when it reads an option of this command, or shows its ranking.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rerank_async._cli._documents import Format, InputError, opened, read_documents
from rerank_async._cli._shared import (
    InsecureOption,
    ModelOption,
    UrlOption,
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


def rerank(
    query: Annotated[str, typer.Argument(help="What to compare the documents against.")],
    file: Annotated[str, typer.Argument(help="The documents; - is standard input.")] = "-",
    top_n: Annotated[int | None, typer.Option(min=1, help="How many; all if left out.")] = None,
    url: UrlOption = None,
    model: ModelOption = None,
    file_format: Annotated[
        Format,
        typer.Option(
            "--format",
            help="One document a line, one JSON string or object with a text a line, or one JSON "
            "array of them; auto looks at the file's name and beginning.",
        ),
    ] = Format.AUTO,
    as_json: Annotated[bool, typer.Option("--json", help="Print the response as JSON.")] = False,
    local: Annotated[
        bool, typer.Option("--local", help="Start the embedded server for this one call.")
    ] = False,
    allow_insecure_http: InsecureOption = False,
) -> None:
    """Rerank the documents of a file, best first.

    The API key is read from RERANK_API_KEY.

    On a terminal it is a table, in a pipe lines of score, index and text with tabs between.
    """
    file = str(file_named("FILE", file))
    model = model_to_ask(model, url, local=local)
    server = local_server() if local else None
    name = "standard input" if file == "-" else file
    try:
        with opened(file) as lines:
            documents: Iterable[str] = read_documents(lines, file_format, name)
            if lines.isatty():
                print("reading documents, one a line; Ctrl-D ends them", file=sys.stderr)
                # All at once: inside the event loop, Ctrl-C would not end the wait for a line.
                documents = list(documents)
            with stopped_at_once():
                response = run_async(
                    _rerank(query, documents, top_n, url, model, server, allow_insecure_http)
                )
    except (InvalidRequestError, InputError) as error:
        raise give_up(str(error), 2) from None
    except OSError as error:
        if isinstance(error, RerankError):
            raise give_up(str(error), 1) from None
        raise give_up(f"{name}: {error.strerror or error}", 2) from None
    except (RerankError, RuntimeError) as error:
        raise give_up(str(error), 1) from None
    if as_json:
        sys.stdout.write(orjson.dumps(response.to_dict(), option=orjson.OPT_INDENT_2).decode())
        sys.stdout.write("\n")
    elif sys.stdout.isatty():
        _show_table(response)
    else:
        for result in response.results:
            text = " ".join((result.document or "").split())
            print(f"{result.relevance_score:.6f}\t{result.index}\t{text}")


async def _rerank(
    query: str,
    documents: Iterable[str],
    top_n: int | None,
    url: str | None,
    model: str,
    server: LocalServer | None,
    allow_insecure_http: bool,
) -> RerankResponse:
    # It needs what bulk jobs need, which takes a while to import.
    from rerank_async._cli._watching import Waits

    waits = Waits()
    async with AsyncExitStack() as stack:
        if server is not None:
            await stack.enter_async_context(server)
            url = server.url
        # The whole file is one call: how long that takes depends on the file.
        session: RerankSession = make_session(
            url,
            model=model,
            timeout=None,
            allow_insecure_http=allow_insecure_http,
            on_event=lambda event: waits(event, session.statistics()),
        )
        if server is None:
            say_destination(url)
        await stack.enter_async_context(session)
        return await session.rerank(query, documents, top_n=top_n, return_documents=True)


def _show_table(response: RerankResponse) -> None:
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
