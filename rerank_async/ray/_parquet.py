"""`rerank_parquet`: from Parquet to Parquet, on many machines, in as many runs as it takes.

A line belongs here when it is about a job as a whole: taken up, grouped, summed up.
"""

from __future__ import annotations

import json
import os
import time
from math import ceil
from typing import Any

import pyarrow.compute as pc
import ray
import ray.data
from attrs import evolve, frozen

from rerank_async._chunking import ChunkLimits
from rerank_async._policy import RetryPolicy
from rerank_async._private import Secret
from rerank_async._version import __version__
from rerank_async.bulk._errors import InputError, JobChangedError, JobDamagedError, JobError
from rerank_async.bulk._manifest import Manifest, differences, limit_words, read, written
from rerank_async.ray._actors import Job, Stop, Task
from rerank_async.ray._arrow import FLAT, packed
from rerank_async.ray._parts import (
    File,
    Input,
    check_ids,
    check_unchanged,
    counts_of,
    file_of,
    in_threads,
    survey,
    units_of,
)
from rerank_async.ray._places import Place
from rerank_async.ray._pool import as_count, pool_of, reranker_for

__all__ = ["RaySummary", "rerank_parquet"]

_MANIFEST = "_rerank_job.json"
_GROUPED = "_grouped"
_FILES = "files.json"
# Rows of flat input that are grouped at once, in the memory of one process.
_ROWS_PER_FILE = 50_000


@frozen
class RaySummary:
    """How one run of `rerank_parquet` ended.

    Attributes:
        finished: whether every row of the input is in the output; those that failed stand there
            with their errors.
        stopped: why the run ended before that; None when it did not. "refused": the server takes
            nothing from this key, or knows no such path or model; "outage": no server answered for
            as long as is waited.
        error: the error that stopped it, its name and its words; None when nothing did.
        output: the directory.
        rows: rows of the output, those of earlier runs included: queries, of flat input documents.
        rows_total: rows of the input.
        failed: rows of the output with an error.
        resumed: rows of the output that earlier runs had done.
        sent: queries that this run asked for, but for what lost actors had asked.
        tokens: what all runs cost together, as far as the server said.
        lost_actors: how many actors were lost, with their machine or by themselves.
        seconds: that this run took.
    """

    finished: bool
    stopped: Stop | None
    error: str | None
    output: str
    rows: int
    rows_total: int
    failed: int
    resumed: int
    sent: int
    tokens: int
    lost_actors: int
    seconds: float


def rerank_parquet(
    input: str | os.PathLike[str],  # noqa: A002
    output: str | os.PathLike[str],
    *,
    address: str | None = None,
    base_url: str | None = None,
    model: str | None = None,
    api_key: str | None = None,
    actors: int = 2,
    concurrency: int = 32,
    rate: float | None = None,
    batch_size: int = 256,
    top_n: int | None = None,
    retry_failed: bool = False,
    dialect: str = "v1",
    chunks: ChunkLimits | None = None,
    retry: RetryPolicy | None = None,
    allow_insecure_http: bool = False,
    num_cpus: float = 0.5,
) -> RaySummary:
    """Rerank Parquet on a Ray cluster, into a directory of Parquet; resumable.

    Run it again with the same arguments, and it does what is missing. At any moment, also after a
    machine, an actor or this process was killed, every file of the output is whole, and every row
    of the input is in them once or not yet.

    The input's columns are those of a batch; see `BatchReranker`. A nested input must have a
    `query_id` in every row, and no two alike. A flat one is grouped by `query_id` first, into
    `_grouped` within the output, whose copies of the texts are removed once no row is missing or
    failed. The output's columns are those that come out of `BatchReranker`; of flat input without
    `query` and `text`.

    Where the server refuses the key or the model, or is down for longer than `retry` waits, the run
    stops instead of writing an error for every row that is left: those rows are not done, and the
    next run does them. Rows that failed by themselves are done, until a run has `retry_failed`.

    Input and output must be where all machines see them: a shared directory, or a URI such as
    `s3://bucket/path`. Files on a disk are read whole by this process first, so that a changed
    input is noticed whatever its size and time say; of objects in a store it is their size, the
    time that the store says, and the Parquet footer that must be the same. One run at a time may
    work on an output; two would pay twice for the same rows, but still write each once.

    Args:
        input: a Parquet file, or a directory of them, whose subdirectories count too.
        output: a directory; made if need be.
        address: of the Ray cluster, as in `ray.init`, which is called, and ended with
            `ray.shutdown`, if Ray is not in use by this process already.
        base_url: as in `RerankSession`; None is looked up in this process's environment.
        model: as there; None likewise.
        api_key: None, which is best, means `$RERANK_API_KEY` in the environment of the actors.
        actors: how many; each is a process, somewhere in the cluster. Those for which there is no
            room are not waited for.
        concurrency: requests on the wire at once, of all actors together. Each has an equal share,
            rounded down.
        rate: requests per second, of all actors together, in equal shares; None means no limit.
        batch_size: queries of one part, which is written as one file. What an actor that is lost
            has not written is sent again: a few parts at most.
        top_n: as in `BatchReranker`.
        retry_failed: do rows again that failed; of flat input, queries of which a row failed.
        dialect: as in `RerankSession`.
        chunks: what one request may carry.
        retry: as in `BatchReranker`.
        allow_insecure_http: as in `RerankSession`.
        num_cpus: what Ray reserves for each actor.

    Returns:
        How the run ended; look at `finished` and `failed`.

    Raises:
        InvalidRequestError: an argument is wrong; or an actor's environment has no API key, where
            the server is one that asks for it.
        InputError: the input does not hold what it should.
        JobChangedError: the output was begun with another input, server, model or option, or the
            input was changed while it was read.
        JobDamagedError: a file of the output is not as it was written.
        JobError: a file cannot be written, or actors are lost over the same rows again and again.
    """
    began = time.monotonic()
    if isinstance(api_key, str):
        # A traceback that shows the values of names would show it.
        api_key = Secret(api_key)
    pool = pool_of(actors, concurrency, rate, num_cpus)
    size = as_count("batch_size", batch_size)
    reranker = reranker_for(
        pool,
        base_url,
        model=model,
        api_key=api_key,
        dialect=dialect,
        top_n=top_n,
        chunks=chunks,
        retry=retry,
        allow_insecure_http=allow_insecure_http,
    )
    here = reranker.described()
    given = survey(os.fspath(input))
    place = Place(os.fspath(output))
    if given.nested:
        check_ids(given)
    words = {
        "endpoint": here.base_url,
        "model": here.model,
        "dialect": here.dialect,
        "top_n": top_n,
        "batch_size": size,
        **limit_words(chunks or ChunkLimits()),
        "rows": given.rows,
        "digest": given.digest,
    }
    _take_up(place, Manifest(words, None))
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(address=address)
    try:
        source = given if given.nested else _grouped(given, place)
        names = place.files()
        counted = zip(names, in_threads(lambda name: counts_of(place, name), names), strict=True)
        held = {name: counts for name, counts in counted if counts is not None}
        units = units_of(source, held, size, pool.actors, retry_failed=retry_failed)
        task = Task(
            reranker=reranker,
            source=source.spec,
            output=place.spec,
            nested=given.nested,
            size=size,
            # Enough to fill every slot while the last rows of another part are waited for.
            slices=1 + ceil(2 * pool.share / size),
            retry_failed=retry_failed,
        )
        job = Job(pool, task, units)
        job.run()
        if given.nested:
            check_unchanged(given)
    finally:
        if is_ours:
            ray.shutdown()
    resumed = sum(one.rows for one in held.values() if one.is_done(retry_failed)) + job.kept
    held |= job.parts
    failed = sum(counts.failed for counts in held.values())
    rows = sum(counts.rows for counts in held.values())
    finished = rows == given.rows and not any(counts.refused for counts in held.values())
    if finished and not failed and not given.nested:
        _forget_texts(source)
    return RaySummary(
        finished=finished,
        stopped=job.stopped,
        error=job.error,
        output=place.name,
        rows=rows,
        rows_total=given.rows,
        failed=failed,
        resumed=resumed,
        sent=job.sent,
        tokens=sum(counts.tokens for counts in held.values()),
        lost_actors=job.lost,
        seconds=time.monotonic() - began,
    )


def _take_up(place: Place, manifest: Manifest) -> None:
    """Begin the job in this directory, or see that it is the one that was begun there.

    Raises:
        JobChangedError: it is another.
        JobDamagedError: the manifest is not as it was written.
        JobError: the directory holds something else.
    """
    data = place.read(_MANIFEST)
    if data is None:
        if place.is_file() or place.files():
            raise JobError(f"{place.name} holds something else: give the job a new directory")
        place.make()
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        place.write(_MANIFEST, written(manifest, created=now, by=f"rerank_async {__version__}"))
        return
    try:
        before = read(data)
    except ValueError as error:
        raise JobDamagedError(f"{place.at(_MANIFEST)}: {error}") from None
    changed = differences(before, manifest)
    if changed:
        raise JobChangedError(
            f"the job in {place.name} was begun differently: {'; '.join(changed)}. Run it as it "
            "was begun, or give this one another directory"
        )


# ── flat input ──


def _grouped(given: Input, place: Place) -> Input:
    """A flat input with all rows of a query in one row, in files of its own; made once.

    The list of these files is written last: without it, they are what a run left that died.

    Raises:
        InputError: a row has no query_id.
        JobError: not every row came through.
    """
    inside = place.inside(_GROUPED)
    listed = inside.read(_FILES)
    if listed is not None:
        files = [File(one["name"], tuple(one["groups"])) for one in json.loads(listed)]
        return evolve(given, spec=inside.spec, files=tuple(files))
    inside.make()
    inside.clear()
    files = []
    if given.rows:
        source = Place(given.spec)
        dataset = ray.data.read_parquet(
            [source.at(file.name) for file in given.files],
            filesystem=source.system,
            partitioning=None,
        ).select_columns([name for name in FLAT if name != "doc_id" or given.has_doc_ids])
        grouped = dataset.groupby("query_id", num_partitions=ceil(given.rows / _ROWS_PER_FILE))
        groups = grouped.map_groups(packed, batch_format="pyarrow")
        groups.write_parquet(inside.path, filesystem=inside.system)
        files = [file_of(inside, name) for name in inside.files()]
        _check_grouped(given, inside, files)
        check_unchanged(given)
    inside.write(
        _FILES, json.dumps([{"name": one.name, "groups": one.groups} for one in files]).encode()
    )
    return evolve(given, spec=inside.spec, files=tuple(files))


def _check_grouped(given: Input, place: Place, files: list[File]) -> None:
    """See that every row is there, and every query once; Ray may have done some of it again."""
    rows = groups = 0
    queries: set[Any] = set()
    for file in files:
        with place.parquet(file.name) as parquet:
            for batch in parquet.iter_batches(columns=["query_id"]):
                column = batch.column(0)
                rows += pc.sum(pc.list_value_length(column)).as_py() or 0
                groups += len(column)
                queries.update(pc.list_element(column, 0).to_pylist())
    if None in queries:
        raise InputError(f"{given.spec}: some rows have no query_id")
    if rows != given.rows or len(queries) != groups:
        raise JobError(
            f"{given.spec}: of {given.rows:,} rows {rows:,} came out of the grouping, in "
            f"{groups:,} groups for {len(queries):,} queries; nothing was sent yet: run it again"
        )


def _forget_texts(source: Input) -> None:
    """Remove the copies of the texts; by the list, which stays, parts are known again."""
    place = Place(source.spec)
    for file in source.files:
        place.remove(file.name)
