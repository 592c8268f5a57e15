"""`_lock`: a job has one holder at a time, on every system."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from rerank_async.bulk import JobLockedError
from rerank_async.bulk._job import Job


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl.job"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def files() -> int:
    """How many files this process has open."""
    return len(set(Path("/dev/fd").iterdir()))


HOLDING = """
import sys
from pathlib import Path
from rerank_async.bulk._job import Job

job = Job(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the job."""
    yield from held([sys.executable, "-c", HOLDING], path)


def held(command: list[str], path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*command, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with closing(process.stdin), closing(process.stdout):
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()
        process.wait()


def test_a_job_that_another_process_holds_is_locked_until_that_process_dies(
    path: Path, holder: subprocess.Popen[str]
) -> None:
    before = files()
    with pytest.raises(JobLockedError, match=rf"another process \({holder.pid}\) works on"):
        Job(path)
    assert files() == before
    # As little as it could: no index of the other was touched.
    assert "index.sqlite" in names(path)
    holder.kill()
    holder.wait()
    with Job(path) as job:
        assert job.check({"model": "m"}) is False


def test_a_job_can_be_held_once_in_one_process_too(path: Path) -> None:
    with Job(path):
        with pytest.raises(JobLockedError, match=str(os.getpid())):
            Job(path)
        with pytest.raises(JobLockedError, match=r"out\.jsonl\.job: wait for it, or give this job"):
            Job(path)
    with Job(path):
        pass


def test_a_lock_whose_file_its_last_holder_removed_is_no_lock(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    path.mkdir()
    real = fcntl.flock
    removed: list[int] = []

    def flock(file: int, how: int) -> None:
        real(file, how)
        if len(removed) < 2:
            # Between the opening and the locking, the last holder took the file away.
            (path / "lock").unlink()
            removed.append(file)

    monkeypatch.setattr(fcntl, "flock", flock)
    before = files()
    with Job(path):
        monkeypatch.undo()
        assert len(removed) == 2
        with pytest.raises(JobLockedError):
            Job(path)
    assert files() == before


def test_a_lock_that_was_removed_and_is_anothers_by_now_is_told_and_closes_nothing_twice(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    path.mkdir()
    real = fcntl.flock
    others: list[int] = []

    def flock(file: int, how: int) -> None:
        real(file, how)
        if not others:
            (path / "lock").unlink()
            others.append(os.open(path / "lock", os.O_RDWR | os.O_CREAT))
            real(others[0], how)

    monkeypatch.setattr(fcntl, "flock", flock)
    before = files()
    with pytest.raises(JobLockedError, match="another process works on"):
        Job(path)
    assert files() == before + 1
    os.close(others[0])


@pytest.mark.posix("a lock that knows no holder")
def test_a_full_disk_does_not_keep_a_job_from_being_held(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with Job(path), pytest.raises(JobLockedError, match="another process works on"):
        Job(path)


# ── the lock, where the system has none ──

SOFT = [sys.executable, "tests/without_posix.py", "-c", HOLDING]


@pytest.fixture
def soft(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the job, on a system without locks."""
    yield from held(SOFT, path)


def say_when_held(path: Path) -> tuple[int, str]:
    """What another process without locks hears; its exit code, and its last line."""
    done = subprocess.run([*SOFT, str(path)], input="", capture_output=True, text=True)
    return done.returncode, (done.stdout + done.stderr).splitlines()[-1]


def test_a_soft_lock_refuses_a_second_run_and_names_the_first(
    path: Path, soft: subprocess.Popen[str]
) -> None:
    code, said = say_when_held(path)
    assert code == 1
    assert f"another process ({soft.pid}) works on the job in {path}" in said


def test_a_soft_lock_of_a_holder_that_was_killed_holds_nobody_up(
    path: Path, soft: subprocess.Popen[str]
) -> None:
    soft.kill()
    soft.wait()
    assert "lock.holder" in names(path)
    assert say_when_held(path) == (0, "held")


def test_a_soft_lock_is_no_longer_there_once_it_is_released(path: Path) -> None:
    path.mkdir()
    program = HOLDING.replace("sys.stdin.read()", "job.close()")
    subprocess.run([*SOFT[:-1], program, str(path)], check=True, stdout=subprocess.DEVNULL)
    assert names(path) == []


def test_what_a_real_lock_left_behind_is_no_soft_lock(path: Path) -> None:
    path.mkdir()
    # As every version before soft locks left it, after a crash or after its end.
    (path / "lock").write_text(f"{os.getpid()}\n")
    assert say_when_held(path) == (0, "held")
    with Job(path):
        pass


def test_a_file_system_without_locks_gets_a_soft_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def flock(file: int, how: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    with Job(path), pytest.raises(JobLockedError, match=rf"another process \({os.getpid()}\)"):
        Job(path)
    assert not path.exists()
    with Job(path):
        pass
