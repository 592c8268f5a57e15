"""`rerank-async bulk`: a file in, a file out, however often it is interrupted.

A line belongs here when it reads an option of this command, is about its signals, or says how the
job ended.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from attrs import asdict
from msgspec import Struct
from msgspec.structs import replace

from rerank_async._cli._options import InsecureOption, ModelOption, UrlOption, takes
from rerank_async._cli._shared import (
    count,
    duration,
    file_named,
    give_up,
    make_session,
    model_to_ask,
    run_async,
    say_destination,
)
from rerank_async._cli._signals import on_stop_signals, stopped_at_once

if TYPE_CHECKING:
    from rerank_async._session import RerankSession
    from rerank_async.bulk import BulkSummary
    from rerank_async.ray import RaySummary

__all__ = ["EXAMPLE", "bulk"]

EXAMPLE = (
    "Exit codes: 0 done, 1 done with failed rows, 2 wrong use, 3 stopped and can be resumed, "
    "130 interrupted and can be resumed. "
    "Example: rerank-async bulk requests.jsonl rankings.jsonl --model rerank-model"
)

_WHAT, _HOW, _STOP, _JOB = "What to rerank", "How to send it", "When to stop", "The job"
_MANY = "On many machines"


class BulkArguments(Struct, frozen=True):
    """What was asked of `bulk`: each field is one of its arguments or options, with its help."""

    input: Annotated[
        str,
        typer.Argument(
            help="Requests as .jsonl or .parquet, perhaps .gz or .zst, - is standard input; with "
            "--query a corpus; with --run a folder in BEIR's form; with --ray a directory."
        ),
    ]
    output: Annotated[
        str,
        typer.Argument(
            help="The rankings: .jsonl or .run, perhaps .gz or .zst, or .parquet; with --ray a "
            "directory."
        ),
    ]
    url: UrlOption = None
    model: ModelOption = None
    top_n: Annotated[
        int | None,
        typer.Option(min=1, help="Results per query; all if left out, of a corpus 1,000."),
    ] = None
    query: Annotated[
        str | None,
        typer.Option(help="Rank the corpus INPUT for this one query.", rich_help_panel=_WHAT),
    ] = None
    query_id: Annotated[
        str | None, typer.Option(help="Its id in the output.", rich_help_panel=_WHAT)
    ] = None
    run: Annotated[
        str | None,
        typer.Option(
            help="A TREC run: its documents, from the folder INPUT, are the candidates.",
            rich_help_panel=_WHAT,
        ),
    ] = None
    depth: Annotated[
        int | None,
        typer.Option(
            min=1, help="Candidates per query of the run; 100 if left out.", rich_help_panel=_WHAT
        ),
    ] = None
    identical_once: Annotated[
        bool,
        typer.Option(
            "--identical-once/--identical-each",
            help="Whether a document that is repeated within a row is sent once.",
            rich_help_panel=_WHAT,
        ),
    ] = True
    cache: Annotated[
        str | None,
        typer.Option(help="A file that keeps scores for other jobs.", rich_help_panel=_WHAT),
    ] = None
    tag: Annotated[
        str, typer.Option(help="The last word of a run's lines.", rich_help_panel=_WHAT)
    ] = "rerank_async"
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1, help="Requests at once; finds itself if left out.", rich_help_panel=_HOW
        ),
    ] = None
    requests_per_minute: Annotated[
        float | None, typer.Option(help="At most so many.", rich_help_panel=_HOW)
    ] = None
    tokens_per_minute: Annotated[
        float | None, typer.Option(help="At most so many, by estimate.", rich_help_panel=_HOW)
    ] = None
    max_documents: Annotated[
        int, typer.Option(min=1, help="The most in one request.", rich_help_panel=_HOW)
    ] = 1000
    attempt_timeout: Annotated[
        float, typer.Option(help="Seconds that one attempt may take.", rich_help_panel=_HOW)
    ] = 60.0
    partial: Annotated[
        bool,
        typer.Option(
            "--partial",
            help="Keep a row of which some documents could not be scored, and name them.",
            rich_help_panel=_HOW,
        ),
    ] = False
    allow_insecure_http: InsecureOption = False
    max_outage: Annotated[
        float,
        typer.Option(
            help="Seconds that a server that does not answer is waited for; 10 if never reached.",
            rich_help_panel=_STOP,
        ),
    ] = 600.0
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Stop before the job costs more.", rich_help_panel=_STOP),
    ] = None
    max_failures: Annotated[
        int,
        typer.Option(
            min=0, help="Stop when so many rows fail in a row; 0: never.", rich_help_panel=_STOP
        ),
    ] = 100
    job: Annotated[
        str | None,
        typer.Option(help="Its directory; OUTPUT.job if left out.", rich_help_panel=_JOB),
    ] = None
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Count requests, documents and tokens; send nothing.",
            rich_help_panel=_JOB,
        ),
    ] = False
    export: Annotated[
        bool,
        typer.Option(
            "--export",
            help="Write what is done so far to OUTPUT; send nothing.",
            rich_help_panel=_JOB,
        ),
    ] = False
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Do failed rows again.", rich_help_panel=_JOB),
    ] = False
    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check",
            help="Whether the whole input is read before anything is sent.",
            rich_help_panel=_JOB,
        ),
    ] = True
    salvage: Annotated[
        bool,
        typer.Option(
            "--salvage",
            help="Leave out what is damaged of the journal, and send it again.",
            rich_help_panel=_JOB,
        ),
    ] = False
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace an OUTPUT that another wrote.", rich_help_panel=_JOB
        ),
    ] = False
    ray: Annotated[
        str | None,
        typer.Option(
            help="The address of a Ray cluster, or local: INPUT and OUTPUT are directories of "
            "Parquet, or URIs such as s3://bucket/directory.",
            rich_help_panel=_MANY,
        ),
    ] = None
    actors: Annotated[
        int,
        typer.Option(min=1, help="Processes that share --concurrency.", rich_help_panel=_MANY),
    ] = 2
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", help="No progress and no summary; why it stopped all the same."
        ),
    ] = False
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON on standard output.")
    ] = False


@takes(BulkArguments)
def bulk(asked: BulkArguments) -> None:
    """Rerank a file of any size; run the same command again to go on where it ended.

    Ctrl-C lets the requests on the wire finish and stops; a second one stops now.
    The API key is read from RERANK_API_KEY.
    """
    if asked.dry_run and asked.export:
        raise give_up("--dry-run and --export exclude each other", 2)
    asked = replace(asked, model=model_to_ask(asked.model, asked.url, local=False))
    if asked.ray is not None:
        _refuse_what_one_machine_does(asked)
    else:
        elsewhere = "--ray takes URIs of directories of Parquet"
        asked = replace(
            asked,
            input=str(file_named("INPUT", asked.input, instead=elsewhere)),
            output=str(file_named("OUTPUT", asked.output, instead=elsewhere)),
        )
    with _job_failures_told(asked.input):
        code = _do(asked)
    raise typer.Exit(code)


def _refuse_what_one_machine_does(asked: BulkArguments) -> None:
    """Give up where an option is given that a job on many machines does not know."""
    alone = {
        "--query": asked.query,
        "--query-id": asked.query_id,
        "--identical-each": not asked.identical_once,
        "--tag": asked.tag != "rerank_async",
        "--max-failures": asked.max_failures != 100,
        "--no-check": not asked.check,
        "--run": asked.run,
        "--depth": asked.depth,
        "--cache": asked.cache,
        "--job": asked.job,
        "--max-tokens": asked.max_tokens,
        "--dry-run": asked.dry_run,
        "--export": asked.export,
        "--salvage": asked.salvage,
        "--partial": asked.partial,
        "--overwrite": asked.overwrite,
        "--tokens-per-minute": asked.tokens_per_minute,
    }
    if given := [name for name, value in alone.items() if value]:
        raise give_up(f"{given[0]} is for one machine: leave it out, or leave out --ray", 2)


@contextmanager
def _job_failures_told(name: str) -> Iterator[None]:
    """Say why a job ended in an error, and end the program with the exit code of that error.

    Args:
        name: the file that is meant where an error of the operating system names none.
    """
    from rerank_async._errors import InvalidRequestError, RerankError
    from rerank_async.bulk import InputError, JobError, JobFullError

    try:
        yield
    except (asyncio.CancelledError, KeyboardInterrupt):
        print("rerank-async: stopped; run the same command again to go on", file=sys.stderr)
        raise typer.Exit(130) from None
    except JobFullError as error:
        raise give_up(str(error), 3) from None
    except (InvalidRequestError, InputError, JobError) as error:
        raise give_up(str(error), 2) from None
    except RerankError as error:
        raise give_up(str(error), 1) from None
    except OSError as error:
        raise give_up(f"{error.filename or name}: {error.strerror or error}", 2) from None


# ── what is done ──


def _do(asked: BulkArguments) -> int:
    """Do what was asked for; the exit code."""
    job = _job_of(asked)
    if asked.ray is not None:
        say_destination(asked.url)
        return _rerank_on_many_machines(asked)
    if asked.dry_run:
        with stopped_at_once():
            return run_async(_plan(asked, job))
    if asked.export:
        with stopped_at_once():
            return run_async(_export(asked, job))
    return run_async(_rerank_rows(asked, job))


def _job_of(asked: BulkArguments) -> dict[str, Any]:
    """What the functions of `rerank_async.bulk` take besides the session, the input and the output.

    Raises:
        InvalidRequestError: an option has a value that it cannot have.
    """
    from rerank_async.bulk import BulkOptions

    return {
        "query": asked.query,
        "query_id": asked.query_id,
        "top_n": asked.top_n,
        "run": file_named("--run", asked.run),
        "depth": asked.depth,
        "job": file_named("--job", asked.job),
        "options": BulkOptions(
            identical_once=asked.identical_once,
            cache=file_named("--cache", asked.cache),
            max_tokens=asked.max_tokens,
            max_failures=asked.max_failures or None,
            check_first=asked.check,
            retry_failed=asked.retry_failed,
            salvage=asked.salvage,
            overwrite=asked.overwrite,
            tag=asked.tag,
        ),
    }


def _sending(asked: BulkArguments) -> dict[str, Any]:
    """The arguments of a session that are the same on one machine and on many."""
    from rerank_async._chunking import ChunkLimits
    from rerank_async._policy import RetryPolicy

    return {
        "model": asked.model,
        "allow_insecure_http": asked.allow_insecure_http,
        "chunks": ChunkLimits(max_documents=asked.max_documents),
        "retry": RetryPolicy(max_outage=asked.max_outage, attempt_timeout=asked.attempt_timeout),
    }


def _session_of(asked: BulkArguments) -> RerankSession:
    """The session that a job on this machine sends its rows through."""
    from rerank_async._flow.limiter import Concurrency, RateLimit

    per_minute = (asked.requests_per_minute, asked.tokens_per_minute)
    return make_session(
        asked.url,
        concurrency=Concurrency.adaptive() if asked.concurrency is None else asked.concurrency,
        rate=None if per_minute == (None, None) else RateLimit(*per_minute),
        timeout=None,
        on_failure="partial" if asked.partial else "raise",
        **_sending(asked),
    )


async def _rerank_rows(asked: BulkArguments, job: dict[str, Any]) -> int:
    """Do the job, and say how it ended; the exit code."""
    from rerank_async._cli._watching import Watching
    from rerank_async.bulk._jobs import do_job
    from rerank_async.bulk._settings import JobSettings

    stop = asyncio.Event()
    received: list[signal.Signals] = []
    task = asyncio.current_task()
    assert task is not None
    with Watching(quiet=asked.quiet) as watching:

        def heed(number: signal.Signals) -> None:
            received.append(number)
            if len(received) == 1:
                stop.set()
                watching.say_stopping(
                    "stopping: what is on the wire is finished first; Ctrl-C again stops now"
                )
            else:
                task.cancel()

        with on_stop_signals(heed):
            async with _session_of(asked) as session:
                say_destination(asked.url)
                settings = JobSettings(input=asked.input, output=asked.output, **job)
                summary = await do_job(session, settings, stop=stop, on_progress=watching)
    _tell(summary, asked)
    if summary.stopped == "interrupted":
        return 128 + (received[0] if received else signal.SIGINT)
    if not summary.finished:
        return 3
    return 1 if summary.failed else 0


async def _plan(asked: BulkArguments, job: dict[str, Any]) -> int:
    """Say how much the job would send, and send nothing; the exit code."""
    from rerank_async.bulk import plan_file

    async with _session_of(asked) as session:
        plan = await plan_file(session, asked.input, asked.output, **job)
    if asked.as_json:
        print(orjson.dumps(asdict(plan)).decode())
        return 0
    done = f", of which {count(plan.done)} are done" if plan.done else ""
    print(f"rows       {count(plan.queries)}{done}")
    print(f"documents  {count(plan.documents)}, of which {count(plan.to_send)} are to be sent")
    print(f"requests   {count(plan.requests)}")
    print(f"tokens     about {count(plan.tokens)}")
    print("nothing was sent", file=sys.stderr)
    return 0


async def _export(asked: BulkArguments, job: dict[str, Any]) -> int:
    """Write what is done of the job, and send nothing; the exit code."""
    from rerank_async.bulk import export_file

    async with _session_of(asked) as session:
        written = await export_file(session, asked.input, asked.output, **job)
    failed = f", {count(written.failed)} of them failed" if written.failed else ""
    print(f"{written.path}: {count(written.rows + written.failed)} rows{failed}", file=sys.stderr)
    return 0


def _rerank_on_many_machines(asked: BulkArguments) -> int:
    """Do the job on a Ray cluster, and say how it ended; the exit code."""
    try:
        from rerank_async.ray import rerank_parquet
    except ImportError as error:
        raise give_up(str(error), 2) from None

    per_minute = asked.requests_per_minute
    summary = rerank_parquet(
        asked.input,
        asked.output,
        address=asked.ray,
        base_url=asked.url,
        actors=asked.actors,
        concurrency=32 if asked.concurrency is None else asked.concurrency,
        rate=None if per_minute is None else per_minute / 60,
        top_n=asked.top_n,
        retry_failed=asked.retry_failed,
        **_sending(asked),
    )
    if asked.as_json:
        print(orjson.dumps(asdict(summary), option=orjson.OPT_INDENT_2).decode())
    if not asked.quiet:
        print("\n".join(_lines_of_many_machines(summary)), file=sys.stderr)
    if not summary.finished:
        return 3
    return 1 if summary.failed else 0


# ── how it ended ──


def _lines_of_many_machines(summary: RaySummary) -> Iterator[str]:
    """The summary of a job on a Ray cluster, for people."""
    yield (
        f"{count(summary.rows)} of {count(summary.rows_total)} rows"
        f" in {duration(summary.seconds)}; {count(summary.resumed)} were done before"
    )
    yield (
        f"{count(summary.sent)} queries sent, tokens of all runs of the job: "
        f"{count(summary.tokens)}"
    )
    if summary.lost_actors:
        yield f"{count(summary.lost_actors)} actors were lost, and their work done anew"
    if summary.failed:
        yield f"{count(summary.failed)} rows failed; --retry-failed does them again"
    if summary.finished:
        yield f"written to {summary.output}"
    else:
        why = "" if summary.error is None else f": {summary.error}"
        yield f"stopped{why}; run the same command again to go on"


def _tell(summary: BulkSummary, asked: BulkArguments) -> None:
    """Print what became of a job on this machine, as JSON or for people."""
    from rerank_async._cli._screen import show

    if asked.as_json:
        show(_as_json(summary), sys.stdout)
    if not asked.quiet:
        show("\n".join(_lines_of(summary)), sys.stderr)
    elif summary.stopped is not None and summary.stopped != "interrupted":
        # Whoever wants no progress wants to know what ended the job all the same.
        show(f"rerank-async: {_how_it_stopped(summary)}", sys.stderr)


def _lines_of(summary: BulkSummary) -> Iterator[str]:
    """The summary, for people."""
    total = "" if summary.queries_total is None else f" of {count(summary.queries_total)}"
    yield (
        f"{count(summary.queries)}{total} queries, {count(summary.documents)} documents"
        f" in {duration(summary.seconds)}"
        + (f"; {count(summary.resumed)} queries were done before" if summary.resumed else "")
    )
    if summary.requests or summary.cached or summary.identical:
        yield ", ".join(_parts_of(summary))
    about = "about " if summary.tokens_estimated else ""
    yield f"tokens of all runs of the job: {about}{count(summary.tokens)}"
    if summary.dropped_bytes:
        yield (
            f"the journal ended in {count(summary.dropped_bytes)} bytes that had not reached the "
            "disk whole; their rows were sent again"
        )
    if summary.skipped_entries:
        yield f"{count(summary.skipped_entries)} damaged entries were left out"
    if summary.failed:
        where = summary.errors_output or summary.output
        yield (
            f"{count(summary.failed)} failed: see "
            + (str(where) if summary.finished else "--export")
            + "; --retry-failed does them again"
        )
    yield f"written to {summary.output}" if summary.finished else _how_it_stopped(summary)


def _parts_of(summary: BulkSummary) -> Iterator[str]:
    """What was sent, and what did not have to be."""
    yield f"{count(summary.requests)} requests"
    yield f"{count(summary.retries)} retries"
    yield f"{count(summary.throttled)} throttled"
    if summary.seconds > 0:
        yield f"{count(summary.sent / summary.seconds)} documents/s"
    if summary.identical:
        yield f"{count(summary.identical)} identical documents not sent"
    if summary.cached:
        yield f"{count(summary.cached)} documents from the cache"


def _how_it_stopped(summary: BulkSummary) -> str:
    return f"stopped: {_stop_words(summary)}; run the same command again to go on"


def _stop_words(summary: BulkSummary) -> str:
    from rerank_async._errors import RerankError
    from rerank_async._policy import RetryPolicy

    error = "" if summary.error is None else f": {summary.error}"
    down = "the server did not answer for too long"
    hint = summary.error.retry_after if isinstance(summary.error, RerankError) else None
    if hint is not None and hint > RetryPolicy().longest_hint:
        down = "the server asks to come back later"
    return {
        "interrupted": "interrupted",
        "outage": f"{down}{error}",
        "refused": f"the server refuses everything{error}",
        "failures": f"too many rows failed one after another, the last with{error}",
        "max_tokens": "the next row would cost more than --max-tokens leaves",
    }[summary.stopped or "interrupted"]


def _as_json(summary: BulkSummary) -> str:
    body = asdict(summary)
    body["error"] = None if summary.error is None else str(summary.error)
    return orjson.dumps(body, default=str, option=orjson.OPT_INDENT_2).decode()
