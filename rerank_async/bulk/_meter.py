"""What a run of a job counts, and what it tells of it.

A line belongs here when it adds something up for people; a count that decides is in `_spending`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

from rerank_async._moments import GRAIN
from rerank_async._session import RerankSession
from rerank_async.bulk._entries import Entry
from rerank_async.bulk._job import Job
from rerank_async.bulk._manifest import Contents
from rerank_async.bulk._outputs import Written
from rerank_async.bulk._progress import BulkProgress, BulkSummary, StopReason
from rerank_async.bulk._sending import Sending

__all__ = ["Meter"]

Phase: TypeAlias = Literal["reading", "sending", "writing"]

# The rate is that of about so many seconds, looked at in so many steps.
_RATE_SECONDS = 10.0
_RATE_STEPS = 20


class Meter:
    """Counts what happens in one run of a job.

    Args:
        session: the session, whose requests are counted, too.
        clock: a function that returns seconds, as the event loop counts them.

    Attributes:
        phase: the thing that the run is doing.
        rows_read: the number of rows that have been checked.
        contents: the summary of the input's rows, once all of them have been checked.
        queries, documents, failed, resumed, identical, cached, tokens: see `BulkSummary`.
        is_estimate: whether some of the tokens are an estimate.
    """

    def __init__(self, session: RerankSession, clock: Callable[[], float]) -> None:
        self._session = session
        self._clock = clock
        self._began = clock()
        self._at_start = session.statistics()
        self._marks: deque[tuple[float, int]] = deque(maxlen=_RATE_STEPS)
        self.phase: Phase = "reading"
        self.rows_read = 0
        self.contents: Contents | None = None
        self.queries = self.documents = self.failed = self.resumed = 0
        self.identical = self.cached = self.tokens = 0
        self.is_estimate = False

    def recall(self, entry: Entry) -> None:
        """Count what an earlier run has paid for, those whose rows were done again too."""
        self.tokens += entry.tokens
        self.is_estimate |= entry.is_estimate

    def resume(self, over: tuple[int, int, int]) -> None:
        """Count the rows that earlier runs have done: how many, failed ones, their documents."""
        self.resumed = self.queries = over[0]
        self.failed, self.documents = over[1:]

    def spare(self, sending: Sending) -> None:
        """Count what of a row need not be sent."""
        cached = 0
        if sending.known is not None:
            cached = sum(score is not None for score in sending.known)
        self.cached += cached
        self.identical += len(sending.row.documents) - len(sending.documents) - cached

    def end(self, documents: int, tokens: int, *, is_estimate: bool, failed: bool) -> None:
        """Count a row that is over."""
        self.queries += 1
        self.documents += documents
        self.failed += failed
        self.tokens += tokens
        self.is_estimate |= is_estimate

    def begin_sending(self) -> None:
        """From now on rows may be over."""
        self.phase = "sending"
        self._marks.append((self._clock(), self.documents))

    def progress(self) -> BulkProgress:
        """How far the job is now."""
        now, then, contents = self._session.statistics(), self._at_start, self.contents
        time = self._clock()
        rate, left = 0.0, None
        if self._marks:
            began, documents = self._marks[0]
            if time - began > GRAIN:
                rate = (self.documents - documents) / (time - began)
            if time - self._marks[-1][0] >= _RATE_SECONDS / _RATE_STEPS - GRAIN:
                self._marks.append((time, self.documents))
        if rate and contents is not None:
            left = max(0, contents.documents - self.documents) / rate
        return BulkProgress(
            phase=self.phase,
            queries=self.rows_read if self.phase == "reading" else self.queries,
            queries_total=None if contents is None else contents.rows,
            documents=self.documents,
            documents_total=None if contents is None else contents.documents,
            documents_per_second=rate,
            in_flight=now.in_flight,
            limit=now.limit,
            retries=now.retries - then.retries,
            throttled=now.throttled - then.throttled,
            failed=self.failed,
            tokens=self.tokens,
            tokens_estimated=self.is_estimate,
            gate=now.gate,
            seconds=time - self._began,
            seconds_left=left,
            waiting=now.backing_off + now.parked,
            problem=now.problem,
            unanswered=now.unanswered,
        )

    def summary(
        self,
        job: Job,
        output: Path,
        written: Written | None,
        stopped: StopReason | None,
        error: Exception | None,
    ) -> BulkSummary:
        """How the run ended.

        Args:
            job: the job's directory.
            output: the file that the job is to end in.
            written: the account of what was written there; None when the job is not finished.
            stopped: the reason why it is not finished; None when it is.
            error: the last error, where it was the reason.
        """
        now, then = self._session.statistics(), self._at_start
        return BulkSummary(
            finished=written is not None,
            stopped=stopped,
            error=error,
            output=output,
            errors_output=None if written is None else written.errors_path,
            job=job.path,
            queries=self.queries,
            queries_total=None if self.contents is None else self.contents.rows,
            documents=self.documents,
            failed=self.failed,
            resumed=self.resumed,
            sent=now.documents - then.documents,
            identical=self.identical,
            cached=self.cached,
            requests=now.requests - then.requests,
            retries=now.retries - then.retries,
            throttled=now.throttled - then.throttled,
            tokens=self.tokens,
            tokens_estimated=self.is_estimate,
            seconds=self._clock() - self._began,
            dropped_bytes=job.dropped,
            skipped_entries=job.skipped,
        )
