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
    "_errors": (set(), set()),
    "_http": (set(), {"msgspec"}),
    "_models": ({"_errors"}, {"attrs"}),
    "_events": ({"_errors"}, {"msgspec"}),
    "_otel_names": (set(), set()),
}
DECISIONS: dict[str, tuple[set[str], set[str]]] = {
    "dialects": ({"_errors"}, {"msgspec", "orjson"}),
    "_chunking": ({"_errors", "_models"}, {"attrs", "msgspec"}),
    "_merging": ({"_chunking", "_errors", "_models", "dialects"}, set()),
    "_hints": (set(), set()),
    "_flow": (set(), set()),
    "_policy": ({"_errors", "_flow"}, {"attrs"}),
}
EDGES: dict[str, tuple[set[str], set[str]]] = {
    "_deadline": (set(), set()),
    "_streams": (set(), set()),
    "_endpoint": ({"_errors"}, {"msgspec"}),
    "_listeners": ({"_errors", "_events"}, {"attrs"}),
    "_limiter": ({"_errors", "_flow", "_hints"}, {"attrs"}),
    "_control": ({"_errors", "_flow", "_limiter"}, set()),
    "_retry": ({"_errors", "_policy"}, {"tenacity"}),
    "_transport": ({"_deadline", "_errors", "_http"}, {"aiohttp", "yarl"}),
}
MEETING: dict[str, tuple[set[str], set[str]]] = {
    # One call meets everything but aiohttp; the session makes what calls share.
    "_call": (
        {*WORDS, *DECISIONS, *EDGES} - {"_version", "_otel_names", "_transport"},
        {"msgspec"},
    ),
    "_session": (
        {
            "_call",
            "_chunking",
            "_control",
            "_deadline",
            "_endpoint",
            "_errors",
            "_events",
            "_http",
            "_limiter",
            "_listeners",
            "_models",
            "_policy",
            "_streams",
            "_transport",
            "_version",
            "dialects",
        },
        {"aiohttp", "attrs"},  # aiohttp for the type of a borrowed session only
    ),
}
PROGRAMS: dict[str, tuple[set[str], set[str]]] = {
    "server": ({"_http", "dialects"}, {"aiohttp", "attrs", "orjson", "Stemmer"}),
    "testing": ({"_errors", "_http", "dialects"}, set()),
    "events": ({"_events"}, set()),
    "otel": ({"_errors", "_events", "_otel_names", "_version"}, {"opentelemetry"}),
    "_demo": ({"_chunking", "_models", "_policy", "_session", "server"}, {"attrs", "rich"}),
    "_cli": (
        {"_demo", "_endpoint", "_errors", "_models", "_session", "_version", "server"},
        {"orjson", "rich", "typer", "uvloop"},
    ),
    "__main__": ({"_cli"}, set()),
    "__init__": (
        {
            "_chunking",
            "_control",
            "_errors",
            "_limiter",
            "_listeners",
            "_models",
            "_policy",
            "_session",
            "_version",
        },
        set(),
    ),
}
MAP = {**WORDS, **DECISIONS, **EDGES, **MEETING, **PROGRAMS}

# These decide without waiting: nothing that waits, tells the time, rolls dice or touches a system.
PURE = (*WORDS, *DECISIONS)
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
        if owner == unit:
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


def test_imports_go_down_only() -> None:
    order = list(MAP)
    for unit, (ours, _) in MAP.items():
        if unit in PROGRAMS:
            continue
        for other in ours:
            assert order.index(other) < order.index(unit), f"{unit} imports {other}"


def test_the_server_never_imports_the_session() -> None:
    assert not MAP["server"][0] & {"_session", "_limiter", "_transport", "_retry"}
