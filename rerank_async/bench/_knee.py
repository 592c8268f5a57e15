"""The knee: the load from which on more of it costs latency and brings no throughput. Pure.

**Closed loop.** The level with the most *power*, throughput divided by mean latency: L. Kleinrock,
"Power and deterministic rules of thumb for probabilistic problems in computer communications",
Proceedings of the International Conference on Communications, 1979.

For a server of s slots, each of which takes S seconds for a request, that is exact. With N requests
at once, N ≤ s, nobody waits: throughput is N/S, latency S, power N/S², and each further request
adds to it. With N ≥ s all slots are in use: throughput is s/S, and by Little's law latency is
N·S/s, power s²/(N·S²), and each further request takes from it. So power is largest at N = s, where
the slots are just all in use and nobody waits. Of real servers it finds the point after which
latency grows faster than throughput.

**Open loop.** The highest rate that the server kept up with: `_verdict.keeps_up`.

A line belongs here when it chooses among levels.
"""

from __future__ import annotations

from collections.abc import Sequence

from rerank_async.bench._result import Knee, Level
from rerank_async.bench._verdict import MOST_FAILED, failed_share, keeps_up

__all__ = ["best_of", "knee_of", "power"]

# Levels whose power differs by less are as good as each other: the next run may turn them round.
_NEAR = 0.02


def power(level: Level) -> float:
    """Kleinrock's power, in requests/s²; 0 of a level that does not compete."""
    if level.latency is None or failed_share(level) > MOST_FAILED:
        return 0.0
    return level.requests_per_s / (max(level.latency.mean_ms, 1e-3) / 1000.0)


def best_of(levels: Sequence[Level]) -> int | None:
    """The place of the level with the most power; None where none competes.

    Of those that come within 2 % of it, the one with the smallest load: it is the kindest to the
    server and to those who wait.
    """
    powers = [power(level) for level in levels]
    best = max(powers, default=0.0)
    if not best:
        return None
    near = [place for place, value in enumerate(powers) if value >= best * (1 - _NEAR)]
    return min(near, key=lambda place: levels[place].load)


def knee_of(levels: Sequence[Level], *, is_search: bool = False) -> tuple[Knee | None, str | None]:
    """The knee of levels in the order of their load; where there is none, a note that says why.

    Neither of a single level, unless it is where a search ended.
    """
    if not levels or (len(levels) < 2 and not is_search):
        return None, None
    if levels[0].mode == "open":
        return _open(levels)
    return _closed(levels)


def _closed(levels: Sequence[Level]) -> tuple[Knee | None, str | None]:
    place = best_of(levels)
    if place is None:
        return None, (f"no knee: of every level more than {MOST_FAILED:.0%} of the requests failed")
    best = levels[place]
    assert best.latency is not None
    later = [level for level in levels[place + 1 :] if level.succeeded]
    if place == len(levels) - 1:
        return None, (
            f"no knee: at the highest concurrency, {best.load:,g}, more still paid; look beyond"
        )
    if place == 0 and best.load > 1:
        return None, (
            f"no knee: at the lowest concurrency, {best.load:,g}, more did not pay any more; look "
            "below"
        )
    why = (
        f"Throughput divided by mean latency (Kleinrock's power) is largest at "
        f"{best.load:,g} at once: {best.requests_per_s:,.1f} requests/s at "
        f"{best.latency.mean_ms:,.1f} ms"
    )
    if later and (next_one := later[0]).latency is not None:
        why += (
            f"; at {next_one.load:,g} it is {next_one.requests_per_s:,.1f} requests/s at "
            f"{next_one.latency.mean_ms:,.1f} ms"
        )
    return Knee(place, best.load, why + _whose(best, levels[place + 1 :])), None


def _open(levels: Sequence[Level]) -> tuple[Knee | None, str | None]:
    kept = [place for place, level in enumerate(levels) if keeps_up(level)]
    if not kept:
        return None, (
            f"no knee: the server did not keep up with the lowest rate, {levels[0].load:,g} "
            "requests/s; look below"
        )
    place = kept[-1]
    best = levels[place]
    if place == len(levels) - 1:
        return None, (
            f"no knee: the server kept up with the highest rate, {best.load:,g} requests/s; look "
            "beyond"
        )
    next_one = levels[place + 1]
    why = (
        f"It is the highest rate that the server kept up with: of {next_one.load:,g} requests/s "
        f"it answered {next_one.requests_per_s:,.1f}"
    )
    if next_one.failed:
        why += f", and {failed_share(next_one):.1%} of them failed"
    return Knee(place, best.load, why + _whose(best, levels[place + 1 :])), None


def _whose(best: Level, later: Sequence[Level]) -> str:
    """Whether it is the server's knee at all."""
    if best.limited_by == "client" or (later and later[0].limited_by == "client"):
        return ". But the client was the limit: the server may take more."
    return "."
