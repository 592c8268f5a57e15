"""What happens in a session, as values, for the function that you pass as `on_event`.

    from rerank_async.events import AttemptRetried, Event, Throttled

    def tell(event: Event) -> None:
        match event:
            case Throttled(status=status, retry_after=hint):
                print(f"call {event.call}: the server answered {status}, hint {hint}")
            case AttemptRetried(delay=delay, error=error):
                print(f"call {event.call}: again in {delay:.1f} s: {error}")

    session = RerankSession(on_event=tell)

The function is called at once, in the task and the context of the call that the event belongs to,
or of a task that this call made; it must not wait.
More kinds of events may come, and more fields at the end of one: match by name, and let what you
do not know pass.
"""

from rerank_async._events import (
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

__all__ = [
    "AttemptFinished",
    "AttemptRetried",
    "AttemptStarted",
    "CallFinished",
    "CallStarted",
    "Event",
    "Hedged",
    "LimitChanged",
    "Split",
    "Throttled",
    "Waiting",
]
