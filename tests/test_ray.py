"""Ray on this one machine: nodes that are killed, drivers that are killed, and what is left then.

Every process that Ray starts is ended with the cluster.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import pytest

from rerank_async import (
    ChunkLimits,
    Concurrency,
    ConnectError,
    InvalidRequestError,
    RateLimit,
    RateLimitError,
    RetryPolicy,
    ServerError,
    SessionOptions,
)
from rerank_async.batches import BatchReranker
from rerank_async.bulk import InputError, JobChangedError, JobDamagedError, JobError
from rerank_async.server import LocalServer, engines
from rerank_async.server.engines import Engine, Scored
from tests.every_option import EVERY, NAMES, arguments_of_sessions, every
from tests.support import KEY, PACKAGE

# What Ray reads when it is imported or started, in this process and in all that it starts.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

pytest.importorskip("ray.data", reason="needs the extra ray")

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.cluster_utils import Cluster

from rerank_async.ray import rerank_dataset, rerank_parquet
from rerank_async.ray._actors import Hand, Task
from rerank_async.ray._parquet import _ParquetRun
from rerank_async.ray._parts import Counts, File, Input, check_unchanged, input_of, units_of
from rerank_async.ray._places import Place

# Seconds after which what other processes do is taken not to come, on a busy machine too.
PATIENCE = 240.0

pytestmark = [
    # Ray warns of settings of its own that it sets itself.
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*"),
    # Ray leaves the pipes and logs of the processes that it started to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]

STORE = 80 * 2**20


class RecordingEngine:
    """Scores a document by the number in it, and notes the queries; the gate stops it."""

    name = "recording"

    def __init__(self) -> None:
        self.queries: list[str] = []
        self.server: LocalServer | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.stop_after: int | None = None
        self.reached = threading.Event()

    def score(self, query: str, documents: Sequence[str]) -> Scored:
        self.queries.append(query)
        if self.stop_after is not None and len(self.queries) >= self.stop_after:
            self.stop_after = None
            self.gate.clear()
            self.reached.set()
        assert self.gate.wait(80)
        return Scored([float(document.split()[1]) for document in documents], len(documents))

    def pause_after(self, queries: int) -> None:
        """Stop at the end of so many queries, or go on to there."""
        self.reached.clear()
        self.stop_after = queries
        self.gate.set()

    @property
    def waiting(self) -> int:
        """Requests that have come to the server and are not answered."""
        assert self.server is not None
        return self.server._scoring


@contextlib.contextmanager
def serving(engine: RecordingEngine, **options: Any) -> Iterator[str]:
    """A server on a loop and thread of its own: what is tested blocks this one."""
    url: Future[str] = Future()
    stopped = threading.Event()
    patch = pytest.MonkeyPatch()
    before = engine.server

    def make() -> Engine:
        return engine

    known = MappingProxyType({**engines.ENGINES, engine.name: make})
    patch.setattr(engines, "ENGINES", known)

    async def serve() -> None:
        async with LocalServer(engine.name, queue=1000, drain=1.0, **options) as server:
            engine.server = server
            url.set_result(server.url)
            await asyncio.to_thread(stopped.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        yield url.result(timeout=30)
    finally:
        stopped.set()
        thread.join()
        patch.undo()
        engine.server = before


@pytest.fixture(scope="module")
def engine() -> RecordingEngine:
    return RecordingEngine()


@pytest.fixture(scope="module")
def url(engine: RecordingEngine) -> Iterator[str]:
    with serving(engine) as address:
        yield address


@pytest.fixture(autouse=True)
def _it_ends() -> Iterator[None]:
    """Ray swallows the exception by which pytest-timeout ends a test, but lets Ctrl-C through."""
    timer = threading.Timer(310, _thread.interrupt_main)
    timer.start()
    yield
    timer.cancel()


@pytest.fixture(autouse=True)
def _recording_begins(engine: RecordingEngine) -> Iterator[None]:
    engine.queries.clear()
    yield
    engine.stop_after = None
    engine.gate.set()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes of one processor each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(PACKAGE.parent))
        nodes: Any = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1,
                "object_store_memory": STORE,
                "include_dashboard": False,
            },
        )
        try:
            for _ in range(2):
                nodes.add_node(num_cpus=1, object_store_memory=STORE)
            nodes.wait_for_nodes()
            yield nodes
        finally:
            nodes.shutdown()


@pytest.fixture
def connected(cluster: Any) -> Iterator[Any]:
    """The driver of a cluster whose three nodes are all there."""
    while len(cluster.list_all_nodes()) < 3:
        cluster.add_node(num_cpus=1, object_store_memory=STORE)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield cluster
    finally:
        ray.shutdown()


# ── data ──


def documents_of(number: int) -> list[dict[str, Any]]:
    """Three documents, of which the second is best and the first is last."""
    return [
        {"doc_id": f"d{number}-{place}", "text": f"document {(place * 5) % 7 + number % 3}.5"}
        for place in range(3)
    ]


def scores_of(number: int) -> list[float]:
    return [5.5 + number % 3, 3.5 + number % 3, 0.5 + number % 3]


def nested_rows(count: int) -> list[dict[str, Any]]:
    return [
        {"query_id": f"q{number}", "query": f"query {number}", "documents": documents_of(number)}
        for number in range(count)
    ]


def write_nested(folder: Path, count: int, *, files: int = 2, group: int = 100) -> Path:
    folder.mkdir()
    rows = nested_rows(count)
    each = -(-count // files)
    for number in range(files):
        table = pa.Table.from_pylist(rows[number * each : (number + 1) * each])
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=group)
    return folder


def flat_rows(count: int) -> list[dict[str, Any]]:
    """Rows of a query stand as far from each other as they can."""
    return [
        {"query_id": number, "query": f"query {number}", **documents_of(number)[place]}
        for place in range(3)
        for number in range(count)
    ]


def read_output(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder).to_pylist()
    return rows


def assert_all_ranked(rows: list[dict[str, Any]], count: int) -> None:
    """Every row is there once, with the right documents in the right order."""
    assert Counter(row["query_id"] for row in rows) == {f"q{n}": 1 for n in range(count)}
    for row in rows:
        number = int(row["query_id"][1:])
        assert row["error_type"] is None
        assert row["doc_ids"] == [f"d{number}-{place}" for place in (1, 2, 0)]
        assert row["indices"] == [1, 2, 0]
        assert row["relevance_scores"] == scores_of(number)


def files_in(folder: Path) -> dict[str, int]:
    """Every file that readers look at, and when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}


def options(url: str, **more: Any) -> dict[str, Any]:
    common = {"base_url": url, "model": "m", "actors": 2, "concurrency": 8}
    return {**common, **more}


# ── without Ray ──


class TestTheBudget:
    def test_must_have_a_request_for_every_actor(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidRequestError, match="too few for 4 actors"):
            rerank_parquet(tmp_path, tmp_path, model="m", actors=4, concurrency=3)

    @pytest.mark.parametrize(
        ("wrong", "word"),
        [
            ({"actors": 0}, "actors"),
            ({"actors": 1.5}, "actors"),
            ({"concurrency": 0}, "concurrency"),
            ({"rate": 0}, "rate"),
            ({"num_cpus": -1}, "num_cpus"),
            ({"batch_size": 0}, "batch_size"),
            ({"top_n": 0}, "top_n"),
            ({"base_url": "rerank.test"}, "base_url"),
            ({"model": None}, "RERANK_MODEL"),
        ],
    )
    def test_and_other_arguments_are_checked_first(
        self, tmp_path: Path, wrong: dict[str, Any], word: str
    ) -> None:
        given: dict[str, Any] = {"base_url": "https://rerank.test/v1", "model": "m", **wrong}
        with pytest.raises(InvalidRequestError, match=word):
            rerank_parquet(tmp_path, tmp_path / "out", **given)
        assert not (tmp_path / "out").exists()


# What all actors may do together is divided, and not an option of a session.
OF_ACTORS = [name for name in NAMES if name not in ("concurrency", "rate")]


class TestOptions:
    """An argument that is added to the options is in no file that passes them on to actors."""

    @pytest.mark.parametrize("name", OF_ACTORS)
    def test_each_reach_the_sessions_of_actors(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told = every(on_failure="raise", concurrency=None, rate=None)
        sent: list[BatchReranker] = []

        class Dataset:
            def schema(self) -> Any:
                return pa.schema([("query", pa.string()), ("documents", pa.list_(pa.string()))])

            def map_batches(self, kind: Any, **arguments: Any) -> None:
                sent.append(arguments["fn_constructor_args"][0])

        def over(run: _ParquetRun, given: str, output: str) -> None:
            sent.append(run.reranker)

        monkeypatch.setattr(_ParquetRun, "over", over)
        dataset: Any = Dataset()
        rerank_dataset(dataset, options=told, actors=2, concurrency=9, rate=4.0)
        rerank_parquet("in", "out", options=told, actors=2, concurrency=9, rate=4.0)
        seen = arguments_of_sessions(monkeypatch)
        # As an actor gets it.
        cloudpickle: Any = ray.cloudpickle
        for reranker in sent:
            cloudpickle.loads(cloudpickle.dumps(reranker))._make()
        assert [arguments[name] for arguments in seen] == [getattr(told, name)] * 2
        assert {arguments["concurrency"] for arguments in seen} == {Concurrency(4)}
        assert {arguments["rate"] for arguments in seen} == {RateLimit(requests_per_minute=120)}

    @pytest.mark.parametrize("name", ["concurrency", "rate"])
    def test_have_no_share_of_an_actor_in_them(self, name: str) -> None:
        told = SessionOptions("https://rerank.test/v1", model="m", **{name: EVERY[name]})
        with pytest.raises(InvalidRequestError, match="for all actors together"):
            rerank_parquet("in", "out", options=told)

    def test_have_no_argument_of_a_session_beside_them(self) -> None:
        with pytest.raises(InvalidRequestError, match="model stands beside options"):
            rerank_parquet("in", "out", model="m", options=SessionOptions(model="m"))

    def test_that_are_refused_show_no_key(self) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            rerank_parquet("in", "out", base_url="nowhere.test", api_key=KEY)
        frame: TracebackType | None = caught.tb
        while frame is not None:
            if str(PACKAGE) in frame.tb_frame.f_code.co_filename:
                assert KEY not in repr(frame.tb_frame.f_locals)
            frame = frame.tb_next


class TestTheInput:
    @pytest.mark.parametrize(
        ("rows", "words"),
        [
            ([{"query": "q", "documents": ["d"]}], "no column query_id"),
            ([{"query_id": "1", "query": "q"}], "no column text"),
            ([{"query_id": "1", "query": "q", "documents": ["d"]}] * 2, "'1' comes 2 times"),
            ([{"query_id": None, "query": "q", "documents": ["d"]}], "1 rows have no query_id"),
        ],
    )
    def test_must_have_ids_and_columns(
        self, tmp_path: Path, rows: list[dict[str, Any]], words: str
    ) -> None:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
        with pytest.raises(InputError, match=words):
            rerank_parquet(tmp_path / "in.parquet", tmp_path / "out", **options("http://[::1]/v1"))
        assert not (tmp_path / "out").exists()

    def test_must_be_there_and_be_parquet(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no Parquet file"):
            rerank_parquet(tmp_path / "no", tmp_path / "out", **options("http://[::1]/v1"))
        (tmp_path / "in.parquet").write_bytes(b"PAR1 no PAR1")
        with pytest.raises(InputError, match="cannot be read"):
            rerank_parquet(tmp_path / "in.parquet", tmp_path / "out", **options("http://[::1]/v1"))

    def test_must_be_the_same_in_every_run(self, tmp_path: Path) -> None:
        given = write_nested(tmp_path / "in", 4)
        out = tmp_path / "out"
        args = options("http://[::1]/v1", retry=RetryPolicy(attempts=1))
        manifest_of(given, out, args)
        for changed, word in (
            ({"model": "other"}, "model was 'm', now 'other'"),
            ({"base_url": "http://[::1]/v2"}, "the server was"),
            ({"top_n": 2}, "top_n was not given, now 2"),
            ({"batch_size": 7}, "batch_size was 256, now 7"),
            ({"chunks": ChunkLimits(max_documents=9)}, "max_documents was 1000, now 9"),
        ):
            with pytest.raises(JobChangedError, match=word):
                rerank_parquet(given, out, **{**args, **changed})
        pq.write_table(pa.Table.from_pylist(nested_rows(9)[5:]), given / "1.parquet")
        with pytest.raises(JobChangedError, match="the input's number of rows was 4, now 6"):
            rerank_parquet(given, out, **args)

    @pytest.mark.parametrize("keeps_time", [False, True])
    def test_is_another_when_only_its_texts_are(self, tmp_path: Path, keeps_time: bool) -> None:
        given, args = tmp_path / "in.parquet", options("http://[::1]/v1")

        def write(text: str) -> bytes:
            rows = [{"query_id": "1", "query": "q", "documents": [text]}]
            pq.write_table(
                pa.Table.from_pylist(rows), given, compression="none", write_statistics=False
            )
            return Place(str(given)).footer("")

        footer, before = write("one"), given.stat()
        manifest_of(given, tmp_path / "out", args)
        assert write("two") == footer
        if keeps_time:
            os.utime(given, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(JobChangedError, match="the input's content"):
            rerank_parquet(given, tmp_path / "out", **args)

    def test_that_is_changed_while_it_is_read_is_noticed_in_the_end(self, tmp_path: Path) -> None:
        given = input_of(str(write_nested(tmp_path / "in", 4)))
        check_unchanged(given)
        file = min((tmp_path / "in").iterdir())
        before = file.stat()
        with file.open("r+b") as handle:
            handle.write(b"PAR1")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(JobChangedError, match=f"{file.name} was changed while"):
            check_unchanged(given)
        file.unlink()
        with pytest.raises(JobChangedError, match=f"{file.name} was changed while"):
            check_unchanged(given)

    def test_the_output_must_be_the_jobs_own(self, tmp_path: Path) -> None:
        given = write_nested(tmp_path / "in", 4)
        with pytest.raises(JobError, match="holds something else"):
            rerank_parquet(given, given, **options("http://[::1]/v1"))


def manifest_of(given: Path, out: Path, args: dict[str, Any]) -> None:
    """Begin a job, and let it come no further than that."""

    def no_ray(*_: object, **__: object) -> None:
        raise RuntimeError("no further")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "init", no_ray)
        with pytest.raises(RuntimeError, match="no further"):
            rerank_parquet(given, out, **args)


class TestAnOutage:
    """As an actor sees it, without Ray."""

    def hand(self, tmp_path: Path, **policy: Any) -> Hand:
        reranker = BatchReranker(
            "http://127.0.0.1:9/v1", model="m", api_key=KEY, retry=RetryPolicy(**policy)
        )
        return Hand(Task(reranker, str(tmp_path), str(tmp_path), True, 256, 2, False))

    @pytest.mark.parametrize(
        ("policy", "failures", "answered", "stops"),
        [
            # It was waited out: there is no use in another row's patience.
            ({"max_outage": 5.0}, [ConnectError("refused")], 0, True),
            ({"max_outage": 5.0}, [ServerError("down", status=503)], 0, True),
            ({"max_outage": 5.0}, [ConnectError("refused")], 1, False),
            # A row may be the reason.
            ({"max_outage": 5.0}, [ServerError("no", status=500)], 0, False),
            ({"max_outage": 5.0}, [ServerError("no", status=500)] * 8, 0, True),
            ({"attempts": 1}, [ConnectError("refused")], 0, False),
            ({"attempts": 1}, [ConnectError("refused")] * 8, 0, True),
            # A hint that nobody waits for is about all that follows, whoever was answered before.
            (
                {"max_outage": 5.0},
                [RateLimitError("later", status=429, retry_after=7200.0)],
                3,
                True,
            ),
            ({"max_outage": 5.0}, [RateLimitError("later", status=429, retry_after=2.0)], 3, False),
        ],
    )
    def test_ends_the_job_with_the_first_part_that_has_waited_it_out(
        self,
        tmp_path: Path,
        policy: dict[str, Any],
        failures: list[Exception],
        answered: int,
        stops: bool,
    ) -> None:
        stopped, error = self.hand(tmp_path, **policy)._why_stop(failures, answered)
        assert stopped == ("outage" if stops else None)
        assert bool(error) is stops


class TestUnits:
    GIVEN = Input("in", (File("a", (10, 5)), File("b", (7,))), 22, "", True, False)

    def test_hold_every_part_once(self) -> None:
        for actors in (1, 3, 50):
            units = units_of(self.GIVEN, {}, 3, actors, retry_failed=False)
            parts = Counter((unit.file, unit.group, n) for unit in units for n in unit.numbers)
            assert parts == {
                **{(0, 0, n): 1 for n in range(4)},
                **{(0, 1, n): 1 for n in range(2)},
                **{(1, 0, n): 1 for n in range(3)},
            }

    def test_hold_no_part_that_is_done(self) -> None:
        held = {
            "part-00000-00000-000000.parquet": Counts(3),
            "part-00000-00000-000001.parquet": Counts(3, failed=1),
            "part-00000-00001-000000.parquet": Counts(3, failed=1, refused=1),
        }
        for retry_failed, absent in ((False, {0, 1}), (True, {0})):
            units = units_of(self.GIVEN, held, 3, 1, retry_failed=retry_failed)
            first = {n for unit in units if (unit.file, unit.group) == (0, 0) for n in unit.numbers}
            assert first == set(range(4)) - absent
            second = {
                n for unit in units if (unit.file, unit.group) == (0, 1) for n in unit.numbers
            }
            assert second == {0, 1}


class TestAPlace:
    def test_is_replaced_whole_or_not_at_all(self, tmp_path: Path) -> None:
        place = Place(str(tmp_path))
        place.write("a.parquet", b"1")
        place.write("a.parquet", b"2")
        assert place.read("a.parquet") == b"2"
        (tmp_path / "a directory").mkdir()
        with pytest.raises(JobError):
            place.write("a directory", b"3")
        assert place.files() == ["a.parquet"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a directory", "a.parquet"]

    def test_passes_over_what_readers_pass_over(self, tmp_path: Path) -> None:
        for name in ("b/c.parquet", "_b/c.parquet", ".d.parquet", "a.parquet", "e/_f.parquet"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        assert Place(str(tmp_path)).files() == ["a.parquet", "b/c.parquet"]

    def test_may_be_a_uri(self, tmp_path: Path) -> None:
        place = Place(tmp_path.as_uri())
        place.write("a.parquet", b"1")
        assert place.files() == ["a.parquet"]
        assert Place(place.spec).read("a.parquet") == b"1"
        for name in ("nowhere://x", "file://elsewhere/x", str(Path("s3://bucket/x"))):
            with pytest.raises(InvalidRequestError, match=name):
                Place(name)

    @pytest.mark.parametrize(
        ("name", "inside"),
        [
            ("mock://store", "mock://store/a"),
            ("mock:///store/?region=x&b=1", "mock:///store/a?region=x&b=1"),
            ("/data/x", "/data/x/a"),
            ("/data/what?", "/data/what?/a"),
            ("file:///data/x/", "/data/x/a"),
        ],
    )
    def test_has_places_inside(self, name: str, inside: str) -> None:
        assert Place(name).inside("a").spec == inside

    def test_may_be_an_object_store(self) -> None:
        place = Place("mock://store")
        place.make()
        place.write("a.parquet", b"1")
        place.write("a.parquet", b"2")
        assert place.read("a.parquet") == b"2"
        assert place.files() == ["a.parquet"]
        place.remove("a.parquet")
        assert place.read("a.parquet") is None


# ── with Ray ──


class TestADataset:
    def test_comes_out_ranked(self, connected: Any, url: str, engine: RecordingEngine) -> None:
        dataset = ray.data.from_items(nested_rows(60), override_num_blocks=4)
        ranked = rerank_dataset(dataset, **options(url))
        assert not engine.queries
        assert_all_ranked(ranked.take_all(), 60)

    def test_of_flat_rows_is_ranked_by_query_wherever_they_stand(
        self, connected: Any, url: str, engine: RecordingEngine
    ) -> None:
        rows = flat_rows(20)
        rows[0]["text"] = None
        # Two hundred partitions, Ray's default, take as long as all the rest of these tests.
        ray.data.DataContext.get_current().default_hash_shuffle_parallelism = 3
        dataset = ray.data.from_items(rows, override_num_blocks=4)
        found = rerank_dataset(dataset, **options(url, top_n=2)).take_all()
        assert sorted(engine.queries) == sorted(f"query {number}" for number in range(20))
        by_id = {row["doc_id"]: row for row in found}
        assert len(found) == len(by_id) == 60
        for number in range(20):
            ranks = [by_id[f"d{number}-{place}"]["rank"] for place in range(3)]
            assert ranks == [None, 1, 2]
            assert by_id[f"d{number}-1"]["relevance_score"] == scores_of(number)[0]
        assert by_id["d0-0"]["error_type"] == "InvalidRequestError"
        assert by_id["d1-0"]["error_type"] is None


class TestParquet:
    def test_comes_out_ranked_and_a_second_run_sends_nothing(
        self, connected: Any, url: str, engine: RecordingEngine, tmp_path: Path
    ) -> None:
        given = write_nested(tmp_path / "in", 250)
        first = rerank_parquet(given, tmp_path / "out", **options(url, batch_size=30))
        assert (first.finished, first.rows, first.failed, first.resumed) == (True, 250, 0, 0)
        assert (first.sent, first.tokens, first.lost_actors) == (250, 750, 0)
        assert_all_ranked(read_output(tmp_path / "out"), 250)
        written = files_in(tmp_path / "out")
        assert len(written) == 2 * (4 + 1)
        engine.queries.clear()
        second = rerank_parquet(given, tmp_path / "out", **options(url, batch_size=30))
        assert (second.finished, second.sent, second.resumed) == (True, 0, 250)
        assert not engine.queries
        assert files_in(tmp_path / "out") == written

    def test_of_flat_rows_is_grouped_and_its_copies_are_removed(
        self, connected: Any, url: str, engine: RecordingEngine, tmp_path: Path
    ) -> None:
        rows = flat_rows(40)
        rows[5]["text"] = None
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet", row_group_size=50)
        out = tmp_path / "out"
        args = options(url, batch_size=8)
        first = rerank_parquet(tmp_path / "in.parquet", out, **args)
        assert (first.finished, first.rows, first.rows_total) == (True, 120, 120)
        assert (first.failed, first.sent) == (1, 40)
        assert list((out / "_grouped").glob("*.parquet"))
        found = read_output(out)
        assert set(found[0]) == {
            "query_id",
            "doc_id",
            "relevance_score",
            "rank",
            "error_type",
            "error_message",
        }
        by_id = {row["doc_id"]: row for row in found}
        assert len(found) == len(by_id) == 120
        for number in range(40):
            if number != 5:
                assert [by_id[f"d{number}-{p}"]["rank"] for p in range(3)] == [3, 1, 2]
        assert by_id["d5-0"]["error_type"] == "InvalidRequestError"
        engine.queries.clear()
        again = rerank_parquet(tmp_path / "in.parquet", out, **args, retry_failed=True)
        assert engine.queries == ["query 5"]
        assert (again.finished, again.failed, again.sent, again.resumed) == (True, 1, 1, 117)
        assert len(read_output(out)) == 120

    def test_whose_rows_failed_is_done_again_only_on_demand(
        self, connected: Any, url: str, engine: RecordingEngine, tmp_path: Path
    ) -> None:
        rows = nested_rows(40)
        for number in (3, 33):
            rows[number]["documents"] = [{"doc_id": "x", "text": "no number"}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
        args = options(url, batch_size=10, retry=RetryPolicy(attempts=1))
        out = tmp_path / "out"
        first = rerank_parquet(tmp_path / "in.parquet", out, **args)
        assert (first.finished, first.failed, first.stopped) == (True, 2, None)
        errors = {row["query_id"]: row["error_type"] for row in read_output(out)}
        assert {name for name, kind in errors.items() if kind} == {"q3", "q33"}
        engine.queries.clear()
        assert rerank_parquet(tmp_path / "in.parquet", out, **args).failed == 2
        assert not engine.queries
        again = rerank_parquet(tmp_path / "in.parquet", out, **args, retry_failed=True)
        assert sorted(engine.queries) == ["query 3", "query 33"]
        assert (again.sent, again.resumed, again.rows) == (2, 38, 40)
        assert len(read_output(out)) == 40

    def test_with_a_refused_key_is_not_done_and_a_run_with_the_right_one_does_it(
        self, connected: Any, engine: RecordingEngine, tmp_path: Path
    ) -> None:
        given = write_nested(tmp_path / "in", 100)
        out = tmp_path / "out"
        with serving(engine, api_key=KEY) as guarded:
            args = options(guarded, batch_size=10)
            refused = rerank_parquet(given, out, **args, api_key="sk-wrong")
            assert (refused.finished, refused.stopped, refused.rows) == (False, "refused", 0)
            assert refused.error is not None
            assert "AuthenticationError" in refused.error
            assert not files_in(out)
            done = rerank_parquet(given, out, **args, api_key=KEY)
        assert (done.finished, done.stopped, done.failed) == (True, None, 0)
        assert_all_ranked(read_output(out), 100)
        for path in out.rglob("*"):
            assert path.is_dir() or KEY.encode() not in path.read_bytes()

    def test_without_a_server_stops_instead_of_writing_errors(
        self, connected: Any, tmp_path: Path
    ) -> None:
        given = write_nested(tmp_path / "in", 100)
        # Port 9 discards, where anybody listens at all.
        args = options("http://127.0.0.1:9/v1", batch_size=10, retry=RetryPolicy(attempts=1))
        ended = rerank_parquet(given, tmp_path / "out", **args)
        assert (ended.finished, ended.stopped, ended.rows) == (False, "outage", 0)
        assert ended.error is not None
        assert ended.error.startswith("ConnectError")

    def test_a_damaged_part_is_named(self, connected: Any, url: str, tmp_path: Path) -> None:
        given = write_nested(tmp_path / "in", 20)
        rerank_parquet(given, tmp_path / "out", **options(url))
        part = next((tmp_path / "out").glob("*.parquet"))
        part.write_bytes(part.read_bytes()[:50])
        with pytest.raises(JobDamagedError, match=part.name):
            rerank_parquet(given, tmp_path / "out", **options(url))

    def test_a_key_that_no_actor_has_is_said_in_so_many_words(
        self, connected: Any, tmp_path: Path
    ) -> None:
        given = write_nested(tmp_path / "in", 20)
        args = options("https://api.3xcoder.com/v1")
        with pytest.raises(InvalidRequestError, match="asks for one"):
            rerank_parquet(given, tmp_path / "out", **args)


class TestANodeThatIsKilled:
    def test_in_the_middle_costs_a_few_requests_and_no_row(
        self, connected: Any, url: str, engine: RecordingEngine, tmp_path: Path
    ) -> None:
        given = write_nested(tmp_path / "in", 600)
        args = options(url, actors=3, concurrency=12, num_cpus=1, batch_size=20)
        killer = killing(connected, engine, in_flight=12)
        summary = rerank_parquet(given, tmp_path / "out", **args)
        killer.join()
        assert summary.finished
        assert 1 <= summary.lost_actors <= 2
        assert_all_ranked(read_output(tmp_path / "out"), 600)
        # Of what was sent twice: two units of a few parts each, where nothing was written yet.
        assert len(engine.queries) < 600 + summary.lost_actors * 2 * 3 * 20
        assert set(engine.queries) == {f"query {number}" for number in range(600)}

    def test_in_the_middle_of_a_dataset_costs_no_row(
        self, connected: Any, url: str, engine: RecordingEngine
    ) -> None:
        dataset = ray.data.from_items(nested_rows(600), override_num_blocks=30)
        ranked = rerank_dataset(dataset, **options(url, actors=2, batch_size=20))
        killer = killing(connected, engine, in_flight=8)
        rows = ranked.take_all()
        killer.join()
        assert_all_ranked(rows, 600)


def living_actors() -> dict[str, str]:
    """The actors that run, and the node of each, by their ids."""
    known: Any = ray._private.state.actors()
    return {
        actor: state["Address"]["NodeID"]
        for actor, state in known.items()
        if state["State"] == "ALIVE"
    }


def killing(cluster: Any, engine: RecordingEngine, *, in_flight: int) -> threading.Thread:
    """In the middle, once every actor is at work, kill a node that has one and is not the head."""
    engine.pause_after(1)

    def kill() -> None:
        wait_until(lambda: engine.waiting == in_flight)
        engine.pause_after(300)
        assert engine.reached.wait(PATIENCE)
        before = living_actors()
        # "SPREAD" is a wish: not every node need have one.
        node = next(
            node
            for node in cluster.list_all_nodes()
            if node is not cluster.head_node and node.node_id in before.values()
        )
        cluster.remove_node(node, allow_graceful=False)
        # Its actors live on for a moment, and could finish what they have before it is noticed.
        gone = {actor for actor, place in before.items() if place == node.node_id}
        wait_until(lambda: gone.isdisjoint(living_actors()))
        engine.gate.set()

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


DRIVER = """
import json, sys
import ray
from rerank_async.ray import rerank_parquet

address, given, out, options = sys.argv[1:]
ray.init(address=address, log_to_driver=False)
rerank_parquet(given, out, **json.loads(options))
"""


class TestADriverThatIsKilled:
    def test_leaves_whole_files_and_the_next_run_sends_only_what_is_not_in_them(
        self, connected: Any, url: str, engine: RecordingEngine, tmp_path: Path
    ) -> None:
        given = write_nested(tmp_path / "in", 600)
        out = tmp_path / "out"
        args = options(url, batch_size=20)
        engine.pause_after(300)
        command = [sys.executable, "-c", DRIVER, connected.address, str(given), str(out)]
        driver = subprocess.Popen(
            [*command, json.dumps(args)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
        )
        try:
            assert engine.reached.wait(PATIENCE)
        finally:
            driver.send_signal(signal.SIGKILL)
            driver.wait()
        # Its actors end a little later, and their connections with them.
        wait_until(lambda: engine.waiting == 0)
        engine.gate.set()
        written = {row["query_id"] for row in read_output(out)}
        assert 100 < len(written) < 300
        before = files_in(out)
        engine.queries.clear()
        summary = rerank_parquet(given, out, **args)
        assert (summary.finished, summary.resumed) == (True, len(written))
        assert_all_ranked(read_output(out), 600)
        assert Counter(engine.queries) == {
            f"query {number}": 1 for number in range(600) if f"q{number}" not in written
        }
        assert before.items() <= files_in(out).items()


def wait_until(condition: Callable[[], bool]) -> None:
    """For what other processes do."""
    given_up_at = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < given_up_at, "it did not happen"
        time.sleep(0.02)
