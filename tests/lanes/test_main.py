"""`lanes/__main__.py`: which interpreters it finds, and which package its plugin lets through."""

import subprocess
import sys
from pathlib import Path

import pytest

from lanes.__main__ import interpreters

HERE = sys.version_info[:2]
ROOT = Path(__file__).parents[2]
# No Python has this number.
NEVER = (3, 987)


def fake(path: Path, program: str) -> Path:
    """A program in the place of an interpreter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{program}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def _nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PYTHONS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))


def test_the_python_that_asks_is_there_and_one_that_nobody_has_is_not() -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    assert interpreters([HERE, NEVER]) == {HERE: (Path(sys.executable), version)}


def test_a_shim_for_a_python_that_is_not_installed_is_none(tmp_path: Path) -> None:
    fake(tmp_path / "path/python3.987", "exit 127")
    assert interpreters([NEVER]) == {}


def test_an_unfinished_python_is_none(tmp_path: Path) -> None:
    # It prints no version for those.
    fake(tmp_path / "path/python3.987", "echo")
    assert interpreters([NEVER]) == {}


def test_the_latest_of_pyenvs_is_taken_by_number_and_not_by_letter(tmp_path: Path) -> None:
    for patch in (2, 10, 9):
        fake(tmp_path / f"pyenv/versions/3.987.{patch}/bin/python", f"echo 3.987.{patch}")
    found = interpreters([NEVER])
    assert found == {NEVER: (tmp_path / "pyenv/versions/3.987.10/bin/python", "3.987.10")}


def test_a_python_that_is_named_goes_before_one_that_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path / "path/python3.987", "echo 3.987.1")
    named = fake(tmp_path / "named", "echo 3.987.0")
    monkeypatch.setenv("PYTHONS", f"{tmp_path / 'nowhere'} {named}")
    assert interpreters([NEVER]) == {NEVER: (named, "3.987.0")}


def test_a_lane_does_not_start_on_the_source_tree(tmp_path: Path) -> None:
    package = tmp_path / "rerank_async"
    package.mkdir()
    (package / "__init__.py").write_text('__version__ = "0"\n', encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "lanes.plugin", "--collect-only"],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode != 0
    assert "a lane tests the installed wheel" in ran.stdout + ran.stderr
