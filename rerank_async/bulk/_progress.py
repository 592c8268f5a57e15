"""How far a job is, and how it ended: values for whoever watches.

A line belongs here when it says what such a value is; `_meter` counts.
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
        queries: the number of rows of the input; of a corpus, the number of rows that it is divided
            into.
        documents: the number of documents of all rows together.
        done: the number of rows that the job's directory holds already.
        to_send: the number of documents that are still to be sent: those that are not done, not
            identical with another of their row, and not in the cache.
        requests: the number of HTTP requests that these make, if no server refuses one for its
            size.
        tokens: the tokens that these cost by the estimate of `ChunkLimits.count_tokens`: the
            query's tokens once for each document, and the documents' own.
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
        phase: the step that the run is at: "reading" the input or the journal, "sending", or
            "writing" the output.
        queries: the number of rows that are over, those of earlier runs included; while reading,
            the number of rows read.
        queries_total: the number of rows of the input; None when it is read as it comes.
        documents: the number of documents of the rows that are over.
        documents_total: the number of documents of the input; None when it is read as it comes.
        documents_per_second: the rate of the last ten seconds or so; 0.0 as long as nothing is
            over.
        in_flight: the number of requests on the wire.
        limit: the number of requests that there may be on the wire.
        retries: the number of attempts that were made again in this run.
        throttled: the number of answers in this run that said that there is too much to do.
        failed: the number of rows without a whole ranking, those of earlier runs included.
        tokens: the tokens that all runs of the job cost together.
        tokens_estimated: whether some of them are an estimate, because the server did not say.
        gate: the seconds for which the server asked everybody to wait; 0.0 when nobody has to.
        seconds: the seconds since this run began.
        seconds_left: the seconds that the rest takes at this rate; None when the rest or the rate
            is unknown.
        waiting: the number of requests that wait for the next attempt or for the server, because
            attempts failed.
        problem: the words of the last failure, where no attempt was answered after it; empty where
            one was.
        unanswered: the seconds since the first failure after which no attempt was answered.
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
        stopped: the reason why the run ended before that; None when it did not. "interrupted": it
            was asked to; "outage": no server answered for as long as is waited; "refused": the
            server takes nothing from this key or knows no such model; "failures": too many rows
            failed one after another; "max_tokens": the next row would cost more than is left.
        error: the last error, where one was the reason.
        output: the file to end in; it is there only when `finished`.
        errors_output: the file with the failed rows, where the output's format has no place for
            them; None when there are no such rows or when it has.
        job: the directory to go on from.
        queries: the number of rows that are over, those of earlier runs included.
        queries_total: the number of rows of the input; None when it was read as it came.
        documents: the number of documents of the rows that are over.
        failed: the number of rows without a whole ranking; each has an error in the output.
        resumed: the number of rows that earlier runs had finished.
        sent: the number of documents that were scored in this run, by the session's count.
        identical: the number of documents that were not sent in this run because the same text was.
        cached: the number of documents that were not sent in this run because the cache knew them.
        requests: the number of attempts put on the wire in this run.
        retries: the number of those attempts that were made again.
        throttled: the number of answers that said that there is too much to do.
        tokens: the tokens that all runs of the job cost together.
        tokens_estimated: whether some of them are an estimate, because the server did not say.
        seconds: the seconds that this run took.
        dropped_bytes: the bytes at the journal's end that had not reached the disk whole when an
            earlier run died; their rows were sent again.
        skipped_entries: the number of damaged entries of the journal that were left out on demand.
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
