"""What holds for every test: a clean environment, no task left, the key nowhere to be seen."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import select
import signal
import tempfile
import warnings
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, configuration, settings

from tests.support import KEY

# How long an example takes is the machine's and its load's, and no property of the code.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

_ROOT = Path(__file__).parents[1]

# These take longest: whoever runs files side by side is over sooner when it does not end with them.
# xdist would begin with the files of most tests, which are quick ones.
_LONGEST = (
    "test_ray.py",
    "cli/test_bench.py",
    "cli/test_bulk.py",
    "test_docs.py",
    "flow/test_control.py",
    "bench/test_report.py",
    "cli/test_stopping.py",
    "cli/test_serve.py",
    "cli/test_demo.py",
    "test_readme.py",
    "test_portability.py",
    "cli/test_rerank.py",
    "cli/test_early.py",
    "test_figures.py",
    "cli/test_evaluate.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Ctrl-C has its meaning; what the tools keep is elsewhere where the checkout is read-only."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell has what it starts in the background ignore Ctrl-C, and so would all programs that
        # the tests start, those too that are to end by it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if _can_be_written_to(_ROOT / ".hypothesis"):
        return
    elsewhere = tempfile.TemporaryDirectory(prefix="rerank-async-tests-")
    config.add_cleanup(elsewhere.cleanup)
    configuration.set_hypothesis_home_dir(elsewhere.name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first; otherwise the order stays."""
    places = {_ROOT / "tests" / name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def _can_be_written_to(folder: Path) -> bool:
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@pytest.fixture(scope="session", autouse=True)
def _a_loop_to_put_back() -> Iterator[None]:
    # On Python 3.11 pytest-asyncio asks for the current loop before its first test, which makes one
    # that nobody closes, unless there is one.
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("RERANK_") or name == "OPENAI_API_KEY":
            monkeypatch.delenv(name)


@pytest.fixture
async def _tasks_end() -> AsyncGenerator[None, None]:
    yield
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    assert not left, f"tasks left running: {left}"


@pytest.fixture(autouse=True)
def _no_task_is_left(request: pytest.FixtureRequest) -> None:
    function = getattr(request, "function", None)
    if inspect.iscoroutinefunction(function):
        request.getfixturevalue("_tasks_end")


@pytest.fixture(autouse=True)
def _key_is_not_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    for when in ("setup", "call", "teardown"):
        shown = "\n".join(
            f"{record.getMessage()} {record.exc_info!r} {record.__dict__!r}"
            for record in caplog.get_records(when)
        )
        assert KEY not in shown
    assert KEY not in caplog.text


def pytest_runtest_setup(item: pytest.Item) -> None:
    mark = item.get_closest_marker("posix")
    if mark is not None and not hasattr(select, "poll"):
        pytest.skip(f"only POSIX has {mark.args[0]}")


def pytest_warning_recorded(warning_message: warnings.WarningMessage) -> None:
    assert KEY not in str(warning_message.message)
