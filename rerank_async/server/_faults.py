"""Which answers of the local server are to fail, and how: for tests and for showing retries."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Literal, TypeAlias

__all__ = ["Fault", "Faults"]

Fault: TypeAlias = Literal["429", "503", "reset"]


class Faults:
    """Lets an exact share of the answers fail, spread evenly, with each kind of fault in turn.

    Evenly rather than by chance, so that two runs see the same number of faults, and a short run
    sees as many as its length gives reason to expect.

    Args:
        rate: the share; 0.1 means that every tenth answer fails.

    Raises:
        ValueError: the rate is not within [0, 1).
    """

    def __init__(self, rate: float) -> None:
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"faults must be a share of at least 0 and below 1, not {rate!r}")
        self._rate = rate
        self._answers = 0
        self._kinds: Iterator[Fault] = cycle(("429", "503", "reset"))

    def next(self) -> Fault | None:
        """What is to happen to the next answer; None lets it pass."""
        before = int(self._answers * self._rate + 1e-9)
        self._answers += 1
        return next(self._kinds) if int(self._answers * self._rate + 1e-9) > before else None
