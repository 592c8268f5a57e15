"""Instructions of one call without a wire, counted by valgrind.

    python -m benchmarks.instructions

Times on a shared machine differ by several percent from one run to the next; instructions differ by
a hundredth of one. They are counted for 100 calls and for 600, and the difference is divided by
500, so that what a process takes to start is left out.
It needs `valgrind` on PATH and takes about two minutes.
To compare two states of the package, run it in both checkouts, with one environment.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import shutil
import subprocess
import sys

from benchmarks.machine import heading
from benchmarks.stub import answer
from rerank_async import RerankSession
from rerank_async._http import HttpRequest, HttpResponse

FEW, MANY = 100, 600
DOCUMENTS = (1, 20)
_COLLECTED = re.compile(r"Collected\s*:\s*(\d+)")


class Canned:
    """A transport that has its answer at hand."""

    def __init__(self, documents: int) -> None:
        _, _, body = answer(documents).partition(b"\r\n\r\n")
        self._response = HttpResponse(200, {}, body)

    async def exchange(
        self, request: HttpRequest, *, body_limit: int, timeout: float | None
    ) -> HttpResponse:
        return self._response

    async def close(self) -> None:
        pass


async def calls(count: int, documents: int) -> None:
    """Make so many calls, one after another."""
    texts = [f"document {number} " * 20 for number in range(documents)]
    # What was imported is left out of every collection: one more or less would blur the figure.
    gc.collect()
    gc.freeze()
    async with RerankSession("http://127.0.0.1:1/v1", model="m", http=Canned(documents)) as session:
        for _ in range(count):
            await session.rerank("a query of a few words", texts)


def instructions(count: int, documents: int) -> int:
    """All instructions of a process that makes so many calls."""
    done = subprocess.run(
        [
            "valgrind",
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
            sys.executable,
            "-m",
            "benchmarks.instructions",
            str(count),
            str(documents),
        ],
        capture_output=True,
        text=True,
        check=True,
        # Hashes decide how sets and dicts are laid out.
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    found = _COLLECTED.search(done.stderr)
    if found is None:
        raise SystemExit(f"valgrind did not say how many instructions it counted:\n{done.stderr}")
    return int(found[1])


def main() -> None:
    if len(sys.argv) == 3:
        asyncio.run(calls(int(sys.argv[1]), int(sys.argv[2])))
        return
    if shutil.which("valgrind") is None:
        raise SystemExit("valgrind is not on PATH")
    print("Instructions of one call, without a wire")
    print(heading())
    for documents in DOCUMENTS:
        instructions(1, documents)  # compiles what is not compiled yet
        each = (instructions(MANY, documents) - instructions(FEW, documents)) / (MANY - FEW)
        print(f"{documents:3} documents: {each:10,.0f}")


if __name__ == "__main__":
    main()
