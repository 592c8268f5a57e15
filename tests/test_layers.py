"""The map of the house: who imports whom, which outside package each room may touch.

A mirror to change on purpose, in the same commit as the walls; not a fence.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rerank_async

PACKAGE = Path(rerank_async.__file__).parent

# Each unit with the units of ours and the outside packages that it may import.
WORDS: dict[str, tuple[set[str], set[str]]] = {
    "_version": (set(), set()),
    "_condemned": (set(), set()),
    "_errors": ({"_condemned"}, set()),
    "_private": ({"_errors"}, set()),
    "_http": (set(), set()),
    "_models": ({"_errors", "_private"}, {"attrs"}),
    "events": ({"_errors", "_private"}, {"msgspec"}),
    "_jsonl": (set(), set()),
    "_moments": (set(), set()),
}
DECISIONS: dict[str, tuple[set[str], set[str]]] = {
    "_ordering": (set(), set()),
    "_chunking": ({"_errors", "_models", "_private"}, {"attrs", "msgspec"}),
    "dialects": ({"_chunking", "_condemned", "_errors", "_private"}, {"msgspec", "orjson"}),
    "_answers": ({"_errors", "_ordering", "_private", "dialects"}, {"msgspec"}),
    "_merging": (
        {"_answers", "_chunking", "_errors", "_models", "_ordering", "_private"},
        set(),
    ),
    "_flow": ({"_errors", "_moments"}, {"attrs", "msgspec"}),
    "_policy": ({"_errors", "_flow", "_moments"}, {"attrs"}),
    "_columns": ({"_errors", "_models"}, {"attrs"}),
    "trec": ({"_jsonl", "_models"}, {"msgspec"}),
}
EDGES: dict[str, tuple[set[str], set[str]]] = {
    "_deadline": ({"_moments", "_private"}, {"msgspec"}),
    "_streams": (set(), set()),
    "_background": ({"_errors"}, set()),
    "_program": (set(), set()),
    "_verdicts": ({"_deadline", "_errors"}, set()),
    "_paths": ({"_errors"}, set()),
    "_endpoint": ({"_errors", "_private", "dialects"}, set()),
    "_listeners": ({"_errors", "events"}, {"attrs"}),
    "_retry": ({"_errors", "_policy"}, {"tenacity"}),
    "_hedging": ({"_errors"}, set()),
    "_parking": ({"_errors", "_flow", "_policy"}, set()),
    "_transport": ({"_deadline", "_errors", "_http", "_private"}, {"aiohttp", "msgspec", "yarl"}),
}
MEETING: dict[str, tuple[set[str], set[str]]] = {
    # The values that a request is made of; what comes back of it. One request meets everything that
    # decides about it but aiohttp; one call cuts its documents into requests, and merges what comes
    # back; the session makes what calls share.
    "_route": (
        {
            "_chunking",
            "_endpoint",
            "_errors",
            "_flow",
            "_http",
            "_listeners",
            "_policy",
            "_private",
            "_verdicts",
            "dialects",
        },
        {"msgspec"},
    ),
    "_receiving": (
        {
            "_answers",
            "_chunking",
            "_errors",
            "_flow",
            "_http",
            "_private",
            "_route",
            "dialects",
        },
        set(),
    ),
    "_parcel": (
        {
            "_answers",
            "_chunking",
            "_errors",
            "_flow",
            "_hedging",
            "_http",
            "_listeners",
            "_moments",
            "_parking",
            "_policy",
            "_private",
            "_receiving",
            "_retry",
            "_route",
            "events",
        },
        {"msgspec"},
    ),
    "_call": (
        {
            "_answers",
            "_chunking",
            "_deadline",
            "_errors",
            "_flow",
            "_hedging",
            "_merging",
            "_models",
            "_parcel",
            "_policy",
            "_private",
            "_receiving",
            "_route",
            "_streams",
            "events",
        },
        {"msgspec"},
    ),
    "_options": (
        {
            "_chunking",
            "_endpoint",
            "_errors",
            "_flow",
            "_http",
            "_listeners",
            "_models",
            "_policy",
            "_private",
            "dialects",
        },
        {"aiohttp", "attrs"},  # aiohttp for the type of a borrowed session only
    ),
    "_session": (
        {
            "_call",
            "_chunking",
            "_deadline",
            "_endpoint",
            "_errors",
            "_flow",
            "_http",
            "_listeners",
            "_models",
            "_options",
            "_policy",
            "_private",
            "_route",
            "_streams",
            "_transport",
            "_verdicts",
            "_version",
            "dialects",
            "events",
        },
        {"aiohttp", "attrs"},  # aiohttp for the type of a borrowed session only
    ),
}
PROGRAMS: dict[str, tuple[set[str], set[str]]] = {
    "server": (
        {"_http", "_ordering", "_private", "dialects"},
        {"aiohttp", "attrs", "orjson", "Stemmer"},
    ),
    "testing": ({"_errors", "_http", "_ordering", "dialects"}, set()),
    "otel": ({"_errors", "_version", "events"}, {"opentelemetry"}),
    "bulk": (
        {
            "_chunking",
            "_errors",
            "_jsonl",
            "_models",
            "_moments",
            "_ordering",
            "_paths",
            "_policy",
            "_private",
            "_session",
            "_version",
            "trec",
        },
        {"attrs", "filelock", "msgspec", "orjson", "pyarrow", "zstandard"},
    ),
    "batches": (
        {
            "_background",
            "_chunking",
            "_columns",
            "_errors",
            "_flow",
            "_http",
            "_models",
            "_options",
            "_policy",
            "_private",
            "_session",
            "_streams",
            "dialects",
        },
        {"attrs"},
    ),
    "ray": (
        {
            "_background",
            "_chunking",
            "_columns",
            "_endpoint",
            "_errors",
            "_flow",
            "_options",
            "_paths",
            "_policy",
            "_private",
            "_version",
            "batches",
            "bulk",
            "dialects",
        },
        {"attrs", "pyarrow", "ray"},
    ),
    "bench": (
        {
            "_chunking",
            "_errors",
            "_flow",
            "_http",
            "_moments",
            "_options",
            "_paths",
            "_policy",
            "_private",
            "_session",
            "_version",
            "bulk",
            "dialects",
        },
        {"attrs", "hdrh", "matplotlib", "msgspec", "rich"},
    ),
    "_cli": (
        {
            "_chunking",
            "_endpoint",
            "_errors",
            "_flow",
            "_listeners",
            "_models",
            "_paths",
            "_policy",
            "_private",
            "_session",
            "_version",
            "bench",
            "bulk",
            "events",
            "ray",
            "server",
            "trec",
        },
        {"attrs", "ir_measures", "msgspec", "orjson", "rich", "typer", "uvloop"},
    ),
    "__main__": ({"_cli", "_program"}, set()),
    "__init__": (
        {
            "_chunking",
            "_errors",
            "_flow",
            "_listeners",
            "_models",
            "_options",
            "_policy",
            "_program",
            "_session",
            "_version",
        },
        set(),
    ),
}
MAP = {**WORDS, **DECISIONS, **EDGES, **MEETING, **PROGRAMS}

# These decide without waiting: nothing that waits, tells the time, rolls dice or touches a system.
PURE = (*WORDS, *DECISIONS)
# Two files of flow control are no decisions: one queues, the other says who shares what.
FLOW_EDGES = {"limiter", "control"}
IMPURE = {"asyncio", "random", "time", "socket", "os", "threading", "select", "ssl", "subprocess"}


def files() -> Iterator[tuple[str, Path]]:
    """Every module of the package with the unit that it belongs to."""
    for path in sorted(PACKAGE.rglob("*.py")):
        first = path.relative_to(PACKAGE).parts[0]
        yield first.removesuffix(".py"), path


def imported(path: Path) -> Iterator[str]:
    """The dotted names that a module imports, those within functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            assert node.module is not None
            if node.module == "rerank_async":
                # A name of the package itself, or a module of it.
                for alias in node.names:
                    known = alias.name in MAP
                    yield f"rerank_async.{alias.name}" if known else "rerank_async"
            else:
                yield node.module


def unit_of(name: str) -> str:
    """`rerank_async.dialects.v1` → `dialects`; the package itself is `__init__`."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def test_every_module_stands_on_the_map() -> None:
    assert {unit for unit, _ in files()} == set(MAP)


@pytest.mark.parametrize(
    ("unit", "path"), [pytest.param(u, p, id=str(p.relative_to(PACKAGE))) for u, p in files()]
)
def test_a_module_imports_only_what_the_map_grants_its_unit(unit: str, path: Path) -> None:
    ours, theirs = MAP[unit]
    for name in imported(path):
        top = name.partition(".")[0]
        if top == "rerank_async":
            assert unit_of(name) in {*ours, unit}, f"{unit} imports {name}"
        elif top not in sys.stdlib_module_names:
            assert top in theirs, f"{unit} imports {name}"


@pytest.mark.parametrize("unit", PURE)
def test_a_unit_that_decides_imports_nothing_that_waits_or_rolls_dice(unit: str) -> None:
    for owner, path in files():
        if owner == unit and not (unit == "_flow" and path.stem in FLOW_EDGES):
            tops = {name.partition(".")[0] for name in imported(path)}
            assert not tops & IMPURE, f"{path.name}: {tops & IMPURE}"


def test_the_map_grants_nothing_that_is_not_used() -> None:
    used: dict[str, tuple[set[str], set[str]]] = {unit: (set(), set()) for unit in MAP}
    for unit, path in files():
        for name in imported(path):
            top = name.partition(".")[0]
            if top == "rerank_async":
                used[unit][0].add(unit_of(name))
            elif top not in sys.stdlib_module_names:
                used[unit][1].add(top)
    for unit, (ours, theirs) in MAP.items():
        assert ours <= used[unit][0], f"{unit}: {ours - used[unit][0]}"
        assert theirs <= used[unit][1], f"{unit}: {theirs - used[unit][1]}"


# Which of the modules in `bulk` know an outside thing; the others know none.
BULK_EDGES = {
    "sqlite3": {"_cache", "_index", "_inputs/collection"},
    "pyarrow": {"_inputs/parquet", "_outputs/parquet"},
    "zstandard": {"_files"},
    "filelock": {"_lock"},
    "threading": {"_reader", "_thread"},
}


@pytest.mark.parametrize("package", BULK_EDGES)
def test_an_outside_thing_is_known_to_few_modules_of_a_job(package: str) -> None:
    room = PACKAGE / "bulk"
    knowing = {
        path.relative_to(room).with_suffix("").as_posix()
        for path in room.rglob("*.py")
        if package in {name.partition(".")[0] for name in imported(path)}
    }
    assert knowing == BULK_EDGES[package]


def test_imports_go_down_only() -> None:
    order = list(MAP)
    for unit, (ours, _) in MAP.items():
        if unit in PROGRAMS:
            continue
        for other in ours:
            assert order.index(other) < order.index(unit), f"{unit} imports {other}"


def test_the_server_never_imports_the_session() -> None:
    assert not MAP["server"][0] & {"_session", "_flow", "_transport", "_retry"}
