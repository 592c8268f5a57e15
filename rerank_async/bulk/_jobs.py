"""The calls of this package: a file's name in, a summary, a plan or a file out.

A line belongs here when it turns what a user says into a source, a directory and a run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from rerank_async._errors import InvalidRequestError
from rerank_async._paths import local_path
from rerank_async._policy import RetryPolicy
from rerank_async._private import FramesHidden
from rerank_async._session import RerankSession
from rerank_async.bulk._files import STDIN
from rerank_async.bulk._options import BulkOptions
from rerank_async.bulk._outputs import Written, checked
from rerank_async.bulk._progress import BulkPlan, BulkProgress, BulkSummary
from rerank_async.bulk._runner import Run
from rerank_async.bulk._sources import Source, open_source
from rerank_async.bulk._survey import export, in_thread, plan_job

__all__ = ["PATIENT", "export_file", "plan_file", "rerank_any", "rerank_file", "rerank_run"]

Name: TypeAlias = str | PathLike[str]

# For work that nobody waits for: ten minutes without an answer are waited out.
PATIENT = RetryPolicy(max_outage=600.0)
"""A retry policy for jobs: ten minutes without an answer are waited out."""

# One query's ranking is one line: by default it holds so many results.
_TOP_OF_A_CORPUS = 1000
_DOCUMENTS_PER_REQUEST = 1000
_ON_RAY = "directories of Parquet elsewhere are read and written by rerank_parquet (--ray)"


async def rerank_any(
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
    stop: asyncio.Event | None = None,
    on_progress: Callable[[BulkProgress], None] | None = None,
) -> BulkSummary:
    """`rerank_file`, or with `run` `rerank_run`."""
    with FramesHidden():
        options = options or BulkOptions()
        target, path, source = _opened(
            session, input, output, query, query_id, top_n, run, depth, job, options.cache
        )
        its = Run(
            session,
            source,
            target,
            path,
            options,
            stop=stop,
            on_progress=on_progress,
        )
        return await its.go()


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
        session: sends the requests; best made with `timeout=None, retry=PATIENT`, so that an
            outage is waited out.
        input: requests as JSON lines or Parquet; with `query` a corpus. "-" is standard input.
        output: the file to end in: `.jsonl`, `.run` or `.parquet`. It appears when the job is
            finished.
        query: rank the documents of `input`, which is then a corpus, for this query.
        query_id: of that query, in the output; "1" when left out.
        top_n: how many results a row gets that does not say itself; None: all, of a corpus 1,000.
        job: the job's directory; None: `output` with `.job` after it.
        options: how the job is done.
        stop: set it to end the run in good order: what is on the wire is finished first.
        on_progress: is called every half a second with how far the job is.

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
        return await rerank_any(
            session,
            input,
            output,
            query=query,
            query_id=query_id,
            top_n=top_n,
            job=job,
            options=options,
            stop=stop,
            on_progress=on_progress,
        )


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
        session: as in `rerank_file`.
        folder: in BEIR's form: `corpus.jsonl` and `queries.jsonl`, perhaps compressed.
        run: the run whose documents are the candidates.
        output: as in `rerank_file`.
        depth: how many candidates of each query, by the run's scores.
        top_n: how many results a query gets; None: all candidates.
        job: as in `rerank_file`, like everything below.
        options: as there.
        stop: as there.
        on_progress: as there.

    Returns:
        How the run ended; look at `finished`.

    Raises:
        InvalidRequestError: an argument is wrong; the message names it.
        InputError: a file does not hold what its format says, or names what another lacks.
        JobError: as in `rerank_file`.
    """
    with FramesHidden():
        return await rerank_any(
            session,
            folder,
            output,
            run=run,
            depth=depth,
            top_n=top_n,
            job=job,
            options=options,
            stop=stop,
            on_progress=on_progress,
        )


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
    its = options or BulkOptions()
    with FramesHidden(), TemporaryDirectory(prefix="rerank-async-") as scratch:
        target, path, source = _opened(
            session,
            input,
            output,
            query,
            query_id,
            top_n,
            run,
            depth,
            job,
            its.cache,
            Path(scratch),
        )
        return await in_thread(lambda halted: plan_job(session, source, target, path, its, halted))


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
        its = options or BulkOptions()
        target, path, source = _opened(
            session, input, output, query, query_id, top_n, run, depth, job, its.cache
        )
        return await in_thread(
            lambda halted: export(session, source, target, path, its, halted),
            can_block=not source.is_rereadable,
        )


def _opened(
    session: RerankSession,
    name: Name,
    output: Name,
    query: str | None,
    query_id: str | int | None,
    top_n: int | None,
    run: Name | None,
    depth: int | None,
    job: Name | None,
    cache: Path | None,
    scratch: Path | None = None,
) -> tuple[Path, Path, Source]:
    """The output, the job's directory and its rows, whose own files are there or in `scratch`."""
    if not isinstance(session, RerankSession):
        raise InvalidRequestError(f"session must be a RerankSession, not {type(session).__name__}")
    given = local_path("input", name, instead=_ON_RAY)
    target = local_path("output", output, instead=_ON_RAY)
    its_run = None if run is None else local_path("run", run)
    checked(target)
    path = target.with_name(target.name + ".job") if job is None else local_path("job", job)
    _check_apart(target, path, given, its_run, cache)
    if query is not None:
        top_n = _TOP_OF_A_CORPUS if top_n is None else top_n
        query_id = "1" if query_id is None else query_id
    source = open_source(
        given,
        query=query,
        query_id=query_id,
        run=its_run,
        depth=depth,
        top_n=top_n,
        documents_per_row=min(
            _DOCUMENTS_PER_REQUEST, session.chunks.max_documents or _DOCUMENTS_PER_REQUEST
        ),
        scratch=scratch or path,
    )
    return target, path, source


def _check_apart(output: Path, job: Path, name: Path, run: Path | None, cache: Path | None) -> None:
    """Refuse an output that would take the place of something else that the job needs.

    Raises:
        InvalidRequestError: it would; the message says what of.
    """
    others: dict[str, Path] = {"the job's directory": job}
    if str(name) != STDIN:
        others["the input"] = name
    if run is not None:
        others["the run"] = run
    if cache is not None:
        others["the cache"] = cache
    for what, other in others.items():
        if _is_same(output, other):
            raise InvalidRequestError(f"output {output} is {what}: name another file")
    # A BEIR folder is two files, another directory all that is Parquet in it.
    is_part = (
        output.suffix == ".parquet"
        if run is None
        else output.name.partition(".")[0] in ("corpus", "queries")
    )
    if is_part and name.is_dir() and _is_same(output.parent, name):
        raise InvalidRequestError(
            f"output {output} would be a part of the input, the directory that it lies in: name a "
            "file elsewhere"
        )


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        # One of them is not there (yet).
        return one.resolve() == other.resolve()
