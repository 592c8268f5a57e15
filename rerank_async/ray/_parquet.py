"""`rerank_parquet`: from Parquet to Parquet, on many machines, in as many runs as it takes.

A line belongs here when it is about a job as a whole: taken up, grouped, summed up.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import ceil
from typing import Any

import pyarrow.compute as pc
import ray
import ray.data
from attrs import evolve, frozen

from rerank_async._chunking import ChunkLimits
from rerank_async._options import SessionOptions, as_sealed
from rerank_async._policy import RetryPolicy
from rerank_async._version import __version__
from rerank_async.batches import BatchReranker
from rerank_async.bulk._errors import InputError, JobChangedError, JobDamagedError, JobError
from rerank_async.bulk._manifest import Manifest, differences, limit_words, read, written
from rerank_async.dialects import Dialect
from rerank_async.dialects import get as get_dialect
from rerank_async.ray._actors import Driver, RayStop, Task
from rerank_async.ray._arrow import FLAT, group_row
from rerank_async.ray._parts import (
    Counts,
    File,
    Input,
    check_ids,
    check_unchanged,
    counts_of,
    file_of,
    in_threads,
    input_of,
    units_of,
)
from rerank_async.ray._places import Place
from rerank_async.ray._shares import Shares, positive_whole, reranker_for, shares_of

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
        stopped: reason for which the run ended before that; None when it did not. "refused": the
            server takes nothing from this key, or knows no such path or model; "outage": no server
            answered for as long as is waited.
        error: name and words of the error that stopped it; None when nothing did.
        output: name of the directory.
        rows: number of rows of the output, those of earlier runs included: queries, of flat input
            documents.
        rows_total: number of rows of the input.
        failed: number of rows of the output with an error.
        resumed: number of rows of the output that earlier runs had done.
        sent: number of queries that this run asked for, but for what lost actors had asked.
        tokens: cost of all runs together, as far as the server said.
        lost_actors: number of actors that were lost, with their machine or by themselves.
        seconds: time that this run took.
    """

    finished: bool
    stopped: RayStop | None
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
    dialect: str | Dialect = "v1",
    chunks: ChunkLimits | None = None,
    retry: RetryPolicy | None = None,
    allow_insecure_http: bool = False,
    num_cpus: float = 0.5,
    options: SessionOptions | None = None,
) -> RaySummary:
    """Rerank Parquet on a Ray cluster, into a directory of Parquet.

    It is resumable: run it again with the same arguments, and it does what is missing. One run at a
    time may work on an output.

    Args:
        input: Parquet file, or directory of them with its subdirectories, where all machines see
            it: a path, or a URI such as `s3://bucket/path`. Its columns are a batch's.
        output: directory, likewise; it is made if need be.
        address: cluster, as in `ray.init`, which is called if this process uses no Ray yet.
        base_url: argument of `RerankSession`; None is looked up in this process's environment.
        model: argument of `RerankSession`; None likewise.
        api_key: key; None, which is best, means `$RERANK_API_KEY` where the actors run.
        actors: number of processes in the cluster. Those without room are not waited for.
        concurrency: number of requests on the wire at once, of all actors, in equal shares.
        rate: requests per second, of all actors together, in equal shares; None means no limit.
        batch_size: number of queries of one part, which is one file.
        top_n: argument of `BatchReranker`.
        retry_failed: whether rows that failed are done again; of flat input, their queries.
        dialect: argument of `RerankSession`.
        chunks: limits of what one request may carry.
        retry: argument of `BatchReranker`.
        allow_insecure_http: argument of `RerankSession`.
        num_cpus: processors that Ray reserves for each actor.
        options: argument of `BatchReranker`, without `concurrency` and `rate`.

    Returns:
        How the run ended; look at `finished` and `failed`.

    Raises:
        InvalidRequestError: an argument is wrong, or an actor's environment lacks the API key.
        InputError: the input does not hold what it should.
        JobChangedError: the output was begun with other arguments, or the input was changed.
        JobDamagedError: a file of the output is not as it was written.
        JobError: a file cannot be written, or actors are lost over the same rows again and again.
    """
    key = as_sealed(api_key)
    # A traceback shows this frame with its locals.
    del api_key
    shares = shares_of(actors, concurrency, rate, num_cpus)
    size = positive_whole("batch_size", batch_size)
    reranker = reranker_for(
        shares,
        options,
        base_url,
        model=model,
        api_key=key,
        top_n=top_n,
        dialect=dialect,
        chunks=chunks,
        retry=retry,
        allow_insecure_http=allow_insecure_http,
    )
    run = _ParquetRun(reranker, shares, size, retry_failed, address)
    return run.over(os.fspath(input), os.fspath(output))


@frozen
class _ParquetRun:
    """One run, as it was asked for.

    Attributes:
        reranker: batch function for every actor.
        shares: budget.
        size: number of rows in a part.
        retry_failed: whether rows that failed are done again.
        address: cluster, as in `ray.init`.
    """

    reranker: BatchReranker
    shares: Shares
    size: int
    retry_failed: bool
    address: str | None

    def over(self, input: str, output: str) -> RaySummary:  # noqa: A002
        """Do what is missing of the output."""
        began = time.monotonic()
        given, place = input_of(input), Place(output)
        if given.nested:
            check_ids(given)
        _take_up(place, self._manifest(given))
        with _cluster(self.address):
            source = given if given.nested else _grouped(given, place)
            held = _held(place)
            units = units_of(
                source, held, self.size, self.shares.actors, retry_failed=self.retry_failed
            )
            driver = Driver(self.shares, self._task(source, place), units)
            driver.run()
            if given.nested:
                check_unchanged(given)
        summary = self._summed_up(driver, held, given, place, began)
        if summary.finished and not summary.failed and not given.nested:
            _forget_texts(source)
        return summary

    def _manifest(self, given: Input) -> Manifest:
        options = self.reranker.options
        dialect = get_dialect(options.dialect)
        words = {
            "endpoint": options.base_url,
            "model": options.model,
            "dialect": dialect.name,
            "top_n": self.reranker.top_n,
            "batch_size": self.size,
            **limit_words(dialect.limits if options.chunks is None else options.chunks),
            "rows": given.rows,
            "digest": given.digest,
        }
        return Manifest(words, None)

    def _task(self, source: Input, place: Place) -> Task:
        return Task(
            reranker=self.reranker,
            source=source.spec,
            output=place.spec,
            nested=source.nested,
            size=self.size,
            # Enough to fill every slot while the last rows of another part are waited for.
            slices=1 + ceil(2 * self.shares.share / self.size),
            retry_failed=self.retry_failed,
        )

    def _summed_up(
        self, driver: Driver, held: Mapping[str, Counts], given: Input, place: Place, began: float
    ) -> RaySummary:
        before = [counts for counts in held.values() if counts.is_done(self.retry_failed)]
        parts = (dict(held) | driver.parts).values()
        rows = sum(counts.rows for counts in parts)
        return RaySummary(
            finished=rows == given.rows and not any(counts.refused for counts in parts),
            stopped=driver.stopped,
            error=driver.error,
            output=place.name,
            rows=rows,
            rows_total=given.rows,
            failed=sum(counts.failed for counts in parts),
            resumed=sum(counts.rows for counts in before) + driver.kept,
            sent=driver.sent,
            tokens=sum(counts.tokens for counts in parts),
            lost_actors=driver.lost,
            seconds=time.monotonic() - began,
        )


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """The cluster that this process uses already, or the one at that address for as long."""
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(address=address)
    try:
        yield
    finally:
        if is_ours:
            ray.shutdown()


def _held(place: Place) -> dict[str, Counts]:
    """What earlier runs have done: the counts of the parts, by their names."""
    names = place.files()
    counted = zip(names, in_threads(lambda name: counts_of(place, name), names), strict=True)
    return {name: counts for name, counts in counted if counts is not None}


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
        groups = grouped.map_groups(group_row, batch_format="pyarrow")
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
