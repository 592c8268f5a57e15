"""`rerank-async bench`: load against a rerank server, and what it did under it.

A line belongs here when it reads an option of this command, is about its signals, or says how it
ended; what a person sees meanwhile is in `_bench_watching`.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from msgspec import Struct
from msgspec.structs import replace

from rerank_async._cli._options import InsecureOption, ModelOption, UrlOption, takes
from rerank_async._cli._shared import (
    file_named,
    give_up,
    in_words_of_the_command,
    local_server,
    model_to_ask,
    run_async,
    say_destination,
)
from rerank_async._cli._signals import on_stop_signals

if TYPE_CHECKING:
    from rich.console import Console

    from rerank_async.bench import Benchmark, BenchOptions

__all__ = ["EXAMPLE", "bench"]

T = TypeVar("T")

EXAMPLE = (
    "Exit codes: 0 done, 1 nothing succeeded, or no load met the goodput that was asked for, "
    "2 wrong use, 130 interrupted, with a report of what was measured. "
    "Sizes are 100, uniform:10-200, normal:100,20, lognormal:100,0.5 (median, sigma) or "
    "10:0.8,1000:0.2 (so often each). "
    "Example: rerank-async bench --local --sweep concurrency"
)

_LOAD, _WHAT, _REPORT = "How hard, how long", "What to ask", "What to make of it"
# Seconds in which the embedded server has ended, if it has nothing left to do.
_SERVER_ENDS = 1.0
# Of the files that a process may open, so many are not connections.
_OTHER_FILES = 64
# Connections at once, where no limit is known.
_MANY = 1_000_000


class Sweep(StrEnum):
    """What is raised in search of the knee."""

    CONCURRENCY = "concurrency"
    RATE = "rate"


class Arrivals(StrEnum):
    """How requests of an open loop are spread."""

    POISSON = "poisson"
    CONSTANT = "constant"


class BenchArguments(Struct, frozen=True):
    """What was asked of `bench`: each field is one of its options, with its help."""

    url: UrlOption = None
    model: ModelOption = None
    dialect: Annotated[str, typer.Option(help="How the server spells the exchange.")] = "v1"
    local: Annotated[
        bool, typer.Option("--local", help="Start the embedded server, in processes of its own.")
    ] = False
    allow_insecure_http: InsecureOption = False
    concurrency: Annotated[
        str | None,
        typer.Option(
            help="Closed loop: requests at once, as 16, or 1,2,4,8, or 1-64 or auto to look for "
            "the knee; 16 if left out.",
            rich_help_panel=_LOAD,
        ),
    ] = None
    rate: Annotated[
        str | None,
        typer.Option(
            help="Open loop: requests/s, sent whatever the server does, as 50, or 10,20,40, or "
            "10-1000 or auto to look for the highest that it keeps up with.",
            rich_help_panel=_LOAD,
        ),
    ] = None
    sweep: Annotated[
        Sweep | None,
        typer.Option(
            help="Look for the knee over one of the two: the same as auto for it.",
            rich_help_panel=_LOAD,
        ),
    ] = None
    arrivals: Annotated[
        Arrivals,
        typer.Option(
            help="Of an open loop: as those of many people, or at equal distances.",
            rich_help_panel=_LOAD,
        ),
    ] = Arrivals.POISSON
    duration: Annotated[
        str | None,
        typer.Option(
            help="Measure each load for so long, as 10s or 2min; 10s if left out.",
            rich_help_panel=_LOAD,
        ),
    ] = None
    count: Annotated[
        int | None,
        typer.Option(
            min=1, help="Measure so many requests at each load instead.", rich_help_panel=_LOAD
        ),
    ] = None
    warm_up: Annotated[
        str, typer.Option(help="Before that, not counted.", rich_help_panel=_LOAD)
    ] = "2s"
    timeout: Annotated[
        str, typer.Option(help="What takes longer has failed.", rich_help_panel=_LOAD)
    ] = "30s"
    attempts: Annotated[
        int,
        typer.Option(
            min=1, help="Of each request; 1: what fails has failed.", rich_help_panel=_LOAD
        ),
    ] = 1
    max_in_flight: Annotated[
        int,
        typer.Option(
            min=1,
            help="Of an open loop: requests at once, from which on others wait.",
            rich_help_panel=_LOAD,
        ),
    ] = 10_000
    documents: Annotated[
        str | None,
        typer.Option(help="In a request; a size as below; 20 if left out.", rich_help_panel=_WHAT),
    ] = None
    document_words: Annotated[
        str | None,
        typer.Option(
            help="In a document; a size as below; 100 if left out.", rich_help_panel=_WHAT
        ),
    ] = None
    query_words: Annotated[
        str | None,
        typer.Option(help="In a query; a size as below; 10 if left out.", rich_help_panel=_WHAT),
    ] = None
    requests: Annotated[
        str | None,
        typer.Option(
            help="Send the requests of this file instead: .jsonl, perhaps .gz or .zst, - is "
            "standard input.",
            rich_help_panel=_WHAT,
        ),
    ] = None
    top_n: Annotated[
        int | None,
        typer.Option(min=1, help="Results to ask for; all if left out.", rich_help_panel=_WHAT),
    ] = None
    seed: Annotated[
        int, typer.Option(min=0, help="The same draws the same.", rich_help_panel=_WHAT)
    ] = 0
    goodput: Annotated[
        str | None,
        typer.Option(help="Count what is answered in time, as p99:500ms.", rich_help_panel=_REPORT),
    ] = None
    name: Annotated[
        str, typer.Option(help="Of this run, for comparisons.", rich_help_panel=_REPORT)
    ] = ""
    output: Annotated[
        str | None,
        typer.Option(
            help="A directory for the report: JSON, Markdown, HTML, charts.",
            rich_help_panel=_REPORT,
        ),
    ] = None
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="A.json B.json",
            help="Put two reports side by side; sends nothing.",
            rich_help_panel=_REPORT,
        ),
    ] = None
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON in place of tables.", rich_help_panel=_REPORT),
    ] = False
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel=_REPORT)
    ] = False


@takes(BenchArguments)
def bench(asked: BenchArguments) -> None:
    """Put load on a rerank server, and measure what it does.

    A closed loop keeps so many requests under way; an open loop sends so many a second, whatever
    the server does.
    Ctrl-C stops, and reports what was measured so far; a second one stops now.
    The API key is read from RERANK_API_KEY.
    """
    directory = file_named("--output", asked.output)
    requests = file_named("--requests", asked.requests)
    if asked.compare is not None:
        before, after = (file_named("--compare", name) for name in asked.compare)
        _refuse_beside_compare(asked)
        _compare(before, after, directory, asked.quiet)
        return
    asked = _without_sweep(asked)
    _refuse_what_excludes(asked)
    asked = replace(asked, model=model_to_ask(asked.model, asked.url, local=asked.local))
    most = _most_connections()
    with _load_failures_told(asked.requests):
        options = _options(asked, requests, most)
        _check_loads(options, most)
        if directory is not None:
            _check_report(directory)
        benchmark, received = run_async(_watched_run(asked, options))
    if benchmark is None or not benchmark.levels:
        raise give_up("stopped before anything was measured", 128 + (received or signal.SIGINT))
    _report(benchmark, directory, asked.as_json, asked.quiet)
    if received:
        raise typer.Exit(128 + received)
    raise typer.Exit(_exit_code(benchmark))


@contextmanager
def _load_failures_told(name: object) -> Iterator[None]:
    """Say why a benchmark ended in an error, and end the program with the exit code of that error.

    Args:
        name: the file that is meant where an error of the operating system names none.
    """
    from rerank_async._errors import InvalidRequestError, RerankError
    from rerank_async.bulk import InputError

    try:
        yield
    except typer.Exit:
        # It is a RuntimeError too, and has said why.
        raise
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise give_up("stopped", 130) from None
    except (InvalidRequestError, InputError) as error:
        raise give_up(_in_words_of_options(str(error)), 2) from None
    except RerankError as error:
        raise give_up(str(error), 1) from None
    except OSError as error:
        raise give_up(f"{error.filename or name}: {error.strerror or error}", 2) from None
    except RuntimeError as error:
        raise give_up(str(error), 2) from None


def _exit_code(benchmark: Benchmark) -> int:
    levels = benchmark.levels
    if not any(level.succeeded for level in levels):
        return 1
    goals = [level.goodput for level in levels if level.goodput is not None]
    return 1 if goals and not any(goal.is_met for goal in goals) else 0


# ── the run ──


async def _watched_run(
    asked: BenchArguments, options: BenchOptions
) -> tuple[Benchmark | None, int]:
    """The benchmark, if it came to begin, and the signal that ended it; 0 for none."""
    from rerank_async._cli._bench_watching import BenchWatching
    from rerank_async.bench import run_benchmark

    stop = asyncio.Event()
    received: list[int] = []
    task = asyncio.current_task()
    assert task is not None
    async with AsyncExitStack() as stack:
        watching = stack.enter_context(BenchWatching(quiet=asked.quiet))

        def heed(number: signal.Signals) -> None:
            received.append(number)
            if len(received) == 1:
                stop.set()
            else:
                task.cancel()

        stack.enter_context(on_stop_signals(heed))
        url = asked.url
        if asked.local:
            url = await _unless_stopped(stack.enter_async_context(_own_server()), stop)
            if url is None:
                return None, received[0]
        else:
            say_destination(url)
        stack.enter_context(in_words_of_the_command())
        benchmark = await run_benchmark(
            base_url=url,
            model=asked.model,
            dialect=asked.dialect,
            allow_insecure_http=asked.allow_insecure_http,
            options=options,
            stop=stop,
            on_progress=watching,
        )
    return benchmark, received[0] if received else 0


async def _unless_stopped(awaitable: Coroutine[Any, Any, T], stop: asyncio.Event) -> T | None:
    """What it returns; None, and it is cancelled, where the command was asked to stop first."""
    doing, stopped = asyncio.create_task(awaitable), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({doing, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return await doing if doing.done() else None
    finally:
        for task in (doing, stopped):
            task.cancel()
        await asyncio.gather(doing, stopped, return_exceptions=True)


@asynccontextmanager
async def _own_server() -> AsyncGenerator[str, None]:
    """The embedded server as a program of its own, which takes nothing from the client's time."""
    from rerank_async.bench import this_machine

    # Gives up in one line where its extra is missing.
    local_server()
    workers = max(1, this_machine().cores - 1)
    # No queue that is ever full: it is the server that is measured, not its refusals.
    arguments = ("serve", "--port", "0", "--workers", str(workers), "--queue", "1000000")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rerank_async", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        # Ctrl-C is for the client, which still has requests there; the second is Windows' word.
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        if not line.startswith("listening on "):
            raise give_up("the embedded server did not start: try rerank-async serve", 1)
        yield line.removeprefix("listening on ").strip()
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _SERVER_ENDS)
        except TimeoutError:
            # It finishes what nobody waits for. Its scoring processes are of its own session.
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            await process.wait()


# ── options ──


def _refuse_beside_compare(asked: BenchArguments) -> None:
    """Give up where an option is given that needs something to be sent."""
    alone = {
        "--url": asked.url,
        "--local": asked.local,
        "--concurrency": asked.concurrency,
        "--rate": asked.rate,
        "--sweep": asked.sweep,
        "--duration": asked.duration,
        "--count": asked.count,
        "--requests": asked.requests,
        "--goodput": asked.goodput,
        "--json": asked.as_json,
        "--model": asked.model,
        "--top-n": asked.top_n,
        "--name": asked.name,
    }
    if given := [option for option, value in alone.items() if value]:
        raise give_up(f"--compare sends nothing: leave out {given[0]}", 2)


def _without_sweep(asked: BenchArguments) -> BenchArguments:
    """The same, with `--sweep` said as the search that it stands for."""
    if asked.sweep is None:
        return asked
    if asked.concurrency is not None or asked.rate is not None:
        raise give_up(
            f"--sweep {asked.sweep} is --{asked.sweep} auto: give one of them, or a range, as "
            "--concurrency 1-64 or --rate 10-1000",
            2,
        )
    if asked.sweep is Sweep.CONCURRENCY:
        return replace(asked, concurrency="auto")
    return replace(asked, rate="auto")


def _refuse_what_excludes(asked: BenchArguments) -> None:
    if asked.concurrency is not None and asked.rate is not None:
        raise give_up("--concurrency and --rate exclude each other", 2)
    if asked.duration is not None and asked.count is not None:
        raise give_up("--duration and --count exclude each other", 2)
    if asked.requests is not None:
        made = {
            "--documents": asked.documents,
            "--document-words": asked.document_words,
            "--query-words": asked.query_words,
        }
        if given := [option for option, value in made.items() if value is not None]:
            raise give_up(f"--requests says what is asked: leave out {given[0]}", 2)


def _options(asked: BenchArguments, requests: Path | None, most: int) -> BenchOptions:
    """What the benchmark is to do, with no more connections than this process may open.

    Args:
        asked: the options of the command.
        requests: the file of `--requests`; None if requests are made up.
        most: the connections that this process may open.

    Raises:
        InvalidRequestError: an option has a value that it cannot have.
    """
    from rerank_async.bench import BenchOptions

    return BenchOptions(
        concurrency=_with_an_end(asked.concurrency, most),
        rate=asked.rate,
        arrivals=asked.arrivals.value,
        duration=asked.duration,
        count=asked.count,
        warm_up=asked.warm_up,
        timeout=asked.timeout,
        attempts=asked.attempts,
        max_in_flight=min(asked.max_in_flight, most),
        documents="20" if asked.documents is None else asked.documents,
        document_words="100" if asked.document_words is None else asked.document_words,
        query_words="10" if asked.query_words is None else asked.query_words,
        requests=requests,
        top_n=asked.top_n,
        seed=asked.seed,
        goodput=asked.goodput,
        name=asked.name,
    )


def _check_loads(options: BenchOptions, most: int) -> None:
    """Give up where a load needs more connections than this process may open."""
    loads = options.loads()
    if loads.mode == "closed" and loads.values[-1] > most:
        raise give_up(
            f"--concurrency {loads.values[-1]:g} needs more than the {most:,} connections that "
            "this process may open: raise `ulimit -n`",
            2,
        )


def _in_words_of_options(message: str) -> str:
    """What a value of `BenchOptions` is said to be, said of the option that it came from."""
    return re.sub(
        r"^(concurrency|rate|arrivals|duration|count|warm_up|timeout|attempts|max_in_flight|"
        r"documents|document_words|query_words|top_n|seed|goodput|dialect)\b",
        lambda match: "--" + match[1].replace("_", "-"),
        message,
    )


def _most_connections() -> int:
    """How many connections this process may have, once it may have as many as it can."""
    try:
        import resource
    except ImportError:
        # Windows names no limit; memory and ports end somewhere.
        return _MANY

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError):
            # macOS has another limit, which it does not tell.
            pass
    if soft == resource.RLIM_INFINITY:
        return _MANY
    return max(1, soft - _OTHER_FILES)


def _with_an_end(concurrency: str | None, most: int) -> str | None:
    """A search without an end of its own ends where connections do."""
    if concurrency is not None and concurrency.strip().lower() == "auto" and most < 1024:
        return f"1-{most}"
    return concurrency


def _check_report(output: Path) -> None:
    """Give up before anything is sent where the report could not be written."""
    from rerank_async.bench._report import check_installed

    check_installed()
    output.mkdir(parents=True, exist_ok=True)
    if not os.access(output, os.W_OK):
        raise give_up(f"{output}: cannot be written to", 2)


# ── the end ──


def _report(benchmark: Benchmark, output: Path | None, as_json: bool, quiet: bool) -> None:
    """Write the report, and print the figures, which may go nowhere."""
    from rerank_async._errors import InvalidRequestError
    from rerank_async.bench import to_json
    from rerank_async.bench._report import show_report, write_report

    trouble, paths = "", []
    if output is not None:
        try:
            paths = write_report(benchmark, output)
        except (InvalidRequestError, OSError, RuntimeError) as error:
            trouble = f"{error}; what else there is of the report is in {output}"
    if as_json:
        text = to_json(benchmark).decode().rstrip("\n")
        _print(lambda console: console.out(text, highlight=False))
    else:
        _print(lambda console: show_report(benchmark, console))
    _name(paths, quiet)
    if trouble:
        raise give_up(trouble, 1)


def _print(draw: Callable[[Console], None]) -> None:
    """To standard output, as far as anybody takes it."""
    from rich.console import Console

    from rerank_async._cli._screen import show

    # Drawn first, for what is there: a console answers a closed pipe with an exit of its own.
    drawn = io.StringIO()
    # As for standard output itself: FORCE_COLOR decides where that is no terminal.
    draw(Console(file=drawn, highlight=False, force_terminal=sys.stdout.isatty() or None))
    try:
        show(drawn.getvalue().removesuffix("\n"), sys.stdout)
    except OSError as error:
        raise give_up(f"standard output: {error.strerror or error}", 1) from None


def _compare(first: Path, second: Path, output: Path | None, quiet: bool) -> None:
    from rerank_async._errors import InvalidRequestError
    from rerank_async.bench import read_benchmark
    from rerank_async.bench._compare import show_comparison, write_comparison

    try:
        before, after = read_benchmark(first), read_benchmark(second)
        paths: list[Path] = []
        if output is not None:
            _check_report(output)
            paths = write_comparison(before, after, output)
        _print(lambda console: show_comparison(before, after, console))
        _name(paths, quiet)
    except typer.Exit:
        raise
    except (InvalidRequestError, RuntimeError) as error:
        raise give_up(str(error), 2) from None
    except OSError as error:
        raise give_up(f"{error.filename or output}: {error.strerror or error}", 2) from None


def _name(paths: list[Path], quiet: bool) -> None:
    if not quiet:
        for path in paths:
            print(f"written: {path}", file=sys.stderr)
