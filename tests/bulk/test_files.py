"""Files by their endings: whole or not at all, and lines of them."""

from __future__ import annotations

import gzip
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from rerank_async.bulk import _files
from rerank_async.bulk._errors import InputError
from rerank_async.bulk._files import (
    Lines,
    content_ending,
    is_rereadable,
    lines,
    name_of,
    reading,
    writing,
)

# Part of it cannot be compressed, so that there are many places where it can be cut.
CONTENT = b"".join(b'{"row": %d}\n' % number for number in range(20_000)) + os.urandom(50_000)


def packed_gz(data: bytes) -> bytes:
    return gzip.compress(data)


def packed_zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def streamed_zst(data: bytes) -> bytes:
    """As a program writes what it reads from a pipe: without the length of the content."""
    stream = zstandard.ZstdCompressor().compressobj()
    return stream.compress(data) + stream.flush()


COMPRESSED = pytest.mark.parametrize(
    ("suffix", "pack"),
    [(".gz", packed_gz), (".zst", packed_zst), (".zst", streamed_zst)],
    ids=["gz", "zst", "zst streamed"],
)


def read(path: Path) -> bytes:
    with reading(path) as file:
        return file.read()


# ── names ──


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("x.jsonl", "jsonl"),
        ("x.jsonl.gz", "jsonl"),
        ("x.JSONL.ZST", "jsonl"),
        ("a.b.run", "run"),
        ("x.gz", ""),
        ("x", ""),
        ("-", ""),
        (".jsonl", ""),
        ("dir.d/x.parquet", "parquet"),
    ],
)
def test_the_ending_of_a_file_is_the_one_before_that_of_compression(name: str, ending: str) -> None:
    assert content_ending(Path(name)) == ending


def test_standard_input_is_called_so_in_messages() -> None:
    assert name_of(Path("-")) == "standard input"
    assert name_of(Path("a/-")) == "a/-"


def test_pipes_and_standard_input_can_be_read_once_only(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "file.jsonl").touch()
    assert not is_rereadable(Path("-"))
    assert not is_rereadable(tmp_path / "pipe.jsonl")
    assert is_rereadable(tmp_path / "file.jsonl")
    assert is_rereadable(tmp_path)
    assert is_rereadable(tmp_path / "absent.jsonl")


# ── reading ──


@COMPRESSED
def test_a_compressed_file_is_read_as_what_it_holds(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(pack(CONTENT))
    assert read(path) == CONTENT


@COMPRESSED
@pytest.mark.parametrize(
    "parts",
    [
        [b"one\n", b"two\n", b"three\n"],
        [b"", b"x"],
        [b"x", b""],
        [b"", b"", b""],
        [CONTENT, b"a", CONTENT],
    ],
    ids=["three", "empty first", "empty last", "all empty", "large"],
)
def test_all_members_of_a_compressed_file_are_read(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes], parts: list[bytes]
) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"".join(map(pack, parts)))
    assert read(path) == b"".join(parts)


def test_frames_to_be_skipped_are_skipped(tmp_path: Path) -> None:
    # Programs that compress in parallel put the frames' sizes into such a frame.
    skipped = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
    path = tmp_path / "x.zst"
    path.write_bytes(skipped + packed_zst(b"one") + skipped + packed_zst(b"two") + skipped)
    assert read(path) == b"onetwo"


def test_zeros_behind_the_last_member_of_gzip_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(packed_gz(b"one") + bytes(40_000))
    assert read(path) == b"one"


@COMPRESSED
def test_a_compressed_file_that_is_cut_off_is_never_taken_for_whole(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    data = pack(CONTENT)
    path = tmp_path / f"x{suffix}"
    early = [1, 2, 3, 4, 5, 9, 10, 11, 17, 18, 19, 100]
    spread = range(1000, len(data), len(data) // 40)
    for size in [*early, *spread, *range(len(data) - 12, len(data))]:
        path.write_bytes(data[:size])
        with pytest.raises(InputError, match=f"x{suffix} is cut off"):
            read(path)


@COMPRESSED
def test_a_second_member_that_is_cut_off_is_noticed(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    first, second = pack(b"one\n" * 100), pack(CONTENT)
    path = tmp_path / f"x{suffix}"
    for size in (1, 3, 8, len(second) // 2, len(second) - 1):
        path.write_bytes(first + second[:size])
        with pytest.raises(InputError, match="is cut off"):
            read(path)


@COMPRESSED
def test_the_lines_before_a_cut_are_read_and_then_the_error_comes(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    data = pack(CONTENT)
    path = tmp_path / f"x{suffix}"
    path.write_bytes(data[: len(data) - 20_000])
    numbered = lines(path)
    assert next(numbered) == (1, b'{"row": 0}')
    with pytest.raises(InputError, match="is cut off"):
        list(numbered)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_an_empty_file_is_not_compressed_data(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.touch()
    with pytest.raises(InputError, match=f"x{suffix} is empty"):
        read(path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_what_is_not_compressed_is_called_damaged(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b'{"query": "plain"}\n')
    with pytest.raises(InputError, match=f"x{suffix} is damaged: "):
        read(path)


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", packed_gz), (".zst", packed_zst)])
def test_changed_bytes_and_rubbish_behind_are_noticed(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"x{suffix}"
    data = bytearray(pack(CONTENT))
    path.write_bytes(data + b"rubbish")
    with pytest.raises(InputError, match="is damaged"):
        read(path)
    data[-10_000] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="is damaged"):
        read(path)


def test_without_its_package_a_zst_file_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(InputError) as caught:
        read(tmp_path / "x.jsonl.zst")
    assert 'pip install "rerank-async[zstd]"' in str(caught.value)
    assert "\n" not in str(caught.value)
    with (
        pytest.raises(InputError, match=r"rerank-async\[zstd\]"),
        writing(tmp_path / "out", ".zst"),
    ):
        pass
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, suffix: str) -> None:
    absent, folder = tmp_path / f"absent{suffix}", tmp_path / f"folder{suffix}"
    with pytest.raises(InputError, match=r"absent.*: there is no such file"):
        read(absent)
    folder.mkdir()
    with pytest.raises(InputError, match=r"folder.*: it is a directory, not a file"):
        read(folder)


def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    # Modes would not keep out whoever runs the tests as root.
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"x\.jsonl: it may not be read: permission denied"):
        read(tmp_path / "x.jsonl")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that fails")
def test_an_error_while_reading_names_the_file() -> None:
    with pytest.raises(InputError, match=r"/proc/self/mem: "):
        read(Path("/proc/self/mem"))


# ── lines ──


def test_lines_come_with_their_numbers_and_without_what_ends_them(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\n  two \n \t \r\n\xef\xbb\xbfthree\n\nfour")
    assert list(lines(path)) == [
        (1, b"one"),
        (3, b"  two "),
        (5, b"\xef\xbb\xbfthree"),
        (7, b"four"),
    ]


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n", b"\n\n \n"])
def test_a_file_of_blank_lines_has_no_lines(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(content)
    assert list(lines(path)) == []


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_line_may_be_of_any_length(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.txt{suffix}"
    long = bytes(range(48, 58)) * 400_000
    with writing(path, path.suffix) as file:
        file.write(b"short\n" + long + b"\nlast")
    assert list(lines(path)) == [(1, b"short"), (2, long), (3, b"last")]


def test_closing_the_lines_closes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"one\ntwo\n")
    before = open_files()
    numbered = lines(path)
    next(numbered)
    assert open_files() > before
    numbered.close()
    assert open_files() == before


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def test_a_wrong_line_is_named_with_its_file(tmp_path: Path) -> None:
    error = Lines(tmp_path / "x.jsonl").wrong(7, "it is odd")
    assert str(error) == f"{tmp_path / 'x.jsonl'}: line 7: it is odd"


# ── standard input ──


@pytest.fixture
def stdin(tmp_path: Path) -> Iterator[Callable[[bytes], None]]:
    """Put a file in the place of standard input."""
    kept = os.dup(0)

    def put(data: bytes) -> None:
        (tmp_path / "stdin").write_bytes(data)
        file = os.open(tmp_path / "stdin", os.O_RDONLY)
        os.dup2(file, 0)
        os.close(file)

    yield put
    os.dup2(kept, 0)
    os.close(kept)


def test_standard_input_is_read_and_stays_open(stdin: Callable[[bytes], None]) -> None:
    stdin(b"one\ntwo\n")
    assert list(lines(Path("-"))) == [(1, b"one"), (2, b"two")]
    # It is still the process's.
    os.fstat(0)


def test_standard_input_is_not_read_twice(stdin: Callable[[bytes], None]) -> None:
    stdin(b"one\n")
    file = Lines(Path("-"))
    assert list(file.read()) == [(1, b"one")]
    with pytest.raises(InputError, match="standard input can be read once only, and has been"):
        list(file.read())


# ── writing ──


@given(st.lists(st.binary(max_size=300), max_size=20), st.sampled_from(["", ".gz", ".zst", ".GZ"]))
def test_what_was_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], suffix: str
) -> None:
    path = tmp_path_factory.mktemp("written") / f"x{suffix}"
    with writing(path, suffix) as file:
        for piece in pieces:
            file.write(piece)
    assert read(path) == b"".join(pieces)


def test_other_programs_read_what_was_written(tmp_path: Path) -> None:
    for suffix in (".gz", ".zst"):
        # Under a passing name, as files are until they are whole.
        with writing(tmp_path / f"x{suffix}.new", suffix) as file:
            file.write(CONTENT)
    assert gzip.decompress((tmp_path / "x.gz.new").read_bytes()) == CONTENT
    stream = zstandard.ZstdDecompressor().stream_reader(
        io.BytesIO((tmp_path / "x.zst.new").read_bytes())
    )
    assert stream.read() == CONTENT


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_the_same_bytes_make_the_same_file_whatever_its_name(tmp_path: Path, suffix: str) -> None:
    for name in ("a", "b"):
        with writing(tmp_path / name, suffix) as file:
            file.write(CONTENT)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_file_is_closed_when_writing_it_fails(tmp_path: Path, suffix: str) -> None:
    before = open_files()
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "x", suffix) as file:
        file.write(b"one")
        raise ZeroDivisionError
    assert open_files() == before


@pytest.mark.parametrize("name", ["pipe.jsonl", "pipe.jsonl.gz"])
def test_a_pipe_that_does_not_block_is_read_to_its_end(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    os.mkfifo(path)
    whole = b"".join(b'"line %d"\n' % number for number in range(200))
    data = gzip.compress(whole) if path.suffix == ".gz" else whole
    waited = threading.Event()
    real = _files._wait_for

    def wait_for(raw: io.FileIO) -> None:
        waited.set()
        real(raw)

    def write() -> None:
        # Nothing is there yet when the reader first looks.
        with path.open("wb", buffering=0) as pipe:
            for place in range(0, len(data), 100):
                waited.wait(10)
                waited.clear()
                pipe.write(data[place : place + 100])

    thread = threading.Thread(target=write)
    thread.start()
    try:
        with pytest.MonkeyPatch.context() as patch, _files.reading(path) as file:
            patch.setattr(_files, "_wait_for", wait_for)
            os.set_blocking(file.raw._raw.fileno(), False)  # type: ignore[attr-defined]
            assert file.read() == whole
    finally:
        waited.set()
        thread.join()
