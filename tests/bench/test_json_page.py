"""The page on the benchmark's JSON says of every field what its class says.

`python -m tests.bench.test_json_page` writes the tables anew.
"""

from __future__ import annotations

import inspect
import re
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs
import msgspec

from rerank_async.bench import _result
from tests.bench import made

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "bench-json.md"
# In the order in which one meets them.
CLASSES = (
    _result.Benchmark,
    _result.Machine,
    _result.Target,
    _result.Workload,
    _result.Level,
    _result.Latency,
    _result.Goodput,
    _result.ClientCost,
    _result.Interval,
    _result.Knee,
)
PAIRS = "array of `[number, integer]` pairs"
_BEGIN = "<!-- the tables are made of the classes in rerank_async/bench/_result.py -->"
_END = "<!-- until here -->"


def json_type(hint: Any) -> str:
    """What a Python type is in JSON, for people."""
    arguments = get_args(hint)
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(json_type(each) for each in arguments)
    if origin is Literal:
        return " or ".join(f'`"{each}"`' for each in arguments)
    if origin is dict:
        return f"object of {json_type(arguments[1])}s"
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"array of {json_type(arguments[0])}s"
    if origin is tuple:
        return f"`[{', '.join(map(json_type, arguments))}]` pair"
    if attrs.has(hint):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    names = {
        str: "string",
        int: "integer",
        float: "number",
        bool: "boolean",
        types.NoneType: "null",
    }
    return names[hint]


def meanings(kind: type[Any]) -> dict[str, str]:
    """What the docstring says of each field."""
    # From Python 3.13 on `__doc__` has lost its indentation; this way it has on every one.
    text = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2]
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    # What is None in Python is null in the file.
    return {name: re.sub(r"\bNone\b", "null", " ".join(text.split())) for name, text in found}


def tables() -> str:
    """A section for each class, with a row for each field."""
    parts = []
    for kind in CLASSES:
        hints, said = get_type_hints(kind), meanings(kind)
        first = (kind.__doc__ or "").partition("\n")[0]
        rows = [
            f"| `{field.name}` | {json_type(hints[field.name])} | {said[field.name]} |"
            for field in attrs.fields(kind)
        ]
        parts.append(
            "\n".join([f"### {kind.__name__}", "", first, "", "| field | type | meaning |"])
            + "\n|---|---|---|\n"
            + "\n".join(rows)
        )
    return "\n\n".join(parts)


def with_tables(page: str) -> str:
    """The page with the tables as they should be."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n\n{tables()}\n\n{_END}{after}"


def test_the_tables_of_the_page_are_those_of_the_classes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_tables(page), "run: python -m tests.bench.test_json_page"


def test_no_class_of_the_format_and_no_field_is_left_out() -> None:
    classes = {
        kind for kind in vars(_result).values() if isinstance(kind, type) and attrs.has(kind)
    }
    assert classes == set(CLASSES)
    for kind in CLASSES:
        assert set(meanings(kind)) == {field.name for field in attrs.fields(kind)}


def test_the_page_names_the_version_that_is_written() -> None:
    assert f"`{_result.SCHEMA}`" in PAGE.read_text(encoding="utf-8")


def test_a_type_of_the_page_is_that_of_the_json() -> None:
    body = msgspec.json.decode(_result.to_json(made.benchmark()))
    assert json_type(get_type_hints(_result.Latency)["buckets"]) == PAIRS
    bound, number = body["levels"][0]["latency"]["buckets"][0]
    assert isinstance(bound, float)
    assert isinstance(number, int)
    assert body["schema"] == _result.SCHEMA


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
