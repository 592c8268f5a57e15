"""`_job`: one holder at a time, one job in a directory, and what it did is found again."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from rerank_async.bulk import (
    JobChangedError,
    JobDamagedError,
    JobError,
    JobFullError,
)
from rerank_async.bulk._entries import Entry, frame, payload_of, ranking_line
from rerank_async.bulk._job import Job
from rerank_async.bulk._manifest import Contents, Manifest, written

WORDS = {"endpoint": "https://a.test/v1", "model": "m", "top_n": None}
MANIFEST = Manifest(WORDS, Contents(3, 17, "0" * 32))
OTHER = Manifest({**WORDS, "model": "n"}, MANIFEST.contents)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl.job"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def files() -> int:
    """How many files this process has open."""
    return len(set(Path("/dev/fd").iterdir()))


def entry(name: str, *, failed: bool = False, size: int = 1) -> bytes:
    line = ranking_line(name, range(size), [0.5] * size, None, "m", 1)
    return payload_of(f"id:{name}", bytes(16), size, 1, line, failed=failed)


def taken_up(job: Job, manifest: Manifest = MANIFEST, **options: Any) -> list[Entry]:
    """Take a job up; the entries that it had."""
    entries: list[Entry] = []
    job.take_up(manifest, take=entries.append, **options)
    return entries


async def do(path: Path, *rows: str, **options: Any) -> list[str]:
    """Take a job up, add entries, and close it; the keys that it had."""
    with Job(path) as job:
        before = taken_up(job, **options)
        for row in rows:
            await job.journal.add(entry(row))
        await job.journal.sync()
    return [one.key for one in before]


def lines_of(path: Path) -> list[bytes]:
    return (path / "journal.log").read_bytes().splitlines(keepends=True)


# ── the directory ──


@pytest.mark.posix("a lock whose file stays")
def test_the_directory_is_made_with_those_above_it(tmp_path: Path) -> None:
    with Job(tmp_path / "a" / "b" / "job") as job:
        taken_up(job)
    assert names(tmp_path / "a" / "b" / "job") == ["journal.log", "lock", "manifest.json"]


def test_a_directory_in_which_nothing_was_begun_is_gone_again(path: Path) -> None:
    with Job(path) as job:
        assert path.is_dir()
        assert job.check(WORDS) is False
    assert not path.exists()
    job.close()


@pytest.mark.posix("a lock whose file stays")
def test_a_directory_that_was_there_stays(path: Path) -> None:
    path.mkdir()
    with Job(path):
        pass
    assert names(path) == ["lock"]


def test_a_directory_with_something_of_somebody_elses_stays(path: Path) -> None:
    with Job(path):
        (path / "notes").write_text("mine")
    assert names(path) == ["notes"]


def test_a_directory_whose_index_cannot_be_made_is_let_go(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> None:
        raise JobError(f"{path}: no index")

    before = files()
    with monkeypatch.context() as patch:
        patch.setattr("rerank_async.bulk._job.Index", broken)
        with pytest.raises(JobError, match="no index"):
            Job(path)
    assert files() == before
    assert not path.exists()
    with Job(path):
        pass


@pytest.mark.parametrize(
    ("name", "why"),
    [("file", "File exists"), ("file/job", "Not a directory"), ("x" * 300, "File name too long")],
)
def test_where_no_directory_can_be_is_an_error_of_the_job(
    tmp_path: Path, name: str, why: str
) -> None:
    (tmp_path / "file").write_bytes(b"")
    before = files()
    with pytest.raises(JobError, match=why):
        Job(tmp_path / name)
    assert files() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_may_not_be_written_is_an_error_of_the_job(path: Path) -> None:
    path.mkdir(mode=0o500)
    with pytest.raises(JobError, match="Permission denied"):
        Job(path)


async def test_a_link_to_a_directory_is_as_good_as_the_directory(
    tmp_path: Path, path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    path.symlink_to(tmp_path / "elsewhere")
    await do(path, "a")
    assert await do(tmp_path / "elsewhere") == ["id:a"]


@pytest.mark.posix("a lock whose file stays")
async def test_closing_leaves_nothing_open_and_may_be_done_twice(path: Path) -> None:
    before = files()
    with Job(path) as job:
        taken_up(job)
        offset = await job.journal.add(entry("a"))
        await job.journal.sync()
        assert job.entry(offset).key == "id:a"
    job.close()
    assert files() == before
    assert names(path) == ["journal.log", "lock", "manifest.json"]
    with Job(path):
        pass


async def test_closing_writes_what_waits(path: Path) -> None:
    with Job(path) as job:
        taken_up(job)
        await job.journal.add(entry("a"))
    assert await do(path) == ["id:a"]


# ── beginning and going on ──


async def test_what_was_done_is_found_again_in_the_order_in_which_it_was_done(path: Path) -> None:
    assert await do(path, "b", "a") == []
    assert await do(path, "c") == ["id:b", "id:a"]
    with Job(path) as job:
        assert job.check(WORDS) is True
        assert [one.key for one in taken_up(job)] == ["id:b", "id:a", "id:c"]
        assert (job.dropped, job.skipped) == (0, 0)
        assert job.index.over() == (3, 0, 3)
        assert not job.index.begin("id:a")
        assert job.index.begin("id:d")


def test_a_job_can_be_taken_up_in_a_thread_where_no_loop_runs(path: Path) -> None:
    for _ in range(2):
        with Job(path) as job:
            thread = threading.Thread(target=taken_up, args=(job,))
            thread.start()
            thread.join()
            assert job.journal.end == (path / "journal.log").stat().st_size > 0


async def test_whose_the_journal_is_stands_on_the_disk_before_anything_is_added(
    path: Path,
) -> None:
    durable: list[int] = []
    with Job(path) as job:
        taken_up(job, on_durable=durable.append)
        head = (path / "journal.log").read_bytes()
        assert head == frame(
            b'{"fingerprint":"' + MANIFEST.fingerprint().encode() + b'"}', begins=True
        )
        await job.journal.add(entry("a"))
        await job.journal.sync()
        assert durable == [1]
    assert len(lines_of(path)) == 2


@pytest.mark.posix("directories that can be synced")
def test_the_names_of_a_new_job_last(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = os.fsync

    def fsync(file: int) -> None:
        seen.append(os.fstat(file).st_ino)
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    with Job(path) as job:
        taken_up(job)
    # The manifest and its name, the journal and its, and then the directory's own.
    synced = (path / "manifest.json", path, path / "journal.log", path, path.parent)
    assert seen == [one.stat().st_ino for one in synced]


@pytest.mark.parametrize("whole", [True, False])
async def test_a_journal_that_holds_only_whose_it_is_is_gone_on_with(
    path: Path, whole: bool
) -> None:
    await do(path)
    journal = path / "journal.log"
    size = journal.stat().st_size
    if not whole:
        # The process died while it wrote that.
        os.truncate(journal, size - 7)
    assert await do(path, "a") == []
    assert len(lines_of(path)) == 2
    assert await do(path) == ["id:a"]


@pytest.mark.parametrize("left", ["manifest.json.new", "journal.log.new"])
async def test_what_a_killed_run_left_half_written_hinders_nobody(path: Path, left: str) -> None:
    path.mkdir()
    (path / left).write_bytes(b"half")
    await do(path, "a")
    assert await do(path) == ["id:a"]


async def test_a_torn_end_is_cut_off_and_counted(path: Path) -> None:
    await do(path, "a", "b")
    with (path / "journal.log").open("ab") as file:
        file.write(b"torn")
    with Job(path) as job:
        assert len(taken_up(job)) == 2
        assert job.dropped == 4
        await job.journal.add(entry("c"))
    assert await do(path) == ["id:a", "id:b", "id:c"]


@pytest.mark.parametrize("when", ["manifest.json", "journal.log"])
def test_a_full_disk_at_the_beginning_is_told_and_the_next_run_begins(
    path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def full(file: int) -> None:
        here = os.fstat(file).st_ino
        if any(one.stat().st_ino == here for one in path.glob(f"{when}*")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file)

    monkeypatch.setattr(os, "fsync", full)
    with Job(path) as job, pytest.raises(JobFullError, match=f"{when}.*make room"):
        taken_up(job)
    monkeypatch.undo()
    with Job(path) as job:
        assert taken_up(job) == []
        assert job.check(WORDS)


# ── the manifest ──


def test_the_manifest_says_when_and_by_what_the_job_was_begun(path: Path) -> None:
    with Job(path) as job:
        taken_up(job)
    text = (path / "manifest.json").read_text()
    assert '"by": "rerank_async ' in text
    assert '"created": "20' in text
    before = text
    with Job(path) as job:
        taken_up(job)
    assert (path / "manifest.json").read_text() == before


def test_a_job_that_was_begun_differently_says_how(path: Path) -> None:
    with Job(path) as job:
        taken_up(job)
    with Job(path) as job:
        with pytest.raises(JobChangedError, match=r"begun differently: model was 'm', now 'n'\. R"):
            job.check(OTHER.words)
        with pytest.raises(JobChangedError, match="model was 'm', now 'n'"):
            taken_up(job, OTHER)
        # What the words do not say is looked at when the job is taken up.
        changed = Manifest(WORDS, Contents(4, 17, "1" * 32))
        assert job.check(changed.words)
        with pytest.raises(JobChangedError, match="number of rows was 3, now 4"):
            taken_up(job, changed)
        taken_up(job)


async def test_a_word_that_came_later_and_says_nothing_does_not_end_a_job(path: Path) -> None:
    await do(path, "a")
    with Job(path) as job:
        later = Manifest({**WORDS, "novel": None}, MANIFEST.contents)
        assert job.check(later.words)
        assert [one.key for one in taken_up(job, later)] == ["id:a"]


async def test_no_damage_to_the_manifest_goes_unseen(path: Path) -> None:
    await do(path, "a")
    manifest = path / "manifest.json"
    data = manifest.read_bytes()
    with Job(path) as job:
        for place in range(len(data)):
            for mask in (0x01, 0x80):
                damaged = bytearray(data)
                damaged[place] ^= mask
                manifest.write_bytes(damaged)
                with pytest.raises(JobDamagedError, match=r"manifest\.json: it is "):
                    job.check(WORDS)
        for length in (0, 1, len(data) // 2, len(data) - 2):
            manifest.write_bytes(data[:length])
            with pytest.raises(JobDamagedError, match=r"manifest\.json: it is damaged"):
                taken_up(job)
        manifest.write_bytes(data)
        assert len(taken_up(job)) == 1


async def test_a_journal_without_its_manifest_is_not_gone_on_with(path: Path) -> None:
    await do(path, "a")
    (path / "manifest.json").unlink()
    before = (path / "journal.log").read_bytes()
    with Job(path) as job:
        with pytest.raises(JobDamagedError, match=r"manifest\.json is missing"):
            job.check(WORDS)
        with pytest.raises(JobDamagedError, match=r"manifest\.json is missing"):
            taken_up(job, salvage=True)
    assert (path / "journal.log").read_bytes() == before


def test_an_empty_journal_without_a_manifest_is_nothing(path: Path) -> None:
    path.mkdir()
    (path / "journal.log").write_bytes(b"")
    with Job(path) as job:
        assert job.check(WORDS) is False
        assert taken_up(job) == []


def test_a_directory_in_the_manifests_place_is_an_error_of_the_job(path: Path) -> None:
    (path / "manifest.json").mkdir(parents=True)
    with Job(path) as job, pytest.raises(JobError, match=r"manifest\.json: Is a directory"):
        job.check(WORDS)


@pytest.mark.parametrize("salvage", [False, True])
async def test_a_journal_of_another_job_is_not_gone_on_with(
    tmp_path: Path, path: Path, salvage: bool
) -> None:
    await do(path, "a")
    (path / "manifest.json").write_bytes(written(OTHER))
    with (
        Job(path) as job,
        pytest.raises(JobDamagedError, match=r"journal\.log was not written for the job"),
    ):
        taken_up(job, OTHER, salvage=salvage)
    assert len(lines_of(path)) == 2


# ── damage ──


async def test_a_damaged_entry_is_told_and_left_out_on_demand(path: Path) -> None:
    await do(path, "a")
    await do(path, "b")
    await do(path, "c")
    journal = path / "journal.log"
    lines = lines_of(path)
    journal.write_bytes(journal.read_bytes().replace(b"id:b", b"id:x"))
    with Job(path) as job:
        with pytest.raises(JobDamagedError, match=rf"byte {len(lines[0] + lines[1])} is damaged"):
            taken_up(job)
        assert [one.key for one in taken_up(job, salvage=True)] == ["id:a", "id:c"]
        assert job.skipped == 1
    assert lines_of(path) == [*lines[:2], lines[3]]


async def test_damage_to_the_words_that_say_whose_the_journal_is_can_be_salvaged_too(
    path: Path,
) -> None:
    await do(path, "a")
    await do(path, "b")
    journal = path / "journal.log"
    data, head = journal.read_bytes(), len(lines_of(path)[0])
    for place in range(0, head, 7):
        journal.write_bytes(data[:place] + b"\xff" + data[place + 1 :])
        with Job(path) as job:
            with pytest.raises(JobDamagedError, match="byte 0 is damaged"):
                taken_up(job)
            assert [one.key for one in taken_up(job, salvage=True)] == ["id:a", "id:b"]
            assert job.journal.end == journal.stat().st_size
        # That says it again, and nobody needs to ask for more.
        assert await do(path) == ["id:a", "id:b"]
        assert sorted(lines_of(path), key=len) == sorted(data.splitlines(keepends=True), key=len)


async def test_a_journal_that_does_not_say_whose_it_is_is_taken_up_on_demand_only(
    path: Path,
) -> None:
    await do(path, "a")
    # As after a salvage that was killed half-way.
    (path / "journal.log").write_bytes(lines_of(path)[1])
    with (
        Job(path) as job,
        pytest.raises(JobDamagedError, match="does not say which job it was written for"),
    ):
        taken_up(job)
    assert await do(path, "b", salvage=True) == ["id:a"]
    assert await do(path) == ["id:a", "id:b"]


# ── entries ──


@pytest.mark.parametrize("size", [0, 1, 400, 6000, 60_000])
async def test_an_entry_of_any_length_is_read_where_it_stands(path: Path, size: int) -> None:
    with Job(path) as job:
        taken_up(job)
        offsets = [
            await job.journal.add(entry(f"{number}", size=size * (number % 2)))
            for number in range(4)
        ]
        await job.journal.sync()
        for number in (2, 0, 3, 1):
            found = job.entry(offsets[number])
            assert (found.key, found.documents) == (f"id:{number}", size * (number % 2))
            assert bytes(found.line) in (path / "journal.log").read_bytes()


@pytest.mark.parametrize("length", [2**14 - 1, 2**14, 2**14 + 1, 2**17 - 1, 2**17, 2**17 + 1])
async def test_an_entry_may_end_exactly_where_a_read_ends(path: Path, length: int) -> None:
    short = len(frame(entry(""), begins=True))
    payload = entry("").replace(b'"id:"', b'"id:' + b"x" * (length - short) + b'"')
    with Job(path) as job:
        taken_up(job)
        offset = await job.journal.add(payload)
        await job.journal.sync()
        assert job.journal.end - offset == length
        assert len(job.entry(offset).key) == 3 + length - short
        after = await job.journal.add(entry("after"))
        await job.journal.sync()
        assert job.entry(after).key == "id:after"
        assert len(job.entry(offset).key) == 3 + length - short


async def test_an_entry_that_was_damaged_since_is_told_where_it_stands(path: Path) -> None:
    with Job(path) as job:
        taken_up(job)
        offset = await job.journal.add(entry("a"))
        await job.journal.sync()
        assert job.entry(offset).key == "id:a"
        with (path / "journal.log").open("r+b") as file:
            file.seek(offset + 20)
            file.write(b"\0")
        with pytest.raises(JobDamagedError, match=rf"the entry at byte {offset} is damaged"):
            job.entry(offset)
        with pytest.raises(JobDamagedError, match=r"the entry at byte 99999 is damaged"):
            job.entry(99_999)
        with pytest.raises(JobDamagedError, match=r"the entry at byte 3 is damaged"):
            job.entry(3)


async def test_a_journal_that_somebody_took_away_is_an_error_of_the_job(path: Path) -> None:
    with Job(path) as job:
        taken_up(job)
        (path / "journal.log").unlink()
        with pytest.raises(JobError, match=r"journal\.log: No such file"):
            job.entry(0)


async def test_outcomes_stand_in_the_inputs_order_with_how_many_documents_are_before(
    path: Path,
) -> None:
    await do(path, "c", "a")
    with Job(path) as job:
        for ordinal, name in enumerate("abc"):
            job.index.row(ordinal, f"id:{name}", ordinal * 100)
        taken_up(job)
        assert [(one.key, start) for one, start in job.entries()] == [("id:a", 0), ("id:c", 200)]
        offset = await job.journal.add(entry("b"))
        await job.journal.sync()
        job.index.begin("id:b")
        job.index.ended("id:b", offset, False)
        assert [one.key for one, _ in job.entries()] == ["id:a", "id:b", "id:c"]


async def test_of_a_row_that_was_done_again_the_success_counts(path: Path) -> None:
    with Job(path) as job:
        taken_up(job)
        for failed in (True, False, True):
            await job.journal.add(entry("a", failed=failed))
        await job.journal.sync()
    with Job(path) as job:
        job.index.row(0, "id:a", 0)
        assert [one.failed for one in taken_up(job)] == [True, False, True]
        assert [one.failed for one, _ in job.entries()] == [False]
        assert job.index.over() == (1, 0, 1)


# ── killed ──

WORKING = """
import asyncio, sys
from pathlib import Path
from rerank_async.bulk._job import Job
from tests.bulk.test_job import MANIFEST, entry

async def main():
    with Job(Path(sys.argv[1])) as job:
        entries = []
        done = 0
        def durable(count):
            nonlocal done
            done += count
            print(done, flush=True)
        job.take_up(MANIFEST, take=entries.append, on_durable=durable)
        number = done = len(entries)
        while True:
            await job.journal.add(entry(str(number)))
            number += 1
            if number % 5 == 0:
                await asyncio.sleep(0)

asyncio.run(main())
"""


def test_a_job_that_was_killed_is_gone_on_with(path: Path) -> None:
    before = 0
    for rounds in (1, 20):
        process = subprocess.Popen(
            [sys.executable, "-c", WORKING, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert process.stdout is not None
        with process.stdout:
            told = [process.stdout.readline() for _ in range(rounds)]
            process.kill()
            told += process.stdout.readlines()
        process.wait()
        acknowledged = int([line for line in told if line.endswith("\n")][-1])
        with Job(path) as job:
            keys = [one.key for one in taken_up(job)]
        assert keys == [f"id:{number}" for number in range(len(keys))]
        assert len(keys) >= acknowledged > before
        before = len(keys)
