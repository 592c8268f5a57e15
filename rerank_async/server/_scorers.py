"""Where scoring happens: in processes of its own, or in one thread when there are none.

Processes are started without a key: neither their environment nor what is sent to them holds one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from attrs import frozen

from rerank_async._http import HttpRequest
from rerank_async.server import engines
from rerank_async.server._app import App

__all__ = ["Settings", "make_executor", "score", "submit"]

T = TypeVar("T")

# The variables that hold a key of ours.
_KEYS = ("RERANK_SERVER_API_KEY", "RERANK_API_KEY", "OPENAI_API_KEY")


@frozen
class Settings:
    """What a scoring process needs to make its own `App`; a key is not part of it."""

    engine: str
    max_documents: int | None

    def make_app(self, api_key: str | None = None, max_bytes: int | None = None) -> App:
        return App(
            engines.create(self.engine),
            api_key=api_key,
            max_documents=self.max_documents,
            max_bytes=max_bytes,
        )


def make_executor(
    settings: Settings, workers: int, stop: Connection | None, key: str | None
) -> Executor:
    """The scorers, not started: processes, or for 0 workers one thread.

    Args:
        settings: what they score with.
        workers: the number of processes.
        stop: the pipe on which processes hear that they are to end at once; what they hear is its
            end. None for a thread, which nothing ends.
        key: the server's own key, which no process is to be started with.
    """
    if not workers:
        return ThreadPoolExecutor(1, "scorer", _become_scorer, (settings, None))
    # It starts a process already, the one that counts multiprocessing's semaphores.
    with _without_keys(key):
        return ProcessPoolExecutor(
            workers,
            # A fork of a process with threads and a running loop may hang.
            get_context("spawn"),
            _become_scorer,
            (settings, stop),
        )


def submit(
    executor: Executor, key: str | None, work: Callable[..., T], *arguments: Any
) -> Future[T]:
    """Give `executor` something to do, which may start a process.

    Args:
        executor: one of `make_executor`.
        key: the server's own key, which no process is to be started with.
        work: what to do.
        arguments: the arguments to call it with.
    """
    if isinstance(executor, ThreadPoolExecutor):
        return executor.submit(work, *arguments)
    with _without_interrupts(), _without_keys(key):
        return executor.submit(work, *arguments)


def score(body: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer to a request with this body; called in a scorer.

    In parts, because an `HttpResponse` is not pickled, and these come from another process.
    """
    app: App = _scorer.app
    response = app.score(HttpRequest("POST", "", {}, body))
    return response.status, dict(response.headers), response.body


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes inherit it: Ctrl-C is the server's to hear, also before they can ignore it."""
    if not hasattr(signal, "pthread_sigmask"):
        # On Windows a process hears Ctrl-C until it has started to ignore it.
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _without_keys(key: str | None) -> Iterator[None]:
    """Take keys out of what a new process inherits: the environment, and `sys.argv`."""
    hidden = {
        name: value for name, value in os.environ.items() if name in _KEYS or _holds(value, key)
    }
    arguments = sys.argv
    for name in hidden:
        del os.environ[name]
    sys.argv = ["[API key]" if _holds(one, key) else one for one in arguments]
    try:
        yield
    finally:
        sys.argv = arguments
        os.environ.update(hidden)


def _holds(text: str, key: str | None) -> bool:
    if key is None:
        return False
    # A key of one letter is part of every other word.
    return text == key or text.endswith("=" + key) or (len(key) >= 8 and key in text)


# ── in the scoring process, or thread ──

_scorer = threading.local()


def _become_scorer(settings: Settings, stop: Connection | None) -> None:
    if stop is not None:
        # Ctrl-C reaches the whole terminal; the server decides when its scorers end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_end_when_told, args=(stop,), daemon=True).start()
    _scorer.app = settings.make_app()


def _end_when_told(stop: Connection) -> None:
    """End at once when the server has died, or wants no more of this."""
    parent = parent_process()
    wait([stop] if parent is None else [stop, parent.sentinel])
    os._exit(1)
