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

Events hold numbers, names and errors, never a key; the one that holds a query does not show it.
The values are msgspec structs, because several are made for every call (`benchmarks/pieces.py`, "a
frozen value").
A line belongs here when it says what an event *is*; who hears of it is in `_listeners`.
"""

from __future__ import annotations

from msgspec import Struct

from rerank_async._errors import RerankError
from rerank_async._private import Private

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


class Event(Struct, frozen=True):
    """Something that happened.

    Attributes:
        call: the number of the call that it belongs to, which no other call of the process has; 0
            for what belongs to none.
    """

    call: int


class CallStarted(Private, Event, frozen=True):
    """`rerank` was called with arguments that can be sent.

    Attributes:
        model: the model that was asked for.
        query: the text; other people's, and not in the representation.
        documents: the number of documents; None for a stream.
        top_n: the number of results that was asked for; None for all.
        url: the URL that its requests go to.
    """

    model: str
    query: str
    documents: int | None
    top_n: int | None
    url: str

    def __repr__(self) -> str:
        return (
            f"CallStarted(call={self.call}, model={self.model!r}, documents={self.documents}, "
            f"top_n={self.top_n}, url={self.url!r})"
        )


class CallFinished(Event, frozen=True):
    """A call is over.

    Attributes:
        seconds: the seconds that it took, waits included.
        error: what it raised, cancellation included; None when it returned.
        model: the model that answered, or that was asked for where the server named none; None when
            it raised.
        documents: the number of documents that were read and cut into chunks.
        missing: documents without a score, of a call that returned.
        tokens: the tokens that its answers cost together; None when one left it out, or it raised.
        retries: attempts that followed a failed one.
    """

    seconds: float
    error: BaseException | None
    model: str | None
    documents: int
    missing: int
    tokens: int | None
    retries: int


class AttemptStarted(Event, frozen=True):
    """A request was put on the wire.

    Attributes:
        start: the caller's index of its first document.
        documents: the number of documents that it carries.
        attempt: 1 for the first.
        hedge: whether it is the backup of one that is still under way.
    """

    start: int
    documents: int
    attempt: int
    hedge: bool


class AttemptFinished(Event, frozen=True):
    """A request is off the wire.

    Attributes:
        start: the caller's index of its first document.
        documents: the number of documents that it carried.
        attempt: 1 for the first.
        hedge: whether it was a backup.
        seconds: the seconds that it was on the wire.
        error: the error that it failed with, cancellation included; None when its answer passed the
            checks.
        tokens: the tokens that it cost by the server's word, or None.
    """

    start: int
    documents: int
    attempt: int
    hedge: bool
    seconds: float
    error: BaseException | None
    tokens: int | None


class AttemptRetried(Event, frozen=True):
    """An attempt failed, and another one will be made.

    Attributes:
        start: the caller's index of its first document.
        documents: the number of documents that it carried.
        attempt: the one that failed.
        delay: seconds until the next asks for a slot.
        error: the error that it failed with.
    """

    start: int
    documents: int
    attempt: int
    delay: float
    error: RerankError


class Waiting(Event, frozen=True):
    """A request has to wait before it may be put on the wire.

    What waits for the next attempt after one that failed is an `AttemptRetried`.

    Attributes:
        start: the caller's index of its first document.
        documents: the number of documents that it carries.
        reason: "slot": as many are on the wire as may be; "rate": a rate lets it go later; "gate":
            the server asked everybody to wait; "outage": the server answers nobody, and the request
            is parked until it does.
        seconds: the seconds that it is likely to take; None where nobody knows.
        error: the error of the request's last attempt; None when there was none.
    """

    start: int
    documents: int
    reason: str
    seconds: float | None
    error: RerankError | None


class Throttled(Event, frozen=True):
    """The server said that it has too much to do: 429, 503 or 529.

    Attributes:
        status: the HTTP status.
        retry_after: the server's hint in seconds, or None.
        gate: whether the hint keeps everybody waiting longer than before.
    """

    status: int
    retry_after: float | None
    gate: bool


class Hedged(Event, frozen=True):
    """A backup is sent for a request that takes long.

    Attributes:
        start: the caller's index of its first document.
        documents: the number of documents that it carries.
        seconds: the seconds that the first has been on the wire.
    """

    start: int
    documents: int
    seconds: float


class Split(Event, frozen=True):
    """Documents are sent in smaller requests.

    Attributes:
        start: the caller's index of the first.
        documents: the number of documents that are sent so.
        pieces: the requests that they are sent in.
        reason: "learned": more than this server is known to take at once; "documents" or "bytes":
            it just refused so many; "refused": one of them may be what it refuses.
    """

    start: int
    documents: int
    pieces: int
    reason: str


class LimitChanged(Event, frozen=True):
    """There are more or fewer slots.

    Attributes:
        old: the limit before.
        new: the limit now.
        reason: the reason, in a word or two.
    """

    old: int
    new: int
    reason: str


KINDS: tuple[type[Event], ...] = (
    CallStarted,
    CallFinished,
    AttemptStarted,
    AttemptFinished,
    AttemptRetried,
    Throttled,
    Hedged,
    Split,
    LimitChanged,
    Waiting,
)
