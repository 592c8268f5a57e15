"""`rerank-async demo`: starts the demonstration in `_demo`.

A line belongs here when it reads an option of this command.
"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from rerank_async._cli._shared import give_up, local_server, run_async
from rerank_async._cli._signals import stopped_at_once

__all__ = ["EXAMPLE", "demo"]

EXAMPLE = "Example: rerank-async demo --faults 0.1"


def demo(
    faults: Annotated[
        float, typer.Option(help="The share of the server's answers that fail, as in 0.1.")
    ] = 0.0,
) -> None:
    """Rerank the docstrings of Python's standard library, with no key and no network."""
    if not 0.0 <= faults < 1.0:
        raise give_up(f"--faults must be at least 0 and below 1, not {faults}", 2)
    # Before anything is parsed: what the server lacks is said at once.
    server = local_server(workers=1, faults=faults)
    from rerank_async._cli._demo import demonstrate

    try:
        out, err = Console(highlight=False), Console(stderr=True)
        with stopped_at_once():
            code = run_async(demonstrate(server, out=out, err=err))
    except RuntimeError as error:
        raise give_up(str(error), 1) from None
    raise typer.Exit(code)
