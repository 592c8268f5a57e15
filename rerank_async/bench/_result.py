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
        p50_ms: the time that half of them took at most; so on for the others.
        p90_ms: the time that nine of ten took at most.
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
        percentile: the number of requests out of a hundred that must be in time.
        within_ms: the time.
        requests_per_s: requests that succeeded within it.
        share: the share of all requests, failed ones included, that were in time; 0 to 1.
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
        loop_lag_p99_ms: the time by which its event loop woke a probe late, at most, 99 of 100
            times.
        send_lag_p99_ms: the time from the intended moment to the sending, at most, for 99 of 100
            requests of an open loop; None for a closed one.
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
        at_s: the seconds from the beginning of the measured time to the interval's.
        seconds: the length of the interval; the last one may be shorter.
        succeeded: requests.
        failed: requests.
        documents: the number of documents in the requests that succeeded.
        throttles: answers that said to slow down.
        p50_ms: the latency of the requests that succeeded; None where none did.
        p99_ms: the latency of the requests that succeeded; None where none did.
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
        concurrency: the requests at once of a closed loop; None for an open one.
        rate: the requests/s that were intended in an open loop; None for a closed one.
        duration_s: measured seconds.
        warm_up_s: seconds before them.
        requests: the number of requests that are counted: succeeded and failed.
        succeeded: the number of requests with an answer that passed every check.
        failed: the number of requests without one.
        failures: the number of failed requests, by the kind of error.
        attempts: HTTP requests, retries and those that were sent again included.
        resent: requests that were sent again at once because their connection broke before a byte
            of the answer: it had been used before, and may have been dead already. That is no
            retry, but both tries are in the latency.
        retries: failed attempts after which another one was due.
        throttles: answers with 429, 503 or 529.
        requests_per_s: the rate of requests that succeeded.
        documents_per_s: the rate of documents in requests that succeeded.
        tokens_per_s: the rate of tokens by the server's usage; None where not every answer reports
            it.
        documents: the number of documents in requests that succeeded.
        tokens: the number of tokens that answers reported; None where not every answer reports
            them.
        latency: the latency of requests that succeeded, from the intended send; None where none
            did.
        service: the latency of the same requests from the moment they were really sent, for an open
            loop: what a benchmark that waits for the server would have seen; None for a closed one.
        goodput: None where none was asked for.
        client: what this client itself took.
        limited_by: the part that kept the figures from being better.
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
        level: the place of its level among the levels.
        load: concurrency or requests/s.
        why: the reason for it, a sentence for a person.
    """

    level: int
    load: float
    why: str


@frozen
class Machine:
    """What the client ran on.

    Attributes:
        processor: the name of its processor.
        cores: the number of cores that this process may use.
        system: the name and version of its operating system, and its architecture.
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
        url: the URL of the requests, without anything secret.
        model: the model that was asked for.
        dialect: the name of the dialect that the exchange is spelled in.
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
        seed: the seed of everything that is drawn.
        mean_documents: the documents that a request really had, on average.
        mean_body_bytes: bytes of a request's body, on average.
        digest: the digest of the requests of a file, in hexadecimal; None for those that were made,
            which the words above and the seed say, and for those measured by versions before it was
            kept.
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
        name: the name of the run for a person, such as in comparisons.
        arrivals: the way in which the requests of an open loop are spread: "constant" or "poisson";
            None for a closed loop.
        machine: what the client ran on.
        target: the server and model that were asked.
        workload: what was asked.
        levels: the levels, in order of load.
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
