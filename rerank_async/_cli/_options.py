"""How a command is told its options: as one value, whose fields are the options.

A line belongs here when it is about options as such, or declares one that several commands have.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import Signature, signature
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

__all__ = ["InsecureOption", "ModelOption", "UrlOption", "takes"]

A = TypeVar("A")

UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url", help="The server, up to its version: https://host/v1. [$RERANK_BASE_URL]"
    ),
]
ModelOption = Annotated[str | None, typer.Option("--model", help="The model id. [$RERANK_MODEL]")]
InsecureOption = Annotated[
    bool,
    typer.Option(
        "--allow-insecure-http",
        help="Let the API key cross a network that you trust over http://.",
    ),
]


def takes(arguments: type[A]) -> Callable[[Callable[[A], None]], Callable[..., None]]:
    """Let a function of one value be a command: typer is shown a parameter for each field.

    Args:
        arguments: the value's class. Its fields are annotated as typer's parameters are, and stand
            in the order of `--help`.
    """
    # Evaluated once, here: typer would evaluate the strings in which annotations are kept again.
    hints = get_type_hints(arguments, include_extras=True)
    fields = signature(arguments).parameters.values()

    def as_command(function: Callable[[A], None]) -> Callable[..., None]:
        @wraps(function)
        def command(**given: Any) -> None:
            function(arguments(**given))

        command.__annotations__ = hints
        command.__dict__["__signature__"] = Signature(
            [field.replace(annotation=hints[field.name]) for field in fields]
        )
        return command

    return as_command
