"""A call's deadline: asyncio's way of interrupting a task, and the reason why it was done.

The same steps as `asyncio.timeout_at`, at about half its cost for every call, plus two more
reasons to interrupt: the session is being closed, or one of the call's requests has failed.
A line belongs here when it ends a call from outside.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Literal, Self, TypeAlias

__all__ = ["Scope"]

Reason: TypeAlias = Literal["deadline", "closed", "failed"]


class Scope:
    """Interrupts what the current task does inside it, when its time comes or `end` is called.

    The interruption is a cancellation that the scope takes back at its own end: `with` is then
    left quietly, and `ended_by` says why.
    A cancellation from anywhere else goes through, also when both come together.

    Args:
        loop: the running loop.
        deadline: on that loop's clock; None means none.

    Attributes:
        ended_by: "deadline", "closed", "failed", or None as long as nothing was interrupted.
    """

    __slots__ = ("_cancelling", "_deadline", "_handle", "_loop", "_task", "ended_by")

    def __init__(self, loop: asyncio.AbstractEventLoop, deadline: float | None) -> None:
        self._loop = loop
        self._deadline = deadline
        self._handle: asyncio.TimerHandle | None = None
        self.ended_by: Reason | None = None

    def __enter__(self) -> Self:
        task = asyncio.current_task(self._loop)
        if task is None:
            raise RuntimeError("a call must be awaited within a task")
        self._task = task
        self._cancelling = task.cancelling()
        if self._deadline is not None:
            self._handle = self._loop.call_at(self._deadline, self.end, "deadline")
        return self

    def end(self, reason: Reason) -> None:
        """Interrupt now; the first reason counts."""
        if self.ended_by is None:
            self.ended_by = reason
            self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if self._handle is not None:
            self._handle.cancel()
        if self.ended_by is None:
            return False
        # More cancellations than this scope's own: somebody else wants the task to end as well.
        others = self._task.uncancel() > self._cancelling
        return kind is asyncio.CancelledError and not others
