"""`mutants/_child.py`: a changed module exists in one process's memory, and what hangs is ended."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.posix("fork, and a limit of a process's time")

PROGRAM = """
import os, sys
from pathlib import Path
from mutants import _child

place = Path.cwd()
for text in (None, "def f(): return 1", "def f(): return 2", "def f():\\n while True: pass"):
    changed = None if text is None else ("changed_module", place / "changed_module.py", text)
    pid = _child.start(["test_it.py"], changed, output=place, cpu=3)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_tests_see_the_changed_module_and_the_file_stays_as_it_was(tmp_path: Path) -> None:
    module = tmp_path / "changed_module.py"
    module.write_text("def f(): return 1\n", encoding="utf-8")
    (tmp_path / "test_it.py").write_text(
        "import changed_module\n\ndef test_it():\n    assert changed_module.f() == 1\n",
        encoding="utf-8",
    )
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    unchanged, same, wrong, hung = map(int, ran.stdout.split())
    assert (unchanged, same, wrong) == (0, 0, 1)
    # It was ended by a signal.
    assert hung < 0
    assert module.read_text(encoding="utf-8") == "def f(): return 1\n"
