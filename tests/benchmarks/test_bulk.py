"""`benchmarks.bulk`: what it judges by is right, and a tiny piece of each figure works."""

from pathlib import Path
from random import Random
from zlib import crc32

import orjson
import pytest

from benchmarks import bulk
from benchmarks.bulk import Sample, Watched
from rerank_async import RerankSession
from rerank_async.bulk import rerank_file
from rerank_async.bulk._inputs.requests import Requests
from rerank_async.testing import MemoryTransport, scoring


def line(mark: bytes, payload: bytes) -> bytes:
    return b"%08x%b%b\n" % (crc32(mark + payload), mark, payload)


HEAD = line(b"=", b'{"fingerprint":"f"}')
ONE, TWO = line(b"=", b'{"key":"id:1"}'), line(b"+", b'{"key":"id:2"}')
THREE = line(b"=", b'{"key":"id:3"}')


def test_entries_count_up_to_the_first_that_is_damaged() -> None:
    assert bulk.whole_entries(b"") == (set(), 0)
    assert bulk.whole_entries(HEAD + ONE + TWO) == ({"id:1", "id:2"}, 0)
    assert bulk.whole_entries(HEAD + ONE + TWO[:-1]) == ({"id:1"}, len(TWO) - 1)
    damaged = TWO.replace(b"id", b"ie")
    assert bulk.whole_entries(HEAD + ONE + damaged + THREE) == ({"id:1"}, len(TWO) + len(THREE))
    assert bulk.whole_entries(ONE.replace(b"=", b"+")) == (set(), len(ONE))


def test_a_torn_journal_lacks_a_part_of_its_last_group_and_nothing_that_was_there_before() -> None:
    before, journal = len(HEAD), HEAD + ONE + TWO
    left = {bulk.torn(journal, before, Random(seed)) for seed in range(2000)}
    assert left == {journal[:length] for length in range(before, len(journal))}
    later = {bulk.torn(journal + THREE, before, Random(seed)) for seed in range(200)}
    assert min(map(len, later)) == len(journal)
    kept = {bulk.torn(journal, len(HEAD + ONE), Random(seed)) for seed in range(200)}
    assert min(map(len, kept)) == len(HEAD + ONE)


def test_the_same_seed_tears_at_the_same_place() -> None:
    journal = HEAD + ONE + TWO
    assert bulk.torn(journal, 0, Random(3)) == bulk.torn(journal, 0, Random(3))


def test_the_rows_of_the_job_have_every_kind_of_id_and_some_come_twice(tmp_path: Path) -> None:
    rows = bulk.job_rows(100)
    source = bulk.write_rows(tmp_path / "in.jsonl", rows)
    read = list(Requests(source).rows())
    assert {row.query_id is None for row in read} == {True, False}
    assert {row.doc_ids is None for row in read} == {True, False}
    queries = bulk.queries_by_key(source)
    # The second of two equal rows is sent with the first.
    assert len(queries) == 98
    assert set(queries.values()) == {row["query"] for row in rows}


async def test_what_the_output_must_say_is_what_a_job_that_nobody_disturbs_says(
    tmp_path: Path,
) -> None:
    rows = bulk.job_rows(60)
    source = bulk.write_rows(tmp_path / "in.jsonl", rows)
    async with bulk.session_over(MemoryTransport(scoring(bulk.score))) as session:
        await rerank_file(session, source, tmp_path / "out.jsonl")
    output = (tmp_path / "out.jsonl").read_bytes()
    assert bulk.read_lines(output) == bulk.lines_of(rows, "pure")


async def test_a_damaged_journal_ends_in_the_same_output_or_in_an_error_that_names_the_place(
    tmp_path: Path,
) -> None:
    breaker, cut, changed = await bulk.break_journals(tmp_path, 8, seed=0, step=97)
    # The one that says whose it is, and four of two rows each.
    assert breaker.journal.count(b"=") >= 5
    assert len(breaker.queries) == 8
    for damages in (cut, changed):
        assert damages.cases == -(-len(breaker.journal) // 97)
        assert damages.failures == []
        assert damages.exact + damages.located == damages.cases
        assert damages.salvaged == damages.located
    assert cut.located == 0
    assert changed.located > 0


async def test_an_output_that_is_not_the_same_is_a_failure(tmp_path: Path) -> None:
    breaker = await bulk.small_job(tmp_path, 8)
    breaker.output = b"another\n"
    done = bulk.Damages()
    await breaker.damage("nothing at all", breaker.journal, done)
    assert done.failures == ["nothing at all: the output is another"]


async def test_a_row_that_is_sent_though_it_is_whole_is_a_failure(tmp_path: Path) -> None:
    breaker = await bulk.small_job(tmp_path, 8)
    # As if the row that is cut off were known by the key of one that is not.
    keys = list(breaker.queries)
    breaker.queries[keys[0]] = breaker.queries[keys[-1]]
    done = bulk.Damages()
    await breaker.damage("the end", breaker.journal[:-1], done)
    assert done.failures == ["the end: a row that is whole in the journal was sent again"]


async def test_the_server_knows_what_each_run_asked_for() -> None:
    scorer = bulk.Scorer()
    async with (
        scorer.serving(),
        RerankSession(scorer.url, api_key="one", model="pure") as one,
        RerankSession(scorer.url, api_key="other", model="pure") as other,
    ):
        response = await one.rerank("first", ["a", "b", "c"])
        await other.rerank("second", ["a"])
        await one.rerank("third", ["a"])
        await scorer.until_asked("one", 2)
    expected = [bulk.score("first", document) for document in "abc"]
    assert sorted(response.results.scores) == sorted(expected)
    assert scorer.asked == {"one": ["first", "third"], "other": ["second"]}


def samples(*sizes: float) -> list[Sample]:
    sending = [Sample(float(time), "sending", mib) for time, mib in enumerate(sizes)]
    return [Sample(-1.0, "reading", 1000.0), *sending, Sample(len(sizes), "writing", 1000.0)]


def test_the_first_and_the_last_tenth_are_of_the_time_of_sending() -> None:
    flat = [100.0] * 17
    first, last = bulk.tenths(samples(40.0, 60.0, *flat, 110.0, 130.0))
    assert first == pytest.approx(200 / 3)
    assert last == pytest.approx(340 / 3)


@pytest.mark.parametrize(
    ("end", "peak", "reached"),
    [(109.0, 199.0, [True, True]), (111.0, 199.0, [True, False]), (100.0, 201.0, [False, True])],
)
def test_memory_must_be_little_and_flat(
    end: float, peak: float, reached: list[bool], capsys: pytest.CaptureFixture[str]
) -> None:
    seen = samples(*[100.0] * 15, *[end] * 5)
    watched = Watched(seen, peak, 10, 10, {"reading": 1.0, "sending": 19.0, "writing": 1.0})
    assert [goal.reached for goal in bulk.judged("it", watched)] == reached
    assert f"peak {peak:.1f} MiB" in capsys.readouterr().out


def test_inputs_that_are_generated_are_read_as_what_they_are_said_to_be(tmp_path: Path) -> None:
    corpus = bulk.write_corpus(tmp_path / "corpus.jsonl", 20_001).read_bytes().splitlines()
    assert len({orjson.loads(one)["_id"] for one in corpus}) == 20_001
    requests = bulk.write_requests(tmp_path / "requests.jsonl", 7, 20)
    assert [len(set(row.documents)) for row in Requests(requests).rows()] == [20] * 7
    rows = bulk.cost_rows(2)
    assert {len(text) for row in rows for text in row["documents"]} == {200}


def test_a_share_is_of_the_same_round_and_the_median_of_all() -> None:
    reference = [(1.0, 2.0), (1.0, 4.0), (1.0, 8.0)]
    side = [(2.0, 4.0), (1.25, 5.0), (1.0, 32.0)]
    assert bulk.share(reference, side) == bulk.Share(wall=0.5, worst=0.25, cpu=0.8)


def test_each_thing_that_a_job_does_is_timed(tmp_path: Path) -> None:
    source = bulk.write_rows(tmp_path / "in.jsonl", bulk.cost_rows(3))
    parts = bulk.stages(tmp_path, source, 2)
    assert all(seconds > 0.0 for seconds in parts.values())
    assert {name.partition(":")[0] for name in parts} >= {"check", "send", "write"}
