"""Standard error as a screen: drawn over and over on a terminal, line by line elsewhere.

A line belongs here when every command that shows progress needs it; what is shown is theirs.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.live import Live

__all__ = ["LINE_SECONDS", "Screen", "show"]

# Where nobody looks on, a line every so many seconds is enough.
LINE_SECONDS = 10.0


def show(text: str, file: TextIO) -> None:
    """Print a line, or nothing where nobody reads any more: a job goes on without its readers.

    Raises:
        OSError: it cannot be written, on a full disk say; nothing more is written then.
    """
    try:
        print(text, file=file, flush=True)
    except OSError as error:
        # What waits in it would fail again when the interpreter ends, and decide its exit code.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())
        os.close(nowhere)
        if not isinstance(error, BrokenPipeError):
            raise


class Screen:
    """A context manager that leaves the terminal as it was; to be subclassed.

    Args:
        quiet: show nothing at all.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False)
        # None where there is no terminal, or nothing is to be shown.
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if not self._quiet and self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
