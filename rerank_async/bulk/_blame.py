"""Whether a row failed by its own fault, or the job has to stop. Pure.

A line belongs here when it says what one row's error means for the others.
"""

from __future__ import annotations

from rerank_async._errors import RerankError
from rerank_async._policy import is_outage
from rerank_async.bulk._progress import StopReason

__all__ = ["reason_to_stop"]


def reason_to_stop(error: RerankError, *, is_quiet: bool, longest_hint: float) -> StopReason | None:
    """The reason for which an error stops the whole job; None where it is about its row alone.

    Args:
        error: the error of a row, after all of its retries.
        is_quiet: whether no row was answered since this one was handed to the session.
        longest_hint: the longest time in seconds that the session waits because a server says so.
    """
    if error.condemns in ("model", "session"):
        # A job has one model: every row would hear the same.
        return "refused"
    if is_outage(error) and (error.retry_after or 0.0) > longest_hint:
        # The server's own word that nobody need come back soon: it is not about this row.
        return "outage"
    if not is_quiet:
        return None
    # 500 is most often about what was sent; everything else of the kind is about the server.
    if is_outage(error) and getattr(error, "status", None) != 500:
        return "outage"
    return "outage" if isinstance(error, TimeoutError) else None
