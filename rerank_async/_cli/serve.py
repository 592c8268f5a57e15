"""`rerank-async serve`: the local server, until a signal ends it.

A line belongs here when it reads an option of this command, or is about its signals.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import Struct

from rerank_async._cli._options import takes
from rerank_async._cli._shared import give_up, run_async
from rerank_async._cli._signals import on_stop_signals
from rerank_async._private import Secret

if TYPE_CHECKING:
    from rerank_async.server import LocalServer

__all__ = ["EXAMPLE", "serve"]

_VARIABLE = "RERANK_SERVER_API_KEY"

EXAMPLE = "Example: rerank-async serve --port 8000 --workers 2"


class ServeArguments(Struct, frozen=True):
    """What was asked of `serve`: each field is one of its options, with its help."""

    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000
    engine: Annotated[str, typer.Option(help="What scores.")] = "lexical"
    api_key: Annotated[
        str | None,
        typer.Option(
            help="Ask for this key; better set in the environment, where other users of the "
            f"machine do not see it. [${_VARIABLE}]",
        ),
    ] = None
    no_key: Annotated[
        bool,
        typer.Option("--no-key", help="Ask for no key, although others can reach the server."),
    ] = False
    max_documents: Annotated[
        int | None, typer.Option(min=1, help="The most in one request; no limit if left out.")
    ] = None
    workers: Annotated[int, typer.Option(min=0, help="Scoring processes; 0: one thread.")] = 1
    queue: Annotated[
        int, typer.Option(min=0, help="Requests that may wait; one more is answered 429.")
    ] = 64
    faults: Annotated[
        float, typer.Option(help="The share of answers that fail on purpose, as in 0.1.")
    ] = 0.0


@takes(ServeArguments)
def serve(asked: ServeArguments) -> None:
    """Serve the v1 rerank exchange with an embedded engine.

    Prints its URL once it listens. Ctrl-C or SIGTERM lets the requests in work finish, and ends it.
    """
    from rerank_async.server import LocalServer

    key = _key_to_ask_for(asked.api_key, asked.no_key)
    try:
        server = LocalServer(
            asked.engine,
            host=asked.host,
            port=asked.port,
            api_key=key,
            allow_no_key=asked.no_key,
            max_documents=asked.max_documents,
            workers=asked.workers,
            queue=asked.queue,
            faults=asked.faults,
        )
        run_async(_until_stopped(server))
    except OSError as error:
        # asyncio's own words repeat the address; a failed look-up has numbers of another kind.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror or error
        raise give_up(f"cannot listen on {asked.host}:{asked.port}: {reason}", 1) from None
    except (ValueError, RuntimeError) as error:
        raise give_up(_said_of_the_options(str(error)), 2) from None


def _key_to_ask_for(option: str | None, no_key: bool) -> str | None:
    """The key that is to be asked for; the environment forgets it, so that no child learns it.

    Raises:
        typer.Exit: 2, after one line: there is a key and none is wanted, or it is empty.
    """
    in_environment = os.environ.pop(_VARIABLE, None)
    source, key = ("--api-key", option) if option is not None else (_VARIABLE, in_environment)
    if key is None:
        return None
    if not key.strip() and not (no_key and option is None):
        raise give_up(f"{source} is empty: give it a key, or say --no-key and leave it out", 2)
    if no_key and key.strip():
        raise give_up(f"{source} has a key, and --no-key says that there is none: which is it?", 2)
    return None if no_key else Secret(key)


def _said_of_the_options(message: str) -> str:
    """What the server says of its arguments, said of the options that they came from."""
    message = re.sub(r"^api_key\b", "the API key", message)
    message = message.replace("leave it out to ask for none", "leave it out, or say --no-key")
    return message.replace(
        "pass api_key=, or allow_no_key=True if everybody may ask",
        f"set {_VARIABLE}, or say --no-key if everybody may ask",
    )


async def _until_stopped(server: LocalServer) -> None:
    stop = asyncio.Event()
    # Before the server starts: a signal that comes early is not lost.
    with on_stop_signals(lambda number: stop.set()):
        async with server:
            print(f"listening on {server.url}", flush=True)
            await stop.wait()
            print("stopping: requests in work are finished first", file=sys.stderr, flush=True)
