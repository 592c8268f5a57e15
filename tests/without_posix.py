"""A Python that lacks what Windows lacks: nobody here has Windows.

`python tests/without_posix.py -m rerank_async serve` runs a module so, `-c CODE` a program.
What cannot be shown this way: the rules of Windows' own file system, sockets and loops.
"""

from __future__ import annotations

import asyncio
import os
import runpy
import select
import signal
import sys
from pathlib import Path
from typing import Any

__all__ = ["LACKING", "take_away"]

# Modules that are not there, and names that modules of Python do not have.
MODULES = ("fcntl", "grp", "pwd", "resource", "uvloop")
LACKING: dict[Any, tuple[str, ...]] = {
    select: ("poll", "epoll", "kqueue"),
    signal: ("pthread_sigmask", "pthread_kill", "sigwait", "SIGHUP", "SIGUSR1", "SIGUSR2"),
    os: (
        *("pread", "pwrite", "fdatasync", "sched_getaffinity", "register_at_fork", "fork"),
        *("getuid", "geteuid", "O_CLOEXEC", "O_NONBLOCK", "O_DIRECTORY", "O_NOFOLLOW"),
    ),
}


def take_away() -> None:
    """Take it away from this process, for good."""
    for name in MODULES:
        # Python's own word for "not there", where it was imported before as well.
        sys.modules[name] = None  # type: ignore[assignment]
    for module, names in LACKING.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    if hasattr(os, "process_cpu_count"):
        # Where there is no affinity, it is the count of all.
        setattr(os, "process_cpu_count", os.cpu_count)  # noqa: B010

    def watch_none(self: Any, *args: Any) -> None:
        raise NotImplementedError

    for name in ("add_signal_handler", "remove_signal_handler"):
        setattr(asyncio.SelectorEventLoop, name, watch_none)

    opened = os.open

    def open_file(path: Any, flags: int, *args: Any, **named: Any) -> int:
        if os.path.isdir(path):  # noqa: PTH112
            raise PermissionError(13, "Permission denied", path)
        return opened(path, flags, *args, **named)

    os.open = open_file


if __name__ == "__main__":
    take_away()
    kind, what, *rest = sys.argv[1:]
    sys.argv = [what, *rest]
    # The project, and not this folder.
    sys.path[0] = str(Path.cwd())
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<program>", "exec"), {"__name__": "__main__"})
