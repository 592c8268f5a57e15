"""How far a job is, and how it ended: values for whoever watches.

A line belongs here when it says what such a value is; who counts is `_runner`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from attrs import frozen

__all__ = ["BulkPlan", "BulkProgress", "BulkSummary", "StopReason"]

StopReason: TypeAlias = Literal["interrupted", "outage", "refused", "failures", "max_tokens"]


@frozen
class BulkPlan:
    """What a job would cost, before any of it is paid for.

    Attributes:
        queries: rows of the input; of a corpus, the requests that it is read in.
        documents: of all rows together.
        done: rows that the job's directory holds already.
        to_send: documents that are still to be sent: not done, not identical, not in the cache.
        requests: how many HTTP requests these make, if no server refuses one for its size.
        tokens: what these cost by the estimate of `ChunkLimits.count_tokens`: the query's tokens
            once for each document, and the documents' own.
    """

    queries: int
    documents: int
    done: int
    to_send: int
    requests: int
    tokens: int


@frozen
class BulkProgress:
    """How far a job is.

    Attributes:
        phase: "reading" the input or the journal, "sending", or "writing" the output.
        queries: rows that are over, those of earlier runs included; while reading, rows read.
        queries_total: rows of the input; None when it is read as it comes.
        documents: of the rows that are over.
        documents_total: of the input; None when it is read as it comes.
        documents_per_second: over the last ten seconds or so; 0.0 as long as nothing is over.
        in_flight: requests on the wire.
        limit: how many there may be.
        retries: attempts made again, in this run.
        throttled: answers that said that there is too much to do, in this run.
        failed: rows without a whole ranking, those of earlier runs included.
        tokens: what all runs of the job cost together.
        tokens_estimated: whether some of it is an estimate, because the server did not say.
        gate: seconds for which the server asked everybody to wait; 0.0 when nobody has to.
        seconds: since this run began.
        seconds_left: by the rate and what is left; None when either is unknown.
        waiting: requests that wait because attempts failed, for the next one or for the server.
        problem: how the last attempt failed, in words, where none was answered since; empty where
            one was.
        unanswered: seconds since the first of those that failed.
    """

    phase: Literal["reading", "sending", "writing"]
    queries: int
    queries_total: int | None
    documents: int
    documents_total: int | None
    documents_per_second: float
    in_flight: int
    limit: int
    retries: int
    throttled: int
    failed: int
    tokens: int
    tokens_estimated: bool
    gate: float
    seconds: float
    seconds_left: float | None
    waiting: int = 0
    problem: str = ""
    unanswered: float = 0.0


@frozen
class BulkSummary:
    """How one run of a job ended.

    Attributes:
        finished: whether every row of the input is over and the output is written.
        stopped: why the run ended before that; None when it did not. "interrupted": it was asked
            to; "outage": no server answered for as long as is waited; "refused": the server takes
            nothing from this key or knows no such model; "failures": too many rows failed one
            after another; "max_tokens": the next row would cost more than is left.
        error: the last error, where one was the reason.
        output: the file; it is there only when `finished`.
        errors_output: where failed rows stand if the output's format has no place for them; None
            when there are none or it has.
        job: the directory to go on from.
        queries: rows that are over, those of earlier runs included.
        queries_total: rows of the input; None when it was read as it came, and not to its end.
        documents: of the rows that are over.
        failed: rows without a whole ranking; each has an error in the output.
        resumed: rows that earlier runs had finished.
        sent: documents that were scored in this run, by the session's count.
        identical: documents that were not sent because the same text was, in this run.
        cached: documents that were not sent because the cache knew them, in this run.
        requests: attempts put on the wire in this run.
        retries: those that were made again.
        throttled: answers that said that there is too much to do.
        tokens: what all runs of the job cost together.
        tokens_estimated: whether some of it is an estimate, because the server did not say.
        seconds: that this run took.
        dropped_bytes: of the journal's end, which had not reached the disk whole when an earlier
            run died; its rows were sent again.
        skipped_entries: damaged entries of the journal that were left out on demand.
    """

    finished: bool
    stopped: StopReason | None
    error: Exception | None
    output: Path
    errors_output: Path | None
    job: Path
    queries: int
    queries_total: int | None
    documents: int
    failed: int
    resumed: int
    sent: int
    identical: int
    cached: int
    requests: int
    retries: int
    throttled: int
    tokens: int
    tokens_estimated: bool
    seconds: float
    dropped_bytes: int
    skipped_entries: int
