"""The calls of this package: a file's name in, a summary, a plan or a file out.

A line belongs here when it is about what users call; what their arguments mean is in `_settings`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from rerank_async._policy import RetryPolicy
from rerank_async._private import FramesHidden
from rerank_async._session import RerankSession
from rerank_async.bulk._export import export
from rerank_async.bulk._options import BulkOptions
from rerank_async.bulk._outputs import Written
from rerank_async.bulk._planning import plan_job
from rerank_async.bulk._progress import BulkPlan, BulkProgress, BulkSummary
from rerank_async.bulk._runner import Run
from rerank_async.bulk._settings import JobSettings, Name
from rerank_async.bulk._thread import in_thread

__all__ = ["PATIENT", "do_job", "export_file", "plan_file", "rerank_file", "rerank_run"]

# For work that nobody waits for: ten minutes without an answer are waited out.
PATIENT = RetryPolicy(max_outage=600.0)
"""A retry policy for jobs: ten minutes without an answer are waited out."""


async def do_job(
    session: RerankSession,
    settings: JobSettings,
    *,
    stop: asyncio.Event | None = None,
    on_progress: Callable[[BulkProgress], None] | None = None,
) -> BulkSummary:
    """What `rerank_file` and `rerank_run` do."""
    with FramesHidden():
        run = Run(settings.assignment(session), stop=stop, on_progress=on_progress)
        return await run.go()


async def rerank_file(
    session: RerankSession,
    input: Name,  # noqa: A002
    output: Name,
    *,
    query: str | None = None,
    query_id: str | int | None = None,
    top_n: int | None = None,
    job: Name | None = None,
    options: BulkOptions | None = None,
    stop: asyncio.Event | None = None,
    on_progress: Callable[[BulkProgress], None] | None = None,
) -> BulkSummary:
    """Rerank every request of a file, or one query over a corpus; resumable.

    Run it again with the same arguments, and it goes on where it ended.

    Args:
        session: the session that sends the requests; best made with `timeout=None,
            retry=PATIENT`, so that an outage is waited out.
        input: the file of requests, as JSON lines or Parquet; with `query` a corpus. "-" is
            standard input.
        output: the file to end in: `.jsonl`, `.run` or `.parquet`. It appears when the job is
            finished.
        query: the query to rank the documents of `input` for, which is then a corpus.
        query_id: the id of that query in the output; None: "1".
        top_n: the number of results of a row that does not say it itself; None: all, of a corpus
            1,000.
        job: the job's directory; None: `output` with `.job` after it.
        options: the choices how the job is done; None: the defaults of `BulkOptions`.
        stop: an event that ends the run in good order when it is set: what is on the wire is
            finished first.
        on_progress: a function that is called every half a second with how far the job is.

    Returns:
        How the run ended; look at `finished`.

    Raises:
        InvalidRequestError: an argument is wrong; the message names it.
        InputError: the input does not hold what its format says.
        JobChangedError: the directory was begun with another input, model or option.
        JobLockedError: another process works on the job.
        JobDamagedError: a file of the job is not as it was written.
        JobFullError: the disk took no more.
    """
    with FramesHidden():
        settings = JobSettings(
            input=input,
            output=output,
            query=query,
            query_id=query_id,
            top_n=top_n,
            job=job,
            options=options,
        )
        return await do_job(session, settings, stop=stop, on_progress=on_progress)


async def rerank_run(
    session: RerankSession,
    folder: Name,
    run: Name,
    output: Name,
    *,
    depth: int = 100,
    top_n: int | None = None,
    job: Name | None = None,
    options: BulkOptions | None = None,
    stop: asyncio.Event | None = None,
    on_progress: Callable[[BulkProgress], None] | None = None,
) -> BulkSummary:
    """Rerank a TREC run: for each of its queries the best `depth` documents; resumable.

    Args:
        session: the session that sends the requests, as in `rerank_file`.
        folder: a directory in BEIR's form: `corpus.jsonl` and `queries.jsonl`, perhaps compressed.
        run: the run whose documents are the candidates.
        output: the file to end in, as in `rerank_file`.
        depth: the number of candidates of each query, by the run's scores.
        top_n: the number of results that a query gets; None: all candidates.
        job: the job's directory; this and what follows are as in `rerank_file`.
        options: the choices how the job is done.
        stop: an event that ends the run in good order when it is set.
        on_progress: a function that is called every half a second.

    Returns:
        How the run ended; look at `finished`.

    Raises:
        InvalidRequestError: an argument is wrong; the message names it.
        InputError: a file does not hold what its format says, or names what another lacks.
        JobError: the job cannot begin or go on, as in `rerank_file`.
    """
    with FramesHidden():
        settings = JobSettings(
            input=folder,
            output=output,
            run=run,
            depth=depth,
            top_n=top_n,
            job=job,
            options=options,
        )
        return await do_job(session, settings, stop=stop, on_progress=on_progress)


async def plan_file(
    session: RerankSession,
    input: Name,  # noqa: A002
    output: Name,
    *,
    query: str | None = None,
    query_id: str | int | None = None,
    top_n: int | None = None,
    run: Name | None = None,
    depth: int | None = None,
    job: Name | None = None,
    options: BulkOptions | None = None,
) -> BulkPlan:
    """Count what `rerank_file`, or with `run` `rerank_run`, would send; nothing is sent.

    The arguments and errors are theirs.
    """
    with FramesHidden(), TemporaryDirectory(prefix="rerank-async-") as scratch:
        settings = JobSettings(
            input=input,
            output=output,
            query=query,
            query_id=query_id,
            top_n=top_n,
            run=run,
            depth=depth,
            job=job,
            options=options,
        )
        assignment = settings.assignment(session, Path(scratch))
        return await in_thread(lambda halted: plan_job(assignment, halted))


async def export_file(
    session: RerankSession,
    input: Name,  # noqa: A002
    output: Name,
    *,
    query: str | None = None,
    query_id: str | int | None = None,
    top_n: int | None = None,
    run: Name | None = None,
    depth: int | None = None,
    job: Name | None = None,
    options: BulkOptions | None = None,
) -> Written:
    """Write what a job has done so far, in any format; nothing is sent.

    The arguments and errors are those of `rerank_file`, or with `run` of `rerank_run`; name the
    `job` where the output is another than the job's own.
    """
    with FramesHidden():
        settings = JobSettings(
            input=input,
            output=output,
            query=query,
            query_id=query_id,
            top_n=top_n,
            run=run,
            depth=depth,
            job=job,
            options=options,
        )
        assignment = settings.assignment(session)
        return await in_thread(
            lambda halted: export(assignment, halted),
            can_block=not assignment.source.is_rereadable,
        )
