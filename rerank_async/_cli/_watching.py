"""What a person sees of a job that is under way: a bar on a terminal, plain lines elsewhere.

Of a single call it is why it waits.
A line belongs here when it turns progress into text on standard error.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Hashable

from attrs import evolve
from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rerank_async._cli._screen import LINE_SECONDS, Screen, show
from rerank_async._cli._shared import count, duration, printable, shortened
from rerank_async._errors import StatusError
from rerank_async._listeners import Statistics
from rerank_async.bulk import BulkProgress
from rerank_async.events import AttemptRetried, Event

__all__ = ["Waits", "Watching"]

# Characters of a server's words that are shown while it is waited for; the end of the job has all.
_LONGEST_REASON = 200

# Seconds without an answer after which a failure is told though all are on the wire again.
_LONG_ENOUGH = 5.0

# Seconds that a call has to wait before it says so.
_WORTH_A_LINE = 1.0


class Watching(Screen):
    """Shows progress; a context manager that leaves the terminal as it was.

    Args:
        quiet: show nothing at all.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__(quiet=quiet)
        self._line_due = 0.0
        self._phase = ""
        # Why somebody waited when that was last said, and until when another reason is not.
        self._reason, self._reason_due = "", 0.0
        self._stopping = False

    def say_stopping(self, message: str) -> None:
        """A line of its own, above the bar; from now on it is not said what anybody waits for."""
        self._stopping = True
        if self._live is not None:
            self._live.console.print(message, markup=False)
        else:
            show(message, sys.stderr)

    def __call__(self, progress: BulkProgress) -> None:
        """Show how far the job is."""
        if self._quiet:
            return
        if self._stopping:
            progress = evolve(progress, gate=0.0, problem="")
        if self._live is not None:
            self._live.update(_drawn(progress), refresh=True)
            return
        self._say_why(progress)
        if progress.phase != self._phase or progress.seconds >= self._line_due:
            if progress.phase != self._phase == "":
                # Nothing to tell yet.
                self._phase = progress.phase
                self._line_due = progress.seconds + LINE_SECONDS
                return
            self._phase = progress.phase
            self._line_due = progress.seconds + LINE_SECONDS
            show(f"{_head(progress)} · {_rest(progress)}", sys.stderr)

    def _say_why(self, progress: BulkProgress) -> None:
        """A line as soon as somebody waits, and when the reason is another one."""
        reason = (
            progress.problem if _is_in_trouble(progress) else "gate" if _is_gated(progress) else ""
        )
        if not reason or reason == self._reason:
            return
        if not self._reason or progress.seconds >= self._reason_due:
            # Words that are new each time, such as a request's id, must not make a line each time.
            self._reason, self._reason_due = reason, progress.seconds + LINE_SECONDS
            show(_why(progress), sys.stderr)


class Waits:
    """Says why a call waits, at once: one line for a reason, whichever of its requests wait.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Until when a reason is not said again.
        self._due: dict[Hashable, float] = {}

    def __call__(self, event: Event, now: Statistics) -> None:
        """Hear what happened, and say what is waited for now if that is new.

        Args:
            event: an event of the call's session.
            now: the session's statistics.
        """
        if now.waiting_for == "gate" and now.gate >= _WORTH_A_LINE:
            self._say("gate", _asked(now.gate), now.gate)
        if type(event) is not AttemptRetried:
            return
        error, delay = event.error, event.delay
        if error.retry_after is not None and delay >= _WORTH_A_LINE:
            self._say("gate", _asked(delay), delay)
        elif delay >= _WORTH_A_LINE or now.unanswered >= _LONG_ENOUGH:
            # Words that are new each time, such as a request's id, must not make a line each time.
            kind = (type(error), error.status if isinstance(error, StatusError) else None)
            # What was sent where is not what is wrong.
            words = now.problem or str(error).removesuffix(f" [{error.context}]")
            self._say(kind, words, delay, f"again in {duration(delay)}")

    def _say(self, kind: Hashable, reason: str, seconds: float, more: str = "") -> None:
        now = self._clock()
        if now >= self._due.get(kind, now):
            self._due[kind] = now + max(seconds, LINE_SECONDS)
            show(_waiting(reason, more), sys.stderr)


def _is_gated(progress: BulkProgress) -> bool:
    return progress.gate >= 0.5


def _is_in_trouble(progress: BulkProgress) -> bool:
    """Whether attempts fail and none is answered; those that take long to fail need not wait."""
    return bool(progress.problem) and (progress.waiting > 0 or progress.unanswered >= _LONG_ENOUGH)


def _why(progress: BulkProgress) -> str:
    """What is waited for; empty where nothing is, or only for a moment."""
    if _is_in_trouble(progress):
        waiting = progress.waiting
        requests = "1 request, " if waiting == 1 else f"{count(waiting)} requests, "
        already = f"{requests if waiting else ''}{duration(progress.unanswered)}"
        return _waiting(progress.problem, already)
    if _is_gated(progress):
        return _waiting(_asked(progress.gate))
    return ""


def _waiting(reason: str, more: str = "") -> str:
    shown = shortened(printable(reason), _LONGEST_REASON)
    return f"waiting: {shown} ({more})" if more else f"waiting: {shown}"


def _asked(seconds: float) -> str:
    return f"the server asks to wait {duration(seconds)}"


def _head(progress: BulkProgress) -> str:
    """How many queries of how many."""
    if progress.phase == "reading":
        return f"checking the input: {count(progress.queries)} rows"
    if progress.phase == "writing":
        return "writing the output"
    total = "" if progress.queries_total is None else f" of {count(progress.queries_total)}"
    return f"{count(progress.queries)}{total} queries"


def _left(progress: BulkProgress) -> str:
    if _is_gated(progress):
        return _asked(progress.gate)
    if progress.seconds_left is None:
        return duration(progress.seconds)
    return f"{duration(progress.seconds_left)} left"


def _rest(progress: BulkProgress) -> str:
    if progress.phase != "sending":
        return duration(progress.seconds)
    about = "about " if progress.tokens_estimated else ""
    return " · ".join(
        (
            f"{count(progress.documents)} documents",
            f"{count(progress.documents_per_second)}/s",
            f"{progress.in_flight} of {progress.limit} in flight",
            f"retries {count(progress.retries)}",
            f"throttled {count(progress.throttled)}",
            f"failed {count(progress.failed)}",
            f"tokens {about}{count(progress.tokens)}",
            _left(progress),
        )
    )


def _drawn(progress: BulkProgress) -> Group | Text:
    if progress.phase != "sending":
        return Text(f"{_head(progress)} · {_rest(progress)}", overflow="ellipsis", no_wrap=True)
    first = Table.grid(padding=(0, 1), expand=True)
    first.add_column(ratio=1)
    first.add_column(justify="right", no_wrap=True)
    total = progress.documents_total
    share = "" if not total else f" {progress.documents / total:4.0%}"
    first.add_row(
        # A bar without an end to it pulses.
        ProgressBar(
            total=total or 1, completed=progress.documents if total else 0, pulse=not total
        ),
        Text(f"{_head(progress)}{share} · {_left(progress)}"),
    )
    second = Text(overflow="fold")
    about = "about " if progress.tokens_estimated else ""
    for place, (word, value, style) in enumerate(
        (
            ("documents", count(progress.documents), ""),
            ("per second", count(progress.documents_per_second), ""),
            ("in flight", f"{progress.in_flight} of {progress.limit}", ""),
            ("retries", count(progress.retries), "yellow" if progress.retries else ""),
            ("throttled", count(progress.throttled), "yellow" if progress.throttled else ""),
            ("failed", count(progress.failed), "red" if progress.failed else ""),
            ("tokens", about + count(progress.tokens), ""),
        )
    ):
        if place:
            second.append("  ")
        second.append(f"{word} ", style="dim")
        second.append(value, style=style)
    why = _why(progress)
    third = (Text(why, style="yellow", overflow="fold"),) if why else ()
    return Group(first, second, *third)
