"""Whose limit a level has met, and whether a server kept up. Pure.

A line belongs here when it judges one level.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from rerank_async.bench._result import Interval, Level, Limiting

__all__ = ["MOST_FAILED", "failed_share", "keeps_up", "verdict"]

# A level of which more failed says nothing about how fast the server is.
MOST_FAILED = 0.01
_LEAST_ANSWERED = 0.95
# Too few requests have edges that are worth more than five of a hundred.
_SLACK_REQUESTS = 2.0
_BUSY = 0.85
# How much of the 99th percentile the client's own may be before it explains it; below the second it
# is the clock's and the timers' grain.
_LAG_SHARE, _LAG_MS = 0.25, 5.0
_GROWTH, _GROWTH_MS = 1.5, 10.0
# A level of which more failed is about failures, and nobody's limit.
_NO_LEVEL = 0.5
# From so many for a request, retries and requests that were held back shape the figures.
_MUCH = 0.05


def failed_share(level: Level) -> float:
    """How much of what was counted failed; 0 to 1."""
    return level.failed / level.requests if level.requests else 0.0


def keeps_up(level: Level) -> bool:
    """Whether the server answered what an open loop offered: nearly all, and without a backlog."""
    offered = level.requests / level.duration_s
    short = (offered - level.requests_per_s) * level.duration_s
    return (
        level.succeeded > 0
        and short <= max((1 - _LEAST_ANSWERED) * level.requests, _SLACK_REQUESTS)
        and failed_share(level) <= MOST_FAILED
        and not backlog_grows(level.timeline)
    )


def backlog_grows(timeline: Sequence[Interval]) -> bool:
    """Whether requests took longer and longer, as they do when more comes than goes.

    Compares the last third of the intervals with the first; fewer than three tell nothing.
    """
    medians = [interval.p50_ms for interval in timeline if interval.p50_ms is not None]
    third = len(medians) // 3
    if not third:
        return False
    before, after = median(medians[:third]), median(medians[-third:])
    return after > _GROWTH * before + _GROWTH_MS


def verdict(level: Level, *, held_back: int = 0) -> tuple[Limiting, str]:
    """Who kept the figures from being better, and why one can say so.

    Args:
        level: a level whose `limited_by` and `why` do not count yet.
        held_back: requests that waited in the client because too many were under way.
    """
    client, latency = level.client, level.latency
    if latency is None:
        return "unknown", "No request succeeded."
    busy = f"{client.busy:.0%}"
    if failed_share(level) > _NO_LEVEL:
        return "unknown", f"{failed_share(level):.0%} of the requests failed."
    if client.busy > _BUSY:
        return "client", (
            f"The client's thread computed {busy} of the time; on this processor it can send about "
            f"{client.ceiling_requests_per_s:,.0f} requests/s of this kind."
        )
    lag = client.loop_lag_p99_ms
    if lag > max(_LAG_MS, _LAG_SHARE * latency.p99_ms):
        return "client", (
            f"The client woke {lag:,.1f} ms late one time in a hundred, which is much of the "
            f"{latency.p99_ms:,.1f} ms of the slowest requests: it had too little of the processor."
        )
    if level.retries > _MUCH * level.requests:
        return "unknown", (
            f"{level.retries:,} retries for {level.requests:,} requests: the pauses before them "
            "are in the latencies, and meanwhile less was sent than the load says."
        )
    if level.mode == "closed":
        under_way = (
            "One request was" if level.concurrency == 1 else f"{level.concurrency:,} requests were"
        )
        return "server", (
            f"{under_way} always under way, and the client's thread computed only {busy} of the "
            "time."
        )
    send_lag = client.send_lag_p99_ms or 0.0
    is_late = send_lag > max(_LAG_MS, _LAG_SHARE * latency.p99_ms)
    # Of those that were held back the lateness is no wonder.
    if is_late and held_back <= (1 - 0.99) * level.requests + 1e-9:
        return "client", (
            f"The client sent one request in a hundred {send_lag:,.1f} ms late, which is much of "
            f"the {latency.p99_ms:,.1f} ms of the slowest."
        )
    if held_back > _MUCH * level.requests:
        return "unknown", (
            f"{held_back:,} of {level.requests:,} requests waited in the client, because as many "
            "were under way as it may have at once: the server was not sent what was asked for."
        )
    offered = level.requests / level.duration_s
    if keeps_up(level):
        return "load", (
            f"The server answered {level.requests_per_s:,.1f} of the {offered:,.1f} requests/s "
            "that it was sent: no more was asked of it."
        )
    if failed_share(level) > MOST_FAILED:
        return "server", (
            f"Of {offered:,.1f} requests/s {failed_share(level):.1%} failed, and the client's "
            f"thread computed only {busy} of the time."
        )
    return "server", (
        f"Of {offered:,.1f} requests/s it answered {level.requests_per_s:,.1f}, what waited grew, "
        f"and the client's thread computed only {busy} of the time."
    )
