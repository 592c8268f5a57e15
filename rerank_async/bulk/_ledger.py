"""What became of each row: a line in the journal, a place in the index, a count in the meter.

A line belongs here when it turns an answer or an error into such an entry.
"""

from __future__ import annotations

from rerank_async._models import RerankResponse
from rerank_async.bulk._entries import Entry, failed_line, payload_of, ranking_line, view
from rerank_async.bulk._errors import JobChangedError
from rerank_async.bulk._job import Job
from rerank_async.bulk._meter import Meter
from rerank_async.bulk._rows import Row
from rerank_async.bulk._sending import Sending

__all__ = ["Ledger"]


class Ledger:
    """Notes what became of the rows of a job.

    Args:
        job: the job's directory.
        meter: the counts of this run.
        model: the model that is asked for; it is noted where an answer names none.
        is_one_query: whether all rows are parts of one query's documents, which one model must
            score.
    """

    def __init__(self, job: Job, meter: Meter, model: str | None, *, is_one_query: bool) -> None:
        self._job = job
        self._meter = meter
        self._model = model
        self._is_one_query = is_one_query
        # The model that answers for one query's corpus.
        self._served: str | None = None

    def recall(self, entry: Entry) -> None:
        """Count an entry of an earlier run."""
        self._meter.recall(entry)
        if self._is_one_query and self._served is None:
            self._served = view(entry.line).model

    async def note_ranking(
        self, sending: Sending, digest: bytes, response: RerankResponse | None, tokens: int
    ) -> None:
        """Note the ranking of a row.

        Args:
            sending: what was sent of the row.
            digest: the row's digest; empty where the whole input has one.
            response: the answer; None when nothing was sent.
            tokens: what the row cost, by the answer's word or by our estimate.

        Raises:
            JobChangedError: another model scored other parts of the corpus.
            JobError: the journal cannot be written.
        """
        row, ranking = sending.row, sending.ranking(response)
        if self._is_one_query:
            self._check_model(ranking.model)
        line = ranking_line(
            row.query_id,
            ranking.indices,
            ranking.scores,
            row.doc_ids,
            ranking.model or self._model,
            ranking.tokens,
            ranking.missing,
        )
        is_estimate, failed = ranking.tokens is None, bool(ranking.missing)
        await self._keep(row, digest, line, tokens, is_estimate=is_estimate, failed=failed)

    def _check_model(self, model: str | None) -> None:
        """All parts of a corpus end in one ranking, for which one model must have answered."""
        self._served = self._served or model
        if model != self._served:
            raise JobChangedError(
                f"the model {model!r} answered, and {self._served!r} scored other parts of the "
                "corpus: their scores cannot be compared; run the same command again when "
                f"{self._served!r} is back, or begin anew in another directory (--job)"
            )

    async def note_failure(self, row: Row, digest: bytes, error: Exception) -> None:
        """Note that a row has no ranking; scores that an earlier run got for it are kept.

        Raises:
            JobError: the journal cannot be read or written.
        """
        offset = self._job.index.offset(row.key(digest))
        if offset is not None and view(self._job.entry(offset).line).results:
            self._meter.end(len(row.documents), 0, is_estimate=False, failed=True)
            return
        line = failed_line(row.query_id, error)
        await self._keep(row, digest, line, 0, is_estimate=False, failed=True)

    async def _keep(
        self, row: Row, digest: bytes, line: bytes, tokens: int, *, is_estimate: bool, failed: bool
    ) -> None:
        key, documents = row.key(digest), len(row.documents)
        payload = payload_of(
            key, digest, documents, tokens, line, is_estimate=is_estimate, failed=failed
        )
        offset = await self._job.journal.add(payload)
        self._job.index.ended(key, offset, failed)
        self._meter.end(documents, tokens, is_estimate=is_estimate, failed=failed)
