"""Docstrings are read once, in a hurry: what is said of a parameter says what it is.

The rule is a simple one, and finds the worst: after the colon of a line under "Attributes:" or
"Args:" the first word is none of `REFUSED`, because the reader would have to guess the noun that it
belongs to. "documents: how many", "number: its events'" and "seconds: since it began" are refused;
"documents: the number of documents" and "is_over: whether it is over" are as they should be.
A sentence that tells the reader what to do ("stop before the job costs more") is fine.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import rerank_async

PACKAGE = Path(rerank_async.__file__).parent
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

REFUSED = {
    "a possessive": {"a's", "b's", "her", "his", "its", "mine", "their", "whose", "your", "yours"},
    "a question or a relative clause": {"how", "that", "when", "where", "which", "who", "why"},
    "a preposition": {
        *("above", "after", "as", "at", "before", "below", "between", "by", "for", "from", "in"),
        *("of", "on", "over", "since", "than", "to", "until", "with", "within", "without"),
    },
    "an adverb": {"also", "always", "another", "but", "likewise", "never", "now", "only", "so"},
    "a pronoun": {"it", "such", "them", "those"},
    "a verb without a subject": {
        *("and", "are", "carries", "does", "ends", "gives", "has", "is", "looks", "makes", "may"),
        *("overrides", "owns", "pays", "refuses", "says", "sends", "stands", "tells", "waits"),
        "was",
    },
    "a participle without a noun": {
        *("asked", "called", "closed", "compared", "computed", "counted", "given", "held", "made"),
        *("looked", "opened", "put", "sent", "started", "summed", "told"),
    },
    "a superlative or a share of nothing": {"best", "half", "nine"},
}


def entries(docstring: str) -> Iterator[tuple[str, str]]:
    """The names under "Attributes:" and "Args:", and what is said of each."""
    depth: int | None = None
    for line in docstring.splitlines():
        indent = len(line) - len(line.lstrip())
        if line.strip() in ("Attributes:", "Args:"):
            depth = indent + 4
        elif depth is not None and line.strip() and indent < depth:
            depth = None
        elif indent == depth and (found := re.match(r"\s*([*\w`, ]+): (.*)", line)):
            yield found[1], found[2]


def hard(source: str) -> list[str]:
    """The lines of a module's docstrings that begin with a refused word."""
    words = {word: why for why, several in REFUSED.items() for word in several}
    return [
        f"{name}: {text}  ({words[first]})"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        for name, text in entries(ast.get_docstring(node) or "")
        if (first := text.split()[0].strip(".,;:").lower()) in words
    ]


def modules() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name, _ in modules()])
def test_each_line_about_a_parameter_begins_with_what_it_is(name: str) -> None:
    assert hard((PACKAGE / name).read_text(encoding="utf-8")) == []


def test_the_rule_finds_riddles_and_leaves_sentences_alone() -> None:
    source = '''
class A:
    """What it is.

    Attributes:
        number: its events'.
        seconds: since it began,
            and on this line: of no interest.
        limit: the most; how it came to be does not matter.
        is_over: whether it is over.

    Raises:
        ValueError: of another kind of line.
    """
    def method(self, stop, *more):
        """Do it.

        Args:
            stop: Called now and then.
            more: arguments.
        """
'''
    assert [line.partition(":")[0] for line in hard(source)] == ["number", "seconds", "stop"]


@pytest.mark.skipif(not BENCHMARKS.exists(), reason="the benchmarks are not part of the sdist")
def test_a_benchmark_that_the_package_names_is_there() -> None:
    named = {name for _, source in modules() for name in re.findall(r"benchmarks/\w+\.py", source)}
    assert "benchmarks/pieces.py" in named
    assert {name for name in named if not (BENCHMARKS.parent / name).exists()} == set()
