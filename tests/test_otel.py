"""OpenTelemetry: a span and two measurements of every call, and nobody's content in them."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress
from typing import Any

import pytest
from attrs import frozen
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import rerank_async.events
from rerank_async import (
    AuthenticationError,
    ChunkLimits,
    DeadlineExceededError,
    HedgePolicy,
    Reranked,
    RerankRequest,
    RerankSession,
    RetryPolicy,
    ServerError,
    TransportError,
    otel,
)
from rerank_async.events import CallFinished, CallStarted, Throttled
from rerank_async.otel import OpenTelemetry
from rerank_async.testing import HttpResponse, MemoryTransport, scoring
from tests.support import KEY, memory, number_of, numbered, refusal, session_over, until

OPERATION = "gen_ai.operation.name"
COMMON = {
    OPERATION: "rerank",
    "gen_ai.provider.name": "_OTHER",
    "gen_ai.request.model": "m",
    "server.address": "memory.test",
    "server.port": 443,
}


class BrokenError(Exception):
    """What a provider raises here."""


@frozen
class Telemetry:
    """An SDK of its own for one test, and a listener that reports to it."""

    tracers: TracerProvider
    meters: MeterProvider
    exporter: InMemorySpanExporter
    reader: InMemoryMetricReader
    listener: OpenTelemetry

    @property
    def spans(self) -> list[ReadableSpan]:
        """Those that have ended, in that order."""
        return list(self.exporter.get_finished_spans())

    @property
    def span(self) -> ReadableSpan:
        """The only one."""
        (span,) = self.spans
        return span

    def points(self, name: str) -> list[Any]:
        """What a histogram holds: a point for each set of attributes."""
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in ([] if data is None else data.resource_metrics)
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


def telemetry_with(**options: Any) -> Telemetry:
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(), MeterProvider([reader])
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    listener = OpenTelemetry(tracer_provider=tracers, meter_provider=meters, **options)
    return Telemetry(tracers, meters, exporter, reader, listener)


@pytest.fixture
def telemetry(caplog: pytest.LogCaptureFixture) -> Iterator[Telemetry]:
    made = telemetry_with()
    yield made
    # No span is current although it has ended, and there was no context that could not be put back.
    assert trace.get_current_span() is trace.INVALID_SPAN
    for record in caplog.get_records("call"):
        assert not record.name.startswith("opentelemetry"), record.getMessage()
        if record.exc_info is not None:
            assert record.exc_info[0] is BrokenError, record.getMessage()
    made.tracers.shutdown()
    made.meters.shutdown()


def attributes_of(thing: Any) -> dict[str, Any]:
    return dict(thing.attributes or {})


# ── the span ──


async def test_a_call_is_a_client_span(telemetry: Telemetry) -> None:
    async with session_over(memory(), on_event=telemetry.listener) as session:
        await session.rerank("the query", numbered(5), top_n=2)
    span = telemetry.span
    assert (span.name, span.kind, span.parent) == ("rerank m", SpanKind.CLIENT, None)
    assert attributes_of(span) == COMMON | {
        "gen_ai.rerank.candidate.count": 5,
        "gen_ai.rerank.top_n": 2,
        "gen_ai.response.model": "m",
        "gen_ai.usage.input_tokens": 5,
    }
    assert span.status.status_code is StatusCode.UNSET
    assert span.events == ()
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "rerank_async"
    assert span.instrumentation_scope.version == rerank_async.__version__


@pytest.mark.parametrize(
    ("url", "address", "port"),
    [
        ("https://rerank.test:8443/v1", "rerank.test", 8443),
        ("http://127.0.0.1/v1", "127.0.0.1", 80),
        ("http://[::1]:9/a/secret/path", "::1", 9),
    ],
)
async def test_of_the_url_the_address_and_the_port_are_told(
    telemetry: Telemetry, url: str, address: str, port: int
) -> None:
    async with session_over(memory(), url, on_event=telemetry.listener) as session:
        await session.rerank("q", numbered(1))
    told = attributes_of(telemetry.span)
    assert (told["server.address"], told["server.port"]) == (address, port)
    assert "secret" not in repr(told)


async def test_of_a_stream_the_number_of_candidates_is_told_at_its_end(
    telemetry: Telemetry,
) -> None:
    async with session_over(memory(), on_event=telemetry.listener) as session:
        await session.rerank("q", iter(numbered(7)), top_n=1)
    assert attributes_of(telemetry.span)["gen_ai.rerank.candidate.count"] == 7


async def test_what_the_server_does_not_say_is_not_told(telemetry: Telemetry) -> None:
    bare = HttpResponse(200, {}, b'{"data": [{"index": 0, "relevance_score": 0.5}]}')
    async with session_over(memory(script=[bare]), on_event=telemetry.listener) as session:
        await session.rerank("q", numbered(1))
    told = attributes_of(telemetry.span)
    assert not {"gen_ai.usage.input_tokens", "gen_ai.rerank.top_n", "error.type"} & set(told)
    assert telemetry.points("gen_ai.client.token.usage") == []


async def test_the_model_that_answered_is_cut_to_a_length(telemetry: Telemetry) -> None:
    body = b'{"data": [{"index": 0, "relevance_score": 1}], "model": "%s"}' % (b"x" * 5000)
    http = memory(script=[HttpResponse(200, {}, body)])
    async with session_over(http, on_event=telemetry.listener) as session:
        await session.rerank("q", numbered(1))
    (point,) = telemetry.points("gen_ai.client.operation.duration")
    for thing in telemetry.span, point:
        assert attributes_of(thing)["gen_ai.response.model"] == "x" * 256


async def test_a_partial_answer_tells_how_many_are_missing(telemetry: Telemetry) -> None:
    async with session_over(
        memory(script=[None, refusal(503)]),
        chunks=ChunkLimits(2),
        concurrency=1,
        retry=RetryPolicy(attempts=1),
        on_failure="partial",
        on_event=telemetry.listener,
    ) as session:
        await session.rerank("q", numbered(6))
    assert attributes_of(telemetry.span)["rerank_async.missing"] == 2
    assert telemetry.span.status.status_code is StatusCode.UNSET


# ── how it fails ──


@pytest.mark.parametrize(
    ("step", "raised", "told"),
    [
        (refusal(401), AuthenticationError, "401"),
        (refusal(500), ServerError, "500"),
        (TransportError("broken"), TransportError, "TransportError"),
    ],
)
async def test_an_error_is_told_by_its_status_or_its_class_and_not_by_its_words(
    telemetry: Telemetry, step: Any, raised: type[Exception], told: str
) -> None:
    async with session_over(
        memory(script=[step]), retry=RetryPolicy(attempts=1), on_event=telemetry.listener
    ) as session:
        with pytest.raises(raised):
            await session.rerank("q", numbered(1))
    span = telemetry.span
    assert attributes_of(span)["error.type"] == told
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)
    assert span.events == ()
    (point,) = telemetry.points("gen_ai.client.operation.duration")
    assert attributes_of(point) == COMMON | {"error.type": told}


async def test_an_exception_from_the_callers_documents_is_told_by_its_class(
    telemetry: Telemetry,
) -> None:
    def documents() -> Iterator[str]:
        yield "document 1"
        raise KeyError("a private thing")

    async with session_over(memory(), on_event=telemetry.listener) as session:
        with pytest.raises(KeyError):
            await session.rerank("q", documents())
    assert attributes_of(telemetry.span)["error.type"] == "KeyError"
    assert "private" not in telemetry.span.to_json()


async def test_a_deadline_and_a_cancellation_end_the_span_too(telemetry: Telemetry) -> None:
    async with session_over(memory(delay=60.0), on_event=telemetry.listener) as session:
        with pytest.raises(DeadlineExceededError):
            await session.rerank("q", numbered(1), timeout=0.01)
        for documents in numbered(1), numbered(3000):
            call = asyncio.create_task(session.rerank("q", documents))
            await until(lambda: session.statistics().in_flight > 0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
    assert [attributes_of(span)["error.type"] for span in telemetry.spans] == [
        "DeadlineExceededError",
        "CancelledError",
        "CancelledError",
    ]
    assert {span.status.status_code for span in telemetry.spans} == {StatusCode.ERROR}


async def test_a_session_that_is_closed_ends_the_spans_of_its_calls(telemetry: Telemetry) -> None:
    session = session_over(memory(delay=60.0), on_event=telemetry.listener)
    async with session:
        call = asyncio.create_task(session.rerank("q", numbered(1)))
        await until(lambda: session.statistics().in_flight > 0)
    assert (await asyncio.gather(call, return_exceptions=True))[0] is not None
    assert attributes_of(telemetry.span)["error.type"] == "SessionClosedError"


# ── what happens on the way ──


async def test_throttling_and_retries_are_events_of_the_span(telemetry: Telemetry) -> None:
    busy = refusal(429, retry_after_ms="1")
    async with session_over(
        memory(script=[busy, TransportError("broken")]), on_event=telemetry.listener
    ) as session:
        await session.rerank("q", numbered(3))
    span = telemetry.span
    throttled, retried, again = span.events
    assert throttled.name == "rerank_async.throttled"
    assert attributes_of(throttled) == {
        "http.response.status_code": 429,
        "rerank_async.gate": True,
        "rerank_async.retry_after": 0.001,
    }
    assert [event.name for event in (retried, again)] == ["rerank_async.retried"] * 2
    told = attributes_of(retried)
    assert told.pop("rerank_async.delay") >= 0.0
    assert told == {
        "rerank_async.attempt": 1,
        "rerank_async.start": 0,
        "rerank_async.documents": 3,
        "error.type": "429",
    }
    assert attributes_of(again)["error.type"] == "TransportError"
    assert attributes_of(span)["http.request.resend_count"] == 2


async def test_a_chunk_that_is_retried_is_an_event_of_the_calls_span(telemetry: Telemetry) -> None:
    async with session_over(
        memory(script=[None, refusal(500)]),
        chunks=ChunkLimits(2),
        concurrency=1,
        retry=RetryPolicy(base=0.001),
        on_event=telemetry.listener,
    ) as session:
        await session.rerank("q", numbered(6))
    (retried,) = telemetry.span.events
    assert attributes_of(retried)["rerank_async.start"] == 2


async def test_a_split_is_an_event_of_the_span(telemetry: Telemetry) -> None:
    score = scoring(number_of)

    def at_most_two(request: Any) -> HttpResponse:
        if request.body.count(b"document ") > 2:
            return refusal(413, "too large")
        return score(request)

    async with session_over(MemoryTransport(at_most_two), on_event=telemetry.listener) as session:
        await session.rerank("q", numbered(4))
    split = telemetry.span.events[0]
    assert split.name == "rerank_async.split"
    told = attributes_of(split)
    assert told.pop("rerank_async.reason") in {"documents", "bytes", "refused"}
    assert told == {
        "rerank_async.pieces": 2,
        "rerank_async.start": 0,
        "rerank_async.documents": 4,
    }


async def test_a_backup_is_an_event_of_the_span(telemetry: Telemetry) -> None:
    class SlowOnce(MemoryTransport):
        slow = False

        async def exchange(self, *args: Any, **options: Any) -> HttpResponse:
            if self.slow:
                self.slow = False
                await asyncio.sleep(60)
            return await super().exchange(*args, **options)

    http = SlowOnce(scoring(number_of))
    async with session_over(
        http,
        hedge=HedgePolicy(min_samples=10, min_delay=0.01, max_extra=0.9),
        on_event=telemetry.listener,
    ) as session:
        for _ in range(20):
            await session.rerank("q", numbered(1))
        http.slow = True
        await session.rerank("q", numbered(1))
    (hedged,) = telemetry.spans[-1].events
    assert hedged.name == "rerank_async.hedged"
    assert attributes_of(hedged)["rerank_async.documents"] == 1
    assert attributes_of(hedged)["rerank_async.seconds"] > 0.0


# ── the measurements ──


async def test_a_call_is_measured(telemetry: Telemetry) -> None:
    async with session_over(memory(), on_event=telemetry.listener) as session:
        for count in 5, 300:
            await session.rerank("q", numbered(count))
    answered = COMMON | {"gen_ai.response.model": "m"}
    (duration,) = telemetry.points("gen_ai.client.operation.duration")
    assert attributes_of(duration) == answered
    assert duration.count == 2
    assert 0.0 < duration.sum < 60.0
    assert list(duration.explicit_bounds) == [
        *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64),
        *(1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
    ]
    (usage,) = telemetry.points("gen_ai.client.token.usage")
    assert attributes_of(usage) == answered | {"gen_ai.token.type": "input"}
    assert (usage.count, usage.sum) == (2, 305)
    assert list(usage.explicit_bounds) == [
        *(1, 4, 16, 64, 256, 1024, 4096, 16384, 65536),
        *(262144, 1048576, 4194304, 16777216, 67108864),
    ]


async def test_a_measurement_names_the_span_as_its_example(telemetry: Telemetry) -> None:
    async with session_over(memory(), on_event=telemetry.listener) as session:
        await session.rerank("q", numbered(1))
    (point,) = telemetry.points("gen_ai.client.operation.duration")
    span = telemetry.span.get_span_context()
    assert span is not None
    assert [example.span_id for example in point.exemplars] == [span.span_id]


# ── the current span ──


class Tracing(MemoryTransport):
    """Makes a span of each exchange, as an instrumented HTTP client does."""

    def __init__(self, tracers: TracerProvider, **options: Any) -> None:
        super().__init__(scoring(number_of), **options)
        self.tracer = tracers.get_tracer("http")

    async def exchange(self, *args: Any, **options: Any) -> HttpResponse:
        with self.tracer.start_as_current_span("POST"):
            return await super().exchange(*args, **options)


def family(spans: list[ReadableSpan]) -> dict[int, list[ReadableSpan]]:
    """The spans by the id of their parent."""
    children: dict[int, list[ReadableSpan]] = {}
    for span in spans:
        if span.parent is not None:
            children.setdefault(span.parent.span_id, []).append(span)
    return children


def id_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


async def test_the_span_is_the_parent_of_its_requests_and_the_child_of_its_caller(
    telemetry: Telemetry,
) -> None:
    http = Tracing(telemetry.tracers)
    async with session_over(http, chunks=ChunkLimits(2), on_event=telemetry.listener) as session:
        with telemetry.tracers.get_tracer("app").start_as_current_span("search") as search:
            await session.rerank("q", numbered(6))
            assert trace.get_current_span() is search
            await session.rerank("q", numbered(1))
            assert trace.get_current_span() is search
    children = family(telemetry.spans)
    first, second = children[search.get_span_context().span_id]
    assert (first.name, second.name) == ("rerank m", "rerank m")
    assert [span.name for span in children[id_of(first)]] == ["POST"] * 3
    assert [span.name for span in children[id_of(second)]] == ["POST"]


async def test_sessions_may_share_one_listener_though_their_calls_have_the_same_numbers(
    telemetry: Telemetry,
) -> None:
    models = ["a", "b", "c"]
    script = [None, refusal(500), None, TransportError("broken")] * 10

    async def rank(model: str) -> None:
        async with session_over(
            Tracing(telemetry.tracers, delay=0.001, script=script),
            f"https://{model}.test/v1",
            model=model,
            chunks=ChunkLimits(3),
            retry=RetryPolicy(attempts=10, base=0.001),
            on_event=telemetry.listener,
        ) as session:
            requests = [RerankRequest("q", numbered(count)) for count in range(1, 31)]
            async with aclosing(session.rerank_many(requests)) as outcomes:
                assert [type(outcome) async for outcome in outcomes] == [Reranked] * 30

    await asyncio.gather(*map(rank, models))
    calls = [span for span in telemetry.spans if span.name.startswith("rerank ")]
    children = family(telemetry.spans)
    assert len(calls) == 90
    for span in calls:
        told, model = attributes_of(span), span.name.removeprefix("rerank ")
        documents = told["gen_ai.rerank.candidate.count"]
        assert told["gen_ai.usage.input_tokens"] == documents
        assert told["server.address"] == f"{model}.test"
        assert told["gen_ai.response.model"] == model
        resent = told.get("http.request.resend_count", 0)
        assert [event.name for event in span.events] == ["rerank_async.retried"] * resent
        # A request for each chunk of three, and for each one that was resent.
        assert len(children[id_of(span)]) == -(-documents // 3) + resent


async def test_a_call_within_a_call_is_its_child_though_it_has_the_same_number(
    telemetry: Telemetry,
) -> None:
    outer = session_over(memory(), model="outer", on_event=telemetry.listener)
    inner = session_over(
        memory(script=[refusal(500)]),
        model="inner",
        retry=RetryPolicy(base=0.001),
        on_event=telemetry.listener,
    )

    async def documents() -> AsyncGenerator[str, None]:
        yield "document 1"
        await inner.rerank("q", numbered(2))
        yield "document 2"

    async with outer, inner:
        await outer.rerank("q", documents())
    first, second = telemetry.spans
    assert [(span.name, len(span.events)) for span in (first, second)] == [
        ("rerank inner", 1),
        ("rerank outer", 0),
    ]
    assert first.parent is not None
    assert first.parent.span_id == id_of(second)


async def test_a_task_that_outlives_the_call_it_was_made_in_makes_calls_of_its_own(
    telemetry: Telemetry,
) -> None:
    started: list[asyncio.Task[Any]] = []
    over = asyncio.Event()

    async def later(session: RerankSession, rounds: int) -> None:
        await over.wait()
        before = trace.get_current_span()
        for _ in range(rounds):
            await session.rerank("q", numbered(1), model="later")
            assert trace.get_current_span() is before

    async def documents(session: RerankSession) -> AsyncGenerator[str, None]:
        yield "document 1"
        started.append(asyncio.create_task(later(session, 3)))

    async with session_over(memory(), on_event=telemetry.listener) as session:
        await session.rerank("q", documents(session))
        over.set()
        await started[0]
    assert [span.name for span in telemetry.spans] == ["rerank m"] + ["rerank later"] * 3
    assert all(span.end_time is not None for span in telemetry.spans)


async def test_several_listeners_in_one_session_leave_the_context_as_it_was(
    telemetry: Telemetry,
) -> None:
    other = telemetry_with()
    async with session_over(
        memory(), on_event=[telemetry.listener, other.listener, telemetry.listener]
    ) as session:
        for _ in range(3):
            await session.rerank("q", numbered(1))
            assert trace.get_current_span() is trace.INVALID_SPAN
    assert (len(telemetry.spans), len(other.spans)) == (6, 3)


async def test_tasks_in_one_context_are_told_apart_and_leave_it_as_it_was(
    telemetry: Telemetry,
) -> None:
    loop, shared = asyncio.get_running_loop(), contextvars.copy_context()
    other = telemetry_with()

    async def call(session: RerankSession, count: int, delay: float) -> None:
        async def documents() -> AsyncGenerator[str, None]:
            for document in numbered(count):
                yield document
            await asyncio.sleep(delay)

        await session.rerank("q", documents(), model=f"m{count}")

    async with (
        session_over(memory(), on_event=telemetry.listener) as one,
        session_over(memory(), on_event=other.listener) as two,
    ):
        await asyncio.gather(
            *(
                loop.create_task(call(session, count, delay), context=shared)
                for session, count, delay in [
                    (one, 1, 0.03),
                    (two, 2, 0.02),
                    (one, 3, 0.01),
                    (two, 4, 0.04),
                    (one, 5, 0.0),
                ]
            )
        )
    assert [span.name for span in telemetry.spans] == ["rerank m5", "rerank m3", "rerank m1"]
    assert [span.name for span in other.spans] == ["rerank m2", "rerank m4"]
    for span in telemetry.spans + other.spans:
        told = attributes_of(span)["gen_ai.rerank.candidate.count"]
        assert span.name == f"rerank m{told}"
    assert shared.run(trace.get_current_span) is trace.INVALID_SPAN


async def test_each_span_ends_even_where_calls_cannot_be_told_apart(telemetry: Telemetry) -> None:
    def both() -> None:
        for _ in range(2):
            telemetry.listener(CallStarted(1, "m", "q", 1, None, "https://a.test"))
        for _ in range(2):
            telemetry.listener(CallFinished(1, 0.1, None, "m", 1, 0, None, 0))
        assert trace.get_current_span() is trace.INVALID_SPAN

    contextvars.Context().run(both)
    assert len(telemetry.spans) == 2


async def test_a_call_that_is_over_is_not_kept_by_those_made_in_its_tasks(
    telemetry: Telemetry,
) -> None:
    started = CallStarted(1, "m", "q", 1, None, "https://a.test")
    finished = CallFinished(1, 0.1, None, "m", 1, 0, None, 0)
    context = contextvars.copy_context()
    for _ in range(5):
        context.run(telemetry.listener, started)
        task = context.copy()
        context.run(telemetry.listener, finished)
        context = task
    innermost = context[otel._innermost]
    assert innermost is not None
    assert innermost.outer is None


async def test_a_call_that_ends_in_a_foreign_context_touches_nothing_there(
    telemetry: Telemetry,
) -> None:
    emit = telemetry.listener
    for where in contextvars.Context(), contextvars.copy_context():
        contextvars.copy_context().run(emit, CallStarted(1, "m", "q", 1, None, "https://a.test"))
        where.run(emit, CallFinished(1, 0.1, GeneratorExit(), None, 1, 0, None, 0))

    # As when a call is made and what it was made in is copied before its end.
    def copied() -> None:
        emit(CallStarted(1, "m", "q", 1, None, "https://a.test"))
        current = trace.get_current_span()
        contextvars.copy_context().run(
            emit, CallFinished(1, 0.1, GeneratorExit(), None, 1, 0, None, 0)
        )
        assert trace.get_current_span() is current

    contextvars.Context().run(copied)
    assert len(telemetry.spans) == 1


async def test_events_without_a_call_are_nobodys(telemetry: Telemetry) -> None:
    telemetry.listener(Throttled(7, 503, None, False))
    telemetry.listener(rerank_async.events.LimitChanged(0, 16, 8, "overload"))
    assert telemetry.spans == []


async def test_calls_that_are_over_are_not_kept(telemetry: Telemetry) -> None:
    async with session_over(memory(), on_event=telemetry.listener) as session:
        await asyncio.gather(*(session.rerank("q", numbered(2)) for _ in range(20)))
    gc.collect()
    kept = [thing for thing in gc.get_referrers(telemetry.listener) if hasattr(thing, "over")]
    assert kept == []


# ── content ──


def everything_of(telemetry: Telemetry) -> str:
    """All that would leave the process, as text."""
    data = telemetry.reader.get_metrics_data()
    return "".join(span.to_json() for span in telemetry.spans) + (
        "" if data is None else data.to_json()
    )


async def calls_that_quote(listener: OpenTelemetry) -> None:
    """Calls whose answers quote the key and a document wherever there is room for it."""
    words = f"bad key {KEY} for SECRET-DOCUMENT and SECRET-QUERY"
    documents = ["SECRET-DOCUMENT 1", "SECRET-DOCUMENT 2"]
    quoting = HttpResponse(
        200,
        {},
        b'{"data": [{"index": 0, "relevance_score": 1, "document": "SECRET-DOCUMENT"},'
        b'{"index": 1, "relevance_score": 0}], "model": "%s"}' % KEY.encode(),
    )
    for step in (
        refusal(401, words),
        refusal(429, words, retry_after_ms="1", x_request_id=words),
        refusal(422, words),
        refusal(500, words),
        TransportError(words.replace(KEY, "")),
        quoting,
    ):
        async with session_over(
            memory(script=[step]), retry=RetryPolicy(attempts=2, base=0.001), on_event=listener
        ) as session:
            with suppress(rerank_async.RerankError):
                await session.rerank("SECRET-QUERY", documents, return_documents=True)


async def test_content_is_not_recorded(telemetry: Telemetry) -> None:
    await calls_that_quote(telemetry.listener)
    text = everything_of(telemetry)
    assert len(telemetry.spans) == 6
    assert "rerank_async.retried" in text
    assert KEY not in text
    assert "SECRET" not in text


async def test_content_is_recorded_when_asked_for_and_still_no_key() -> None:
    telemetry = telemetry_with(record_content=True)
    await calls_that_quote(telemetry.listener)
    text = everything_of(telemetry)
    assert KEY not in text
    assert {attributes_of(s)["gen_ai.rerank.query.text"] for s in telemetry.spans} == {
        "SECRET-QUERY"
    }
    description = telemetry.spans[0].status.description
    assert description is not None
    assert description.startswith("the server answered 401: bad key [API key] for")


# ── what a provider may do ──


def breaks(*args: Any, **options: Any) -> Any:
    raise BrokenError


@pytest.mark.parametrize(
    "name", ["set_attributes", "set_status", "add_event", "end", "is_recording"]
)
async def test_a_span_that_raises_breaks_nothing_and_is_ended(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    kind = type(telemetry.tracers.get_tracer("t").start_span("s"))
    ended: list[str] = []
    real = kind.end

    def end(span: Any) -> None:
        ended.append(span.name)
        real(span)

    monkeypatch.setattr(kind, "end", end)
    monkeypatch.setattr(kind, name, breaks)
    async with session_over(
        memory(script=[refusal(500), refusal(401)]),
        retry=RetryPolicy(base=0.001),
        on_event=telemetry.listener,
    ) as session:
        with pytest.raises(AuthenticationError):
            await session.rerank("q", numbered(1))
        assert trace.get_current_span() is trace.INVALID_SPAN
        assert session.statistics().listener_errors >= 1
        await session.rerank("q", numbered(1))
    assert ended == ([] if name == "end" else ["rerank m"] * 2)
    failed, answered = telemetry.points("gen_ai.client.operation.duration")
    assert (failed.count, answered.count) == (1, 1)


async def test_a_tracer_that_raises_breaks_nothing_and_calls_are_measured(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(telemetry.tracers.get_tracer("t"))
    outer = session_over(memory(), model="outer", on_event=telemetry.listener)
    inner = session_over(memory(), model="inner", on_event=telemetry.listener)

    async def documents() -> AsyncGenerator[str, None]:
        with monkeypatch.context() as patch:
            patch.setattr(kind, "start_span", breaks)
            # Its events must not be taken for those of the call around it.
            await inner.rerank("q", numbered(2))
        yield "document 1"

    async with outer, inner:
        await outer.rerank("q", documents())
        assert inner.statistics().listener_errors == 1
    assert telemetry.span.name == "rerank outer"
    assert attributes_of(telemetry.span)["gen_ai.usage.input_tokens"] == 1
    points = telemetry.points("gen_ai.client.operation.duration")
    assert {attributes_of(point)["gen_ai.request.model"] for point in points} == {"outer", "inner"}


async def test_a_histogram_that_raises_breaks_nothing_and_the_span_is_ended(
    telemetry: Telemetry,
) -> None:
    class Breaking(MeterProvider):
        def get_meter(self, *args: Any, **options: Any) -> Any:
            meter = super().get_meter(*args, **options)
            make = meter.create_histogram

            def create(*args: Any, **options: Any) -> Any:
                histogram = make(*args, **options)
                histogram.record = breaks  # type: ignore[method-assign]
                return histogram

            meter.create_histogram = create  # type: ignore[method-assign]
            return meter

    listener = OpenTelemetry(tracer_provider=telemetry.tracers, meter_provider=Breaking())
    async with session_over(memory(), on_event=listener) as session:
        await session.rerank("q", numbered(1))
        assert session.statistics().listener_errors == 1
    assert attributes_of(telemetry.span)["gen_ai.usage.input_tokens"] == 1


async def test_without_an_sdk_nothing_happens(caplog: pytest.LogCaptureFixture) -> None:
    async with session_over(memory(), on_event=OpenTelemetry()) as session:
        await session.rerank("q", numbered(3))
        assert session.statistics().listener_errors == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_span_that_is_not_sampled_costs_no_attributes() -> None:
    exporter = InMemorySpanExporter()
    tracers = TracerProvider(sampler=trace_off())
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    async with session_over(
        memory(script=[refusal(500)]),
        retry=RetryPolicy(base=0.001),
        on_event=OpenTelemetry(tracer_provider=tracers),
    ) as session:
        await session.rerank("q", numbered(3))
        assert session.statistics().listener_errors == 0
    assert exporter.get_finished_spans() == ()


def trace_off() -> Any:
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    return ALWAYS_OFF


# ── the modules ──


def test_the_package_does_not_import_opentelemetry() -> None:
    check = "import sys, rerank_async; sys.exit(any('opentelemetry' in m for m in sys.modules))"
    subprocess.run([sys.executable, "-c", check], check=True)


@pytest.mark.parametrize("missing", ["opentelemetry", "opentelemetry.trace"])
def test_without_the_extra_one_line_names_it(missing: str) -> None:
    run = f"import sys; sys.modules[{missing!r}] = None\nimport rerank_async.otel"
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == (
        'ImportError: rerank_async.otel needs opentelemetry-api: pip install "rerank-async[otel]"'
    )
    assert "During handling" not in done.stderr


def test_a_fault_within_opentelemetry_is_not_taken_for_a_missing_extra() -> None:
    run = "import sys; sys.modules['typing_extensions'] = None\nimport rerank_async.otel"
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=False)
    assert "typing_extensions" in done.stderr.splitlines()[-1]


def test_every_event_is_public_by_path() -> None:
    assert set(rerank_async.events.__all__) == {"Event"} | {
        kind.__name__ for kind in rerank_async.events.KINDS
    }


def test_no_two_names_are_the_same() -> None:
    names = [value for name, value in vars(otel.Names).items() if name.isupper()]
    assert len(set(names)) == len(names)
