"""The README's console blocks are run, and what they show is held against what comes out.

Its Python blocks run in `test_docs`.
Figures and rankings differ between machines and Python versions: digits are masked, and of the
demo's rankings only the form is compared.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# (command, what is shown below it) of every console block.
CONSOLE = [
    (command, shown)
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
]


# Makes take the environment that runs the tests as it is: neither do they build one, nor install
# anything into it, whatever is older than what.
OWN_VENV = " ".join(
    [
        f"VENV={shlex.quote(sys.prefix)}",
        *(f"--old-file={shlex.quote(sys.prefix)}/{stamp}" for stamp in (".pip", ".dev", ".demo")),
    ]
)


def run(command: str, folder: Path) -> str:
    """What the command prints on standard output; it must succeed."""
    programs = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    # What a make that runs these tests was told is not for the one that they run.
    for variable in ("ARGS", "MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES"):
        environment.pop(variable, None)
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def shape(line: str) -> str:
    """A line with what differs between machines taken out of it."""
    ranked = re.fullmatch(r"  (\d)\. \S+  \d\.\d{3}  .+", line)
    return f"  {ranked[1]}. NAME SCORE LINE" if ranked else re.sub(r"\d[\d,.]*", "N", line)


def test_the_readme_shows_the_three_commands() -> None:
    assert [command.split()[0] for command, _ in CONSOLE] == ["make", "make", "printf"]


def test_make_demo_prints_what_the_readme_shows(tmp_path: Path) -> None:
    shown = dict(CONSOLE)["make demo"]
    printed = run(f"make --silent demo {OWN_VENV}", ROOT)
    assert [shape(line) for line in printed.splitlines()] == [
        shape(line) for line in shown.splitlines()
    ]


def test_make_test_runs_the_tests() -> None:
    # The whole of it is what is running now; one file shows that the verb works.
    printed = run(f'make --silent test ARGS="-q tests/test_layers.py" {OWN_VENV}', ROOT)
    assert " passed" in printed or re.search(r"^\.+ +\[100%\]$", printed, re.MULTILINE)


def test_the_pipe_prints_what_the_readme_shows(tmp_path: Path) -> None:
    [(command, shown)] = [pair for pair in CONSOLE if pair[0].startswith("printf")]
    assert run(command, tmp_path) == shown


def test_the_line_of_figures_under_faults_counts_retries() -> None:
    [line] = re.findall(r"```text\n(documents .*)\n```", README)
    retries = re.search(r"retries (\d+)", line)
    assert retries is not None
    assert int(retries[1]) > 0
    assert re.fullmatch(
        r"documents [\d,]+, requests \d+, retries \d+, documents/s [\d,]+, seconds [\d.]+", line
    )
