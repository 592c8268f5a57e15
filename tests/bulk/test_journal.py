"""`_journal`: what was acknowledged is found again, whatever befalls the file or its writer."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from unittest import mock

import pytest
from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from rerank_async.bulk import JobDamagedError, JobError, JobFullError
from rerank_async.bulk import _journal as journal_module
from rerank_async.bulk._entries import frame, unframed
from rerank_async.bulk._journal import Journal, Recovered, recover
from tests.support import steps, until

SECONDS = 20.0

# Three groups; the last has several entries, so that it can be torn in its middle.
GROUPS = ((b'{"n":0}', b'{"n":1}'), (b'{"n":2}',), (b'{"n":3}', b'{"n":"=+"}', b'{"n":5}'))
ENTRIES = [payload for group in GROUPS for payload in group]
FIRST_OF_THE_LAST_GROUP = len(ENTRIES) - len(GROUPS[-1])


def framed(groups: Sequence[Sequence[bytes]]) -> list[bytes]:
    """The lines of a journal with these groups."""
    return [
        frame(payload, begins=place == 0) for group in groups for place, payload in enumerate(group)
    ]


LINES = framed(GROUPS)
STARTS = [0, *accumulate(map(len, LINES))]
JOURNAL = b"".join(LINES)


def found(path: Path, *, salvage: bool = False) -> tuple[Recovered, list[bytes]]:
    """What a journal holds; the offsets are looked at, too."""
    entries: list[bytes] = []
    offsets: list[int] = []

    def take(offset: int, payload: bytes) -> None:
        offsets.append(offset)
        entries.append(payload)

    recovered = recover(path, take, salvage=salvage)
    data = path.read_bytes() if path.exists() else b""
    assert len(data) == recovered.end
    for offset, payload in zip(offsets, entries, strict=True):
        line = data[offset : data.index(b"\n", offset) + 1]
        assert unframed(line) is not None
        assert line[9:-1] == payload
    return recovered, entries


def assert_goes_on(path: Path, end: int, before: Sequence[bytes]) -> None:
    """What is added now stands behind what was there, and nothing is destroyed."""
    journal = Journal(path, end)
    assert journal.add_now(b"{}") == end
    journal.add_now(b'{"last":true}')
    journal.close()
    recovered, entries = found(path)
    assert entries == [*before, b"{}", b'{"last":true}']
    assert (recovered.dropped, recovered.skipped) == (0, 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.log"


@pytest.fixture
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """For files that are looked at a thousand times; that syncs happen is shown elsewhere."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.setattr(os, "fdatasync", lambda file: None, raising=False)


# ── torn ──


@pytest.mark.usefixtures("no_waiting_for_the_disk")
async def test_a_journal_that_ends_at_any_byte_is_recovered_up_to_its_last_whole_entry(
    path: Path,
) -> None:
    for length in range(len(JOURNAL) + 1):
        path.write_bytes(JOURNAL[:length])
        whole = sum(stop <= length for stop in STARTS[1:])
        recovered, entries = found(path)
        assert entries == ENTRIES[:whole]
        assert recovered == Recovered(STARTS[whole], length - STARTS[whole], 0)
        assert path.read_bytes() == JOURNAL[: STARTS[whole]]
        assert_goes_on(path, recovered.end, ENTRIES[:whole])


@pytest.mark.parametrize(
    ("tail", "whole"),
    [
        (b"\0", 0),
        (b"\0" * 9, 0),
        (b"\0" * 4096, 0),
        (b"\0" * 4096 + b"\n", 0),
        (b"\n", 0),
        (b"\n\n\n", 0),
        (b"0c2f61e8", 0),
        (b"0c2f61e8=", 0),
        (b"0c2f61e8={}\n", 0),
        (b"no entry at all", 0),
        (b"no entry at all\nnor this\n", 0),
        (LINES[0][:-2], 0),
        (LINES[0][:-2] + b"\n", 0),
        (LINES[0][:-2] + b"\n\n", 0),
        # A last group of which the beginning did not reach the disk, and the rest did.
        (b"\0" * 100 + LINES[5], 1),
        (LINES[3][1:] + LINES[4] + LINES[5], 2),
    ],
)
@pytest.mark.parametrize("salvage", [False, True])
async def test_what_no_writer_finished_is_cut_off_the_end(
    path: Path, tail: bytes, whole: int, salvage: bool
) -> None:
    path.write_bytes(JOURNAL + tail)
    recovered, entries = found(path, salvage=salvage)
    if salvage and whole:
        # Whoever asks for it keeps what is whole of such a group.
        assert entries == [*ENTRIES, *ENTRIES[-whole:]]
        assert (recovered.dropped, recovered.skipped) == (0, 1)
    else:
        assert entries == ENTRIES
        assert recovered == Recovered(len(JOURNAL), len(tail), 0)
    assert_goes_on(path, recovered.end, entries)


async def test_the_end_of_an_entry_is_its_newline(path: Path) -> None:
    path.write_bytes(JOURNAL[:-1])
    recovered, entries = found(path)
    assert entries == ENTRIES[:-1]
    assert recovered.dropped == len(LINES[-1]) - 1
    assert_goes_on(path, recovered.end, ENTRIES[:-1])


def test_a_journal_that_is_empty_or_not_there_holds_nothing(path: Path) -> None:
    assert found(path) == (Recovered(0, 0, 0), [])
    assert not path.exists()
    path.write_bytes(b"")
    assert found(path) == (Recovered(0, 0, 0), [])
    assert path.read_bytes() == b""


# ── damaged ──


def damages() -> Iterator[tuple[int, bytes]]:
    """The journal with one byte damaged, and which entry that byte belongs to."""
    for place in range(len(JOURNAL)):
        entry = sum(stop <= place for stop in STARTS[1:])
        old = JOURNAL[place]
        # One bit, all bits, the difference between the marks, and a digit where a newline was.
        values = {old ^ mask for mask in (1, 2, 4, 8, 16, 32, 64, 128, 255, 0x16, 0x3B)}
        for value in {*values, 0, ord("\n")} - {old}:
            yield entry, JOURNAL[:place] + bytes([value]) + JOURNAL[place + 1 :]


@pytest.mark.usefixtures("no_waiting_for_the_disk")
def test_no_damaged_byte_makes_a_wrong_entry_or_loses_one_of_an_earlier_group_unseen(
    path: Path,
) -> None:
    for number, damaged in damages():
        path.write_bytes(damaged)
        if number < FIRST_OF_THE_LAST_GROUP:
            with pytest.raises(JobDamagedError, match=f"byte {STARTS[number]} is damaged"):
                found(path)
            assert path.read_bytes() == damaged
        else:
            recovered, entries = found(path)
            assert entries == ENTRIES[:number]
            assert recovered == Recovered(STARTS[number], len(JOURNAL) - STARTS[number], 0)
            assert path.read_bytes() == JOURNAL[: STARTS[number]]


@pytest.mark.usefixtures("no_waiting_for_the_disk")
async def test_what_is_salvaged_is_every_undamaged_entry_and_nothing_else(path: Path) -> None:
    for number, damaged in damages():
        path.write_bytes(damaged)
        recovered, entries = found(path, salvage=True)
        assert entries == [*ENTRIES[:number], *ENTRIES[number + 1 :]]
        assert path.read_bytes() == b"".join([*LINES[:number], *LINES[number + 1 :]])
        if number == len(ENTRIES) - 1:
            # Nothing whole follows: it is the end that is cut off.
            assert (recovered.dropped, recovered.skipped) == (len(LINES[number]), 0)
        else:
            # A newline in its middle makes two lines of one.
            assert recovered.skipped in (1, 2)
            assert recovered.dropped == 0
        # It is sound now, and nobody needs to ask for that again.
        assert found(path) == (Recovered(recovered.end, 0, 0), entries)
        assert [name.name for name in path.parent.iterdir()] == [path.name]
    assert_goes_on(path, recovered.end, entries)


def test_nothing_is_taken_of_a_journal_that_is_damaged(path: Path) -> None:
    path.write_bytes(JOURNAL.replace(b"2}", b"7}"))
    taken: list[bytes] = []
    with pytest.raises(JobDamagedError, match=rf"journal\.log: the entry at byte {STARTS[2]} .*--"):
        recover(path, lambda offset, payload: taken.append(payload))
    assert taken == []


def test_several_damages_are_left_out_and_the_torn_end_is_cut_off(path: Path) -> None:
    lines = framed([[b"%d" % number] for number in range(20)])
    bad = {0, 4, 5, 13}
    damaged = [b"x" + line[1:] if number in bad else line for number, line in enumerate(lines)]
    path.write_bytes(b"".join(damaged) + b"torn")
    with pytest.raises(JobDamagedError, match="byte 0 is damaged"):
        found(path)
    recovered, entries = found(path, salvage=True)
    assert entries == [b"%d" % number for number in range(20) if number not in bad]
    assert (recovered.dropped, recovered.skipped) == (4, 4)
    assert found(path)[1] == entries


def test_a_damage_that_swallows_several_lines_is_told_where_it_begins(path: Path) -> None:
    # A block of zeros over the end of one group, all of another and the beginning of a third.
    start, stop = STARTS[1] + 3, STARTS[3] + 12
    path.write_bytes(JOURNAL[:start] + b"\0" * (stop - start) + JOURNAL[stop:] + LINES[0])
    with pytest.raises(JobDamagedError, match=f"byte {STARTS[1]} is damaged"):
        found(path)
    assert found(path, salvage=True)[1] == [ENTRIES[0], *ENTRIES[4:], ENTRIES[0]]


def test_a_damaged_newline_before_the_last_group_does_not_hide_where_it_begins(path: Path) -> None:
    place = STARTS[3] - 1
    path.write_bytes(JOURNAL[:place] + b"x" + JOURNAL[place + 1 :])
    with pytest.raises(JobDamagedError, match=f"byte {STARTS[2]} is damaged"):
        found(path)
    assert found(path, salvage=True)[1] == [*ENTRIES[:2], *ENTRIES[3:]]


def test_a_long_journal_is_recovered_as_a_short_one(path: Path) -> None:
    payloads = [b"%d" % number * (1 + number * 37 % 5000) for number in range(400)]
    lines = framed([payloads[at : at + 7] for at in range(0, 400, 7)])
    path.write_bytes(b"".join(lines) + lines[0][:-1])
    recovered, entries = found(path)
    assert entries == payloads
    assert recovered.dropped == len(lines[0]) - 1


# ── what the system says ──


@pytest.mark.posix("directories that can be opened")
def test_a_directory_in_the_journals_place_is_an_error_of_the_job(path: Path) -> None:
    path.mkdir()
    with pytest.raises(JobError, match=r"journal\.log: Is a directory"):
        found(path)
    with pytest.raises(JobError, match=r"journal\.log: Is a directory"):
        Journal(path, 0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write anything")
def test_a_journal_without_permission_is_an_error_of_the_job(path: Path) -> None:
    path.write_bytes(JOURNAL)
    path.chmod(0)
    with pytest.raises(JobError, match="Permission denied"):
        recover(path, lambda offset, payload: None)
    with pytest.raises(JobError, match="Permission denied"):
        Journal(path, 0)


@pytest.mark.parametrize("salvage", [False, True])
def test_where_a_journal_cannot_be_mended_it_stays_as_it_is(
    path: Path, salvage: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = JOURNAL.replace(b"2}", b"7}") if salvage else JOURNAL
    path.write_bytes(damaged)

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(JobFullError, match=r"journal\.log: No space"):
        found(path, salvage=salvage)
    assert path.read_bytes() == damaged
    assert [name.name for name in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("tail", [b"", b"torn"])
def test_what_a_killed_process_left_is_on_the_disk_before_it_counts(
    path: Path, tail: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(JOURNAL + tail)
    seen: list[int | bytes] = []
    real = os.fsync

    def fsync(file: int) -> None:
        seen.append(os.fstat(file).st_size)
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    recover(path, lambda offset, payload: seen.append(payload))
    assert seen == [len(JOURNAL), *ENTRIES]


# ── the disk, in slow motion ──


@define
class Disk:
    """`os.fdatasync` and `os.write`, watched, held back and made to fail."""

    synced: list[int] = field(factory=list)
    written: list[int] = field(factory=list)
    error: OSError | None = None
    _gate: threading.Event = field(factory=threading.Event)
    _began: threading.Event = field(factory=threading.Event)
    _sync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)  # noqa: RUF009
    _write: Callable[[int, bytes], int] = os.write

    def hold(self) -> None:
        self._began.clear()
        self._gate.clear()

    def let_go(self) -> None:
        self._gate.set()

    async def began(self) -> None:
        """Wait until a sync has begun."""
        await until(self._began.is_set, "a sync")

    def fdatasync(self, file: int) -> None:
        size = os.fstat(file).st_size
        self._began.set()
        assert self._gate.wait(SECONDS)
        if self.error is not None:
            self.synced.append(-1)
            raise self.error
        self._sync(file)
        self.synced.append(size)

    def write(self, file: int, data: bytes) -> int:
        self.written.append(len(data))
        return self._write(file, data)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk()
    disk.let_go()
    monkeypatch.setattr(os, "fdatasync", disk.fdatasync, raising=False)
    monkeypatch.setattr(os, "write", disk.write)
    yield disk
    disk.let_go()


def is_writing(journal: Journal) -> bool:
    return journal._writing is not None


def groups(path: Path) -> list[int]:
    """How many entries each group of a journal has."""
    sizes: list[int] = []
    for line in path.read_bytes().splitlines(keepends=True):
        entry = unframed(line)
        assert entry is not None
        if entry[1]:
            sizes.append(0)
        sizes[-1] += 1
    return sizes


# ── durable ──


async def test_entries_stand_in_the_file_in_the_order_in_which_they_were_added(path: Path) -> None:
    journal = Journal(path, 0)
    offsets = [await journal.add(payload) for payload in ENTRIES]
    assert journal.end == sum(len(payload) + 10 for payload in ENTRIES)
    await journal.sync()
    assert path.stat().st_size == journal.end
    journal.close()
    assert found(path)[1] == ENTRIES
    data = path.read_bytes()
    assert [data[offset + 9 :].split(b"\n")[0] for offset in offsets] == ENTRIES


async def test_nothing_is_acknowledged_before_the_disk_has_it(path: Path, disk: Disk) -> None:
    seen: list[str] = []
    journal = Journal(path, 0, on_durable=lambda count: seen.append(f"{count} acknowledged"))
    disk.hold()
    for payload in ENTRIES:
        await journal.add(payload)
    syncing = asyncio.ensure_future(journal.sync())
    await disk.began()
    await steps(20)
    assert path.stat().st_size == journal.end
    assert seen == []
    assert not syncing.done()
    disk.let_go()
    await syncing
    assert seen == [f"{len(ENTRIES)} acknowledged"]
    assert disk.synced == [journal.end]
    journal.close()


async def test_syncing_waits_for_what_is_under_way_and_for_what_waits(
    path: Path, disk: Disk
) -> None:
    acknowledged: list[int] = []
    journal = Journal(path, 0, on_durable=acknowledged.append)
    disk.hold()
    await journal.add(b"1")
    first = asyncio.ensure_future(journal.sync())
    await disk.began()
    await journal.add(b"2")
    await journal.add(b"3")
    second = asyncio.ensure_future(journal.sync())
    await steps(20)
    assert not first.done()
    assert not second.done()
    disk.let_go()
    await second
    await first
    assert acknowledged == [1, 2]
    assert disk.synced == [len(b"1") + 10, journal.end]
    journal.close()
    assert groups(path) == [1, 2]


async def test_syncing_nothing_does_nothing(path: Path, disk: Disk) -> None:
    journal = Journal(path, 0)
    await journal.sync()
    await journal.add(b"1")
    await journal.sync()
    await journal.sync()
    assert len(disk.synced) == 1
    journal.close()
    assert len(disk.synced) == 1


async def test_a_group_is_written_in_one_piece(path: Path, disk: Disk) -> None:
    journal = Journal(path, 0)
    for payload in ENTRIES:
        journal.add_now(payload)
    await journal.sync()
    assert disk.written == [journal.end]
    journal.close()


async def test_sixty_four_entries_are_a_group_and_go_at_once(path: Path, disk: Disk) -> None:
    acknowledged: list[int] = []
    journal = Journal(path, 0, on_durable=acknowledged.append)
    disk.hold()
    for number in range(63):
        await journal.add(b"%d" % number)
    await steps(20)
    assert not disk.written
    await journal.add(b"63")
    await disk.began()
    # What comes meanwhile is the next group, however much it is.
    for number in range(64, 64 + 100):
        await journal.add(b"%d" % number)
    disk.let_go()
    await until(lambda: acknowledged == [64, 100], "both groups")
    journal.close()
    assert groups(path) == [64, 100]
    assert found(path)[1] == [b"%d" % number for number in range(164)]


async def test_so_many_bytes_are_a_group_too(path: Path, disk: Disk) -> None:
    acknowledged: list[int] = []
    journal = Journal(path, 0, on_durable=acknowledged.append)
    half = b"x" * (journal_module._GROUP_BYTES // 2)
    await journal.add(half)
    await steps(20)
    assert not disk.written
    await journal.add(half)
    await until(lambda: acknowledged == [2], "the group")
    journal.close()


@pytest.mark.looptime
async def test_a_group_goes_when_its_first_entry_has_waited_long_enough(
    path: Path, disk: Disk
) -> None:
    acknowledged: list[int] = []
    disk.hold()
    journal = Journal(path, 0, on_durable=acknowledged.append)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await journal.add(b"1")
    await asyncio.sleep(0.15)
    await journal.add(b"2")
    await asyncio.sleep(0.049)
    assert not is_writing(journal)
    assert path.read_bytes() == b""
    await asyncio.sleep(0.002)
    assert is_writing(journal)
    assert loop.time() - began == pytest.approx(0.201)
    disk.let_go()
    await until(lambda: acknowledged == [2], "the group")
    # The time of the next one begins with its own first entry.
    await asyncio.sleep(5.0)
    await journal.add(b"3")
    await asyncio.sleep(0.199)
    assert acknowledged == [2]
    await asyncio.sleep(0.002)
    await until(lambda: acknowledged == [2, 1], "the next")
    journal.close()
    assert groups(path) == [2, 1]


@pytest.mark.looptime
async def test_a_group_that_went_because_of_its_size_leaves_no_timer(path: Path) -> None:
    acknowledged: list[int] = []
    journal = Journal(path, 0, on_durable=acknowledged.append)
    await asyncio.sleep(0.0)
    for number in range(64):
        journal.add_now(b"%d" % number)
    await until(lambda: acknowledged == [64], "the group")
    await asyncio.sleep(0.15)
    journal.add_now(b"64")
    # The first group's 0.2 seconds would be over now.
    await asyncio.sleep(0.1)
    assert not is_writing(journal)
    assert acknowledged == [64]
    journal.close()
    assert groups(path) == [64, 1]


# ── when too much waits ──


async def test_whoever_adds_waits_when_too_much_waits_for_the_disk(
    path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_MOST_WAITING", 1000)
    journal = Journal(path, 0)
    disk.hold()
    for number in range(64):
        await journal.add(b"%d" % number)
    assert journal.end < 1000
    adding = asyncio.ensure_future(journal.add(b"x" * 900))
    await disk.began()
    await steps(20)
    assert not adding.done()
    # Its place is its own already, and others may be added without waiting.
    end = journal.end
    assert journal.add_now(b"more") == end
    disk.let_go()
    assert await adding == end - 910
    await journal.sync()
    journal.close()
    assert found(path)[1][-2:] == [b"x" * 900, b"more"]


async def test_whoever_waits_to_add_is_told_when_the_disk_fails(
    path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_MOST_WAITING", 100)
    journal = Journal(path, 0)
    disk.hold()
    disk.error = OSError(errno.EIO, os.strerror(errno.EIO))
    for number in range(64):
        journal.add_now(b"%d" % number)
    adding = asyncio.ensure_future(journal.add(b"64"))
    await disk.began()
    disk.let_go()
    with pytest.raises(JobError, match="could not be synced"):
        await adding
    journal.close()
    assert path.read_bytes() == b""


async def test_whoever_waits_to_add_may_be_cancelled_and_the_entry_stays(
    path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_MOST_WAITING", 100)
    acknowledged: list[int] = []
    journal = Journal(path, 0, on_durable=acknowledged.append)
    disk.hold()
    for number in range(64):
        journal.add_now(b"%d" % number)
    adding = asyncio.ensure_future(journal.add(b"64"))
    await disk.began()
    await steps(5)
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    disk.let_go()
    assert await journal.add(b"65") == journal.end - 12
    await journal.sync()
    assert sum(acknowledged) == 66
    journal.close()
    assert found(path)[1] == [b"%d" % number for number in range(66)]


async def test_syncing_may_be_cancelled_and_the_entries_stay(path: Path, disk: Disk) -> None:
    journal = Journal(path, 0)
    disk.hold()
    await journal.add(b"1")
    syncing = asyncio.ensure_future(journal.sync())
    await disk.began()
    syncing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await syncing
    disk.let_go()
    await journal.sync()
    journal.close()
    assert found(path)[1] == [b"1"]


# ── closing ──


async def test_closing_writes_what_waits(path: Path, disk: Disk) -> None:
    journal = Journal(path, 0)
    for payload in ENTRIES:
        await journal.add(payload)
    journal.close()
    assert disk.synced == [journal.end]
    assert found(path)[1] == ENTRIES
    journal.close()
    assert len(disk.synced) == 1


async def test_closing_waits_for_the_group_that_is_being_written_and_writes_the_next(
    path: Path, disk: Disk
) -> None:
    journal = Journal(path, 0)
    disk.hold()
    await journal.add(b"1")
    syncing = asyncio.ensure_future(journal.sync())
    await disk.began()
    await journal.add(b"2")
    closing = asyncio.ensure_future(asyncio.to_thread(journal.close))
    await until(lambda: journal._closed, "the closing")
    await steps(20)
    assert not closing.done()
    assert disk.written == [11]
    disk.let_go()
    await closing
    assert disk.written == [11, 11]
    assert disk.synced == [11, 22]
    assert groups(path) == [1, 1]
    # Whoever waited was not told that all is well, which is more than anybody knew by then.
    with pytest.raises(JobError, match="closed"):
        await syncing


async def test_after_closing_nothing_can_be_added(path: Path) -> None:
    journal = Journal(path, 0)
    journal.close()
    with pytest.raises(JobError, match=r"journal\.log: the journal is closed"):
        await journal.add(b"1")
    with pytest.raises(JobError, match="the journal is closed"):
        journal.add_now(b"1")
    with pytest.raises(JobError, match="the journal is closed"):
        await journal.sync()
    assert path.read_bytes() == b""


async def test_closing_leaves_no_file_and_no_thread(path: Path) -> None:
    files = set(Path("/dev/fd").iterdir())
    for _ in range(3):
        journal = Journal(path, path.stat().st_size if path.exists() else 0)
        await journal.add(b"1")
        await journal.sync()
        journal.close()
    assert len(set(Path("/dev/fd").iterdir())) == len(files)
    assert not [one for one in threading.enumerate() if one.name.startswith("rerank-journal")]


async def test_closing_does_not_raise_where_the_disk_is_full(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(path, 0)
    await journal.add(b"1")
    await journal.sync()
    await journal.add(b"2")
    monkeypatch.setattr(os, "write", refusing(errno.ENOSPC))
    journal.close()
    assert found(path)[1] == [b"1"]


def test_a_journal_can_be_closed_after_its_loop(path: Path) -> None:
    async def begin() -> Journal:
        journal = Journal(path, 0)
        await journal.add(b"1")
        await journal.sync()
        await journal.add(b"2")
        return journal

    asyncio.run(begin()).close()
    assert found(path)[1] == [b"1", b"2"]


# ── a disk that refuses ──


def refusing(code: int, after: int = 0) -> Callable[[int, bytes], int]:
    """An `os.write` that takes so many bytes and then refuses."""
    real, left = os.write, [after]

    def write(file: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(code, os.strerror(code))
        done = real(file, bytes(data)[: left[0]])
        left[0] -= done
        return done

    return write


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
async def test_a_full_disk_cuts_back_to_the_last_good_group_and_is_told_ever_after(
    path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    acknowledged: list[int] = []
    journal = Journal(path, 0, on_durable=acknowledged.append)
    await journal.add(b"1")
    await journal.sync()
    monkeypatch.setattr(os, "write", refusing(code, after=15))
    await journal.add(b"2")
    await journal.add(b"3")
    with pytest.raises(JobFullError, match=r"could not be written: .*; make room"):
        await journal.sync()
    assert path.read_bytes() == frame(b"1", begins=True)
    monkeypatch.undo()
    # Though there is room by now: what came after the group would stand without it.
    with pytest.raises(JobFullError):
        await journal.add(b"4")
    with pytest.raises(JobFullError):
        journal.add_now(b"4")
    with pytest.raises(JobFullError):
        await journal.sync()
    journal.close()
    assert acknowledged == [1]
    recovered, entries = found(path)
    assert entries == [b"1"]
    assert_goes_on(path, recovered.end, entries)


async def test_another_error_while_writing_is_no_full_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(path, 0)
    monkeypatch.setattr(os, "write", refusing(errno.EIO, after=5))
    await journal.add(b"1")
    with pytest.raises(JobError, match="could not be written: Input/output error") as caught:
        await journal.sync()
    assert not isinstance(caught.value, JobFullError)
    assert caught.value.__cause__ is None
    journal.close()
    assert path.read_bytes() == b""


async def test_what_the_disk_takes_in_small_pieces_is_written_to_its_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, bytes(data)[:7]))
    journal = Journal(path, 0)
    for payload in ENTRIES:
        await journal.add(payload)
    await journal.sync()
    journal.close()
    assert found(path)[1] == ENTRIES


async def test_a_file_that_cannot_be_cut_back_is_told_and_recovered_by_the_next_run(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(path, 0)
    await journal.add(b"1")
    await journal.sync()
    monkeypatch.setattr(os, "write", refusing(errno.ENOSPC, after=5))

    def stuck(file: int, length: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "ftruncate", stuck)
    await journal.add(b"2")
    with pytest.raises(JobError, match="could not be mended"):
        await journal.sync()
    journal.close()
    monkeypatch.undo()
    recovered, entries = found(path)
    assert entries == [b"1"]
    assert recovered.dropped == 5


@pytest.mark.parametrize(("code", "kind"), [(errno.EIO, JobError), (errno.ENOSPC, JobFullError)])
async def test_after_a_sync_that_failed_nothing_more_is_written_or_synced(
    path: Path, disk: Disk, code: int, kind: type[JobError]
) -> None:
    acknowledged: list[int] = []
    journal = Journal(path, 0, on_durable=acknowledged.append)
    await journal.add(b"1")
    await journal.sync()
    disk.error = OSError(code, os.strerror(code))
    await journal.add(b"2")
    with pytest.raises(kind, match="could not be synced"):
        await journal.sync()
    disk.error = None
    for _ in range(2):
        with pytest.raises(kind, match="could not be synced"):
            await journal.add(b"3")
        with pytest.raises(kind, match="could not be synced"):
            await journal.sync()
    journal.close()
    assert disk.synced == [11, -1]
    assert acknowledged == [1]
    # What may or may not be on the disk was not acknowledged: it is cut off.
    assert found(path) == (Recovered(11, 0, 0), [b"1"])


async def test_closing_does_not_write_after_a_group_that_failed_even_before_the_loop_knows(
    path: Path, disk: Disk
) -> None:
    journal = Journal(path, 0)
    disk.hold()
    disk.error = OSError(errno.EIO, os.strerror(errno.EIO))
    for number in range(64):
        journal.add_now(b"%d" % number)
    await disk.began()
    journal.add_now(b"64")
    disk.let_go()
    # Here the thread has ended, and the loop had no turn to hear why.
    journal.close()
    assert journal._failure is None
    assert len(disk.written) == 1
    assert disk.synced == [-1]
    assert path.read_bytes() == b""
    await steps(5)
    with pytest.raises(JobError, match="could not be synced"):
        await journal.sync()


async def test_closing_does_not_write_after_a_group_that_failed(path: Path, disk: Disk) -> None:
    journal = Journal(path, 0)
    disk.hold()
    disk.error = OSError(errno.EIO, os.strerror(errno.EIO))
    for number in range(64):
        journal.add_now(b"%d" % number)
    await disk.began()
    journal.add_now(b"64")
    disk.let_go()
    with pytest.raises(JobError):
        await journal.sync()
    disk.error = None
    journal.close()
    assert len(disk.written) == 1
    assert disk.synced == [-1]
    assert path.read_bytes() == b""


async def test_an_error_that_nobody_expected_ends_the_journal_too(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(file: int, data: bytes) -> int:
        raise MemoryError("no memory")

    journal = Journal(path, 0)
    monkeypatch.setattr(os, "write", odd)
    await journal.add(b"1")
    with pytest.raises(JobError, match=r"journal\.log: no memory"):
        await journal.sync()
    monkeypatch.undo()
    journal.close()
    assert path.read_bytes() == b""


# ── for real ──

FILLING = """
import asyncio, resource, sys
from pathlib import Path
from rerank_async.bulk import JobFullError
from rerank_async.bulk._journal import Journal

async def main():
    acknowledged = 0
    def durable(count):
        nonlocal acknowledged
        acknowledged += count
    journal = Journal(Path(sys.argv[1]), 0, on_durable=durable)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    number = 0
    try:
        while True:
            for _ in range(3):
                await journal.add(b'{"number":%d}' % number)
                number += 1
            await journal.sync()
    except JobFullError as error:
        print(error)
    for method in (lambda: journal.add(b"1"), journal.sync):
        try:
            await method()
        except JobFullError:
            print("full")
    journal.close()
    print(acknowledged)

asyncio.run(main())
"""


@pytest.mark.posix("limits of a process")
async def test_a_file_that_may_not_grow_loses_nothing_that_was_acknowledged(path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FILLING, str(path), stdout=asyncio.subprocess.PIPE
    )
    told, _ = await process.communicate()
    error, *full, acknowledged = told.decode().splitlines()
    assert "File too large; make room" in error
    assert full == ["full", "full"]
    # Where a part of a group was written it is cut off already.
    recovered, entries = found(path)
    assert recovered.dropped == 0
    assert recovered.end > 4900
    assert entries == [b'{"number":%d}' % number for number in range(int(acknowledged))]
    assert_goes_on(path, recovered.end, entries)


APPENDING = """
import asyncio, sys
from pathlib import Path
from rerank_async.bulk._journal import Journal, recover

async def main():
    entries = []
    found = recover(Path(sys.argv[1]), lambda offset, payload: entries.append(payload))
    number = acknowledged = len(entries)
    def durable(count):
        nonlocal acknowledged
        acknowledged += count
        print(acknowledged, flush=True)
    journal = Journal(Path(sys.argv[1]), found.end, on_durable=durable)
    print(acknowledged, flush=True)
    while True:
        await journal.add(b'{"number":%d}' % number)
        number += 1
        if number % 5 == 0:
            await asyncio.sleep(0)

asyncio.run(main())
"""


def test_nothing_that_was_acknowledged_is_lost_to_a_kill(path: Path) -> None:
    before = 0
    for rounds in (1, 3, 10, 30):
        process = subprocess.Popen(
            [sys.executable, "-c", APPENDING, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        with process.stdout:
            told = [process.stdout.readline() for _ in range(rounds)]
            process.send_signal(signal.SIGKILL)
            told += process.stdout.readlines()
        process.wait()
        # The last line may be torn; the one before is not.
        acknowledged = int([line for line in told if line.endswith("\n")][-1])
        entries: list[bytes] = []
        recover(path, lambda offset, payload, entries=entries: entries.append(payload))  # type: ignore[misc]
        assert len(entries) >= acknowledged
        assert acknowledged >= before
        assert entries == [b'{"number":%d}' % number for number in range(len(entries))]
        before = len(entries)
    assert before > 0


# ── any order of events ──


class Machine(RuleBasedStateMachine):
    """A journal against a list; `sure` was acknowledged, `unsure` was added since."""

    folder: Path

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.path = self.folder / "journal.log"
        self.path.unlink(missing_ok=True)
        self.sure: list[bytes] = []
        self.unsure: list[bytes] = []
        self.acknowledged = 0
        self.number = 0
        self.journal: Journal | None = None
        self.open()

    def open(self) -> None:
        recovered, entries = found(self.path)
        assert entries == self.sure
        self.acknowledged = len(self.sure)
        self.journal = Journal(self.path, recovered.end, on_durable=self.durable)

    def durable(self, count: int) -> None:
        self.acknowledged += count

    @precondition(lambda self: self.journal is not None)
    @rule(count=st.integers(1, 5), size=st.integers(0, 30))
    def append(self, count: int, size: int) -> None:
        async def add() -> None:
            assert self.journal is not None
            for _ in range(count):
                payload = b"%d %s" % (self.number, b"x" * size)
                self.number += 1
                self.unsure.append(payload)
                await self.journal.add(payload)

        self.loop.run_until_complete(add())

    @precondition(lambda self: self.journal is not None)
    @rule()
    def sync(self) -> None:
        assert self.journal is not None
        self.loop.run_until_complete(self.journal.sync())
        self.sure += self.unsure
        self.unsure = []
        assert self.acknowledged == len(self.sure)

    @precondition(lambda self: self.journal is not None)
    @rule(
        share=st.floats(0.0, 1.0),
        tail=st.sampled_from([b"", b"\0", b"\0" * 600, b"\0\n", b"garbage"]),
    )
    def crash(self, share: float, tail: bytes) -> None:
        """End without a word; of what was not synced some bytes are in the file."""
        assert self.journal is not None
        with mock.patch.object(os, "write", side_effect=OSError(errno.EIO, "dead")):
            self.journal.close()
        self.journal = None
        lines = framed([self.unsure])
        group = b"".join(lines)
        kept = round(share * len(group))
        with self.path.open("ab") as file:
            file.write(group[:kept])
            file.write(tail)
        ends = accumulate(map(len, lines))
        self.sure += [
            payload for payload, end in zip(self.unsure, ends, strict=True) if end <= kept
        ]
        self.unsure = []

    @precondition(lambda self: self.journal is not None)
    @rule()
    def close(self) -> None:
        assert self.journal is not None
        self.journal.close()
        self.journal = None
        self.sure += self.unsure
        self.unsure = []

    @precondition(lambda self: self.journal is None)
    @rule()
    def reopen(self) -> None:
        self.open()

    @precondition(lambda self: self.journal is None)
    @rule(share=st.floats(0.0, 1.0))
    def truncate(self, share: float) -> None:
        """Somebody else cuts the file: its end is mended, and what is before it stays."""
        recovered, _ = found(self.path)
        length = round(share * recovered.end)
        os.truncate(self.path, length)
        ends = accumulate(len(payload) + 10 for payload in self.sure)
        self.sure = [payload for payload, end in zip(self.sure, ends, strict=True) if end <= length]

    @invariant()
    def what_is_sure_is_in_the_file(self) -> None:
        data = self.path.read_bytes() if self.path.exists() else b""
        lines = data.split(b"\n")[: len(self.sure)]
        assert [line[9:] for line in lines if line] == self.sure

    def teardown(self) -> None:
        if getattr(self, "journal", None) is not None:
            self.close()
        if hasattr(self, "loop"):
            assert found(self.path)[1] == self.sure
            self.loop.close()


@pytest.mark.usefixtures("no_waiting_for_the_disk")
def test_whatever_happens_in_any_order_what_was_acknowledged_stays_and_nothing_is_doubled(
    tmp_path: Path,
) -> None:
    class Here(Machine):
        folder = tmp_path

    run_state_machine_as_test(
        Here, settings=settings(max_examples=60, stateful_step_count=25, deadline=None)
    )
