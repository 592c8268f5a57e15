"""A call's deadline: asyncio's way of interrupting a task, and the reason why it was done.

The same steps as `asyncio.timeout_at`, at about half its cost for every call
(`benchmarks/pieces.py`, "a deadline"), plus three more reasons to interrupt: the session is being
closed, one of the call's requests has failed, or another call's failure condemns this one.
A line belongs here when it ends a call from outside.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from types import TracebackType
from typing import Literal, Self, TypeAlias, cast

from msgspec import Struct

from rerank_async._moments import GRAIN
from rerank_async._private import Private

__all__ = ["Scope", "Watch"]

Reason: TypeAlias = Literal["deadline", "closed", "failed", "condemned"]


class Scope(Private, Struct, eq=False):
    """Interrupts what the current task does inside it, when its time comes or `end` is called.

    The interruption is a cancellation that the scope takes back at its own end: `with` is then
    left quietly, and `ended_by` says why.
    A cancellation from anywhere else goes through, also when both come together.
    A scope that is left before the interruption has come ends without one.

    A task is never cancelled in the middle of a step of its own, as a task that it starts eagerly
    would have it: a cancellation that finds no wait inside the scope stays with the task, and would
    hit whatever its owner awaits next.

    Attributes:
        loop: the running loop.
        deadline: the moment on that loop's clock at which it ends; None means none.
        watch: the watch that looks after the deadline in place of a timer of the scope's own; its
            scopes must have deadlines that never come before those of the scopes entered earlier.
        ended_by: the reason, or None as long as nothing was interrupted.
        task: the task that is inside.
        cancelling: the number of times that the task had been cancelled before.
        timer: the scope's own timer, if it has one.
        interruption: the interruption that is due when the task's step is over; otherwise None.
    """

    loop: asyncio.AbstractEventLoop
    deadline: float | None
    watch: Watch | None = None
    ended_by: Reason | None = None
    # There is one from entering on.
    task: asyncio.Task[object] = cast("asyncio.Task[object]", None)
    cancelling: int = 0
    timer: asyncio.TimerHandle | None = None
    interruption: asyncio.Handle | None = None

    def __repr__(self) -> str:
        return f"<Scope until {self.deadline}, ended by {self.ended_by}>"

    def __enter__(self) -> Self:
        task = asyncio.current_task(self.loop)
        if task is None:
            raise RuntimeError("a call must be awaited within a task")
        self.task = task
        self.cancelling = task.cancelling()
        watch = self.watch
        if watch is not None:
            watch.scopes[self] = None
            if watch.timer is None:
                watch.set_timer(self)
        elif self.deadline is not None:
            self.timer = self.loop.call_at(self.deadline, self.end, "deadline")
        return self

    def is_cancelled(self) -> bool:
        """Whether its task has been cancelled since it was entered, by whomever."""
        return self.task.cancelling() > self.cancelling

    def end(self, reason: Reason) -> None:
        """Interrupt at the task's next wait; the first reason counts."""
        if self.ended_by is None:
            self.ended_by = reason
            if getattr(self.task.get_coro(), "cr_running", True):
                self.interruption = self.loop.call_soon(self._interrupt)
            else:
                self.task.cancel()

    def _interrupt(self) -> None:
        self.interruption = None
        self.task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if self.watch is not None:
            # Its timer stays: most often it finds another one.
            self.watch.scopes.pop(self, None)
        elif self.timer is not None:
            self.timer.cancel()
        if self.ended_by is None:
            return False
        if self.interruption is not None:
            self.interruption.cancel()
            return False
        # More cancellations than this scope's own: somebody else wants the task to end as well.
        others = self.task.uncancel() > self.cancelling
        return kind is asyncio.CancelledError and not others


class Watch:
    """Ends scopes when their deadlines come, with one timer for all of them.

    For scopes that all have the same time: the one entered first is the next to be over.
    A timer of its own would cost every call a microsecond or two (`benchmarks/pieces.py`, "a
    deadline"), and memory while it waits.

    Attributes:
        scopes: the scopes that it looks after, in the order of entering; each puts itself in and
            takes itself out.
        timer: the timer that is set for one of them; None when none is.
    """

    __slots__ = ("_loop", "scopes", "timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.scopes: dict[Scope, None] = {}
        self.timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Let go of the timer, and with it of everything else."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def set_timer(self, scope: Scope) -> None:
        """Look again when the deadline of `scope` comes."""
        assert scope.deadline is not None
        # In a context of its own: the one of the call that happens to be the first would be kept.
        self.timer = self._loop.call_at(scope.deadline, self._look, context=Context())

    def _look(self) -> None:
        self.timer = None
        now = self._loop.time()
        for scope in tuple(self.scopes):
            assert scope.deadline is not None
            if scope.deadline - now > GRAIN:
                self.set_timer(scope)
                return
            del self.scopes[scope]
            scope.end("deadline")
