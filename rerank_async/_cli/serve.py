"""`rerank-async serve`: the local server, until a signal ends it.

A line belongs here when it reads an option of this command, or is about its signals.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from rerank_async._cli._shared import give_up, run_async
from rerank_async._cli._signals import on_stop_signals

if TYPE_CHECKING:
    from rerank_async.server import LocalServer

__all__ = ["EXAMPLE", "serve"]

EXAMPLE = "Example: rerank-async serve --port 8000 --workers 2"


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
        run_async(_serve(server))
    except OSError as error:
        # asyncio's own words repeat the address; a failed look-up has numbers of another kind.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror or error
        raise give_up(f"cannot listen on {host}:{port}: {reason}", 1) from None
    except (ValueError, RuntimeError) as error:
        raise give_up(str(error), 2) from None


async def _serve(server: LocalServer) -> None:
    stop = asyncio.Event()
    # Before the server starts: a signal that comes early is not lost.
    with on_stop_signals(lambda number: stop.set()):
        async with server:
            print(f"listening on {server.url}", flush=True)
            await stop.wait()
            print("stopping: requests in work are finished first", file=sys.stderr, flush=True)
