"""The command line: `rerank-async rerank | serve | demo`. typer reads it, rich shows it.

A line belongs here when it turns words of a command into a call of the library, or a result into
text; standard output carries results, standard error everything else.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import AsyncExitStack
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, TypeVar

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rerank_async._endpoint import DEFAULT_BASE_URL, default_model
from rerank_async._errors import InvalidRequestError, RerankError
from rerank_async._models import RerankResponse
from rerank_async._session import RerankSession
from rerank_async._version import __version__

if TYPE_CHECKING:
    from rerank_async.server import LocalServer

__all__ = ["run"]

T = TypeVar("T")

app = typer.Typer(
    name="rerank-async",
    help="Rerank documents, from the command line or against a local server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def run() -> int:
    """Run the command line. 0: done, 1: it failed, 2: wrong use, 130: interrupted."""
    try:
        app()
    except KeyboardInterrupt:
        return 130
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 1
    return 0


def _run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop where it is installed; a command may choose its loop, a library may not."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ModuleNotFoundError:
        pass
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


def _give_up(message: str, code: int) -> typer.Exit:
    print(f"rerank-async: {message}", file=sys.stderr)
    return typer.Exit(code)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"rerank-async {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


# ── rerank ──


class Format(StrEnum):
    """How the documents stand in a file."""

    AUTO = "auto"
    LINES = "lines"
    JSONL = "jsonl"
    JSON = "json"


@app.command(
    epilog='Example: rerank-async rerank "open a file" notes.txt --top-n 3 --local',
)
def rerank(
    query: Annotated[str, typer.Argument(help="What to compare the documents against.")],
    file: Annotated[str, typer.Argument(help="The documents; - is standard input.")] = "-",
    top_n: Annotated[int | None, typer.Option(min=1, help="How many; all if left out.")] = None,
    url: Annotated[
        str | None,
        typer.Option(help="The server, up to its version: https://host/v1. [$RERANK_BASE_URL]"),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model id. [$RERANK_MODEL]")] = None,
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
    allow_insecure_http: Annotated[
        bool,
        typer.Option(
            "--allow-insecure-http",
            help="Let the API key cross a network that you trust over http://.",
        ),
    ] = False,
) -> None:
    """Rerank the documents of a file, best first.

    The API key is read from RERANK_API_KEY.

    On a terminal it is a table, in a pipe lines of score, index and text with tabs between.
    """
    if local and url is not None:
        raise _give_up("--local and --url exclude each other", 2)
    model = model or default_model() or ("lexical" if local else None)
    if model is None:
        raise _give_up("no model: pass --model or set RERANK_MODEL", 2)
    if not local and _lacks_a_key(url):
        raise _give_up(
            f"{DEFAULT_BASE_URL} asks for a key: set RERANK_API_KEY; for another server pass --url "
            "or --local, or set RERANK_BASE_URL",
            2,
        )
    server = _local_server() if local else None
    name = "standard input" if file == "-" else file
    try:
        with _opened(file) as lines:
            documents: Iterable[str] = read_documents(lines, file_format, name)
            if lines.isatty():
                print("reading documents, one a line; Ctrl-D ends them", file=sys.stderr)
                # All at once: inside the event loop, Ctrl-C would not end the wait for a line.
                documents = list(documents)
            response = _run_async(
                _rerank(query, documents, top_n, url, model, server, allow_insecure_http)
            )
    except (InvalidRequestError, InputError) as error:
        raise _give_up(str(error), 2) from None
    except OSError as error:
        if isinstance(error, RerankError):
            raise _give_up(str(error), 1) from None
        raise _give_up(f"{name}: {error.strerror or error}", 2) from None
    except (RerankError, RuntimeError) as error:
        raise _give_up(str(error), 1) from None
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
    async with AsyncExitStack() as stack:
        if server is not None:
            await stack.enter_async_context(server)
            url = server.url
        try:
            # The whole file is one call: how long that takes depends on the file.
            session = RerankSession(
                url, model=model, timeout=None, allow_insecure_http=allow_insecure_http
            )
        except InvalidRequestError as error:
            raise InvalidRequestError(_in_words_of_the_command(str(error))) from None
        await stack.enter_async_context(session)
        return await session.rerank(query, documents, top_n=top_n, return_documents=True)


def _lacks_a_key(url: str | None) -> bool:
    """Whether the call would go to the 3xCoder endpoint, without the key that it asks for."""
    if url is None:
        url = os.environ.get("RERANK_BASE_URL") or DEFAULT_BASE_URL
    has_key = os.environ.get("RERANK_API_KEY") or os.environ.get("OPENAI_API_KEY")
    return url.rstrip("/") == DEFAULT_BASE_URL and not has_key


def _in_words_of_the_command(message: str) -> str:
    """What a session says of its arguments, said of the options that they came from."""
    message = re.sub(r"^base_url\b", "the URL", message)
    message = re.sub(r"^api_key\b", "the API key", message)
    message = re.sub(r"\buse api_key$", "set RERANK_API_KEY", message)
    return message.replace("pass allow_insecure_http=True", "pass --allow-insecure-http")


def _local_server(**options: Any) -> LocalServer:
    from rerank_async.server import LocalServer

    try:
        return LocalServer(**options)
    except RuntimeError as error:
        raise _give_up(str(error), 2) from None


def _show_table(response: RerankResponse) -> None:
    table = Table("", "score", "index", "document", box=None, header_style="bold", expand=True)
    for column in table.columns[:3]:
        column.justify = "right"
    # The other columns take what they need, and this one the rest of the line.
    table.columns[3].ratio = 1
    table.columns[3].no_wrap = True
    table.columns[3].overflow = "ellipsis"
    for place, result in enumerate(response.results, 1):
        text = Text(_printable(" ".join((result.document or "").split())))
        table.add_row(str(place), f"{result.relevance_score:.3f}", str(result.index), text)
    Console().print(table)


def _printable(text: str) -> str:
    """`text` without what a terminal would act upon: a document must not move the cursor."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


class InputError(Exception):
    """A file does not hold what its format says."""


def _opened(file: str) -> IO[str]:
    # utf-8-sig passes over the mark that some editors put before the first line.
    if file == "-":
        # Closed by the caller like any file, so not the one that belongs to the process.
        return os.fdopen(os.dup(0), encoding="utf-8-sig", errors="strict")
    return Path(file).open(encoding="utf-8-sig")


def read_documents(lines: IO[str], file_format: Format, name: str) -> Iterator[str]:
    """The documents of an open file, read as they are asked for; blank lines are passed over.

    Args:
        lines: the open file.
        file_format: how they stand in it.
        name: of the file, for messages and to tell its format.

    Raises:
        InputError: naming the line that cannot be read, once it is reached.
    """
    try:
        numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
        start = next(numbered, None)
        if start is None:
            return
        advice = ""
        if file_format is Format.AUTO:
            file_format = _guess(start[1], name)
            advice = "; if it is plain text, say --format lines"
        if file_format is Format.JSON:
            text = start[1] + "".join(line for _, line in numbered)
            yield from _array(_parsed(text, name, advice), name)
            return
        for number, line in chain((start,), numbered):
            if file_format is Format.LINES:
                yield line.rstrip("\r\n")
            else:
                where = f"{name}: line {number}"
                yield _text_of(_parsed(line, where, advice), where)
    except UnicodeDecodeError:
        raise InputError(f"{name} is not UTF-8 text") from None


def _guess(first: str, name: str) -> Format:
    suffix = Path(name).suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return Format.JSONL
    if suffix == ".json":
        return Format.JSON
    try:
        value = orjson.loads(first)
    except ValueError:
        # An array over several lines: a bracket, and the beginning of an item if anything.
        return Format.JSON if re.match(r'\s*\[\s*(["{]|$)', first) else Format.LINES
    if isinstance(value, list):
        return Format.JSON
    return Format.JSONL if isinstance(value, (str, dict)) else Format.LINES


def _parsed(text: str, where: str, advice: str) -> Any:
    try:
        return orjson.loads(text)
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}{advice}") from None


def _array(items: Any, name: str) -> Iterator[str]:
    if not isinstance(items, list):
        raise InputError(f"{name} is not a JSON array")
    for index, item in enumerate(items):
        yield _text_of(item, f"{name}: item {index}")


def _text_of(item: Any, where: str) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, dict):
        for key in ("text", "document", "content"):
            if isinstance(item.get(key), str):
                found: str = item[key]
                return found
    raise InputError(f"{where} must be a string or an object with a text")


# ── serve ──


@app.command(epilog="Example: rerank-async serve --port 8000 --workers 2")
def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    engine: Annotated[str, typer.Option(help="What scores.")] = "lexical",
    api_key: Annotated[
        str | None,
        typer.Option(
            help="Ask for this key; better set in the environment, where other users of the "
            "machine do not see it.",
            envvar="RERANK_SERVER_API_KEY",
            show_envvar=True,
        ),
    ] = None,
    max_documents: Annotated[
        int | None, typer.Option(min=1, help="The most in one request; no limit if left out.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Scoring processes; 0: one thread.")] = 1,
    queue: Annotated[
        int, typer.Option(min=0, help="Requests that may wait; one more is answered 429.")
    ] = 64,
    faults: Annotated[
        float, typer.Option(help="The share of answers that fail on purpose, as in 0.1.")
    ] = 0.0,
) -> None:
    """Serve the v1 rerank exchange with an embedded engine.

    Prints its URL once it listens. Ctrl-C or SIGTERM lets the requests in work finish, and ends it.
    """
    from rerank_async.server import LocalServer

    try:
        server = LocalServer(
            engine,
            host=host,
            port=port,
            api_key=api_key,
            max_documents=max_documents,
            workers=workers,
            queue=queue,
            faults=faults,
        )
        _run_async(_serve(server))
    except OSError as error:
        # asyncio's own words repeat the address; a failed look-up has numbers of another kind.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror or error
        raise _give_up(f"cannot listen on {host}:{port}: {reason}", 1) from None
    except (ValueError, RuntimeError) as error:
        raise _give_up(str(error), 2) from None


async def _serve(server: Any) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # Before the server starts: a signal that comes early is not lost.
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with server:
        print(f"listening on {server.url}", flush=True)
        await stop.wait()
        print("stopping: requests in work are finished first", file=sys.stderr, flush=True)


# ── demo ──


@app.command(epilog="Example: rerank-async demo --faults 0.1")
def demo(
    faults: Annotated[
        float, typer.Option(help="The share of the server's answers that fail, as in 0.1.")
    ] = 0.0,
) -> None:
    """Rerank the docstrings of Python's standard library, with no key and no network."""
    if not 0.0 <= faults < 1.0:
        raise _give_up(f"--faults must be at least 0 and below 1, not {faults}", 2)
    # Before anything is parsed: what the server lacks is said at once.
    server = _local_server(workers=1, faults=faults)
    from rerank_async._demo import demo as run_demo

    try:
        code = _run_async(run_demo(server, out=Console(highlight=False), err=Console(stderr=True)))
    except RuntimeError as error:
        raise _give_up(str(error), 1) from None
    raise typer.Exit(code)
