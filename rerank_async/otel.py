"""`OpenTelemetry`: a listener that makes a span and two measurements of every call.

    session = RerankSession(on_event=OpenTelemetry())

It needs the `[otel]` extra, which is `opentelemetry-api` alone: where spans and measurements go
is decided by the SDK that the application sets up, and without one they go nowhere.
The names, all of them in `Names`, are unstable: the semantic conventions for generative AI are in
development, and names may change in any release.
A line belongs here when it turns an event into telemetry, or names it.
"""

from __future__ import annotations

from contextlib import ExitStack
from contextvars import ContextVar, Token
from functools import lru_cache
from typing import Final, TypeAlias
from urllib.parse import urlsplit

try:
    from opentelemetry import context, metrics, trace
except ImportError as _missing:
    if (_missing.name or "").partition(".")[0] != "opentelemetry":
        raise
    raise ImportError(
        'rerank_async.otel needs opentelemetry-api: pip install "rerank-async[otel]"',
        name="opentelemetry",
    ) from None

from rerank_async._errors import StatusError
from rerank_async._version import __version__
from rerank_async.events import (
    AttemptRetried,
    CallFinished,
    CallStarted,
    Event,
    Hedged,
    Split,
    Throttled,
)

__all__ = ["OpenTelemetry"]

_Attributes: TypeAlias = dict[str, str | int | float | bool]

# A server may answer with anything as its model.
_LONGEST_MODEL = 256


class Names:
    """What OpenTelemetry sees: unstable, because the conventions are.

    What a convention says is taken over; `rerank` is in none of them yet.
    `gen_ai.rerank.candidate.count` and `gen_ai.rerank.top_n` are what the proposal to the
    conventions calls them (open-telemetry/semantic-conventions-genai, issue 253),
    `gen_ai.rerank.query.text` is spelled after `gen_ai.retrieval.query.text`; what only this
    library knows begins with `rerank_async.`.
    """

    # ── the span and the histograms ──

    SCOPE: Final = "rerank_async"

    OPERATION: Final = "rerank"
    # Whose model answers, the client cannot know; the conventions ask for a value all the same.
    PROVIDER: Final = "_OTHER"
    TOKEN_TYPE_INPUT: Final = "input"  # noqa: S105  # no password

    DURATION: Final = "gen_ai.client.operation.duration"
    DURATION_BUCKETS: Final = tuple(0.01 * 2**power for power in range(14))
    TOKEN_USAGE: Final = "gen_ai.client.token.usage"  # noqa: S105  # no password
    TOKEN_USAGE_BUCKETS: Final = tuple(float(4**power) for power in range(14))

    # ── attributes of the conventions ──

    GEN_AI_OPERATION_NAME: Final = "gen_ai.operation.name"
    GEN_AI_PROVIDER_NAME: Final = "gen_ai.provider.name"
    GEN_AI_REQUEST_MODEL: Final = "gen_ai.request.model"
    GEN_AI_RESPONSE_MODEL: Final = "gen_ai.response.model"
    GEN_AI_USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
    GEN_AI_TOKEN_TYPE: Final = "gen_ai.token.type"  # noqa: S105  # no password
    SERVER_ADDRESS: Final = "server.address"
    SERVER_PORT: Final = "server.port"
    ERROR_TYPE: Final = "error.type"
    HTTP_RESEND_COUNT: Final = "http.request.resend_count"
    HTTP_STATUS_CODE: Final = "http.response.status_code"

    # ── attributes of none ──

    GEN_AI_RERANK_CANDIDATE_COUNT: Final = "gen_ai.rerank.candidate.count"
    GEN_AI_RERANK_TOP_N: Final = "gen_ai.rerank.top_n"
    GEN_AI_RERANK_QUERY_TEXT: Final = "gen_ai.rerank.query.text"

    MISSING: Final = "rerank_async.missing"
    START: Final = "rerank_async.start"
    DOCUMENTS: Final = "rerank_async.documents"
    ATTEMPT: Final = "rerank_async.attempt"
    DELAY: Final = "rerank_async.delay"
    RETRY_AFTER: Final = "rerank_async.retry_after"
    GATE: Final = "rerank_async.gate"
    SECONDS: Final = "rerank_async.seconds"
    PIECES: Final = "rerank_async.pieces"
    REASON: Final = "rerank_async.reason"

    # ── events of the span ──

    RETRIED: Final = "rerank_async.retried"
    THROTTLED: Final = "rerank_async.throttled"
    HEDGED: Final = "rerank_async.hedged"
    SPLIT: Final = "rerank_async.split"


class OpenTelemetry:
    """Makes a CLIENT span `rerank {model}` of every call, and measures its duration and usage.

    The span is the current one for as long as the call lasts: what an instrumentation of the HTTP
    client makes is its child.
    Retries, throttling, backups and splits are events of the span.
    The histograms are `gen_ai.client.operation.duration` and `gen_ai.client.token.usage`.
    One object may serve any number of sessions, loops and threads.

    Args:
        tracer_provider: the provider of the spans; None means the global one.
        meter_provider: the provider of the histograms; None means the global one.
        record_content: whether to put the query and the error's words, which hold the server's own,
            into the span. Documents are never recorded.
    """

    def __init__(
        self,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        record_content: bool = False,
    ) -> None:
        self._tracer = trace.get_tracer(Names.SCOPE, __version__, tracer_provider)
        meter = metrics.get_meter(Names.SCOPE, __version__, meter_provider)
        self._duration = meter.create_histogram(
            Names.DURATION,
            unit="s",
            description="GenAI operation duration.",
            explicit_bucket_boundaries_advisory=Names.DURATION_BUCKETS,
        )
        self._usage = meter.create_histogram(
            Names.TOKEN_USAGE,
            unit="{token}",
            description="Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=Names.TOKEN_USAGE_BUCKETS,
        )
        self._record_content = record_content

    def __call__(self, event: Event) -> None:
        """Take note of one event."""
        match event:
            case CallStarted():
                self._start(event)
            case CallFinished():
                self._finish(event)
            # Not the attempts: a long list has thousands, and a span keeps few events.
            case AttemptRetried() | Throttled() | Hedged() | Split():
                call = self._find(event.call)
                if call is not None and call.span.is_recording():
                    call.span.add_event(*_noted(event))

    def _start(self, event: CallStarted) -> None:
        address, port = _server(event.url)
        common: _Attributes = {
            Names.GEN_AI_OPERATION_NAME: Names.OPERATION,
            Names.GEN_AI_PROVIDER_NAME: Names.PROVIDER,
            Names.GEN_AI_REQUEST_MODEL: event.model,
            Names.SERVER_ADDRESS: address,
            Names.SERVER_PORT: port,
        }
        call = _Call(self, event.call, common, is_stream=event.documents is None)
        call.enter()
        attributes = common.copy()
        if event.documents is not None:
            attributes[Names.GEN_AI_RERANK_CANDIDATE_COUNT] = event.documents
        if event.top_n is not None:
            attributes[Names.GEN_AI_RERANK_TOP_N] = event.top_n
        if self._record_content:
            attributes[Names.GEN_AI_RERANK_QUERY_TEXT] = event.query
        # Last: should the provider raise, the call is known all the same, and will be measured.
        call.span = self._tracer.start_span(
            f"{Names.OPERATION} {event.model}", kind=trace.SpanKind.CLIENT, attributes=attributes
        )
        call.attached = context.attach(trace.set_span_in_context(call.span))

    def _finish(self, event: CallFinished) -> None:
        call = self._find(event.call)
        if call is None:
            return
        # From the last line to the first, each of them whatever the others raise. A measurement
        # names the span that is current as its example.
        with ExitStack() as steps:
            steps.callback(call.leave)
            steps.callback(call.span.end)
            steps.callback(self._measure, call, event)
            steps.callback(self._describe, call, event)

    def _describe(self, call: _Call, event: CallFinished) -> None:
        """Say in the span how the call ended."""
        if not call.span.is_recording():
            return
        attributes: _Attributes = {}
        if call.is_stream:
            attributes[Names.GEN_AI_RERANK_CANDIDATE_COUNT] = event.documents
        if event.model is not None:
            attributes[Names.GEN_AI_RESPONSE_MODEL] = event.model[:_LONGEST_MODEL]
        if event.tokens is not None:
            attributes[Names.GEN_AI_USAGE_INPUT_TOKENS] = event.tokens
        if event.missing:
            attributes[Names.MISSING] = event.missing
        if event.retries:
            attributes[Names.HTTP_RESEND_COUNT] = event.retries
        if event.error is not None:
            attributes[Names.ERROR_TYPE] = _error_type(event.error)
            # The words of an error hold the server's, which may quote a document.
            words = str(event.error) if self._record_content else None
            call.span.set_status(trace.Status(trace.StatusCode.ERROR, words))
        call.span.set_attributes(attributes)

    def _measure(self, call: _Call, event: CallFinished) -> None:
        attributes = call.common.copy()
        if event.model is not None:
            attributes[Names.GEN_AI_RESPONSE_MODEL] = event.model[:_LONGEST_MODEL]
        if event.tokens is not None:
            self._usage.record(
                event.tokens, attributes | {Names.GEN_AI_TOKEN_TYPE: Names.TOKEN_TYPE_INPUT}
            )
        if event.error is not None:
            attributes[Names.ERROR_TYPE] = _error_type(event.error)
        self._duration.record(event.seconds, attributes)

    def _find(self, number: int) -> _Call | None:
        """The call of an event, in whose context the event comes."""
        call = _innermost.get()
        while call is not None and (call.owner is not self or call.number != number):
            call = call.outer
        return call


class _Call:
    """A call under way, and what has to be undone at its end.

    Args:
        owner: the object whose call it is.
        number: the call's number, as its events carry it.
        common: the attributes that its span and its measurements share.
        is_stream: whether the number of its documents is not known before its end.

    Attributes:
        outer: the call in whose context it was made, or None.
        over: whether it has ended.
        span: no real one as long as there is none.
        attached: what made the span the current one, or None.
    """

    __slots__ = (
        "_entered",
        "attached",
        "common",
        "is_stream",
        "number",
        "outer",
        "over",
        "owner",
        "span",
    )

    def __init__(
        self, owner: OpenTelemetry, number: int, common: _Attributes, *, is_stream: bool
    ) -> None:
        self.owner = owner
        self.number = number
        self.common = common
        self.is_stream = is_stream
        self.outer: _Call | None = None
        self.over = False
        self.span: trace.Span = trace.INVALID_SPAN
        self.attached: Token[context.Context] | None = None
        self._entered: Token[_Call | None] | None = None

    def enter(self) -> None:
        """Be the innermost call of this context, and of those that its tasks get."""
        self.outer = _innermost.get()
        # A task may outlive the call that it was made in; such calls are not kept for its sake.
        while self.outer is not None and self.outer.over:
            self.outer = self.outer.outer
        self._entered = _innermost.set(self)

    def leave(self) -> None:
        """Give the context back as it was found.

        Two listeners, or two tasks in one context, need not leave in the order that undoes what
        they did: whoever is innermost undoes it for those that have left before.
        """
        self.over = True
        while (call := _innermost.get()) is not None and call.over and call._entered is not None:
            try:
                _innermost.reset(call._entered)
            except ValueError:
                # This context is a copy, and ends with its task.
                return
            call._entered = None
            if call.attached is not None:
                context.detach(call.attached)


_innermost: ContextVar[_Call | None] = ContextVar("rerank_async.otel", default=None)


@lru_cache(maxsize=64)
def _server(url: str) -> tuple[str, int]:
    """The address and the port; nothing else of a URL is anybody's business."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)


def _error_type(error: BaseException) -> str:
    return str(error.status) if isinstance(error, StatusError) else type(error).__name__


def _noted(event: AttemptRetried | Throttled | Hedged | Split) -> tuple[str, _Attributes]:
    """An event of the span: its name and attributes."""
    attributes: _Attributes
    match event:
        case Throttled(status=status, retry_after=hint, gate=gate):
            attributes = {Names.HTTP_STATUS_CODE: status, Names.GATE: gate}
            if hint is not None:
                attributes[Names.RETRY_AFTER] = hint
            return Names.THROTTLED, attributes
        case AttemptRetried(attempt=attempt, delay=delay, error=error):
            name = Names.RETRIED
            attributes = {
                Names.ATTEMPT: attempt,
                Names.DELAY: delay,
                Names.ERROR_TYPE: _error_type(error),
            }
        case Hedged(seconds=seconds):
            name = Names.HEDGED
            attributes = {Names.SECONDS: seconds}
        case Split(pieces=pieces, reason=reason):
            name = Names.SPLIT
            attributes = {Names.PIECES: pieces, Names.REASON: reason}
    attributes |= {Names.START: event.start, Names.DOCUMENTS: event.documents}
    return name, attributes
