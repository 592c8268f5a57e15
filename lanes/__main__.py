"""The shell of `make lanes`: interpreters, environments, and the tests in them.

    python -m lanes [all | core | quick | NAME,NAME]

Everything is made anew in `.lanes/`, where each lane also leaves its log.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from lanes._plan import (
    Lane,
    Minor,
    Outcome,
    chosen,
    counted,
    declared_pythons,
    environment,
    frozen,
    pytest_arguments,
    spelled,
    table,
)

ROOT = Path(__file__).parents[1]
PLACE = ROOT / ".lanes"
STAGE = PLACE / "stage"
# The environment that this program runs in has it.
UV = Path(sys.executable).with_name("uv")
# Longer than any lane takes: what hangs beyond pytest's own limits is ended.
_LIMIT = 3600.0


class StepError(Exception):
    """A step of a lane failed; the text is for the table, the log has the rest."""


def interpreters(wanted: list[Minor]) -> dict[Minor, tuple[Path, str]]:
    """For each Python that is there, where it is and its whole version."""
    found: dict[Minor, tuple[Path, str]] = {}
    for candidate in _candidates(wanted):
        version = _version_of(candidate)
        if version is None:
            continue
        major, minor, *_ = map(int, version.split("."))
        if (major, minor) in wanted:
            found.setdefault((major, minor), (candidate, version))
    return found


def _candidates(wanted: list[Minor]) -> Iterator[Path]:
    for named in re.split(r"[:,\s]+", os.environ.get("PYTHONS", "")):
        if named:
            yield Path(shutil.which(named) or named)
    yield Path(sys.executable)
    for python in wanted:
        on_path = shutil.which(f"python{spelled(python)}")
        if on_path:
            yield Path(on_path)
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    for folder in sorted(pyenv.glob("3.*"), key=_by_number, reverse=True):
        yield folder / "bin" / "python"


def _by_number(folder: Path) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", folder.name)]


def _version_of(python: Path) -> str | None:
    """`3.12.1`, or None where this is no finished CPython that starts."""
    code = (
        "import sys; v = sys.version_info; "
        "print(f'{v[0]}.{v[1]}.{v[2]}' if v.releaselevel == 'final' else '')"
    )
    try:
        ran = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    # A shim of a version manager is there for Pythons that are not.
    return ran.stdout.strip() or None if ran.returncode == 0 else None


def build() -> Path:
    """The wheel, made from the sdist; the sdist without the package is unpacked as the stage."""
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir()
    # It must not look like a part of the checkout to those who look for files.
    (PLACE / ".gitignore").write_text("*\n", encoding="utf-8")
    with (PLACE / "build.log").open("w", encoding="utf-8") as log:
        _step("the build", [UV, "build", "--out-dir", PLACE / "dist", ROOT], log=log)
    (wheel,) = (PLACE / "dist").glob("*.whl")
    (sdist,) = (PLACE / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(PLACE, filter="data")
    (PLACE / sdist.name.removesuffix(".tar.gz")).rename(STAGE)
    shutil.rmtree(STAGE / "rerank_async")
    return wheel


def run(lane: Lane, python: Path, version: str, wheel: Path) -> Outcome:
    """Install what the lane needs, and run its tests."""
    began = time.monotonic()
    folder = PLACE / lane.name
    folder.mkdir()
    pinned: Mapping[str, str] = {}
    passed = failed = skipped = 0
    problem = None
    with (folder / "log").open("w+", encoding="utf-8") as log:
        try:
            inside = _installed(lane, python, wheel, folder, log)
            pinned = frozen((folder / "versions").read_text(encoding="utf-8"))
            around = environment(lane, os.environ, str(STAGE))
            _step(
                "the import with warnings as errors",
                [inside, "-W", "error", "-c", "import rerank_async"],
                log=log,
                env=around,
            )
            report = folder / "report.xml"
            ended = _ran([inside, *pytest_arguments(lane, str(report))], log, env=around, cwd=STAGE)
            if report.exists():
                passed, failed, skipped = counted(report.read_text(encoding="utf-8"))
            if ended not in (0, 1):
                problem = f"pytest ended with {ended}"
        except StepError as error:
            problem = str(error)
        seconds = time.monotonic() - began
        outcome = Outcome(lane, version, pinned, passed, failed, skipped, seconds, problem)
        if not outcome.is_good:
            log.seek(0)
            print(*log.read().splitlines()[-60:], sep="\n")
    return outcome


def _installed(lane: Lane, python: Path, wheel: Path, folder: Path, log: TextIO) -> Path:
    """An environment of the lane's own with the wheel in it: its interpreter."""
    place, needed = folder / "venv", folder / "requirements.txt"
    inside = place / "bin" / "python"
    _step("the environment", [UV, "venv", "--python", python, place], log=log)
    _step(
        "the choice of versions",
        [
            *(UV, "pip", "compile", "--quiet", "--python", inside, "--output-file", needed),
            *("--resolution", "lowest-direct" if lane.versions == "lowest" else "highest"),
            *("--extra", "all", "--group", "suite", ROOT / "pyproject.toml"),
        ],
        log=log,
    )
    install: list[str | Path] = [UV, "pip", "install", "--quiet", "--python", inside]
    _step("the installation", [*install, "-r", needed], log=log)
    _step("the wheel's installation", [*install, "--no-deps", wheel], log=log)
    _step("the check of what is installed", [UV, "pip", "check", "--python", inside], log=log)
    with (folder / "versions").open("w", encoding="utf-8") as versions:
        _step("the list of versions", [UV, "pip", "freeze", "--python", inside], log=versions)
    return inside


def _step(what: str, command: list[str | Path], *, log: TextIO, **how: Any) -> None:
    ended = _ran(command, log, **how)
    if ended != 0:
        raise StepError(f"{what} failed")


def _ran(command: list[str | Path], log: TextIO, **how: Any) -> int:
    """Run it with its output in the log: its exit status."""
    log.write(f"\n$ {' '.join(map(str, command))}\n")
    log.flush()
    how.setdefault("env", {**os.environ, "UV_PYTHON_DOWNLOADS": "never"})
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=_LIMIT, **how
        ).returncode
    except subprocess.TimeoutExpired:
        raise StepError(f"ended after {_LIMIT:.0f} s") from None


def main() -> int:
    """Run the lanes that were asked for; 0 where all of them are good."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else "all"
    declared = declared_pythons((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    there = interpreters(declared)
    absent = [python for python in declared if python not in there]
    try:
        lanes = chosen(wanted, list(there))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    wheel = build()
    outcomes = []
    for lane in lanes:
        print(f"{lane.name} …", flush=True)
        outcomes.append(run(lane, *there[lane.python], wheel))
        print(table(outcomes[-1:], []).splitlines()[1], flush=True)
    print()
    print(table(outcomes, absent))
    return 0 if outcomes and all(outcome.is_good for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
