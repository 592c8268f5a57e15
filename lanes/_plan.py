"""Which lanes there are, what each of them runs, and the table that is printed: pure."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias
from xml.etree import ElementTree

Minor: TypeAlias = tuple[int, int]

# Tests of the checkout itself, which has no place in a lane: they call `make`.
_OF_THE_CHECKOUT = "tests/test_readme.py::test_make"
# Ray has a release for few Pythons at a time, and a cluster to start.
_OF_RAY = ("tests/test_ray.py",)
# What is not the core: the quick lanes leave it out.
_AROUND_THE_CORE = (
    "tests/bench",
    "tests/benchmarks",
    "tests/bulk",
    "tests/cli",
    "tests/lanes",
    "tests/mutants",
    "tests/server",
    "tests/test_batches.py",
    "tests/test_docs.py",
    "tests/test_otel.py",
)


@dataclass(frozen=True)
class Lane:
    """One run of the tests.

    Attributes:
        python: the minor version of the interpreter, such as (3, 12).
        versions: which releases of what the package needs.
        is_eager: whether tasks begin at once (`asyncio.eager_task_factory`).
        is_bare: whether poll, fcntl, resource and the like are taken away.
        is_quick: whether the core's tests are all of it.
    """

    python: Minor
    versions: Literal["lowest", "newest"]
    is_eager: bool = False
    is_bare: bool = False
    is_quick: bool = False

    @property
    def name(self) -> str:
        """What is special about it, and the Python: `lowest-3.11`, `eager-3.13`."""
        special = "bare" if self.is_bare else "eager" if self.is_eager else self.versions
        return f"{special}-{spelled(self.python)}"


@dataclass(frozen=True)
class Outcome:
    """What became of a lane.

    Attributes:
        problem: why it could not be run to its end, or None.
        pinned: the releases that were installed, by their names in lower case.
        seconds: for all of it, the installation included.
    """

    lane: Lane
    python: str
    pinned: Mapping[str, str]
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    problem: str | None = None

    @property
    def is_good(self) -> bool:
        """Whether tests ran, and none failed."""
        return self.problem is None and self.failed == 0 and self.passed > 0


def spelled(python: Minor) -> str:
    """(3, 12) as `3.12`."""
    return f"{python[0]}.{python[1]}"


def declared_pythons(pyproject: str) -> list[Minor]:
    """The Pythons that the classifiers name, the lowest first."""
    found = re.compile(r"Programming Language :: Python :: (\d+)\.(\d+)").fullmatch
    named = map(found, tomllib.loads(pyproject)["project"]["classifiers"])
    return sorted((int(match[1]), int(match[2])) for match in named if match)


def all_lanes(pythons: Iterable[Minor]) -> list[Lane]:
    """What runs before a release, on the Pythons that are there.

    Every Python gets the lowest versions with ordinary tasks, and the newest with eager ones where
    it knows them. What only POSIX has is taken away on the lowest Python.
    """
    lanes = []
    for number, python in enumerate(sorted(pythons)):
        lanes += [
            Lane(python, "lowest"),
            Lane(python, "newest", is_eager=python >= (3, 12)),
        ]
        if number == 0:
            lanes.append(Lane(python, "newest", is_bare=True))
    return lanes


def quick_lanes(pythons: Iterable[Minor]) -> list[Lane]:
    """What runs with every change: the core's tests on two Pythons, the ends of what is there."""
    lowest, *others = sorted(pythons)
    return [
        Lane(lowest, "lowest", is_quick=True),
        *(Lane(other, "newest", is_eager=True, is_quick=True) for other in others[-1:]),
        Lane(lowest, "newest", is_bare=True, is_quick=True),
    ]


def chosen(wanted: str, pythons: Sequence[Minor]) -> list[Lane]:
    """The lanes that `wanted` names: `all`, `core`, `quick`, or names of lanes with commas between.

    Raises:
        ValueError: it names something else.
    """
    if not pythons:
        return []
    if wanted == "all":
        return all_lanes(pythons)
    if wanted == "core":
        return [replace(lane, is_quick=True) for lane in all_lanes(pythons)]
    if wanted == "quick":
        return quick_lanes(pythons)
    known = {lane.name: lane for lane in all_lanes(pythons)}
    names = [name.strip() for name in wanted.split(",")]
    for name in names:
        if name not in known:
            raise ValueError(
                f"LANES={wanted}: there is no lane {name!r}; there are all, core, quick, "
                + ", ".join(known)
            )
    return [known[name] for name in names]


def pytest_arguments(lane: Lane, report: str) -> list[str]:
    """What pytest is told; `report` is where it writes its counts."""
    left_out = _OF_RAY + (_AROUND_THE_CORE if lane.is_quick else ())
    return [
        *("-m", "pytest", "-q", "-p", "lanes.plugin", "-p", "no:cacheprovider"),
        # As `make test` has it: many tests wait for programs.
        *("-n", "3", "--dist", "loadfile", "--no-loadscope-reorder"),
        # What is broken everywhere is known by then, and may take a minute each time.
        "--maxfail=100",
        f"--junitxml={report}",
        f"--deselect={_OF_THE_CHECKOUT}",
        *(f"--ignore={path}" for path in left_out),
    ]


def environment(lane: Lane, around: Mapping[str, str], stage: str) -> dict[str, str]:
    """The variables of the tests' process and, as far as tests hand them on, of its children."""
    kept = {
        name: value
        for name, value in around.items()
        if not name.startswith(("PYTHON", "PYTEST", "VIRTUAL_ENV", "MAKE"))
    }
    path = [f"{stage}/lanes/bare", stage] if lane.is_bare else [stage]
    kept["PYTHONPATH"] = ":".join(path)
    kept["LANE_EAGER"] = "1" if lane.is_eager else ""
    return kept


def counted(report: str) -> tuple[int, int, int]:
    """How many passed, failed and were skipped, by pytest's JUnit XML."""
    passed = failed = skipped = 0
    # The file is pytest's own.
    for suite in ElementTree.fromstring(report).iter("testsuite"):  # noqa: S314
        bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        left = int(suite.get("skipped", 0))
        passed += int(suite.get("tests", 0)) - bad - left
        failed += bad
        skipped += left
    return passed, failed, skipped


def frozen(listed: str) -> dict[str, str]:
    """`name==version` lines as a mapping; other lines are passed over."""
    pairs = (line.split("==", 1) for line in listed.splitlines() if "==" in line)
    return {name.strip().lower(): version.strip() for name, version in pairs}


_SHOWN = ("aiohttp", "msgspec", "orjson")


def table(outcomes: Sequence[Outcome], absent: Sequence[Minor]) -> str:
    """One line for each lane, one for each Python that is not there, and the sum."""
    head = ("lane", "Python", *_SHOWN, "passed", "failed", "skipped", "seconds")
    rows = [
        (
            outcome.lane.name,
            outcome.python,
            *(outcome.pinned.get(name, "–") for name in _SHOWN),
            str(outcome.passed),
            str(outcome.failed),
            str(outcome.skipped),
            f"{outcome.seconds:.0f}",
        )
        for outcome in outcomes
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place < len(_SHOWN) + 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    ]
    for number, outcome in enumerate(outcomes, 1):
        if outcome.problem is not None:
            lines[number] += f"  {outcome.problem}"
    lines += [f"Python {spelled(python)} is not on this machine" for python in absent]
    sums = [
        sum(getattr(outcome, name) for outcome in outcomes)
        for name in ("passed", "failed", "skipped")
    ]
    # What could not be run has failed too.
    sums[1] += sum(outcome.problem is not None for outcome in outcomes)
    return "\n".join([*lines, "", "{} passed, {} failed, {} skipped".format(*sums)])
