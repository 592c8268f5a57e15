"""The program as a process of its own, in a pipe or on a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import re
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from attrs import frozen

from tests.support import PACKAGE

PROGRAM = (sys.executable, "-m", "rerank_async")
KEY = "sk-for-the-command-line-4be2"
QUERY = "open a file"
DOCUMENTS = ["close the door", "open a file for reading", "read a file line by line"]
RANKING = [1, 2, 0]


@frozen
class Done:
    """A program that has ended."""

    code: int
    out: str
    err: str


def environment(**more: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RERANK_") and name not in ("OPENAI_API_KEY", "COLUMNS", "LINES")
    }
    # PYTHONPATH: also where the package is not installed. aiohttp reads the system's authorities
    # when it is imported, which is a sixth of a program's start; no test trusts any of them.
    ours = {"PYTHONPATH": str(PACKAGE.parent), "TERM": "xterm", "SSL_CERT_FILE": os.devnull}
    return kept | ours | more


async def execute(*command: str, cwd: Path, stdin: bytes = b"", **env: str) -> Done:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=environment(**env),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(stdin)
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


Run: TypeAlias = Callable[..., Any]


def ranking_in(output: str) -> list[int]:
    return [int(line.split("\t")[1]) for line in output.splitlines()]


def one_line(done: Done) -> str:
    """What stood on standard error, which must be one line of ours."""
    [line] = done.err.splitlines()
    assert line.startswith("rerank-async: ")
    assert done.out == ""
    return line


async def on_a_terminal(*command: str, cwd: Path, columns: int) -> tuple[int, str]:
    """The exit code and the screen, without the codes for bold and the like."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (24, columns))
    try:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=cwd, env=environment(), stdin=its, stdout=its, stderr=its
        )
    finally:
        os.close(its)
    try:
        shown = await asyncio.to_thread(read_to_the_end, ours)
        code = await process.wait()
    finally:
        os.close(ours)
    return code, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode()).replace("\r\n", "\n")


def read_to_the_end(descriptor: int) -> bytes:
    read = b""
    # The end of a terminal is an error.
    with contextlib.suppress(OSError):
        while data := os.read(descriptor, 65536):
            read += data
    return read
