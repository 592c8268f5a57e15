"""What runs in a process of its own: tests against one module as it would read if it were wrong.

The process is forked from one that has everything imported but the package, so that it begins in
a tenth of a second. The mutant exists in this process's memory only.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import resource
import sys
import traceback
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

import hypothesis
import pytest

# More than any of these tests needs: a mutant that eats memory is ended, and not the machine.
_MEMORY = 2 << 30

# Every run tries the same examples, and none looks for a simpler one after the first that fails.
hypothesis.settings.register_profile(
    "mutants",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=True,
    database=None,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)


class _Mutated(SourceFileLoader):
    """Loads a module from another text than its file's."""

    def __init__(self, name: str, path: Path, text: str) -> None:
        super().__init__(name, str(path))
        self._text = text

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._text, self.path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    def __init__(self, name: str, path: Path, text: str) -> None:
        self._name = name
        self._path = path
        self._text = text

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        loader = _Mutated(fullname, self._path, self._text)
        return importlib.util.spec_from_file_location(fullname, self._path, loader=loader)


class _TablesFirst:
    """A plugin: the tests that try many examples come last, because most mutants fail a table."""

    @staticmethod
    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: hasattr(getattr(item, "obj", None), "hypothesis"))


def start(
    tests: Sequence[str], changed: tuple[str, Path, str] | None, *, output: Path, cpu: int | None
) -> int:
    """Fork a process that runs the tests with one module's text changed: its id.

    It ends with pytest's exit status; 0 means that no test failed.

    Args:
        tests: the test files, which pytest leaves at the first failure.
        changed: the module's dotted name, its file, and what is compiled instead of what is in the
            file; or None, and nothing is changed.
        output: the folder with the file, named by the process's id, that takes what is printed.
        cpu: the seconds of computing after which the process is ended, or None for no end.
    """
    assert "rerank_async" not in sys.modules, "what is forked must not have the package yet"
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        # Both set it: whoever comes first, the group is there for those who end it.
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        return pid
    status: int = pytest.ExitCode.INTERNAL_ERROR
    try:
        os.setpgid(0, 0)
        _redirected(output / str(os.getpid()))
        if cpu is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
        if changed is not None:
            sys.meta_path.insert(0, _Finder(*changed))
        status = pytest.main(
            [
                *("-x", "-q", "--no-header", "--tb=short", "-p", "no:cacheprovider"),
                *("-p", "no:xdist", "--hypothesis-profile=mutants"),
                # The plugins are imported already, on purpose.
                *("-W", "ignore::pytest.PytestAssertRewriteWarning", *tests),
            ],
            plugins=[_TablesFirst()],
        )
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # No line of the parent's program runs here.
        os._exit(status)


def _redirected(path: Path) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    taken = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(taken, 1)
    os.dup2(taken, 2)
