"""Who hears of events: the counts, the log, and whoever the user names.

A listener is a function of one event, and none can break a call.
A line belongs here when it makes something of events.
"""

from __future__ import annotations

import inspect
import logging
from asyncio import CancelledError
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeAlias

from attrs import frozen

from rerank_async._errors import InvalidRequestError
from rerank_async.events import (
    KINDS,
    AttemptFinished,
    AttemptRetried,
    AttemptStarted,
    CallFinished,
    CallStarted,
    Event,
    Hedged,
    LimitChanged,
    Split,
    Throttled,
    Waiting,
)

__all__ = ["Emitter", "Listener", "Statistics", "checked_listeners"]

Listener: TypeAlias = Callable[[Event], object]

_log = logging.getLogger("rerank_async")


@frozen
class Statistics:
    """A snapshot of a session's counts since it was made.

    What is said of slots is of the session's flow control, which several sessions may share.

    Attributes:
        calls: `rerank` calls begun, those of `rerank_many` included.
        requests: attempts put on the wire; a second try after a stale pooled connection is part of
            its attempt.
        resent: the number of such second tries; 0 where a `Transport` of your own carries the
            requests.
        retries: failed attempts after which another one was due.
        throttled: answers with status 429, 503 or 529.
        hedges: backups sent for slow requests.
        splits: chunks that had to be sent in smaller pieces.
        documents: documents that were scored; those of a backup that came too late count again.
        tokens: the sum of the usage that servers reported; answers without it add nothing.
        in_flight: attempts on the wire now.
        waiting: attempts that wait for a slot now.
        limit: slots there are.
        cuts: the number of times that an adaptive limit was cut because of overload.
        limit_reason: the reason for an adaptive limit's last change; empty before the first one.
        gate: seconds for which a server's hint keeps everybody waiting; 0.0 when nobody has to.
        retry_budget: tokens left to pay for retries; None when they are not counted.
        listener_errors: exceptions that listeners raised, and that were logged and dropped.
        waiting_for: what the first of those `waiting` lacks: "slot"; "rate", that of the session's
            `RateLimit`; "gate", as the server asked everybody to wait; empty when nobody waits.
        backing_off: requests that wait for their next attempt after one that failed, now.
        parked: requests that wait until the server is back, now; see `RetryPolicy.max_outage`.
        unanswered: seconds since attempts fail and none is answered; 0.0 after an answer.
        problem: the way in which the last of those failed, in words; empty after an answer.
    """

    calls: int
    requests: int
    resent: int
    retries: int
    throttled: int
    hedges: int
    splits: int
    documents: int
    tokens: int
    in_flight: int
    waiting: int
    limit: int
    cuts: int
    limit_reason: str
    gate: float
    retry_budget: int | None
    listener_errors: int
    waiting_for: str = ""
    backing_off: int = 0
    parked: int = 0
    unanswered: float = 0.0
    problem: str = ""


# What is rare and may need a person is INFO; what happens with every request is DEBUG.
_LEVELS: dict[type[Event], int] = {
    AttemptRetried: logging.INFO,
    Throttled: logging.INFO,
    Split: logging.INFO,
}


def _level(event: Event) -> int:
    if type(event) is Waiting and event.reason == "outage":
        return logging.INFO
    return _LEVELS.get(type(event), logging.DEBUG)


def _words(event: Event) -> str:
    match event:
        case CallStarted(call, model, _, documents, top_n, url):
            what = "a stream" if documents is None else f"{documents} documents"
            return f"call {call}: {what} for {model!r}, top_n={top_n}, to {url}"
        case CallFinished(call, seconds, error, _, documents):
            how = f"failed ({type(error).__name__})" if error is not None else "done"
            return f"call {call}: {how} in {seconds:.3f} s, {documents} documents sent"
        case AttemptStarted(call, start, documents, attempt, hedge):
            kind = "backup of attempt" if hedge else "attempt"
            return f"call {call}: {kind} {attempt} for {_span(start, documents)}"
        case AttemptFinished(call, start, documents, attempt, _, seconds, error):
            how = "answered" if error is None else f"failed ({type(error).__name__})"
            return (
                f"call {call}: attempt {attempt} for {_span(start, documents)} {how} in "
                f"{seconds:.3f} s"
            )
        case AttemptRetried(call, _, _, _, delay, error):
            return f"call {call}: again in {delay:.2f} s: {error}"
        case Waiting(call, start, documents, reason, seconds, error):
            told = "" if seconds is None else f", for about {seconds:.1f} s"
            after = "" if error is None else f": {error}"
            return f"call {call}: {_span(start, documents)} wait ({reason}){told}{after}"
        case Throttled(call, status, hint):
            told = "" if hint is None else f" and asks to wait {hint:g} s"
            return f"call {call}: the server answered {status}{told}"
        case Hedged(call, start, documents, seconds):
            return f"call {call}: backup for {_span(start, documents)} after {seconds:.3f} s"
        case Split(call, start, documents, pieces, reason):
            return f"call {call}: {_span(start, documents)} in {pieces} requests ({reason})"
        case LimitChanged(_, old, new, reason):
            return f"limit {old} -> {new} ({reason})"
    return repr(event)


def _span(start: int, documents: int) -> str:
    return f"documents {start} to {start + documents - 1}"


class Emitter:
    """Counts each event, logs it and hands it to every listener, and lets none break anything.

    Args:
        listeners: the user's, called in this order.

    The events that come with every request are counted here, and made only when `is_heard`: most
    often nobody listens.

    Attributes:
        is_heard: whether anybody hears of every event; looked up anew with each call.
        calls: the number of calls that began.
        requests: attempts that were put on the wire.
        counts: the number of events of each kind that is rare, by its class.
        documents: the number of documents that answers which passed the checks had scores for.
        tokens: the number of tokens that those answers cost by the server's word.
        errors: exceptions that listeners raised.
        backing_off: requests that wait for their next attempt now.
        parked: requests that wait until the server is back now.
    """

    __slots__ = (
        "_listeners",
        "backing_off",
        "calls",
        "counts",
        "documents",
        "errors",
        "is_heard",
        "parked",
        "requests",
        "tokens",
    )

    def __init__(self, listeners: Iterable[Listener] = ()) -> None:
        self._listeners = tuple(listeners)
        self.is_heard = False
        self.counts: dict[type[Event], int] = dict.fromkeys(KINDS, 0)
        self.calls = self.requests = self.documents = self.tokens = self.errors = 0
        self.backing_off = self.parked = 0

    def __call__(self, event: Event) -> None:
        """Count an event, and tell everybody."""
        self.counts[type(event)] += 1
        self.tell(event)

    def begin_call(self) -> bool:
        """Count a call that begins; say whether it `is_heard`."""
        self.calls += 1
        self.is_heard = bool(self._listeners) or _log.isEnabledFor(logging.DEBUG)
        return self.is_heard

    def tell(self, event: Event) -> None:
        """Log it and hand it on; an exception of a listener is counted, and the first logged."""
        kind = type(event)
        level = _level(event)
        if _log.isEnabledFor(level):
            # A handler may raise, as a listener may.
            with suppress(Exception):
                _log.log(level, "%s", _words(event), extra={"rerank_event": event})
        for listener in self._listeners:
            try:
                listener(event)
            except (Exception, CancelledError):
                self.errors += 1
                if self.errors == 1:
                    with suppress(Exception):
                        _log.exception(
                            "the listener %r raised on %s; further exceptions are only counted",
                            listener,
                            kind.__name__,
                        )


def checked_listeners(on_event: Listener | Iterable[Listener] | None) -> tuple[Listener, ...]:
    """The listeners that a user named: none, one or several.

    Raises:
        InvalidRequestError: one of them cannot be called, or is a coroutine function.
    """
    if on_event is None:
        return ()
    if callable(on_event) or not isinstance(on_event, Iterable):
        on_event = (on_event,)
    listeners = tuple(on_event)
    for listener in listeners:
        if not callable(listener):
            raise InvalidRequestError(
                f"on_event must be a function of one event or several of them, not {listener!r}"
            )
        # An object may be one too, by its class.
        if any(map(inspect.iscoroutinefunction, (listener, type(listener).__call__))):
            raise InvalidRequestError(
                f"on_event must be plain functions, and {listener!r} is a coroutine function: put "
                "events into a queue and await there"
            )
    return listeners
