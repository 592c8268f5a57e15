"""Scores that are kept from one run to the next, in real files and by real processes."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rerank_async._errors import RerankError
from rerank_async.bulk._cache import CacheStatistics, ScoreCache
from rerank_async.bulk._errors import JobDamagedError, JobError
from tests.support import PACKAGE

ENDPOINT = "http://localhost:8000/v1"
QUERY = "open a file"
DOCUMENTS = ["close the door", "open a file for reading", "read a file line by line"]
SCORES = [0.25, 0.875, 0.1]


def opened(path: Path, model: str = "m", **options: float) -> ScoreCache:
    return ScoreCache(path, endpoint=ENDPOINT, dialect="v1", model=model, **options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scores.sqlite"


@pytest.fixture
def cache(path: Path) -> Iterator[ScoreCache]:
    with opened(path) as cache:
        yield cache


# ── what is found ──


def test_a_new_cache_knows_nothing(cache: ScoreCache) -> None:
    assert cache.answered_model is None
    assert cache.lookup(QUERY, DOCUMENTS) == [None, None, None]
    assert cache.lookup(QUERY, []) == []
    assert cache.statistics() == CacheStatistics(hits=0, misses=3)


def test_a_score_is_found_as_soon_as_it_is_stored(cache: ScoreCache) -> None:
    cache.store(QUERY, DOCUMENTS[:2], SCORES[:2], "m-1")
    assert cache.lookup(QUERY, DOCUMENTS[::-1]) == [None, 0.875, 0.25]
    assert cache.answered_model == "m-1"
    assert cache.statistics() == CacheStatistics(hits=2, misses=1)


def test_a_score_is_found_after_the_file_was_closed(path: Path) -> None:
    with opened(path) as cache:
        cache.store(QUERY, DOCUMENTS, SCORES, "m-1")
    with opened(path) as cache:
        assert cache.answered_model == "m-1"
        assert cache.lookup(QUERY, [*DOCUMENTS, DOCUMENTS[0]]) == [*SCORES, SCORES[0]]


def test_what_is_written_and_what_waits_are_found_together(cache: ScoreCache) -> None:
    cache.store(QUERY, DOCUMENTS[:1], SCORES[:1], "m-1")
    cache.flush()
    cache.store(QUERY, DOCUMENTS[1:], SCORES[1:], "m-1")
    assert cache.lookup(QUERY, DOCUMENTS) == SCORES


def test_a_document_is_found_under_its_own_query_only(cache: ScoreCache) -> None:
    cache.store(QUERY, DOCUMENTS, SCORES, "m-1")
    assert cache.lookup(QUERY + " ", DOCUMENTS) == [None] * 3


@pytest.mark.parametrize(
    "other",
    [
        {"endpoint": ENDPOINT + "/", "dialect": "v1", "model": "m"},
        {"endpoint": ENDPOINT, "dialect": "tei", "model": "m"},
        {"endpoint": ENDPOINT, "dialect": "v1", "model": "m2"},
        # The same letters, divided in another place.
        {"endpoint": ENDPOINT, "dialect": "v1m", "model": ""},
    ],
)
def test_a_score_is_found_under_its_own_endpoint_dialect_and_model_only(
    path: Path, other: dict[str, Any]
) -> None:
    with opened(path) as cache:
        cache.store(QUERY, DOCUMENTS, SCORES, "m-1")
    with ScoreCache(path, **other) as cache:
        assert cache.answered_model is None
        cache.store(QUERY, ["another"], [0.5], "m-1")
        assert cache.lookup(QUERY, DOCUMENTS) == [None] * 3
    with opened(path) as cache:
        assert cache.lookup(QUERY, [*DOCUMENTS, "another"]) == [*SCORES, None]


def test_texts_are_not_confused_by_where_one_ends(cache: ScoreCache) -> None:
    pairs = [("ab", "c"), ("a", "bc"), ("", "abc"), ("abc", ""), ("a\0b", "c"), ("a", "b\0c")]
    for number, (query, document) in enumerate(pairs):
        cache.store(query, [document], [float(number)], "m-1")
    for number, (query, document) in enumerate(pairs):
        assert cache.lookup(query, [document]) == [number]


def test_of_two_scores_the_first_stays(path: Path) -> None:
    with opened(path) as cache:
        cache.store(QUERY, ["a", "a", "b"], [0.5, 0.75, 0.25], "m-1")
        cache.store(QUERY, ["a"], [0.125], "m-1")
        assert cache.lookup(QUERY, ["a", "b"]) == [0.5, 0.25]
        cache.flush()
        cache.store(QUERY, ["a", "c"], [0.0625, 1.0], "m-1")
        assert cache.lookup(QUERY, ["a", "b", "c"]) == [0.5, 0.25, 1.0]
    with opened(path) as cache:
        assert cache.lookup(QUERY, ["a", "b", "c"]) == [0.5, 0.25, 1.0]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False), st.text())
def test_a_score_comes_back_bit_for_bit(tmp_path: Path, score: float, document: str) -> None:
    path = tmp_path / "exact.sqlite"
    path.unlink(missing_ok=True)
    with opened(path) as cache:
        cache.store(QUERY, [document], [score], "m-1")
    with opened(path) as cache:
        [found] = cache.lookup(QUERY, [document])
    assert found is not None
    assert found.hex() == score.hex()


def test_a_text_with_half_a_character_has_its_place(cache: ScoreCache) -> None:
    cache.store("\ud800", ["\udfff"], [0.5], "m-1")
    cache.flush()
    assert cache.lookup("\ud800", ["\udfff"]) == [0.5]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_refused_with_its_whole_call(
    cache: ScoreCache, score: float
) -> None:
    with pytest.raises(ValueError, match="not finite"):
        cache.store(QUERY, ["a", "b"], [0.5, score], "m-2")
    assert cache.lookup(QUERY, ["a", "b"]) == [None, None]
    assert cache.answered_model is None


def test_there_must_be_a_score_for_each_document(cache: ScoreCache) -> None:
    with pytest.raises(ValueError, match="2 documents have 1 scores"):
        cache.store(QUERY, ["a", "b"], [0.5], "m-1")


@pytest.mark.parametrize("count", [1, 50, 999, 1000, 1001, 2500])
def test_any_number_of_documents_has_its_place(path: Path, count: int) -> None:
    documents = [f"document {number}" for number in range(count)]
    scores = [number / 7 for number in range(count)]
    with opened(path) as cache:
        cache.store(QUERY, documents, scores, "m-1")
        assert cache.lookup(QUERY, documents) == scores
    with opened(path) as cache:
        # All of them, and a few of many, which is another way to look.
        assert cache.lookup(QUERY, documents[::-1]) == scores[::-1]
        for start in range(0, count, 500):
            some = ["unknown", *documents[start : start + 120]]
            assert cache.lookup(QUERY, some) == [None, *scores[start : start + 120]]


# ── who answers ──


def test_scores_of_the_model_before_are_not_found(cache: ScoreCache) -> None:
    cache.store(QUERY, DOCUMENTS, SCORES, "m-1")
    cache.store(QUERY, DOCUMENTS[:1], [0.5], "m-2")
    assert cache.lookup(QUERY, DOCUMENTS) == [0.5, None, None]
    assert cache.answered_model == "m-2"


def test_scores_of_a_model_that_comes_back_are_found_again(path: Path) -> None:
    with opened(path) as cache:
        cache.store(QUERY, DOCUMENTS, SCORES, "m-1")
        cache.store(QUERY, DOCUMENTS[:1], [0.5], "m-2")
    with opened(path) as cache:
        cache.store("another query", ["a"], [0.0], "m-1")
        assert cache.lookup(QUERY, DOCUMENTS) == SCORES


@pytest.mark.parametrize(("first", "second"), [(None, "m-1"), ("", None), ("m-1", None)])
def test_a_server_that_names_no_model_is_another_one(
    cache: ScoreCache, first: str | None, second: str | None
) -> None:
    cache.store(QUERY, DOCUMENTS, SCORES, first)
    assert cache.lookup(QUERY, DOCUMENTS) == SCORES
    cache.store("another query", ["a"], [0.0], second)
    assert cache.answered_model == second
    assert cache.lookup(QUERY, DOCUMENTS) == [None] * 3


def test_another_process_hears_of_a_new_model_at_once(path: Path) -> None:
    with opened(path) as one, opened(path) as other:
        one.store(QUERY, DOCUMENTS, SCORES, "m-1")
        one.flush()
        assert other.lookup(QUERY, DOCUMENTS) == SCORES
        other.store(QUERY, DOCUMENTS[:1], [0.5], "m-2")
        # The score itself waits, but that the others are not to be used any more is known.
        assert one.lookup(QUERY, DOCUMENTS) == [None] * 3
        assert one.answered_model == "m-2"


# ── the file ──


def test_what_is_stored_is_written_after_sixteen_calls(path: Path) -> None:
    with opened(path) as cache, opened(path) as reader:
        for number in range(17):
            assert reader.lookup(f"query {number}", ["a"]) == [None]
            cache.store(f"query {number}", ["a"], [0.5], "m-1")
        found = [reader.lookup(f"query {number}", ["a"])[0] for number in range(17)]
    assert found == [0.5] * 16 + [None]


def test_what_is_stored_is_written_after_a_thousand_scores(path: Path) -> None:
    documents = [str(number) for number in range(1000)]
    with opened(path) as cache, opened(path) as reader:
        cache.store(QUERY, documents[:999], [0.5] * 999, "m-1")
        assert reader.lookup(QUERY, documents) == [None] * 1000
        cache.store(QUERY, documents[999:], [0.25], "m-1")
        assert reader.lookup(QUERY, documents) == [0.5] * 999 + [0.25]


def test_closing_twice_is_closing_once(path: Path) -> None:
    cache = opened(path)
    cache.store(QUERY, DOCUMENTS, SCORES, "m-1")
    cache.close()
    cache.close()
    # Nothing is left beside the file.
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_what_was_stored_is_written_when_the_block_fails(path: Path) -> None:
    with pytest.raises(KeyError), opened(path) as cache:
        cache.store(QUERY, DOCUMENTS, SCORES, "m-1")
        raise KeyError
    with opened(path) as cache:
        assert cache.lookup(QUERY, DOCUMENTS) == SCORES


def test_an_empty_file_becomes_a_cache(path: Path) -> None:
    path.touch()
    with opened(path) as cache:
        cache.store(QUERY, DOCUMENTS, SCORES, "m-1")
    with opened(path) as cache:
        assert cache.lookup(QUERY, DOCUMENTS) == SCORES


def of_text(path: Path) -> None:
    path.write_text("query_id,score\n" * 500)


def of_another_program(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE song (title TEXT)")
        db.commit()


def of_another_format(path: Path) -> None:
    opened(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 2")
        db.commit()


def of_no_tables(path: Path) -> None:
    opened(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE score")
        db.execute("DROP TABLE served")
        db.commit()


def of_nothing(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (of_text, "is not a score cache"),
        (of_another_program, "is not a score cache but another SQLite file"),
        (of_another_format, "is a score cache of format 2, and this version .* reads format 1"),
        (of_no_tables, "no such table"),
        (of_nothing, "unable to open"),
    ],
)
def test_a_file_that_is_no_cache_is_refused_and_left_as_it_is(
    path: Path, make: Callable[[Path], None], words: str
) -> None:
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(JobError, match=words) as caught:
        opened(path)
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, RerankError)
    assert caught.value.__cause__ is None
    if path.is_file():
        assert path.read_bytes() == before


def test_a_cache_in_a_folder_that_is_not_there_is_refused(path: Path) -> None:
    with pytest.raises(JobError, match="nowhere"):
        opened(path.parent / "nowhere" / "scores.sqlite")


def test_a_damaged_file_never_gives_a_wrong_score(path: Path) -> None:
    queries = [f"query {number}" for number in range(12)]
    with opened(path) as cache:
        for number, query in enumerate(queries):
            documents = [f"{text} {number}" for text in DOCUMENTS * 10]
            cache.store(query, documents, [0.1 + number] * 30, "m-1")
    whole = path.read_bytes()
    refused = 0
    # A byte at a time, all over the file: in its header, its trees, its keys and its scores.
    for place in range(0, len(whole), 61):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        try:
            with opened(path) as cache:
                for number, query in enumerate(queries):
                    documents = [f"{text} {number}" for text in DOCUMENTS * 10]
                    assert set(cache.lookup(query, documents)) <= {0.1 + number, None}
        except JobError as error:
            refused += 1
            assert str(path) in str(error)  # noqa: PT017 - that there is one is not required
    assert refused > 20


def test_a_score_that_was_changed_is_noticed(path: Path) -> None:
    with opened(path) as cache:
        cache.store(QUERY, DOCUMENTS, SCORES, "m-1")
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE score SET score = 0.99 WHERE score = 0.875")
        db.commit()
    with opened(path) as cache, pytest.raises(JobDamagedError, match="not as it was written"):
        cache.lookup(QUERY, DOCUMENTS)


def test_a_file_that_was_cut_off_is_refused(path: Path) -> None:
    with opened(path) as cache:
        cache.store(QUERY, [str(number) for number in range(2000)], [0.5] * 2000, "m-1")
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)
    with pytest.raises(JobDamagedError, match="is damaged"), opened(path) as cache:
        cache.lookup(QUERY, ["7"])


# ── other processes ──

_BEGIN = """
import sys
from pathlib import Path
from rerank_async.bulk._cache import ScoreCache
cache = ScoreCache(
    Path(sys.argv[1]), endpoint="http://localhost:8000/v1", dialect="v1", model="m"
)
def say(word):
    print(word, flush=True)
def hear():
    assert sys.stdin.readline()
"""


@contextmanager
def process(path: Path, program: str) -> Iterator[subprocess.Popen[str]]:
    """Another program with a cache, that says how far it is and hears when to go on."""
    with subprocess.Popen(
        [sys.executable, "-c", _BEGIN + program, str(path)],
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        try:
            yield other
        finally:
            other.kill()


def heard(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline().strip()


def told(stream: IO[str] | None) -> None:
    assert stream is not None
    stream.write("go on\n")
    stream.flush()


def test_a_process_that_is_killed_loses_what_was_not_written_and_no_more(path: Path) -> None:
    program = """
for number in range(40):
    cache.store(f"query {number}", ["a", "b"], [number + 0.5, number + 0.25], "m-1")
say("stored")
hear()
"""
    with process(path, program) as other:
        assert heard(other.stdout) == "stored"
        other.send_signal(signal.SIGKILL)
        assert other.wait() == -signal.SIGKILL
    with opened(path) as cache:
        found = [cache.lookup(f"query {number}", ["a", "b"]) for number in range(40)]
        assert cache.answered_model == "m-1"
        # Twice sixteen calls were written, and eight waited.
        expected = [[number + 0.5, number + 0.25] for number in range(32)]
        assert found == [*expected, *[[None, None]] * 8]
        cache.store("query 39", ["a"], [39.5], "m-1")
        cache.flush()
        assert cache.lookup("query 39", ["a"]) == [39.5]


def test_a_process_that_is_killed_while_it_writes_leaves_whole_scores(path: Path) -> None:
    program = """
say("begun")
number = 0
while True:
    cache.store(f"query {number}", [f"{d}" for d in range(100)], [number + 0.5] * 100, "m-1")
    number += 1
    if number == 40:
        say("stored")
"""
    documents = [str(number) for number in range(100)]
    with process(path, program) as other:
        assert heard(other.stdout) == "begun"
        assert heard(other.stdout) == "stored"
        other.kill()
    with opened(path) as cache:
        number = 0
        while cache.lookup(f"query {number}", documents) == [number + 0.5] * 100:
            number += 1
        assert number >= 40
        # What was written together is there together, or not at all.
        for later in range(number, number + 50):
            assert cache.lookup(f"query {later}", documents) == [None] * 100


def test_two_processes_share_one_file(path: Path) -> None:
    program = """
hear()
for number in range(300):
    query = f"query {number}"
    documents = [f"document {number}" for number in range(30)]
    known = cache.lookup(query, documents)
    assert known in ([None] * 30, [number + 0.5] * 30)
    missing = [document for document, score in zip(documents, known) if score is None]
    cache.store(query, missing, [number + 0.5] * len(missing), "m-1")
cache.close()
say("done")
"""
    # Four at once, each of which makes the file unless another has.
    with ExitStack() as stack:
        others = [stack.enter_context(process(path, program)) for _ in range(4)]
        for other in others:
            told(other.stdin)
        assert [heard(other.stdout) for other in others] == ["done"] * 4
    documents = [f"document {number}" for number in range(30)]
    with opened(path) as cache:
        for number in range(300):
            assert cache.lookup(f"query {number}", documents) == [number + 0.5] * 30
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("SELECT count(*) FROM score").fetchone() == (9000,)


_LOCK = """
import sqlite3
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN IMMEDIATE")
say("locked")
hear()
db.execute("ROLLBACK")
say("free")
hear()
"""


def test_a_file_that_stays_locked_is_an_error_and_keeps_what_waits(path: Path) -> None:
    with opened(path, patience=0.05) as cache:
        cache.store(QUERY, ["first"], [0.25], "m-1")
        with process(path, _LOCK) as other:
            assert heard(other.stdout) == "locked"
            cache.store(QUERY, DOCUMENTS, SCORES, "m-1")
            with pytest.raises(JobError, match=r"locked for 0\.05 s") as caught:
                cache.flush()
            assert str(path) in str(caught.value)
            # To read is always possible.
            assert cache.lookup(QUERY, DOCUMENTS) == SCORES
            told(other.stdin)
            assert heard(other.stdout) == "free"
            cache.flush()
    with opened(path) as cache:
        assert cache.lookup(QUERY, DOCUMENTS) == SCORES


def test_closing_a_file_that_stays_locked_says_that_scores_are_lost(path: Path) -> None:
    cache = opened(path, patience=0.05)
    cache.store(QUERY, ["first"], [0.25], "m-1")
    with process(path, _LOCK) as other:
        assert heard(other.stdout) == "locked"
        with pytest.raises(JobError, match="locked"):
            cache.close()
        cache.close()


def test_a_locked_file_is_waited_for(path: Path) -> None:
    with opened(path) as cache, process(path, _LOCK) as other:
        assert heard(other.stdout) == "locked"
        begun: list[str] = []

        def trace(statement: str) -> None:
            # Called when a statement begins, and before it waits: only now may the other let go.
            if statement.startswith("BEGIN") and not begun:
                begun.append(statement)
                told(other.stdin)

        cache._db.set_trace_callback(trace)
        cache.store(QUERY, DOCUMENTS, SCORES, "m-1")
        assert heard(other.stdout) == "free"
        cache.flush()
        assert cache.lookup(QUERY, DOCUMENTS) == SCORES
        assert begun == ["BEGIN IMMEDIATE"]
