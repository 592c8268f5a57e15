"""What a benchmark found, as values, and as the JSON that is kept of it.

The fields here are the format: `SCHEMA` names its version, and what reads a file refuses others.
A field's unit is the end of its name; a figure that could not be had is None, never 0.
A line belongs here when it says what a figure means; how it is got is in `_measure`.
"""

from __future__ import annotations

from os import PathLike
from typing import Literal, TypeAlias

import msgspec
from attrs import field, frozen

from rerank_async._errors import InvalidRequestError
from rerank_async._paths import local_path

__all__ = [
    "SCHEMA",
    "Benchmark",
    "ClientCost",
    "Goodput",
    "Interval",
    "Knee",
    "Latency",
    "Level",
    "Limiting",
    "Machine",
    "Target",
    "Workload",
    "read_benchmark",
    "to_json",
]

SCHEMA = "rerank-async/bench/1"

# Who kept the figures from being better: the server; this client; nobody, because no more was
# offered (an open loop below what the server can do).
Limiting: TypeAlias = Literal["server", "client", "load", "unknown"]


@frozen
class Latency:
    """How long requests took, from the intended send to the checked answer, in milliseconds.

    Attributes:
        count: requests that are counted in it.
        mean_ms: arithmetic mean.
        min_ms: the shortest.
        p50_ms: half of them took no longer; so on for the others.
        p90_ms: nine of ten.
        p95_ms: 95 of 100.
        p99_ms: 99 of 100.
        p999_ms: 999 of 1,000; equals the maximum where there were fewer.
        max_ms: the longest.
        buckets: pairs of an upper bound in milliseconds and how many requests took at most as long
            and longer than the bound before; about 20 to a tenfold, empty ones left out.
        hdr: the whole histogram, microseconds with three significant digits, in HdrHistogram's
            compressed V2 encoding.
    """

    count: int
    mean_ms: float
    min_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    buckets: tuple[tuple[float, int], ...]
    hdr: str


@frozen
class Goodput:
    """What was answered in time.

    Attributes:
        percentile: how many of a hundred requests must be in time.
        within_ms: the time.
        requests_per_s: requests that succeeded within it.
        share: of all requests, failed ones included, that did; 0 to 1.
        is_met: whether `share` reaches the percentile.
    """

    percentile: float
    within_ms: float
    requests_per_s: float
    share: float
    is_met: bool


@frozen
class ClientCost:
    """What this client itself took, measured while it sent.

    Attributes:
        cpu_us_per_request: CPU time of its process for a request, encoding and checks included.
        busy: share of the measured time in which its one thread computed; 0 to 1.
        ceiling_requests_per_s: what it could send at most, were it always busy, on this processor.
        loop_lag_p99_ms: how late its event loop woke a probe, 99 of 100 times.
        send_lag_p99_ms: of an open loop, how long after the intended moment requests were sent, 99
            of 100; None of a closed one.
    """

    cpu_us_per_request: float
    busy: float
    ceiling_requests_per_s: float
    loop_lag_p99_ms: float
    send_lag_p99_ms: float | None


@frozen
class Interval:
    """A slice of the measured time; what ended in it.

    Attributes:
        at_s: where it begins, from the beginning of the measured time.
        seconds: how long it is; the last one may be shorter.
        succeeded: requests.
        failed: requests.
        documents: of those that succeeded.
        throttles: answers that said to slow down.
        p50_ms: of those that succeeded; None where none did.
        p99_ms: of those that succeeded; None where none did.
    """

    at_s: float
    seconds: float
    succeeded: int
    failed: int
    documents: int
    throttles: int
    p50_ms: float | None
    p99_ms: float | None


@frozen
class Level:
    """One load that was held for a while, and what came of it; without the warm-up.

    Attributes:
        mode: "closed": as soon as one request ends, the next is sent. "open": requests are sent at
            moments that were fixed before, whatever the server does.
        concurrency: of a closed loop, requests at once; None of an open one.
        rate: of an open loop, requests/s that were intended; None of a closed one.
        duration_s: measured seconds.
        warm_up_s: seconds before them.
        requests: that are counted: succeeded and failed.
        succeeded: with an answer that passed every check.
        failed: without.
        failures: how many failed, by the kind of error.
        attempts: HTTP requests, retries and those that were sent again included.
        resent: requests that were sent again at once because their connection broke before a byte
            of the answer: it had been used before, and may have been dead already. That is no
            retry, but both tries are in the latency.
        retries: failed attempts after which another one was due.
        throttles: answers with 429, 503 or 529.
        requests_per_s: that succeeded.
        documents_per_s: of requests that succeeded.
        tokens_per_s: by the server's usage; None where not every answer reports it.
        documents: of requests that succeeded.
        tokens: as reported; None where not every answer reports them.
        latency: of requests that succeeded, from the intended send; None where none did.
        service: of an open loop, the same requests from the moment they were really sent: what a
            benchmark that waits for the server would have seen; None of a closed one.
        goodput: None where none was asked for.
        client: what this client itself took.
        limited_by: who kept the figures from being better.
        why: the reason for `limited_by`, a sentence for a person.
        timeline: what happened when, in order.
    """

    mode: Literal["closed", "open"]
    concurrency: int | None
    rate: float | None
    duration_s: float
    warm_up_s: float
    requests: int
    succeeded: int
    failed: int
    failures: dict[str, int]
    attempts: int
    resent: int
    retries: int
    throttles: int
    requests_per_s: float
    documents_per_s: float
    tokens_per_s: float | None
    documents: int
    tokens: int | None
    latency: Latency | None
    service: Latency | None
    goodput: Goodput | None
    client: ClientCost
    limited_by: Limiting
    why: str
    timeline: tuple[Interval, ...]

    @property
    def load(self) -> float:
        """The concurrency or the rate, whichever it was."""
        load = self.concurrency if self.rate is None else self.rate
        assert load is not None
        return load


@frozen
class Knee:
    """Where more load stops to pay.

    Attributes:
        level: its place among the levels.
        load: concurrency or requests/s.
        why: how it was found, a sentence for a person.
    """

    level: int
    load: float
    why: str


@frozen
class Machine:
    """What the client ran on.

    Attributes:
        processor: its name.
        cores: that this process may use.
        system: of the machine.
        python: version.
        packages: versions of what matters for speed, by name.
    """

    processor: str
    cores: int
    system: str
    python: str
    packages: dict[str, str]


@frozen
class Target:
    """Who was asked.

    Attributes:
        url: of the requests, without anything secret.
        model: as asked for.
        dialect: how the exchange is spelled.
    """

    url: str
    model: str
    dialect: str


@frozen
class Workload:
    """What was asked.

    Attributes:
        source: "generated", or the name of the file of requests.
        documents: documents in a request, as it was written on the command line.
        document_words: words in a document; the same.
        query_words: words in a query; the same.
        top_n: None asks for all results.
        seed: of everything that is drawn.
        mean_documents: that the requests really had, on average.
        mean_body_bytes: bytes of a request's body, on average.
        digest: of the requests of a file, in hexadecimal; None of those that were made, which the
            words above and the seed say, and of those measured by versions before it was kept.
    """

    source: str
    documents: str | None
    document_words: str | None
    query_words: str | None
    top_n: int | None
    seed: int
    mean_documents: float
    mean_body_bytes: float
    digest: str | None = None


@frozen
class Benchmark:
    """One run of `rerank-async bench`: a load, or several one after another.

    Attributes:
        schema: names this format.
        rerank_async: version of this package.
        started: date and time in UTC, ISO 8601.
        name: for a person, such as in comparisons.
        arrivals: how the requests of an open loop are spread: "constant" or "poisson"; None of a
            closed loop.
        machine: what the client ran on.
        target: who was asked.
        workload: what was asked.
        levels: in order of load.
        knee: None where it was not looked for, or could not be found.
        notes: what one should know before one believes the figures; for a person.
    """

    rerank_async: str
    started: str
    name: str
    arrivals: Literal["constant", "poisson"] | None
    machine: Machine
    target: Target
    workload: Workload
    levels: tuple[Level, ...]
    knee: Knee | None
    notes: tuple[str, ...]
    schema: Literal["rerank-async/bench/1"] = field(default="rerank-async/bench/1", kw_only=True)


def to_json(benchmark: Benchmark) -> bytes:
    """The file that is kept."""
    return msgspec.json.format(msgspec.json.encode(benchmark), indent=2) + b"\n"


def read_benchmark(path: str | PathLike[str]) -> Benchmark:
    """What a file holds that `to_json` wrote.

    Raises:
        InvalidRequestError: it cannot be read, or is not such a file of this version.
    """
    path = local_path("path", path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidRequestError(f"{path}: {error.strerror or error}") from None
    try:
        benchmark = msgspec.json.decode(data, type=Benchmark)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(
            f"{path} is not a benchmark's JSON of the format {SCHEMA}: {error}"
        ) from None
    for number, level in enumerate(benchmark.levels):
        if (level.concurrency is None) is (level.rate is None):
            raise InvalidRequestError(
                f"{path} is not a benchmark's JSON of the format {SCHEMA}: levels[{number}] must "
                "have either a concurrency or a rate"
            )
    return benchmark
