"""Formats are objects in tables: one that a test makes up works like those that are there."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rerank_async._cli.bulk as command
from rerank_async import InvalidRequestError
from rerank_async._cli._shared import app
from rerank_async.bulk import (
    BulkOptions,
    InputError,
    JobChangedError,
    _inputs,
    _outputs,
    export_file,
    plan_file,
    rerank_file,
)
from rerank_async.bulk._disk import replacing
from rerank_async.bulk._entries import Entry, view
from rerank_async.bulk._files import Lines, writing
from rerank_async.bulk._format import FileFormat, endings_told, first_endings, listed
from rerank_async.bulk._inputs import Beside, InputFormat
from rerank_async.bulk._outputs import OutputFormat
from rerank_async.bulk._rows import Id, Row
from tests.bulk.support import ranking, read_jsonl, requests, write_jsonl
from tests.support import memory, session_over

# ── a made-up format of each kind ──


class Fields:
    """Lines with the query_id, the query and the documents, divided by tabs."""

    is_one_query = False
    query_id: Id | None = None

    def __init__(self, path: Path, top_n: int | None) -> None:
        self._file = Lines(path)
        self.name = self._file.name
        self.is_rereadable = self._file.is_rereadable
        self.top_n = top_n

    def describe(self) -> dict[str, str | int | None]:
        return {"kind": "fields", "top_n": self.top_n}

    def prepare(self, halted: Callable[[], bool]) -> None:
        pass

    def rows(self) -> Generator[Row, None, None]:
        with closing(self._file.read()) as numbered:
            for number, line in numbered:
                query_id, *rest = line.decode().split("\t")
                if not rest:
                    raise self._file.wrong(number, "it has no query")
                yield Row(rest[0], rest[1:], query_id, top_n=self.top_n)


def short_ids(tag: str, is_one_query: bool) -> Callable[[Row], None]:
    def check(row: Row) -> None:
        if len(str(row.query_id)) > 5:
            raise InputError(f"query_id {row.query_id!r} is too long for a table")

    return check


def write_table(path: Path, entries: Iterable[Entry], tag: str) -> None:
    with replacing(path) as fresh, writing(fresh, path.suffix) as file:
        for entry in entries:
            line = view(entry.line)
            best = " ".join(f"{one.index}:{one.relevance_score:g}" for one in line.results)
            file.write(f"{tag};{line.query_id};{best}\n".encode())


FIELDS = InputFormat(
    name="fields",
    endings=("tsv",),
    open=lambda path, beside: Fields(path, beside.top_n),
)
TABLE = OutputFormat(name="a table", endings=("csv",), check=short_ids, write=write_table)


@pytest.fixture
def _with_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_inputs, "INPUTS", (*_inputs.INPUTS, FIELDS))
    monkeypatch.setattr(_outputs, "OUTPUTS", (*_outputs.OUTPUTS, TABLE))


LINES = "q1\tquery one\tdocument 1\tdocument 3\nq2\tquery two\tdocument 2\n"
TABLED = b"t;q1;1:3 0:1\nt;q2;0:2\n"


@pytest.mark.usefixtures("_with_both")
async def test_a_format_that_is_added_to_the_table_works_from_file_to_export(
    tmp_path: Path,
) -> None:
    source, output = tmp_path / "in.tsv", tmp_path / "out.csv"
    source.write_text(LINES)
    transport, options = memory(), BulkOptions(tag="t")
    async with session_over(transport) as session:
        plan = await plan_file(session, source, output, options=options)
        assert (plan.queries, plan.documents, plan.requests) == (2, 3, 2)
        assert not transport.requests

        summary = await rerank_file(session, source, output, options=options)
        assert summary.finished
        assert output.read_bytes() == TABLED

        # It resumes, and each output can be made of it.
        summary = await rerank_file(session, source, output, options=options)
        assert (summary.resumed, len(transport.requests)) == (2, 2)
        for name in ("so-far.jsonl", "so-far.run", "so-far.parquet", "so-far.csv.gz"):
            written = await export_file(
                session, source, tmp_path / name, job=summary.job, options=options
            )
            assert written.rows == 2
        assert gzip.decompress((tmp_path / "so-far.csv.gz").read_bytes()) == TABLED
        assert [ranking(line) for line in read_jsonl(tmp_path / "so-far.jsonl")] == [
            [(1, 3.0), (0, 1.0)],
            [(0, 2.0)],
        ]
        assert len(transport.requests) == 2

        # What changes in the input is noticed.
        source.write_text(LINES.replace("document 2", "document 5"))
        with pytest.raises(JobChangedError):
            await rerank_file(session, source, output, options=options)


@pytest.mark.usefixtures("_with_both")
async def test_an_added_format_refuses_what_it_cannot_read_or_hold_before_anything_is_sent(
    tmp_path: Path,
) -> None:
    source = tmp_path / "in.tsv.gz"
    source.write_bytes(gzip.compress(f"{LINES}q3\n".encode()))
    rows = requests(1)
    rows[0]["query_id"] = "a long name"
    transport = memory()
    async with session_over(transport) as session:
        with pytest.raises(InputError, match=r"in\.tsv\.gz: line 3: it has no query"):
            await rerank_file(session, source, tmp_path / "out.csv")
        with pytest.raises(InputError, match="too long for a table"):
            await rerank_file(
                session, write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "other.csv"
            )
        with pytest.raises(InvalidRequestError, match=r"in\.tsv\.gz is fields, which brings its"):
            await rerank_file(session, source, tmp_path / "out.csv", query="q")
    assert not transport.requests


@pytest.mark.usefixtures("_with_both")
def test_the_command_line_takes_a_format_that_is_added_to_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.tsv").write_text(LINES)
    monkeypatch.setattr(command, "make_session", lambda url, **_: session_over(memory()))
    given = ["bulk", "in.tsv", "out.csv", "--url", "https://memory.test", "--model", "m"]
    done = CliRunner().invoke(app, [*given, "--tag", "t"])
    assert done.exit_code == 0, done.output
    assert "2 of 2 queries, 3 documents" in done.stderr
    assert Path("out.csv").read_bytes() == TABLED
    given[2:3] = ["so-far.jsonl", "--job", "out.csv.job", "--export"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    assert [line["query_id"] for line in read_jsonl(Path("so-far.jsonl"))] == ["q1", "q2"]


@pytest.mark.usefixtures("_with_both")
def test_the_endings_of_added_formats_are_told_with_the_others(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidRequestError, match=r"\.run, \.parquet or \.csv, of which .* and \.csv"
    ):
        _outputs.output_format(tmp_path / "out.txt")
    (tmp_path / "in.xml").touch()
    with pytest.raises(InvalidRequestError, match=r"\.ndjson, \.txt or \.tsv, perhaps with \.gz"):
        _inputs.input_format(tmp_path / "in.xml", Beside(scratch=tmp_path))


# ── what all formats have ──


@pytest.mark.parametrize(
    ("name", "is_compressible", "has"),
    [
        ("x.tsv", True, True),
        ("x.TSV", False, True),
        ("x.tsv.gz", True, True),
        ("x.tsv.ZST", True, True),
        ("x.tsv.gz", False, False),
        ("x.tsv.bz2", True, False),
        ("tsv", True, False),
        (".tsv", True, False),
        ("x.gz", True, False),
        ("x.csv", True, False),
        ("-", True, False),
    ],
)
def test_a_name_has_an_ending_of_a_format_or_not(
    name: str, is_compressible: bool, has: bool
) -> None:
    one = FileFormat(name="fields", endings=("tab", "tsv"), is_compressible=is_compressible)
    assert one.has_ending(Path(name)) == has


@pytest.mark.parametrize(
    ("words", "told"),
    [([], ""), (["a"], "a"), (["a", "b"], "a or b"), (["a", "b", "c"], "a, b or c")],
)
def test_words_are_listed_as_a_choice(words: list[str], told: str) -> None:
    assert listed(words) == told
    assert listed(words, "and") == told.replace("or", "and")


def test_endings_are_told_once_and_with_what_may_follow_them() -> None:
    lines = FileFormat(name="lines", endings=("jsonl", "ndjson"))
    again = FileFormat(name="other lines", endings=("jsonl", "txt"))
    columns = FileFormat(name="columns", endings=("parquet", "pq"), is_compressible=False)
    folder = FileFormat(name="a folder")
    assert endings_told((lines, folder, again, columns)) == (
        ".jsonl, .ndjson or .txt, perhaps with .gz or .zst behind, or .parquet or .pq"
    )
    assert endings_told((columns,)) == ".parquet or .pq"
    assert first_endings((lines, folder, columns)) == ".jsonl or .parquet"


def test_a_package_that_is_missing_is_named_with_its_extra() -> None:
    one = FileFormat(name="Columns", package="pycolumns", extra="columns")
    error = one.lacks_package("x.col")
    assert str(error) == 'x.col: Columns needs pycolumns: pip install "rerank-async[columns]"'


@pytest.mark.parametrize("table", [_inputs.INPUTS, _outputs.OUTPUTS])
def test_no_two_formats_of_a_table_mean_the_same_name(
    table: tuple[InputFormat | OutputFormat, ...],
) -> None:
    known = [
        (ending, one.needs if isinstance(one, InputFormat) else None)
        for one in table
        for ending in one.endings
    ]
    assert len(set(known)) == len(known)
