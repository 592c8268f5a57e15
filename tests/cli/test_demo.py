"""The demo: what it collects, and what it prints."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from itertools import islice
from pathlib import Path

from rerank_async._cli._demo import QUESTIONS, Docstring, collect
from tests.support import PACKAGE

FIGURES = re.compile(
    r"documents ([\d,]+), requests (\d+), retries (\d+), documents/s [\d,]+, seconds \d+\.\d"
)
PLACE = re.compile(r"  ([123])\. ([\w.]+)  (\d\.\d{3})  (.+)")


def tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def names(folder: Path) -> list[str]:
    return [docstring.name for docstring in collect(folder)]


class TestCollect:
    def test_finds_modules_classes_methods_and_functions_of_both_kinds(
        self, tmp_path: Path
    ) -> None:
        source = '''
"""The module."""

def function():
    """The function."""
    def inner():
        """The inner function."""

async def coroutine():
    """The coroutine."""

def silent():
    pass

class Outer:
    """The class."""
    def method(self):
        """The method."""
    class Inner:
        def method(self):
            """The inner method."""

class Silent:
    def blank(self):
        """   """
'''
        found = list(collect(tree(tmp_path, {"package/module.py": source})))
        assert found == [
            Docstring("package.module", "The module."),
            Docstring("package.module.function", "The function."),
            Docstring("package.module.function.inner", "The inner function."),
            Docstring("package.module.coroutine", "The coroutine."),
            Docstring("package.module.Outer", "The class."),
            Docstring("package.module.Outer.method", "The method."),
            Docstring("package.module.Outer.Inner.method", "The inner method."),
        ]

    def test_goes_through_the_files_in_the_order_of_their_paths(self, tmp_path: Path) -> None:
        files = ["b.py", "a/z.py", "a/__init__.py", "c.py"]
        folder = tree(tmp_path, dict.fromkeys(files, '"""A module."""'))
        assert names(folder) == ["a", "a.z", "b", "c"]

    def test_takes_the_indentation_away_and_knows_the_first_line(self, tmp_path: Path) -> None:
        source = 'def f():\n    """\n    First.\n\n        Example.\n    """\n'
        [found] = collect(tree(tmp_path, {"m.py": source}))
        assert found.text == "First.\n\n    Example."
        assert found.first_line == "First."

    def test_imports_nothing(self, tmp_path: Path) -> None:
        source = '"""Documented."""\nraise SystemExit("imported")\n'
        assert names(tree(tmp_path, {"harmful.py": source})) == ["harmful"]
        assert "harmful" not in sys.modules

    def test_passes_over_what_cannot_be_parsed(self, tmp_path: Path) -> None:
        files = {
            "broken.py": '"""Documented."""\ndef (:\n',
            "null.py": '"""Documented."""\n\0\n',
            "template.py": "{{ name }} = \n",
            "fine.py": '"""Documented."""\n',
        }
        folder = tree(tmp_path, files)
        (folder / "not_utf8.py").write_bytes(b'"""caf\xe9"""\n')
        (folder / "unknown.py").write_bytes(b'# coding: klingon\n"""Documented."""\n')
        assert names(folder) == ["fine"]

    def test_reads_a_file_in_the_encoding_that_it_declares(self, tmp_path: Path) -> None:
        (tmp_path / "latin.py").write_bytes(b'# -*- coding: latin-1 -*-\n"""caf\xe9"""\n')
        assert [found.text for found in collect(tmp_path)] == [
            "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
        ]

    def test_passes_over_tests_and_other_peoples_packages(self, tmp_path: Path) -> None:
        folders = ["test", "tests", "pkg/tests", "idle_test", "site-packages/x", "dist-packages"]
        files = {f"{folder}/m.py": '"""Documented."""' for folder in folders}
        folder = tree(tmp_path, {**files, "testing/m.py": '"""Documented."""'})
        assert names(folder) == ["testing.m"]

    def test_does_not_mind_where_the_library_itself_lies(self, tmp_path: Path) -> None:
        folder = tree(tmp_path / "site-packages" / "tests", {"m.py": '"""Documented."""'})
        assert names(folder) == ["m"]

    def test_finds_thousands_in_the_standard_library(self) -> None:
        found = list(islice(collect(), 5000))
        assert len(found) == 5000
        assert all(docstring.text.strip() == docstring.text != "" for docstring in found)
        assert "asyncio.tasks.wait_for" in {docstring.name for docstring in found}


async def run_demo(*arguments: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rerank_async", "demo", *arguments),
        cwd=cwd,
        env=environment | {"PYTHONPATH": str(PACKAGE.parent)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    # Nobody watches: there is no progress bar either.
    assert (process.returncode, err.decode()) == (0, "")
    return out.decode()


async def test_faults_cost_retries_and_change_no_ranking(tmp_path: Path) -> None:
    # Each on one of the two processors that are asked for.
    outputs = await asyncio.gather(
        run_demo(cwd=tmp_path), run_demo("--faults", "0.1", cwd=tmp_path)
    )
    figures, rankings = [], []
    for output in outputs:
        first, *ranking, last = output.splitlines()
        match = re.fullmatch(r"([\d,]+) docstrings of the standard library, 6 questions", first)
        assert match
        collected = number(match[1])
        assert collected >= 5000
        match = FIGURES.fullmatch(last)
        assert match
        documents, requests, retries = map(number, match.groups())
        assert documents == collected * len(QUESTIONS)
        figures.append((requests, retries))
        rankings.append(ranking)
    assert rankings[0] == rankings[1]
    (plain, no_retries), (faulty, retries) = figures
    assert no_retries == 0
    # One answer in ten, of the answers to the retries too.
    assert retries >= plain // 10
    assert faulty == plain + retries
    check_ranking(rankings[0])


def number(text: str) -> int:
    return int(text.replace(",", ""))


def check_ranking(lines: list[str]) -> None:
    """Every question has its three best, best first, with name, score and first line."""
    paragraphs = "\n".join(lines).strip().split("\n\n")
    assert [paragraph.splitlines()[0] for paragraph in paragraphs] == list(QUESTIONS)
    for paragraph in paragraphs:
        places = [PLACE.fullmatch(line) for line in paragraph.splitlines()[1:]]
        assert [place and place[1] for place in places] == ["1", "2", "3"], paragraph
        scores = [float(place[3]) for place in places if place]
        assert scores == sorted(scores, reverse=True)
        assert scores[2] > 0
    assert "  1. asyncio.tasks.wait_for  " in paragraphs[0]
