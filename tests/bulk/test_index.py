"""`_index`: which rows are done, begun, doubled or unknown, and where their entries stand."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_async.bulk import InputError, JobError, JobFullError
from rerank_async.bulk._index import Index


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    index = Index(tmp_path / "index.sqlite")
    yield index
    index.close()


def survey(index: Index, *keys: str) -> None:
    for ordinal, key in enumerate(keys):
        index.row(ordinal, key, 0)


# ── what was done before ──


def test_a_row_that_the_journal_knows_need_not_be_done(index: Index) -> None:
    index.recovered("id:a", 10, False, 5)
    assert not index.begin("id:a")
    assert index.offset("id:a") == 10


def test_a_row_that_failed_need_not_be_done_again_unless_that_is_asked_for(index: Index) -> None:
    index.recovered("id:a", 10, True, 5)
    index.recovered("id:b", 20, False, 5)
    assert not index.begin("id:a")
    index.forgive()
    assert index.begin("id:a")
    assert not index.begin("id:a")
    assert not index.begin("id:b")


@given(st.lists(st.booleans(), min_size=1, max_size=6))
def test_of_several_entries_a_success_counts_before_a_failure_and_then_the_newest(
    failures: list[bool],
) -> None:
    index = Index(Path(":memory:"))
    for offset, failed in enumerate(failures):
        index.recovered("id:a", offset, failed, 5)
    whole = [offset for offset, failed in enumerate(failures) if not failed]
    assert index.offset("id:a") == (whole[-1] if whole else len(failures) - 1)
    assert index.over() == (1, int(not whole), 5)
    index.close()


def test_a_failure_that_is_forgiven_keeps_its_entry_until_there_is_a_new_one(index: Index) -> None:
    survey(index, "id:a")
    index.recovered("id:a", 10, True, 5)
    index.forgive()
    assert list(index.offsets()) == [(10, 0)]
    assert index.begin("id:a")
    assert list(index.offsets()) == [(10, 0)]
    index.ended("id:a", 90, False)
    assert list(index.offsets()) == [(90, 0)]


def test_what_need_not_be_done_again_is_counted(index: Index) -> None:
    assert index.over() == (0, 0, 0)
    index.recovered("id:a", 10, False, 5)
    index.recovered("id:b", 20, True, 7)
    index.recovered("content:c", 30, False, 11)
    assert index.over() == (3, 1, 23)
    index.forgive()
    assert index.over() == (2, 0, 16)


# ── what is begun ──


def test_a_row_is_begun_once(index: Index) -> None:
    assert index.begin("id:a")
    assert not index.begin("id:a")
    assert index.begin("id:b")
    assert index.offset("id:a") is None
    index.ended("id:a", 50, True)
    assert not index.begin("id:a")
    assert index.offset("id:a") == 50


def test_of_rows_with_the_same_content_one_is_done_and_all_have_its_entry(index: Index) -> None:
    survey(index, "content:a", "content:b", "content:a")
    assert [index.begin(key) for key in ("content:a", "content:b", "content:a")] == [
        True,
        True,
        False,
    ]
    index.ended("content:a", 10, False)
    index.ended("content:b", 20, False)
    assert list(index.offsets()) == [(10, 0), (20, 0), (10, 0)]


def test_a_row_that_nobody_knows_has_no_entry(index: Index) -> None:
    assert index.offset("id:a") is None


# ── what the input holds ──


def test_entries_stand_in_the_order_of_the_input_whatever_the_order_of_the_journal(
    index: Index,
) -> None:
    count = 50
    for ordinal in range(count):
        index.row(ordinal, f"id:{ordinal}", ordinal * 10)
    for turn in range(count):
        number = turn * 17 % count
        index.begin(f"id:{number}")
        index.ended(f"id:{number}", 1000 + turn, False)
    found = list(index.offsets())
    assert [start for _, start in found] == [ordinal * 10 for ordinal in range(count)]
    at = {turn * 17 % count: 1000 + turn for turn in range(count)}
    assert [offset for offset, _ in found] == [at[ordinal] for ordinal in range(count)]


def test_rows_without_an_entry_and_entries_without_a_row_are_left_out(index: Index) -> None:
    survey(index, "id:a", "id:b", "id:c")
    index.begin("id:b")
    index.recovered("id:c", 30, False, 1)
    index.recovered("id:x", 40, False, 1)
    assert list(index.offsets()) == [(30, 0)]


def test_an_id_that_occurs_twice_is_told_with_both_rows(index: Index) -> None:
    survey(index, *(f"id:{number}" for number in range(1500)))
    with pytest.raises(InputError, match=r"query_id '7' stands in rows 8 and 1,501: each may"):
        index.row(1500, "id:7", 0)
    with pytest.raises(InputError, match=r"query_id '' stands in rows 1,501 and 1,502"):
        index.row(1500, "id:", 0)
        index.row(1501, "id:", 0)


def test_keys_may_hold_what_texts_may_hold(index: Index) -> None:
    keys = ["id:", "id:'", 'id:"; DROP TABLE rows', "id:\0", "id:\0a", "id:ä", "id:Ä", "id:id:"]
    survey(index, *keys)
    for number, key in enumerate(keys):
        assert index.begin(key)
        index.ended(key, number, False)
    assert [offset for offset, _ in index.offsets()] == list(range(len(keys)))


# ── entries whose row is not there ──


def test_an_entry_is_a_stranger_until_its_row_is_met(index: Index) -> None:
    assert index.stranger() is None
    index.recovered("id:a", 10, False, 5)
    index.recovered("id:b", 20, False, 5)
    index.begin("id:b")
    assert index.stranger() == "id:a"
    index.begin("id:a")
    index.begin("id:new")
    assert index.stranger() is None


def test_a_failure_that_is_forgiven_is_a_stranger_too_when_its_row_is_gone(index: Index) -> None:
    index.recovered("id:a", 10, True, 5)
    index.forgive()
    assert index.stranger() == "id:a"
    index.begin("id:a")
    assert index.stranger() is None


# ── the file ──


def test_the_file_is_made_anew_each_time(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    path.write_bytes(b"no database at all" * 100)
    index = Index(path)
    index.recovered("id:a", 10, False, 5)
    index.close()
    assert not path.exists()
    index = Index(path)
    assert index.over() == (0, 0, 0)
    index.close()
    index.close()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_gone_already_does_not_hinder_closing(tmp_path: Path) -> None:
    index = Index(tmp_path / "index.sqlite")
    (tmp_path / "index.sqlite").unlink()
    index.close()


def test_a_file_that_cannot_be_removed_does_not_hinder_closing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = Index(tmp_path / "index.sqlite")

    def refused(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refused)
    index.close()
    with pytest.raises(JobError, match="Permission denied"):
        Index(tmp_path / "index.sqlite")


def test_a_place_where_no_file_can_be_is_an_error_of_the_job(tmp_path: Path) -> None:
    (tmp_path / "index.sqlite").mkdir()
    with pytest.raises(JobError, match=r"index\.sqlite"):
        Index(tmp_path / "index.sqlite")
    with pytest.raises(JobError, match=r"index\.sqlite"):
        Index(tmp_path / "nowhere" / "index.sqlite")


def test_a_file_that_cannot_be_filled_is_closed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[sqlite3.Connection] = []

    class Broken(sqlite3.Connection):
        def executescript(self, script: str, /) -> sqlite3.Cursor:
            made.append(self)
            raise sqlite3.OperationalError("disk I/O error")

    real = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *args, **options: real(*args, factory=Broken, **options)
    )
    with pytest.raises(JobError, match="disk I/O error"):
        Index(tmp_path / "index.sqlite")
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        made[0].execute("SELECT 1")


def test_a_full_disk_is_told_as_such(index: Index) -> None:
    index._db.execute("PRAGMA max_page_count = 20")
    with pytest.raises(JobFullError, match=r"index\.sqlite: .*full; make room"):
        for ordinal in range(100_000):
            index.row(ordinal, f"id:{ordinal:0100}", 0)


def test_whatever_else_the_database_says_is_an_error_of_the_job(index: Index) -> None:
    index.close()
    with pytest.raises(JobError, match=r"index\.sqlite"):
        index.begin("id:a")
    with pytest.raises(JobError, match=r"index\.sqlite"):
        list(index.offsets())


def test_many_rows_do_not_stay_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    index = Index(path)
    for ordinal in range(40_000):
        index.row(ordinal, f"id:{ordinal:0200}", 0)
    # More than the database may keep in memory is in its file.
    assert path.stat().st_size > 2**20
    index.close()
