"""What `import rerank_async` costs against `import aiohttp`, each in a fresh interpreter, in turns.

python -m benchmarks.importing [--rounds 21]
"""

from __future__ import annotations

import argparse
import compileall
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import rerank_async
from benchmarks.machine import heading

TARGET = 1.15


def cpu_seconds(statement: str) -> float:
    """CPU seconds of a fresh interpreter that runs this statement, its start included."""
    process = subprocess.Popen([sys.executable, "-c", statement])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{statement!r} failed")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args().rounds
    # An installed package has its bytecode beside it; a checkout may not.
    compileall.compile_dir(str(Path(rerank_async.__file__).parent), quiet=1)
    statements = ("import aiohttp", "import rerank_async", "pass")
    figures: dict[str, list[float]] = {statement: [] for statement in statements}
    for number in range(rounds + 1):
        for statement in statements:
            seconds = cpu_seconds(statement)
            if number:  # the first round fills the caches
                figures[statement].append(seconds)
    print("Import, CPU milliseconds of a fresh interpreter")
    print(heading("aiohttp", "attrs", "msgspec", "orjson"))
    print(f"medians of {rounds} interleaved rounds")
    for statement in statements:
        print(f"{statement:22} {median(figures[statement]) * 1000:7.1f}")
    pairs = zip(figures["import rerank_async"], figures["import aiohttp"], strict=True)
    print(f"ratio {median(ours / theirs for ours, theirs in pairs):.3f} (target: {TARGET})")


if __name__ == "__main__":
    main()
