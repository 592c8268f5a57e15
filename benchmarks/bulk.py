"""What bulk jobs cost, how much memory they take, and what they survive.

kill: the command line is killed (-9) at random moments and run again, two hundred times over, and
the journal of a small job is cut off at every byte and changed at every byte. Whatever happens, the
output is the same to the byte, or an error names the place; nothing acknowledged is sent again.
cost: a job from file to file against `session.rerank_many` over the same requests in memory.
arxiv: a small test collection, reranked by the local server, by human judgements.
memory: ten million documents for one query, and a million requests; a few minutes each.

    python -m benchmarks.bulk [--only kill|cost|arxiv|memory] [--quick] [--rounds 200] [--seed 0]
                              [--profile]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import io
import logging
import multiprocessing
import os
import pstats
import re
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import aclosing, closing
from functools import partial
from itertools import count, repeat
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias, TypeVar, cast
from zlib import crc32

import orjson
from attrs import define, field, frozen

from benchmarks.machine import heading, pinned_pair
from benchmarks.stub import stub_server
from rerank_async import ChunkLimits, Reranked, RerankRequest, RerankSession
from rerank_async.bulk import (
    PATIENT,
    BulkOptions,
    BulkProgress,
    JobDamagedError,
    rerank_file,
    rerank_run,
)
from rerank_async.bulk._entries import (
    Entry,
    entry_of,
    frame,
    payload_of,
    ranking_line,
    unframed,
)
from rerank_async.bulk._index import Index
from rerank_async.bulk._inputs.requests import Requests
from rerank_async.bulk._outputs import write
from rerank_async.bulk._reader import Reader
from rerank_async.bulk._sending import sending_of
from rerank_async.testing import HttpRequest, HttpResponse, MemoryTransport, scoring

T = TypeVar("T")

ARXIV = Path(__file__).parents[2] / "shared" / "data" / "arxiv"


@frozen
class Goal:
    """A figure to reach.

    Attributes:
        text: what is asked.
        measured: what came out, in words.
        reached: whether that is enough.
    """

    text: str
    measured: str
    reached: bool


def show(goals: Iterable[Goal]) -> None:
    for goal in goals:
        print(f"  {'reached' if goal.reached else 'MISSED':8}{goal.text}: {goal.measured}")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop where it is installed, as the command line does."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ModuleNotFoundError):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


@contextlib.contextmanager
def apart() -> Iterator[str]:
    """This process on one processor, the stub on another; yields the stub's origin."""
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    _, server_cpu = pinned_pair()
    try:
        with stub_server(server_cpu) as origin:
            yield origin
    finally:
        if before is not None:
            os.sched_setaffinity(0, before)


# ── kill: a server that remembers who asked for what ──


def score(query: str, document: str) -> float:
    """A score that depends on the two texts alone, and that nobody gets right by chance."""
    return crc32(f"{query}\0{document}".encode()) / 2**32


class Scorer:
    """A server in this process that scores by `score`; every run has a key of its own.

    Attributes:
        url: of the server, once it is started.
        asked: the queries that each run has asked for, in order, by its key.
    """

    def __init__(self) -> None:
        self.url = ""
        self.asked: dict[str, list[str]] = defaultdict(list)
        self._handle = scoring(score)
        self._wanted: dict[str, tuple[int, asyncio.Event]] = {}

    @contextlib.asynccontextmanager
    async def serving(self) -> Any:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0, backlog=256)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        try:
            yield
        finally:
            server.close()

    async def until_asked(self, key: str, count: int) -> None:
        """Wait until a run has asked for so many rows."""
        if len(self.asked[key]) < count:
            came = asyncio.Event()
            self._wanted[key] = count, came
            await came.wait()

    def answer(self, key: str, body: bytes) -> bytes:
        asked = self.asked[key]
        asked.append(orjson.loads(body)["query"])
        if key in self._wanted and len(asked) >= self._wanted[key][0]:
            self._wanted.pop(key)[1].set()
        response = self._handle(HttpRequest("POST", "/v1/rerank", {}, body))
        head = f"HTTP/1.1 {response.status} .\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(response.body)}\r\n\r\n".encode() + response.body


class _Connection(asyncio.Protocol):
    _LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
    _KEY = re.compile(rb"\r\nauthorization: *Bearer ([^\r]+)", re.IGNORECASE)

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._pieces = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._pieces += data
        end = self._pieces.find(b"\r\n\r\n")
        if end < 0:
            return
        length = self._LENGTH.search(self._pieces, 0, end)
        key = self._KEY.search(self._pieces, 0, end)
        assert length is not None
        assert key is not None
        stop = end + 4 + int(length[1])
        if len(self._pieces) >= stop:
            # One request after the other: nobody sends a second before the first is answered.
            body, self._pieces = self._pieces[end + 4 : stop], self._pieces[stop:]
            self._transport.write(self._scorer.answer(key[1].decode(), body))


# ── kill: what is killed, when, and what must be so afterwards ──

# Rows of the job, and documents of each.
ROWS, DOCUMENTS = 2000, 3
PHASES = ("start", "check", "sending", "writing")
# A run that is taken up again is killed with this chance, and a round has so many kills at most.
AGAIN, MOST_KILLS = 0.4, 3
# After a kill while sending a part of the journal's last group is missing, too, with this chance.
TORN = 0.5
# Rounds at the same time.
SIDE_BY_SIDE = 2


def job_rows(count: int, documents: int = DOCUMENTS) -> list[dict[str, Any]]:
    """Requests, of which every tenth has no id, and every fiftieth is the one without before."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        texts = [f"document {(number * 31 + place * 7919) % 9973}" for place in range(documents)]
        row: dict[str, Any] = {"query_id": f"q{number}", "query": f"query {number}"}
        if number % 10 == 7:
            del row["query_id"]
        row["documents"] = texts if number % 3 else [{"doc_id": t[9:], "text": t} for t in texts]
        rows.append(rows[number - 10] if number % 50 == 47 else row)
    return rows


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def lines_of(rows: Iterable[dict[str, Any]], model: str) -> list[dict[str, Any]]:
    """What the output must say, worked out here and not by the package."""
    lines = []
    for row in rows:
        documents = row["documents"]
        texts = [one if isinstance(one, str) else one["text"] for one in documents]
        scores = [score(row["query"], text) for text in texts]
        results = []
        for index in sorted(range(len(texts)), key=scores.__getitem__, reverse=True):
            one = documents[index]
            has_id = isinstance(one, dict)
            result = {"index": index} | ({"doc_id": one["doc_id"]} if has_id else {})
            results.append(result | {"relevance_score": scores[index]})
        line = {"query_id": row.get("query_id"), "results": results, "model": model}
        lines.append(line | {"usage": {"total_tokens": len(texts)}})
    return lines


def read_lines(output: bytes) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in output.splitlines()]


def whole_entries(journal: bytes) -> tuple[set[str], int]:
    """The keys of the entries before the first damage, and how many bytes follow these.

    Read here by the format's description, and not by the package: what has its checksum counts.
    """
    keys, end = set(), 0
    for line in io.BytesIO(journal):
        if line[-1:] != b"\n" or line[8:9] not in b"=+" or line[:8] != b"%08x" % crc32(line[8:-1]):
            break
        end += len(line)
        entry = orjson.loads(line[9:])
        if "key" in entry:
            keys.add(entry["key"])
    return keys, len(journal) - end


def torn(journal: bytes, good: int, dice: Random) -> bytes:
    """The journal as a power failure may leave it: of the last group a part is not there.

    What was there before the run, its first `good` bytes, had reached the disk. A process that is
    killed hardly ever tears a group itself: the system takes it in one piece.
    """
    begins = [begin.start() for begin in re.finditer(rb"^[0-9a-f]{8}=", journal, re.MULTILINE)]
    last = max([good, *begins])
    return journal[: dice.randrange(last, len(journal))]


@frozen
class Clean:
    """An uninterrupted run, by which moments are chosen.

    Attributes:
        start: seconds until the job's directory was the process's own.
        check: seconds from there to the first request.
        sending: seconds from there to the last.
        writing: seconds from there until the output was there.
        journal: bytes of the journal then.
        output: the output.
    """

    start: float
    check: float
    sending: float
    writing: float
    journal: int
    output: bytes

    @property
    def seconds(self) -> float:
        return self.start + self.check + self.sending + self.writing


@define
class Deaths:
    """What became of all rounds.

    Attributes:
        rounds: that came to their end.
        kills: by phase.
        torn: journals that ended in an entry that was not whole.
        made: journals of which a part was cut off, as by a power failure.
        repeated: rows that were sent again, none of which was acknowledged.
        failures: what was not as it must be.
    """

    rounds: int = 0
    kills: Counter[str] = field(factory=Counter)
    torn: int = 0
    made: int = 0
    repeated: int = 0
    failures: list[str] = field(factory=list)


@define
class Killer:
    """Kills runs of one job, each round in a directory of its own.

    Attributes:
        scorer: the server.
        folder: for everything.
        source: the input.
        queries: of every row, by what the journal knows it by.
        clean: what an uninterrupted run is like.
        deaths: what became of the rounds.
    """

    scorer: Scorer
    folder: Path
    source: Path
    queries: dict[str, str]
    clean: Clean | None = None
    deaths: Deaths = field(factory=Deaths)

    def output(self, name: str) -> Path:
        return self.folder / name / "out.jsonl"

    def lock(self, name: str) -> Path:
        return self.folder / name / "out.jsonl.job" / "lock"

    def journal(self, name: str) -> Path:
        return self.folder / name / "out.jsonl.job" / "journal.log"

    async def begin(self, name: str, key: str) -> asyncio.subprocess.Process:
        """Start a run of a round; `key` is what the server knows it by."""
        self.output(name).parent.mkdir(exist_ok=True)
        environment = {**os.environ, "RERANK_API_KEY": key}
        # Modules that are compiled once, wherever they are.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment["PYTHONPYCACHEPREFIX"] = str(self.folder / "compiled")
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "rerank_async", "bulk", self.source, self.output(name)),
            *("--url", self.scorer.url, "--model", "pure", "--concurrency", "16", "--quiet"),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )

    def has_begun(self, name: str, process: asyncio.subprocess.Process) -> bool:
        """Whether the job's directory is the process's own."""
        try:
            return self.lock(name).read_bytes() == b"%d\n" % process.pid
        except FileNotFoundError:
            return False

    async def run_clean(self) -> Clean:
        """Run to the end, twice: the first compiles modules."""
        for name in ("cold", "clean"):
            began = time.perf_counter()
            process = await self.begin(name, name)
            await until(partial(self.has_begun, name, process))
            start = time.perf_counter()
            await self.scorer.until_asked(name, 1)
            check = time.perf_counter()
            await self.scorer.until_asked(name, len(self.queries))
            sent = time.perf_counter()
            await until(self.output(name).exists)
            end = time.perf_counter()
            _, said = await process.communicate()
            if process.returncode:
                raise RuntimeError(f"a run that nobody killed failed: {said.decode()}")
        journal = self.journal("clean").read_bytes()
        assert whole_entries(journal) == (set(self.queries), 0)
        return Clean(
            start - began,
            check - start,
            sent - check,
            end - sent,
            len(journal),
            self.output("clean").read_bytes(),
        )

    async def come(
        self,
        phase: str,
        share: float,
        name: str,
        key: str,
        left: int,
        process: asyncio.subprocess.Process,
    ) -> None:
        """Wait for a moment: so far into a phase of a run that has `left` rows to send."""
        clean = self.clean
        assert clean is not None
        if phase == "start":
            await asyncio.sleep(share * clean.start)
        elif phase == "check":
            await until(partial(self.has_begun, name, process))
            await asyncio.sleep(share * clean.check)
        elif phase == "sending":
            await self.scorer.until_asked(key, 1 + int(share * left))
        else:
            await until(lambda: _size(self.journal(name)) >= clean.journal)
            await asyncio.sleep(share * clean.writing)

    def died_in(
        self, name: str, key: str, process: asyncio.subprocess.Process, before: set[str]
    ) -> str:
        """The phase that a run was in when it was killed, by what it left."""
        if not self.has_begun(name, process):
            return "start"
        output = self.output(name)
        if output.with_name("out.jsonl.new").exists():
            return "writing"
        is_all = len(whole_entries(self.journal_of(name))[0]) == len(self.queries)
        if is_all and len(before) < len(self.queries):
            return "end" if output.exists() else "writing"
        return "sending" if self.scorer.asked[key] else "check"

    def journal_of(self, name: str) -> bytes:
        try:
            return self.journal(name).read_bytes()
        except FileNotFoundError:
            return b""

    async def round(self, number: int, dice: Random) -> None:
        """Start, kill, perhaps again, and run to the end; what is wrong is a failure."""
        assert self.clean is not None
        name, deaths = f"round-{number}", self.deaths
        kept: set[str] = set()
        asked: Counter[str] = Counter()
        keys: list[str] = []
        good = 0

        def wrong(what: str) -> None:
            deaths.failures.append(f"round {number}, run {len(keys)}: {what}")

        phases = [PHASES[number % len(PHASES)]]
        while len(phases) < MOST_KILLS and dice.random() < AGAIN:
            phases.append(dice.choice(PHASES))
        for phase in [*phases, None]:
            key = f"{name}-{len(keys)}"
            keys.append(key)
            process = await self.begin(name, key)
            ended = asyncio.ensure_future(process.communicate())
            if phase is not None:
                left = len(self.queries) - len(kept)
                moment = asyncio.ensure_future(
                    self.come(phase, dice.random(), name, key, left, process)
                )
                await asyncio.wait({ended, moment}, return_when=asyncio.FIRST_COMPLETED)
                moment.cancel()
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            _, said = await ended
            died = ""
            if process.returncode == -9:
                died = self.died_in(name, key, process, kept)
            journal = self.journal_of(name)
            if died == "sending" and len(journal) > good and dice.random() < TORN:
                journal = torn(journal, good, dice)
                self.journal(name).write_bytes(journal)
                deaths.made += 1
            found, tail = whole_entries(journal)
            good = len(journal) - tail
            if not kept <= found:
                wrong(f"{len(kept - found)} acknowledged rows are not in the journal any more")
            again = {self.queries[key] for key in kept} & set(self.scorer.asked[key])
            if again:
                wrong(f"{len(again)} acknowledged rows were sent again")
            if died:
                deaths.kills[died] += 1
                deaths.torn += tail > 0
                kept = found
                continue
            if process.returncode:
                wrong(f"exit code {process.returncode}: {said.decode().strip()}")
            break
        for key in keys:
            once = Counter(self.scorer.asked[key])
            if once and max(once.values()) > 1:
                wrong(f"a row was sent {max(once.values())} times in one run")
            asked += once
        deaths.repeated += asked.total() - len(asked)
        if set(asked) != set(self.queries.values()):
            wrong(f"{len(set(self.queries.values()) - set(asked))} rows were never sent")
        output = self.output(name)
        if not output.exists() or output.read_bytes() != self.clean.output:
            wrong("the output is another")
        else:
            shutil.rmtree(output.parent)
        deaths.rounds += 1

    async def rounds(self, count: int, seed: int) -> None:
        """All rounds, some at the same time."""
        numbers = iter(range(count))
        began = time.perf_counter()

        async def work() -> None:
            for number in numbers:
                await self.round(number, Random(f"{seed} {number}"))
                if self.deaths.rounds % max(10, count // 5) == 0:
                    seconds = time.perf_counter() - began
                    print(f"  … {self.deaths.rounds} rounds in {seconds:.0f} s", flush=True)

        async with asyncio.TaskGroup() as group:
            for _ in range(SIDE_BY_SIDE):
                group.create_task(work())


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that nobody tells: what another process does with its files."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def queries_by_key(source: Path) -> dict[str, str]:
    """The query of every row, by what the journal knows the row by."""
    return {row.key(row.digest()): row.query for row in Requests(source).rows()}


async def kill(folder: Path, rounds: int, seed: int, rows: int = ROWS) -> tuple[Clean, Deaths]:
    """So many rounds of a job of `rows` rows."""
    requests = job_rows(rows)
    source = write_rows(folder / "requests.jsonl", requests)
    scorer = Scorer()
    killer = Killer(scorer, folder, source, queries_by_key(source))
    async with scorer.serving():
        killer.clean = await killer.run_clean()
        assert read_lines(killer.clean.output) == lines_of(requests, "pure")
        await killer.rounds(rounds, seed)
    return killer.clean, killer.deaths


# ── kill: every byte of a journal ──


@define
class Damages:
    """What became of a job whose journal was damaged.

    Attributes:
        cases: that were tried.
        exact: those that ended in the same output.
        located: those that ended in an error that names the damaged entry.
        salvaged: those of `located` that, asked to, ended in the same output.
        sent: rows that were sent again, over all.
        failures: what was not as it must be.
    """

    cases: int = 0
    exact: int = 0
    located: int = 0
    salvaged: int = 0
    sent: int = 0
    failures: list[str] = field(factory=list)


_PLACE = re.compile(r"the entry at byte (\d+) is damaged")


@define
class Breaker:
    """A finished job in memory, whose journal is damaged in one way after the other.

    Attributes:
        folder: for everything.
        source: the input.
        output: what the output must be.
        manifest: the job's.
        journal: the job's, whole.
        queries: as in `Killer`.
    """

    folder: Path
    source: Path
    output: bytes
    manifest: bytes
    journal: bytes
    queries: dict[str, str]

    async def resume(self, journal: bytes, *, salvage: bool = False) -> tuple[bytes, list[str]]:
        """The output of the job with that journal, and what it asked the server for."""
        job, output = self.folder / "damaged.job", self.folder / "damaged.jsonl"
        shutil.rmtree(job, ignore_errors=True)
        output.unlink(missing_ok=True)
        job.mkdir()
        (job / "manifest.json").write_bytes(self.manifest)
        (job / "journal.log").write_bytes(journal)
        transport = MemoryTransport(scoring(score))
        async with session_over(transport) as session:
            await rerank_file(
                session, self.source, output, job=job, options=BulkOptions(salvage=salvage)
            )
        asked = [orjson.loads(request.body)["query"] for request in transport.requests]
        return output.read_bytes(), asked

    async def damage(self, what: str, journal: bytes, done: Damages) -> None:
        """One case; `what` names it."""
        done.cases += 1
        kept, _ = whole_entries(journal)
        try:
            output, asked = await self.resume(journal)
        except JobDamagedError as error:
            self._see(what, journal, error, done)
            output, asked = await self.resume(journal, salvage=True)
            done.salvaged += output == self.output
        else:
            done.exact += output == self.output
        done.sent += len(asked)
        if output != self.output:
            done.failures.append(f"{what}: the output is another")
        if len(set(asked)) < len(asked) or {self.queries[key] for key in kept} & set(asked):
            done.failures.append(f"{what}: a row that is whole in the journal was sent again")

    def _see(self, what: str, journal: bytes, error: JobDamagedError, done: Damages) -> None:
        """The error must name the place where the first damaged line begins."""
        named = _PLACE.search(str(error))
        place = len(journal) - whole_entries(journal)[1]
        if named is not None and int(named[1]) == place:
            done.located += 1
        else:
            done.failures.append(f"{what}: damaged at byte {place}, and the error says: {error}")


def session_over(transport: MemoryTransport) -> RerankSession:
    return RerankSession(
        "https://rerank.test/v1", api_key="none", model="pure", concurrency=1, http=transport
    )


async def small_job(folder: Path, rows: int) -> Breaker:
    """A job whose journal has four groups of entries, and the one that says whose it is."""
    requests = job_rows(rows, 2)
    source = write_rows(folder / "few.jsonl", requests)
    output, queries = folder / "whole.jsonl", queries_by_key(source)
    refused = HttpResponse(401, {}, b"")
    for last in (False, False, False, True):
        # Each run but the last is refused after a quarter, and syncs what it did.
        script = [] if last else [*[None] * (rows // 4), *[refused] * rows]
        async with session_over(MemoryTransport(scoring(score), script=script)) as session:
            await rerank_file(session, source, output)
    job = folder / "whole.jsonl.job"
    assert read_lines(output.read_bytes()) == lines_of(requests, "pure")
    return Breaker(
        folder,
        source,
        output.read_bytes(),
        (job / "manifest.json").read_bytes(),
        (job / "journal.log").read_bytes(),
        queries,
    )


async def break_journals(
    folder: Path, rows: int, seed: int, step: int = 1
) -> tuple[Breaker, Damages, Damages]:
    """Cut a journal off at every byte, and change every byte; or one of every `step`."""
    breaker = await small_job(folder, rows)
    journal, dice = breaker.journal, Random(seed)
    cut, changed = Damages(), Damages()
    for place in range(0, len(journal), step):
        await breaker.damage(f"cut off at byte {place}", journal[:place], cut)
        other = journal[place] ^ (1 << dice.randrange(8))
        flipped = journal[:place] + bytes([other]) + journal[place + 1 :]
        await breaker.damage(f"byte {place} changed to {other:#04x}", flipped, changed)
    return breaker, cut, changed


def do_kill(rounds: int, seed: int, quick: bool) -> list[Goal]:
    print(f"kill: {ROWS:,} rows of {DOCUMENTS} documents, {rounds} rounds, seed {seed}")
    began = time.perf_counter()
    with TemporaryDirectory(prefix="rerank-bulk-") as name:
        clean, deaths = run(kill(Path(name), rounds, seed))
    seconds = time.perf_counter() - began
    print(
        f"  a clean run takes {clean.seconds:.2f} s: start {clean.start:.2f}, check "
        f"{clean.check:.3f}, sending {clean.sending:.2f}, writing {clean.writing:.3f}"
    )
    kills = ", ".join(f"{phase} {deaths.kills[phase]}" for phase in (*PHASES, "end"))
    print(
        f"  {deaths.rounds} rounds in {seconds:.0f} s, {deaths.kills.total()} kills: {kills}; "
        f"{deaths.torn} torn tails ({deaths.made} journals cut off, as by a power failure); "
        f"{deaths.repeated:,} rows sent again"
    )
    for failure in deaths.failures:
        print(f"  FAILED  {failure}")
    # It says of every journal that it mends it.
    logging.getLogger("rerank_async.bulk").setLevel(logging.ERROR)
    began = time.perf_counter()
    with TemporaryDirectory(prefix="rerank-bulk-") as name:
        breaker, cut, changed = run(break_journals(Path(name), 12, seed, 50 if quick else 1))
    groups = len(re.findall(rb"^.{8}=", breaker.journal, re.MULTILINE))
    print(
        f"  a journal of {len(breaker.journal):,} bytes in {groups} groups, damaged in "
        f"{cut.cases + changed.cases:,} ways in {time.perf_counter() - began:.0f} s"
    )
    for title, damages in (("cut off", cut), ("changed", changed)):
        print(
            f"  {title}: {damages.cases:,} cases, {damages.exact:,} exact, {damages.located:,} "
            f"located errors, of which {damages.salvaged:,} exact when salvaged; "
            f"{damages.sent:,} rows sent again"
        )
        for failure in damages.failures[:20]:
            print(f"  FAILED  {failure}")
    bad = len(cut.failures) + len(changed.failures)
    return [
        Goal(
            "killed: exact output, and nothing acknowledged sent again",
            f"{len(deaths.failures)} failures in {deaths.rounds} rounds",
            not deaths.failures,
        ),
        Goal(
            "damaged: exact output, or an error that names the place",
            f"{bad} failures in {cut.cases + changed.cases:,} cases",
            not bad,
        ),
    ]


# ── cost ──

WORKERS = 16
COST_DOCUMENTS = 100
MOST_COST = 0.1
SIDES = ("memory", "file", "unchecked")

Figure: TypeAlias = tuple[float, float]
"""CPU and wall seconds of one request."""


@frozen
class Share:
    """One side's throughput as a share of the reference's: medians of the rounds.

    Attributes:
        wall: by the clock.
        worst: the same, of the worst round.
        cpu: by the processor's time, which is the throughput where nothing else wants it.
    """

    wall: float
    worst: float
    cpu: float


def share(reference: Sequence[Figure], side: Sequence[Figure]) -> Share:
    """Each round of a side against the same round of the reference."""
    cpus = [r[0] / s[0] for r, s in zip(reference, side, strict=True)]
    walls = [r[1] / s[1] for r, s in zip(reference, side, strict=True)]
    return Share(median(walls), min(walls), median(cpus))


def cost_rows(count: int) -> list[dict[str, Any]]:
    """Requests of documents of 200 characters."""
    words = "the quick brown fox jumps over the lazy dog and does so again " * 4
    return [
        {
            "query_id": f"q{row}",
            "query": f"question {row}",
            "documents": [
                f"{row:06d} {place:03d} {words}"[:200] for place in range(COST_DOCUMENTS)
            ],
        }
        for row in range(count)
    ]


async def compare(
    origin: str, folder: Path, source: Path, rounds: int, profile: cProfile.Profile | None
) -> dict[str, list[Figure]]:
    """The figures of each round of each side: from memory, from file to file, and unchecked."""
    requests = [
        RerankRequest(row.query, row.documents, query_id=str(row.query_id))
        for row in Requests(source).rows()
    ]
    figures: dict[str, list[Figure]] = {side: [] for side in SIDES}
    output = folder / "rankings.jsonl"
    async with RerankSession(
        f"{origin}/{COST_DOCUMENTS}/v1",
        api_key="key",
        model="stub",
        concurrency=WORKERS,
        chunks=ChunkLimits(1000),
        timeout=None,
        retry=PATIENT,
    ) as session:

        async def from_memory() -> None:
            async with aclosing(session.rerank_many(requests)) as outcomes:
                async for outcome in outcomes:
                    assert isinstance(outcome, Reranked)

        async def from_file(check_first: bool) -> None:
            options = BulkOptions(check_first=check_first)
            summary = await rerank_file(session, source, output, options=options)
            assert summary.finished
            assert not summary.failed

        sides: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "memory": from_memory,
            "file": lambda: from_file(True),
            "unchecked": lambda: from_file(False),
        }
        for number in range(rounds + 1):
            # Each is first, second and last in turn.
            first = number % len(SIDES)
            for side in (*SIDES[first:], *SIDES[:first]):
                cpu, wall = time.process_time(), time.perf_counter()
                await sides[side]()
                figure = (
                    (time.process_time() - cpu) / len(requests),
                    (time.perf_counter() - wall) / len(requests),
                )
                if number:  # the first round warms up
                    figures[side].append(figure)
                shutil.rmtree(folder / "rankings.jsonl.job", ignore_errors=True)
                output.unlink(missing_ok=True)
        if profile is not None:
            profile.enable()
            await from_file(True)
            profile.disable()
    return figures


def stages(folder: Path, source: Path, repeats: int) -> dict[str, float]:
    """Seconds of one request for each thing that a job does besides, each by itself."""
    took: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        for name, seconds in _stages_once(folder, source):
            took[name].append(seconds)
    return {name: median(seconds) for name, seconds in took.items()}


def _stages_once(folder: Path, source: Path) -> Iterator[tuple[str, float]]:
    rows = list(Requests(source).rows())
    digests = [row.digest() for row in rows]
    keys = [row.key(digest) for row, digest in zip(rows, digests, strict=True)]
    indices = [(place * 7919) % COST_DOCUMENTS for place in range(COST_DOCUMENTS)]
    scores = [round(1.0 - place / (COST_DOCUMENTS + 1), 9) for place in range(COST_DOCUMENTS)]
    lines = [ranking_line(row.query_id, indices, scores, None, "stub", 100) for row in rows]
    framed = [
        frame(payload_of(key, digest, COST_DOCUMENTS, 100, line), begins=False)
        for key, digest, line in zip(keys, digests, lines, strict=True)
    ]
    entries = [entry_of(line[9:-1]) for line in framed]

    async def read_ahead() -> None:
        reader = Reader(Requests(source).rows(), can_block=False)
        async for _ in reader:
            pass
        reader.close()

    def timed(name: str, work: Callable[[], Iterable[object]]) -> tuple[str, float]:
        began = time.perf_counter()
        for _ in work():
            pass
        return name, (time.perf_counter() - began) / len(rows)

    def digested() -> Iterator[str]:
        return (row.key(row.digest()) for row in rows)

    with closing(Index(folder / "stages.sqlite")) as index:
        yield timed("check: read", lambda: Requests(source).rows())
        yield timed("check: digest and key", digested)
        yield timed("check: index", lambda: map(index.row, count(), keys, repeat(0)))
        yield timed("send: read ahead, from thread to loop", lambda: [run(read_ahead())])
        yield timed("send: digest and key", digested)
        yield timed("send: index, begun", lambda: map(index.begin, keys))
        yield timed("send: plan", lambda: (sending_of(row, identical_once=True) for row in rows))
        yield timed(
            "send: ranking as JSON",
            lambda: (
                ranking_line(row.query_id, indices, scores, None, "stub", 100) for row in rows
            ),
        )
        yield timed(
            "send: entry and checksum",
            lambda: (
                frame(payload_of(key, digest, COST_DOCUMENTS, 100, line), begins=False)
                for key, digest, line in zip(keys, digests, lines, strict=True)
            ),
        )
        yield timed("send: index, ended", lambda: map(index.ended, keys, count(), repeat(False)))
        yield timed(
            "journal's thread: write and sync, by 64",
            lambda: _write_groups(folder / "stages.log", framed),
        )
        yield timed("write: offsets", index.offsets)
        yield timed("write: entry, checked", lambda: map(_reopened, framed))
        yield timed(
            "write: output, synced",
            lambda: [write(folder / "stages.jsonl", entries, tag="stub")],
        )


def _reopened(line: bytes) -> Entry:
    found = unframed(line)
    assert found is not None
    return entry_of(found[0])


def _write_groups(path: Path, lines: Sequence[bytes]) -> Iterator[int]:
    with path.open("wb", buffering=0) as file:
        for first in range(0, len(lines), 64):
            yield file.write(b"".join(lines[first : first + 64]))
            os.fdatasync(file.fileno())


def do_cost(rounds: int, quick: bool, with_profile: bool) -> list[Goal]:
    size = 200 if quick else 2000
    rounds = 3 if quick else rounds
    print(
        f"cost: {size:,} requests of {COST_DOCUMENTS} documents of 200 characters, {WORKERS} at "
        f"once, medians of {rounds} interleaved rounds"
    )
    profile = cProfile.Profile() if with_profile else None
    with TemporaryDirectory(prefix="rerank-bulk-") as name, apart() as origin:
        folder = Path(name)
        source = write_rows(folder / "requests.jsonl", cost_rows(size))
        figures = run(compare(origin, folder, source, rounds, profile))
        parts = stages(folder, source, 3 if quick else 5)
    print(
        f"  {'':28} {'docs/s':>9} {'wall us':>9} {'cpu us':>9} {'throughput':>11} {'worst':>7}"
        f" {'by cpu':>7}"
    )
    titles = {
        "memory": "rerank_many, in memory",
        "file": "from file to file",
        "unchecked": "the same, check_first=False",
    }
    shares = {side: share(figures["memory"], figures[side]) for side in SIDES}
    for side, title in titles.items():
        cpu, wall = (median(values) for values in zip(*figures[side], strict=True))
        its = shares[side]
        print(
            f"  {title:28} {COST_DOCUMENTS / wall:9,.0f} {wall * 1e6:9.0f} {cpu * 1e6:9.0f}"
            f" {its.wall:11.1%} {its.worst:7.1%} {its.cpu:7.1%}"
        )
    cpu, wall = (median(values) for values in zip(*figures["memory"], strict=True))
    if wall > 1.2 * cpu:
        print(
            f"  NOISY: the reference had its processor for {cpu / wall:.0%} of the time only; what "
            "counts is by cpu"
        )
    print("  each thing that a job does besides, by itself, in us per request:")
    for title, seconds in parts.items():
        print(f"    {title:46} {seconds * 1e6:7.1f}")
    print(f"    {'together':46} {sum(parts.values()) * 1e6:7.1f}")
    if profile is not None:
        print("  the event loop's thread of one job, by function:")
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)
    least, its = 1.0 - MOST_COST, shares["file"]
    return [
        Goal(
            f"throughput from file to file at least {least:.0%} of that in memory",
            f"{its.wall:.1%}, by cpu {its.cpu:.1%}; unchecked {shares['unchecked'].wall:.1%}, by "
            f"cpu {shares['unchecked'].cpu:.1%}",
            min(its.wall, its.cpu) >= least,
        )
    ]


# ── arxiv ──


async def rerank_arxiv(output: Path) -> tuple[float, float, float]:
    """nDCG@10 before and after, and the seconds between."""
    from rerank_async._cli._evaluation import (
        assess,
        parse_metrics,
        read_judgements,
        read_rankings,
    )
    from rerank_async.server import LocalServer

    metrics = parse_metrics("nDCG@10")
    judgements = read_judgements(ARXIV / "qrels" / "test.tsv")

    def goodness(path: Path) -> float:
        return assess(read_rankings(path, judgements), judgements, metrics).metrics["nDCG@10"]

    began = time.perf_counter()
    async with (
        LocalServer() as server,
        RerankSession(server.url, model="lexical", timeout=None, retry=PATIENT) as session,
    ):
        summary = await rerank_run(session, ARXIV, ARXIV / "first-stage.run", output)
    assert summary.finished
    assert not summary.failed
    seconds = time.perf_counter() - began
    return goodness(ARXIV / "first-stage.run"), goodness(output), seconds


def do_arxiv() -> list[Goal]:
    print("arxiv: 190 queries, 314 abstracts, the local server's lexical scorer")
    if not ARXIV.exists():
        print("  skipped: the test collection is not there")
        return []
    try:
        with TemporaryDirectory(prefix="rerank-bulk-") as name:
            before, after, seconds = run(rerank_arxiv(Path(name) / "reranked.run"))
    except RuntimeError as error:
        print(f"  skipped: {error}")
        return []
    return [
        Goal(
            "nDCG@10 from .351 to at least .45",
            f"from {before:.3f} to {after:.3f}, in {seconds:.1f} s",
            abs(before - 0.351) < 0.001 and after >= 0.45,
        )
    ]


# ── memory ──

MOST_MIB = 200
MOST_GROWTH = 0.1
# Seconds between two looks at a process.
LOOK = 0.1


@frozen
class Sample:
    """One look at a process: when, in which phase, and its resident MiB."""

    time: float
    phase: str
    mib: float


def resident_mib(pid: int, what: str) -> float:
    """`VmRSS` or `VmHWM` of a process, in MiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{what}:\s+(\d+) kB$", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def tenths(samples: Sequence[Sample]) -> tuple[float, float]:
    """The mean of the first tenth of the time of sending, and that of the last."""
    sending = [sample for sample in samples if sample.phase == "sending"]
    began, ended = sending[0].time, sending[-1].time
    tenth = (ended - began) / 10
    return (
        fmean(sample.mib for sample in sending if sample.time <= began + tenth),
        fmean(sample.mib for sample in sending if sample.time >= ended - tenth),
    )


@frozen
class Watched:
    """A job that was watched from outside.

    Attributes:
        samples: of its memory.
        peak: MiB, by the system.
        documents: that it reranked.
        results: in its output.
        seconds: of each phase.
    """

    samples: list[Sample]
    peak: float
    documents: int
    results: int
    seconds: dict[str, float]


def _work(pipe: Connection, url: str, source: Path, output: Path, arguments: Any) -> None:
    """One job, in a process of its own that tells where it is."""

    def tell(progress: BulkProgress) -> None:
        pipe.send((progress.phase, progress.documents, progress.documents_total))

    async def main() -> None:
        async with RerankSession(url, model="stub", timeout=None, retry=PATIENT) as session:
            summary = await rerank_file(session, source, output, **arguments, on_progress=tell)
            assert summary.finished
            assert not summary.failed
            pipe.send(("done", summary.documents, summary.documents))

    run(main())
    # Whoever watches looks once more before this process is gone.
    pipe.recv()


def watch(url: str, source: Path, output: Path, **arguments: Any) -> Watched:
    """Run a job in a process of its own, and look at its memory all the while."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, url, source, output, arguments))
    process.start()
    there.close()
    assert process.pid is not None
    samples: list[Sample] = []
    seconds: dict[str, float] = defaultdict(float)
    phase, documents, told = "start", 0, 0
    began = last = time.perf_counter()
    try:
        while phase != "done":
            if here.poll(LOOK):
                phase, documents, total = here.recv()
                if total and phase == "sending" and documents * 10 >= (told + 1) * total:
                    told = documents * 10 // total
                    print(
                        f"    {told * 10:3} % after {last - began:5.0f} s, "
                        f"{resident_mib(process.pid, 'VmRSS'):.1f} MiB",
                        flush=True,
                    )
            now = time.perf_counter()
            seconds[phase] += now - last
            last = now
            samples.append(Sample(now, phase, resident_mib(process.pid, "VmRSS")))
        peak = resident_mib(process.pid, "VmHWM")
        here.send(None)
    finally:
        here.close()
        process.join()
    with output.open("rb") as file:
        results = sum(line.count(b'"relevance_score":') for line in file)
    return Watched(samples, peak, documents, results, seconds)


def write_corpus(path: Path, count: int) -> Path:
    """So many short documents, each with an id."""
    with path.open("w") as file:
        for first in range(0, count, 10_000):
            file.writelines(
                f'{{"_id":"d{number}","text":"document {number} is short, as most of them are"}}\n'
                for number in range(first, min(first + 10_000, count))
            )
    return path


def write_requests(path: Path, count: int, documents: int) -> Path:
    """So many requests of short documents."""
    with path.open("w") as file:
        for number in range(count):
            texts = ",".join(f'"document {number} {place}"' for place in range(documents))
            file.write(
                f'{{"query_id":"q{number}","query":"question {number}","documents":[{texts}]}}\n'
            )
    return path


def judged(title: str, watched: Watched) -> Iterator[Goal]:
    """Print what was seen of a job's memory, and what was to be reached."""
    first, last = tenths(watched.samples)
    phases = [phase for phase in watched.seconds if phase not in ("start", "done")]
    for phase in phases:
        sizes = [sample.mib for sample in watched.samples if sample.phase == phase]
        print(
            f"    {phase:8} {watched.seconds[phase]:6.1f} s, from {sizes[0]:.1f} to "
            f"{sizes[-1]:.1f} MiB, at most {max(sizes):.1f}"
        )
    sending, all_seconds = watched.seconds["sending"], sum(watched.seconds.values())
    print(
        f"    {watched.documents:,} documents, {watched.documents / sending:,.0f}/s while sending, "
        f"{watched.documents / all_seconds:,.0f}/s over all {all_seconds:.0f} s; "
        f"peak {watched.peak:.1f} MiB, first tenth {first:.1f}, last tenth {last:.1f}"
    )
    yield Goal(
        f"{title}: memory under {MOST_MIB} MiB", f"{watched.peak:.1f} MiB", watched.peak < MOST_MIB
    )
    growth = last / first - 1.0
    yield Goal(
        f"{title}: the last tenth of sending at most {MOST_GROWTH:.0%} above the first",
        f"{growth:+.1%}",
        growth <= MOST_GROWTH,
    )


def do_memory(quick: bool) -> list[Goal]:
    share = 100 if quick else 1
    documents, requests = 10_000_000 // share, 1_000_000 // share
    print("memory: of a job in a process of its own, sampled from outside")
    if not Path("/proc/self/status").exists():
        print("  skipped: this system does not say how much memory a process takes")
        return []
    goals: list[Goal] = []
    with TemporaryDirectory(prefix="rerank-bulk-") as name, apart() as origin:
        print(f"  one query over {documents:,} documents, top_n 1,000")
        source = write_corpus(Path(name) / "corpus.jsonl", documents)
        output = Path(name) / "best.jsonl"
        watched = watch(f"{origin}/1000/v1", source, output, query="a question", top_n=1000)
        assert (watched.documents, watched.results) == (documents, 1000)
        goals += judged("one query", watched)
    with TemporaryDirectory(prefix="rerank-bulk-") as name, apart() as origin:
        print(f"  {requests:,} requests of 20 documents")
        source = write_requests(Path(name) / "requests.jsonl", requests, 20)
        watched = watch(f"{origin}/20/v1", source, Path(name) / "rankings.jsonl")
        assert (watched.documents, watched.results) == (20 * requests, 20 * requests)
        goals += judged("many requests", watched)
    return goals


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["kill", "cost", "arxiv", "memory"], help="one of them")
    parser.add_argument("--quick", action="store_true", help="a hundredth of it")
    parser.add_argument("--rounds", type=int, help="of kill (200) and of cost (9)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of death")
    parser.add_argument("--profile", action="store_true", help="of the client, with the cost")
    options = parser.parse_args()
    quick = options.quick
    figures: dict[str, Callable[[], list[Goal]]] = {
        "kill": lambda: do_kill(options.rounds or (6 if quick else 200), options.seed, quick),
        "cost": lambda: do_cost(options.rounds or 9, quick, options.profile),
        "arxiv": do_arxiv,
        "memory": lambda: do_memory(quick),
    }
    print("Bulk jobs: what they survive, cost and take")
    print(heading("aiohttp", "msgspec", "orjson", "uvloop"))
    for name, do in figures.items():
        if options.only in (None, name):
            print()
            show(do())


if __name__ == "__main__":
    main()
