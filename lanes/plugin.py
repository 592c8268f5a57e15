"""What goes into the pytest of a lane: eager tasks, and a look at which package is tested."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import rerank_async

_IS_EAGER = bool(os.environ.get("LANE_EAGER"))


def _make_tasks_eager() -> None:
    # At the root of every loop of asyncio's own: pytest-asyncio's, looptime's, `asyncio.run`'s.
    make: Callable[[asyncio.BaseEventLoop], None] = asyncio.BaseEventLoop.__init__
    # It came with Python 3.12.
    factory = getattr(asyncio, "eager_task_factory")  # noqa: B009

    def made(self: asyncio.BaseEventLoop) -> None:
        make(self)
        self.set_task_factory(factory)

    setattr(asyncio.BaseEventLoop, "__init__", made)  # noqa: B010


def pytest_configure() -> None:
    """Look where the package comes from, before any test does."""
    found = Path(rerank_async.__file__).resolve()
    if not found.is_relative_to(Path(sys.prefix).resolve()):
        raise pytest.UsageError(f"a lane tests the installed wheel, and this is {found}")
    if _IS_EAGER:
        _make_tasks_eager()


def pytest_report_header() -> str:
    """What is tested, for the head of the log."""
    tasks = "eager" if _IS_EAGER else "ordinary"
    return f"rerank_async: {rerank_async.__version__} from {rerank_async.__file__}; {tasks} tasks"
