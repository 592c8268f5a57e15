"""`_disk`: a file is there whole or as it was, and an error of the system says what it means."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from rerank_async.bulk import InputError, JobError, JobFullError
from rerank_async.bulk._disk import NO_ROOM, as_job_error, replace_file, replacing, sync_directory


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_only_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with replacing(path) as fresh:
        assert fresh.parent == path.parent
        fresh.write_bytes(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["out"]


def test_a_file_that_stands_there_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with replacing(path) as fresh:
        fresh.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [InputError("bad"), ValueError("bad"), KeyboardInterrupt()])
def test_after_an_error_the_file_is_as_it_was_and_nothing_lies_about(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with pytest.raises(type(error)) as caught, replacing(path) as fresh:
        fresh.write_bytes(b"half")
        raise error
    assert caught.value is error
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("code", NO_ROOM)
def test_a_full_disk_is_told_as_such_and_leaves_the_old_file(tmp_path: Path, code: int) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with pytest.raises(JobFullError, match="make room") as caught, replacing(path) as fresh:
        fresh.write_bytes(b"half")
        raise OSError(code, os.strerror(code))
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, OSError)
    assert caught.value.__cause__ is None
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["out"]


def test_what_was_told_as_a_full_disk_stays_what_it_is(tmp_path: Path) -> None:
    error = JobFullError("another file")
    with pytest.raises(JobFullError) as caught, replacing(tmp_path / "out"):
        raise error
    assert caught.value is error


@pytest.mark.posix("directories that can be synced")
def test_the_bytes_last_before_the_name_does_and_the_name_before_anybody_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "out", []
    sync, replace = os.fsync, os.replace

    def fsync(file: int) -> None:
        seen.append("directory" if stat.S_ISDIR(os.fstat(file).st_mode) else "file")
        sync(file)

    def renamed(source: Any, target: Any) -> None:
        seen.append("name")
        assert Path(source).read_bytes() == b"new"
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", renamed)
    monkeypatch.setattr(os, "rename", renamed)
    replace_file(path, b"new")
    assert seen == ["file", "name", "directory"]


def test_a_sync_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")

    def broken(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(JobError, match="nput/output"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["out"]


def test_a_directory_in_the_place_of_the_file_is_an_error_of_the_job(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(JobError, match="out"):
        replace_file(tmp_path / "out", b"new")
    assert names(tmp_path) == ["out"]


def test_a_directory_that_does_not_exist_is_an_error_of_the_job(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="No such file"):
        replace_file(tmp_path / "nowhere" / "out", b"new")


def test_whoever_writes_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="No such file"), replacing(tmp_path / "out"):
        pass
    assert names(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_may_not_be_written_is_an_error_of_the_job(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(JobError, match="ermission"):
            replace_file(tmp_path / "out", b"new")
    finally:
        tmp_path.chmod(0o700)


def test_errors_of_the_system_are_told_in_its_own_words() -> None:
    path = Path("some") / "file"
    told = as_job_error(path, OSError(errno.EACCES, "Permission denied"))
    assert (type(told), str(told)) == (JobError, f"{path}: Permission denied")
    assert str(as_job_error(path, OSError("no number"))) == f"{path}: no number"
    assert type(as_job_error(path, OSError(errno.EDQUOT, "Quota exceeded"))) is JobFullError


@pytest.mark.posix("directories that can be synced")
def test_syncing_a_directory_leaves_no_file_open(tmp_path: Path) -> None:
    before = set(Path("/dev/fd").iterdir())
    sync_directory(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_directory(tmp_path / "nowhere")
    assert len(set(Path("/dev/fd").iterdir())) == len(before)
