"""What the commands share: the program that they are part of, its loop, its words for a failure.

A line belongs here when two commands need it, or when it is about no command at all.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, overload
from urllib.parse import urlsplit

import typer

from rerank_async._endpoint import DEFAULT_BASE_URL, default_model
from rerank_async._errors import InvalidRequestError
from rerank_async._paths import local_path
from rerank_async._session import RerankSession
from rerank_async._version import __version__

if TYPE_CHECKING:
    from rerank_async.server import LocalServer

__all__ = [
    "app",
    "count",
    "duration",
    "file_named",
    "give_up",
    "in_words_of_the_command",
    "local_server",
    "make_session",
    "model_to_ask",
    "printable",
    "run",
    "run_async",
    "say_destination",
    "shortened",
]

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


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop where it is installed; a command may choose its loop, a library may not."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ModuleNotFoundError:
        pass
    except KeyboardInterrupt:
        # Python complains of one that was never awaited.
        main.close()
        raise
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


def give_up(message: str, code: int) -> typer.Exit:
    """Say why in one line; what is returned is to be raised, and ends the program with `code`."""
    print(f"rerank-async: {message}", file=sys.stderr)
    return typer.Exit(code)


@overload
def file_named(option: str, name: str, *, instead: str = "") -> Path: ...


@overload
def file_named(option: str, name: str | None, *, instead: str = "") -> Path | None: ...


def file_named(option: str, name: str | None, *, instead: str = "") -> Path | None:
    """The path that was given to an option or an argument; None where nothing was.

    Options take strings and come here: typer would make a relative path of a URI.

    Args:
        option: the name that the user knows it by, such as "OUTPUT" or "--job".
        name: the file's name, as the user wrote it.
        instead: what to do where a URI is meant.

    Raises:
        typer.Exit: 2, after one line: it does not name a file of this machine.
    """
    if name is None:
        return None
    try:
        return local_path(option, name, instead=instead)
    except InvalidRequestError as error:
        raise give_up(str(error), 2) from None


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


# ── which server ──


def model_to_ask(model: str | None, url: str | None, *, local: bool) -> str:
    """The model of `--model` or of the environment, once it is sure that there is whom to ask.

    Args:
        model: the value of `--model`.
        url: the value of `--url`.
        local: whether the embedded server is to be started; it has a model for whoever names none.

    Raises:
        typer.Exit: 2, after one line: the options exclude each other, or a model or a key lacks.
    """
    if local and url is not None:
        raise give_up("--local and --url exclude each other", 2)
    model = model or default_model() or ("lexical" if local else None)
    if model is None:
        raise give_up("no model: pass --model or set RERANK_MODEL", 2)
    if not local and _lacks_a_key(url):
        raise give_up(
            f"{DEFAULT_BASE_URL} asks for a key: set RERANK_API_KEY; for another server pass --url "
            "or --local, or set RERANK_BASE_URL",
            2,
        )
    return model


def _lacks_a_key(url: str | None) -> bool:
    """Whether the call would go to the 3xCoder endpoint, without the key that it asks for."""
    if url is None:
        url = os.environ.get("RERANK_BASE_URL") or DEFAULT_BASE_URL
    has_key = os.environ.get("RERANK_API_KEY") or os.environ.get("OPENAI_API_KEY")
    return url.rstrip("/") == DEFAULT_BASE_URL and not has_key


def say_destination(url: str | None) -> None:
    """Say where documents and key will go if nobody has: to the default endpoint, a third party's.

    To be called before anything is sent, also by a command that is quiet.

    Args:
        url: the value of `--url`.
    """
    if url is not None or os.environ.get("RERANK_BASE_URL"):
        return
    names = ("RERANK_API_KEY", "OPENAI_API_KEY")
    variable = next((name for name in names if os.environ.get(name)), None)
    key = "" if variable is None else f" and the key of {variable}"
    print(
        f"rerank-async: no URL is given: the documents{key} go to "
        f"{urlsplit(DEFAULT_BASE_URL).hostname}; for another server pass --url or set "
        "RERANK_BASE_URL",
        file=sys.stderr,
        flush=True,
    )


def make_session(url: str | None, **options: Any) -> RerankSession:
    """A session whose complaints name the options of the command, not its own arguments."""
    with in_words_of_the_command():
        return RerankSession(url, **options)


@contextmanager
def in_words_of_the_command() -> Iterator[None]:
    """Let complaints about a session's arguments name the options that they came from."""
    try:
        yield
    except InvalidRequestError as error:
        words = _in_words_of_the_command(str(error))
        if words == str(error):
            raise
        raise InvalidRequestError(words) from None


def _in_words_of_the_command(message: str) -> str:
    """What a session says of its arguments, said of the options that they came from."""
    message = re.sub(r"^base_url\b", "the URL", message)
    message = re.sub(r"^api_key\b", "the API key", message)
    message = re.sub(r"\buse api_key$", "set RERANK_API_KEY", message)
    return message.replace("pass allow_insecure_http=True", "pass --allow-insecure-http")


def local_server(**options: Any) -> LocalServer:
    """The embedded server, not started; gives up where its extra is missing."""
    from rerank_async.server import LocalServer

    try:
        return LocalServer(**options)
    except RuntimeError as error:
        raise give_up(str(error), 2) from None


# ── what a terminal shows ──


def printable(text: str) -> str:
    """`text` without what a terminal would act upon: a document must not move the cursor."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def shortened(text: str, length: int) -> str:
    """The beginning of a text that is longer than that."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def count(number: float) -> str:
    """A number as people read it: 1,234,567."""
    return f"{number:,.0f}"


def duration(seconds: float) -> str:
    """Seconds as people read them: 12 s, 3 min 04 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"
