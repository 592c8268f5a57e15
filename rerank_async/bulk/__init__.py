"""Bulk jobs: rerank files of any size, and go on where a run ended.

    async with RerankSession(model="rerank-model", retry=PATIENT, timeout=None) as session:
        summary = await rerank_file(session, "requests.jsonl", "rankings.jsonl")

Public by path. A job stands on the session's own flow control; it adds files, a journal and
patience. What belongs here are the names that users call; how it is done is in the modules beside.
"""

from __future__ import annotations

from rerank_async.bulk._cache import CacheStatistics, ScoreCache
from rerank_async.bulk._errors import (
    InputError,
    JobChangedError,
    JobDamagedError,
    JobError,
    JobFullError,
    JobLockedError,
)
from rerank_async.bulk._jobs import PATIENT, export_file, plan_file, rerank_file, rerank_run
from rerank_async.bulk._options import BulkOptions
from rerank_async.bulk._outputs import Written
from rerank_async.bulk._progress import BulkPlan, BulkProgress, BulkSummary

__all__ = [
    "PATIENT",
    "BulkOptions",
    "BulkPlan",
    "BulkProgress",
    "BulkSummary",
    "CacheStatistics",
    "InputError",
    "JobChangedError",
    "JobDamagedError",
    "JobError",
    "JobFullError",
    "JobLockedError",
    "ScoreCache",
    "Written",
    "export_file",
    "plan_file",
    "rerank_file",
    "rerank_run",
]
