"""Whether this process is the command line, and what Ctrl-C means before that is imported.

Python imports the package before it comes to `__main__`, and most of a command's start is that.
A program that only uses the package keeps its own handlers.
It imports next to nothing itself: neither pathlib nor typing, which take milliseconds
(`benchmarks/importing.py`).
A line belongs here when it is about the first tenths of a second of a command.
"""

from __future__ import annotations

import os
import signal
import sys
from itertools import pairwise

__all__ = ["INTERRUPTED", "is_ours", "quit_at_once", "raise_again"]

INTERRUPTED = 130


def is_ours(argv: list[str], original: list[str]) -> bool:
    """Whether this process was started as `rerank-async` or `python -m rerank_async`.

    Args:
        argv: `sys.argv`.
        original: `sys.orig_argv`. A process that a command starts has the command's `argv`, but
            not this.
    """
    first = argv[0] if argv else ""
    if first == "-m":
        # As long as Python looks for the module that it is to run.
        return ("-m", "rerank_async") in pairwise(original)
    return os.path.basename(first) == "rerank-async" and first in original  # noqa: PTH119


def quit_at_once() -> None:
    """Let Ctrl-C end the process without a word where this process is the command line."""
    if (
        is_ours(sys.argv, sys.orig_argv)
        # Whoever starts a command in the background may have it ignored.
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        signal.signal(signal.SIGINT, _quit)


def raise_again() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, as soon as somebody catches it."""
    if signal.getsignal(signal.SIGINT) is _quit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _quit(number: int, frame: object) -> None:
    # An exception in the middle of an import might be lost, or turned into another one.
    os._exit(INTERRUPTED)
