"""How documents stand in a file."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import IO, Any

import pytest

from rerank_async._cli._documents import DocumentsError, Format, read_documents
from tests.cli.support import DOCUMENTS, QUERY, RANKING, Run, ranking_in


def documents(text: str, file_format: Format = Format.AUTO, name: str = "a file") -> list[str]:
    return list(read_documents(io.StringIO(text), file_format, name))


class TestReadDocuments:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", []),
            ("\n \n\t\n", []),
            ("one\n\n  two \r\nthree", ["one", "  two ", "three"]),
            ("[sic] a line\n2\n", ["[sic] a line", "2"]),
            ("42\n43\n", ["42", "43"]),
            ("{curly}\n", ["{curly}"]),
            ('"one"\n\n"two"\n', ["one", "two"]),
            ('{"text": "one"}\n{"document": "two"}\n{"content": "three"}\n"4"', None),
            ('["one", {"text": "two"}]', ["one", "two"]),
            ('[\n  "one",\n\n  "two"\n]\n', ["one", "two"]),
            ('\n["one",\n"two"]', ["one", "two"]),
            ('[{"text": "one"},\n{"text": "two"}]', ["one", "two"]),
            ("[]", []),
            ('"line\\u2028 end"\n', ["line\u2028 end"]),
            ("line\u2028 end\n", ["line\u2028 end"]),
        ],
    )
    def test_guesses_the_format_from_the_beginning(
        self, text: str, expected: list[str] | None
    ) -> None:
        assert documents(text) == (["one", "two", "three", "4"] if expected is None else expected)

    @pytest.mark.parametrize("name", ["a.jsonl", "a.NDJSON"])
    def test_believes_the_name_of_a_jsonl_file(self, name: str) -> None:
        with pytest.raises(DocumentsError, match="line 1 is not JSON"):
            documents("plain\n", name=name)

    def test_believes_the_name_of_a_json_file(self) -> None:
        with pytest.raises(DocumentsError, match=r"^a\.json is not a JSON array$"):
            documents('"one"', name="a.json")

    def test_believes_the_caller_more_than_anything(self) -> None:
        assert documents('"one"\n[2]\n', Format.LINES, "a.json") == ['"one"', "[2]"]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ('\n\n"one"\n\n{"text": 1}\n', "a file: line 5 must be"),
            ('"one"\nnot json\n', "a file: line 2 is not JSON"),
            ('"one"\n[1]\n', "a file: line 2 must be"),
            ('{"title": "one"}\n', "a file: line 1 must be"),
            ('["one", 2]', "a file: item 1 must be"),
            ('[\n"one"\n"two"\n]', "a file is not JSON"),
        ],
    )
    def test_names_the_place_of_what_it_cannot_read(self, text: str, words: str) -> None:
        with pytest.raises(DocumentsError) as caught:
            documents(text)
        assert str(caught.value).startswith(words)

    @pytest.mark.parametrize("first", ['["sic"] a line', '[{"curly"}] a line', '"one"'])
    def test_says_what_to_do_when_it_has_guessed_wrongly(self, first: str) -> None:
        with pytest.raises(DocumentsError, match=r"; if it is plain text, say --format lines$"):
            documents(f"{first}\nanother\n")
        assert documents(f"{first}\nanother\n", Format.LINES) == [first, "another"]

    @pytest.mark.parametrize("file_format", [Format.JSON, Format.JSONL])
    def test_does_not_doubt_what_the_caller_said(self, file_format: Format) -> None:
        with pytest.raises(DocumentsError, match="is not JSON") as caught:
            documents("plain\n", file_format)
        assert "--format" not in str(caught.value)

    def test_gives_what_stands_before_the_bad_line_first(self) -> None:
        found = read_documents(io.StringIO('"one"\n"two"\nbad\n'), Format.AUTO, "a file")
        assert [next(found), next(found)] == ["one", "two"]
        with pytest.raises(DocumentsError):
            next(found)

    def test_reads_no_further_than_asked(self) -> None:
        read: list[int] = []

        def lines() -> Any:
            for number in range(100):
                read.append(number)
                yield f"line {number}\n"

        source: IO[str] = lines()
        found = read_documents(source, Format.LINES, "a file")
        assert next(found) == "line 0"
        assert next(found) == "line 1"
        assert len(read) <= 3

    async def test_passes_over_a_byte_order_mark(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "notes").write_text(json.dumps(DOCUMENTS), encoding="utf-8-sig")
        done = await run("rerank", QUERY, "notes", "--local")
        assert (done.code, ranking_in(done.out)) == (0, RANKING)
