"""`lanes/_plan.py`: which lanes there are, and what is printed about them."""

import re
import tomllib
from pathlib import Path

import pytest

from lanes._plan import (
    Lane,
    Outcome,
    all_lanes,
    chosen,
    counted,
    declared_pythons,
    environment,
    frozen,
    pytest_arguments,
    quick_lanes,
    table,
)

PYPROJECT = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
PROJECT = tomllib.loads(PYPROJECT)["project"]
PYTHONS = [(3, 11), (3, 12), (3, 13)]


def test_the_lanes_run_on_the_pythons_that_the_classifiers_name() -> None:
    declared = declared_pythons(PYPROJECT)
    assert declared == sorted(set(declared))
    assert f">={declared[0][0]}.{declared[0][1]}" == PROJECT["requires-python"]


def test_a_classifier_without_a_minor_version_names_no_python() -> None:
    text = (
        '[project]\nclassifiers = ["Programming Language :: Python :: 3",'
        ' "Programming Language :: Python :: 3.9", "Programming Language :: Python :: 3.10",'
        ' "Typing :: Typed"]'
    )
    assert declared_pythons(text) == [(3, 9), (3, 10)]


def test_every_python_gets_the_lowest_and_the_newest_versions() -> None:
    lanes = all_lanes(PYTHONS)
    for python in PYTHONS:
        assert {lane.versions for lane in lanes if lane.python == python} == {"lowest", "newest"}


def test_eager_tasks_are_where_there_are_some_and_posix_is_taken_away_once() -> None:
    assert [lane.name for lane in all_lanes(PYTHONS)] == [
        "lowest-3.11",
        "newest-3.11",
        "bare-3.11",
        "lowest-3.12",
        "eager-3.12",
        "lowest-3.13",
        "eager-3.13",
    ]


def test_the_names_of_the_lanes_are_all_different() -> None:
    names = [lane.name for lane in all_lanes([*PYTHONS, (3, 14), (4, 0)])]
    assert len(set(names)) == len(names)


def test_the_quick_lanes_are_the_two_ends_of_what_is_there() -> None:
    lanes = quick_lanes(PYTHONS)
    assert [lane.name for lane in lanes] == ["lowest-3.11", "eager-3.13", "bare-3.11"]
    assert all(lane.is_quick for lane in lanes)


def test_one_python_is_enough() -> None:
    assert [lane.name for lane in quick_lanes([(3, 12)])] == ["lowest-3.12", "bare-3.12"]


def test_lanes_are_chosen_by_name_in_the_order_of_asking() -> None:
    assert chosen("all", PYTHONS) == all_lanes(PYTHONS)
    assert chosen("quick", PYTHONS) == quick_lanes(PYTHONS)
    assert [lane.name for lane in chosen("bare-3.11, eager-3.12", PYTHONS)] == [
        "bare-3.11",
        "eager-3.12",
    ]


def test_the_core_can_be_tested_in_every_lane() -> None:
    core = chosen("core", PYTHONS)
    assert [lane.name for lane in core] == [lane.name for lane in all_lanes(PYTHONS)]
    assert all(lane.is_quick for lane in core)


@pytest.mark.parametrize("wanted", ["eager-3.14", "quick,lowest-3.11", "", "Quick"])
def test_a_lane_that_is_not_there_is_named(wanted: str) -> None:
    with pytest.raises(
        ValueError, match=r"there is no lane .*; there are all, core, quick, lowest-3.11"
    ):
        chosen(wanted, PYTHONS)


def test_without_a_python_there_is_no_lane() -> None:
    assert chosen("all", []) == chosen("quick", []) == []


def test_ray_and_the_checkout_are_left_out_and_the_rest_only_in_quick_lanes() -> None:
    whole = pytest_arguments(Lane((3, 11), "lowest"), "r.xml")
    quick = pytest_arguments(Lane((3, 11), "lowest", is_quick=True), "r.xml")
    assert "--junitxml=r.xml" in whole
    assert "--ignore=tests/test_ray.py" in whole
    assert "--ignore=tests/bulk" not in whole
    assert set(whole) < set(quick)
    assert "--ignore=tests/bulk" in quick


def test_what_is_left_out_is_there() -> None:
    # A name that no longer fits leaves out nothing, and nobody would see it.
    root = Path(__file__).parents[2]
    arguments = pytest_arguments(Lane((3, 11), "lowest", is_quick=True), "r.xml")
    left_out = [word.removeprefix("--ignore=") for word in arguments if "--ignore=" in word]
    assert left_out
    assert [path for path in left_out if not (root / path).exists()] == []
    [deselected] = [word for word in arguments if word.startswith("--deselect=")]
    file, _, prefix = deselected.removeprefix("--deselect=").partition("::")
    assert f"\ndef {prefix}" in (root / file).read_text(encoding="utf-8")


def test_the_checkout_is_not_on_the_path_of_a_lane() -> None:
    around = {"PATH": "/bin", "PYTHONPATH": "/checkout", "VIRTUAL_ENV": "/v", "MAKEFLAGS": "-j"}
    assert environment(Lane((3, 11), "newest"), around, "/stage") == {
        "PATH": "/bin",
        "PYTHONPATH": "/stage",
        "LANE_EAGER": "",
    }


def test_eager_and_bare_lanes_say_so_to_their_processes() -> None:
    eager = environment(Lane((3, 12), "newest", is_eager=True), {}, "/stage")
    bare = environment(Lane((3, 11), "newest", is_bare=True), {}, "/stage")
    assert eager == {"PYTHONPATH": "/stage", "LANE_EAGER": "1"}
    assert bare == {"PYTHONPATH": "/stage/lanes/bare:/stage", "LANE_EAGER": ""}


def test_errors_of_fixtures_count_as_failed() -> None:
    report = '<testsuites><testsuite tests="10" failures="1" errors="2" skipped="3"/></testsuites>'
    assert counted(report) == (4, 3, 3)


def test_the_list_of_versions_is_read_by_name() -> None:
    listed = "aiohttp==3.14.2\nPyStemmer==3.1.0\nrerank-async @ file:///x.whl\n"
    assert frozen(listed) == {"aiohttp": "3.14.2", "pystemmer": "3.1.0"}


LOWEST, EAGER = Lane((3, 11), "lowest"), Lane((3, 12), "newest", is_eager=True)
GOOD = Outcome(LOWEST, "3.11.7", {"aiohttp": "3.14.2"}, passed=90, skipped=2, seconds=61.4)


def test_the_table_has_a_line_for_each_lane_and_each_python_that_is_not_there() -> None:
    bad = Outcome(EAGER, "3.12.1", {}, passed=80, failed=10, seconds=7)
    assert table([GOOD, bad], [(3, 13)]) == "\n".join(
        [
            "lane         Python  aiohttp  msgspec  orjson  passed  failed  skipped  seconds",
            "lowest-3.11  3.11.7  3.14.2   –        –           90       0        2       61",
            "eager-3.12   3.12.1  –        –        –           80      10        0        7",
            "Python 3.13 is not on this machine",
            "",
            "170 passed, 10 failed, 2 skipped",
        ]
    )


def test_what_could_not_be_run_is_a_failure_and_its_line_says_why() -> None:
    outcome = Outcome(EAGER, "3.12.1", {}, problem="the installation failed")
    printed = table([outcome], [])
    assert re.search(r"^eager-3\.12 .* the installation failed$", printed, re.MULTILINE)
    assert printed.endswith("0 passed, 1 failed, 0 skipped")


@pytest.mark.parametrize(
    ("outcome", "is_good"),
    [
        (GOOD, True),
        (Outcome(LOWEST, "3.11.7", {}, passed=90, failed=1), False),
        (Outcome(LOWEST, "3.11.7", {}, passed=90, problem="pytest ended with 3"), False),
        (Outcome(LOWEST, "3.11.7", {}), False),
    ],
    ids=["all passed", "one failed", "it did not come to its end", "no test ran"],
)
def test_a_lane_is_good_when_tests_ran_and_none_failed(outcome: Outcome, is_good: bool) -> None:
    assert outcome.is_good is is_good
