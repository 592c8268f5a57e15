"""Who may stay connected, and until when; and how many lines may be written about the others.

Pure: told the time and what happened, it says who has to go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Generic, TypeVar

__all__ = ["LineLimit", "Phase", "Places"]

T = TypeVar("T")


class Phase(Enum):
    """What a connection is about."""

    LEAVING = "leaving"  # its last request was refused; what it still sends is thrown away
    IDLE = "idle"  # between two requests
    HEAD = "head"  # a head is arriving, or the first is awaited
    WORK = "work"  # a request is in work; other clocks see to that
    LAST = "last"  # the last answer is written, and may not have been taken yet


# Who has to make room first: those who are least likely to be missed.
_ROOM = (Phase.LEAVING, Phase.IDLE, Phase.HEAD)


class Places(Generic[T]):
    """The connections, each in its phase, and within a phase in the order of entering.

    A phase has one time limit, so that the first to enter is the first to be overdue.

    Args:
        most: the largest number of those that may be connected.
        limits: seconds for each phase; a phase that is missing has no limit.
    """

    def __init__(self, most: int, limits: Mapping[Phase, float]) -> None:
        self.most = most
        self.limits = limits
        self._phases: dict[T, Phase] = {}
        self._entered: dict[Phase, dict[T, float]] = {phase: {} for phase in Phase}

    def __len__(self) -> int:
        return len(self._phases)

    def __iter__(self) -> Iterator[T]:
        return iter(list(self._phases))

    @property
    def full(self) -> bool:
        """Whether more are connected than may be."""
        return len(self._phases) > self.most

    def enter(self, one: T, phase: Phase, now: float) -> None:
        """`one` is in `phase` from now on; new ones come in by it."""
        self.leave(one)
        self._phases[one] = phase
        self._entered[phase][one] = now

    def leave(self, one: T) -> None:
        """`one` is not connected any more."""
        phase = self._phases.pop(one, None)
        if phase is not None:
            del self._entered[phase][one]

    def phase(self, one: T) -> Phase | None:
        """What `one` is about; None where it is not connected."""
        return self._phases.get(one)

    def among(self, *phases: Phase) -> list[T]:
        """Those in `phases`."""
        return [one for phase in phases for one in self._entered[phase]]

    def makes_room(self, newcomer: T | None) -> T | None:
        """Who is to go so that `newcomer` can stay; None if all the others are in work."""
        for phase in _ROOM:
            for one in self._entered[phase]:
                if one is not newcomer:
                    return one
        return None

    def overdue(self, now: float) -> list[T]:
        """Those whose time is up."""
        late = []
        for phase, limit in self.limits.items():
            for one, entered in self._entered[phase].items():
                if now - entered < limit:
                    break
                late.append(one)
        return late

    def next_look(self, now: float) -> float | None:
        """Seconds until somebody may be overdue; None if nobody will."""
        waits = [
            limit - (now - entered)
            for phase, limit in self.limits.items()
            for entered in list(self._entered[phase].values())[:1]
        ]
        return max(0.0, min(waits)) if waits else None


class LineLimit:
    """Lets a few lines through, and counts those that a flood would add.

    Args:
        most: lines within one period.
        period: seconds.
    """

    def __init__(self, most: int, period: float) -> None:
        self._most = most
        self._period = period
        self._began: float | None = None
        self._written = 0
        self._withheld = 0

    def allow(self, now: float) -> bool:
        """Whether a line may be written now."""
        if self._began is None or now - self._began >= self._period:
            self._began = now
            self._written = 0
        self._written += 1
        if self._written <= self._most:
            return True
        self._withheld += 1
        return False

    def withheld(self) -> int:
        """How many were not allowed since this was last asked."""
        withheld, self._withheld = self._withheld, 0
        return withheld
