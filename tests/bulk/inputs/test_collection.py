"""The copy of a BEIR folder's texts: when it is made anew, and what is wrong with a folder."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from rerank_async.bulk._errors import HaltedError, InputError, JobError
from rerank_async.bulk._inputs import collection
from rerank_async.bulk._inputs.candidates import Candidates
from tests.bulk.support import run_of, written


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("corpus", [{"_id": "d1", "text": "x"}] * 2, "line 2: _id 'd1' stands in line 1 already"),
        ("queries", [{"_id": "q1", "text": "x"}] * 2, "line 2: _id 'q1' stands in line 1 already"),
        ("corpus", [{"_id": 1, "text": "x"}, {"_id": "1", "text": "x"}], "line 2: _id '1'"),
        ("corpus", [{"text": "x"}], "line 1: it has no _id"),
        ("queries", [{"_id": "q1", "text": ""}], "line 1: the query 'q1' has no text"),
        ("corpus", [b"{"], "line 1: not JSON"),
    ],
)
def test_what_is_wrong_with_a_beir_folder_is_said_with_its_place(
    tmp_path: Path, beir: Path, name: str, lines: list[object], message: str
) -> None:
    written(beir / f"{name}.jsonl", *lines)
    scratch = tmp_path / "scratch"
    with pytest.raises(InputError, match=rf"{name}\.jsonl: {message}"):
        list(Candidates(beir, run_of(tmp_path / "x.run"), scratch=scratch).rows())
    # Nothing that is half done is left.
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("name", ["corpus", "queries"])
def test_a_folder_without_its_files_is_refused(tmp_path: Path, beir: Path, name: str) -> None:
    (beir / f"{name}.jsonl").unlink()
    with pytest.raises(InputError, match=rf"has no {name}\.jsonl .or {name}\.jsonl\.gz"):
        list(Candidates(beir, run_of(tmp_path / "x.run"), scratch=tmp_path).rows())


@pytest.fixture
def candidates(tmp_path: Path, beir: Path) -> Callable[[], list[str]]:
    """The texts of a run's one query."""
    run = run_of(tmp_path / "x.run", "q1 Q0 d1 1 1 t")

    def texts() -> list[str]:
        [row] = Candidates(beir, run, scratch=tmp_path / "scratch").rows()
        return list(row.documents)

    return texts


def test_the_copy_of_a_corpus_is_kept_while_it_stays_the_same(
    tmp_path: Path, beir: Path, candidates: Callable[[], list[str]]
) -> None:
    assert candidates() == ["T1 x1"]
    copy = tmp_path / "scratch" / "collection.sqlite"
    made = copy.stat().st_ino, copy.stat().st_mtime_ns
    assert candidates() == ["T1 x1"]
    assert (copy.stat().st_ino, copy.stat().st_mtime_ns) == made

    written(beir / "corpus.jsonl", {"_id": "d1", "text": "another"})
    assert candidates() == ["another"]
    stat = (beir / "corpus.jsonl").stat()
    written(beir / "corpus.jsonl", {"_id": "d1", "text": "ANOTHER"})
    os.utime(beir / "corpus.jsonl", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert candidates() == ["ANOTHER"]


@pytest.mark.parametrize("name", ["corpus", "queries"])
def test_the_copy_of_files_is_not_taken_for_others_of_the_same_size_and_time(
    tmp_path: Path, beir: Path, name: str
) -> None:
    run = run_of(tmp_path / "x.run", "q1 Q0 d1 1 1 t")

    def row() -> tuple[str, list[str]]:
        [found] = Candidates(beir, run, scratch=tmp_path / "scratch").rows()
        return found.query, list(found.documents)

    file = beir / f"{name}.jsonl"
    written(beir / "corpus.jsonl", {"_id": "d1", "text": "one"})
    written(beir / "queries.jsonl", {"_id": "q1", "text": "one"})
    before = file.stat()
    assert row() == ("one", ["one"])
    # In place: what stays the same, too, is the file's number.
    with file.open("r+b") as handle:
        handle.write(file.read_bytes().replace(b"one", b"two"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert row() == (("one", ["two"]) if name == "corpus" else ("two", ["one"]))


@pytest.mark.parametrize("left", [b"", b"rubbish " * 1000])
def test_a_copy_that_is_not_whole_is_made_anew(
    tmp_path: Path, candidates: Callable[[], list[str]], left: bytes
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for name in ("collection.sqlite", "collection.sqlite.new"):
        (scratch / name).write_bytes(left)
    assert candidates() == ["T1 x1"]
    assert [path.name for path in scratch.iterdir()] == ["collection.sqlite"]


def test_a_copy_that_was_not_finished_is_made_anew(
    tmp_path: Path, candidates: Callable[[], list[str]]
) -> None:
    candidates()
    with closing(sqlite3.connect(tmp_path / "scratch" / "collection.sqlite")) as db:
        db.execute("DELETE FROM made_from")
        db.execute("UPDATE documents SET text = 'half'")
        db.commit()
    assert candidates() == ["T1 x1"]


def test_a_scratch_directory_that_cannot_be_made_is_named(tmp_path: Path, beir: Path) -> None:
    (tmp_path / "file").touch()
    run = run_of(tmp_path / "x.run")
    with pytest.raises(JobError, match="file"):
        list(Candidates(beir, run, scratch=tmp_path / "file" / "scratch").rows())


# While the files are read for their digests, and while their texts are taken over.
@pytest.mark.parametrize("limit", [0, 1, 8, 30])
def test_reading_a_corpus_ends_when_nobody_wants_it_any_more(
    tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection, "_STEPS", 1000)
    folder = tmp_path / "beir"
    folder.mkdir()
    written(folder / "corpus.jsonl", *({"_id": f"d{i}", "text": "x" * 200} for i in range(5000)))
    written(folder / "queries.jsonl", {"_id": "q", "text": "q"})
    run, scratch = run_of(tmp_path / "x.run", "q Q0 d1 1 1 t"), tmp_path / "scratch"
    asked = 0

    def halted() -> bool:
        nonlocal asked
        asked += 1
        return asked > limit

    with pytest.raises(HaltedError):
        Candidates(folder, run, scratch=scratch).prepare(halted)
    assert not list(tmp_path.glob("scratch/*"))
    source = Candidates(folder, run, scratch=scratch)
    source.prepare(lambda: False)
    assert [row.documents for row in source.rows()] == [["x" * 200]]
