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

# What is imported where it is needed and not at the head of a file, and by which program.
LATER = {
    "import rerank_async": (
        *("rerank_async._errors", "rerank_async._condemned", "rerank_async._retry"),
    ),
    "import rerank_async._cli": (
        *("rerank_async.bulk", "rerank_async.bench", "rerank_async.server"),
        *("rerank_async._cli._evaluation", "ir_measures", "hdrh.histogram"),
    ),
    "pass": ("pathlib", "typing"),
}


def cpu_seconds(statement: str) -> float:
    """CPU seconds of a fresh interpreter that runs this statement, its start included."""
    process = subprocess.Popen([sys.executable, "-c", statement])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{statement!r} failed")
    return usage.ru_utime + usage.ru_stime


def import_ms(module: str, after: str) -> float:
    """Milliseconds that the import of a module takes after this statement, or takes within it."""
    command = (sys.executable, "-X", "importtime", "-c", f"{after}\nimport {module}")
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    # "import time: self [us] | cumulative | imported package"; none for what is built in.
    rows = (line.split("|") for line in told.splitlines())
    return sum(int(row[1]) for row in rows if row[-1].strip() == module) / 1000


def show_later(rounds: int) -> None:
    """What is not imported until it is needed, and what it takes then: the least of the rounds."""
    print("What is imported only where it is needed, milliseconds")
    for after, modules in LATER.items():
        for module in modules:
            least = min(import_ms(module, after) for _ in range(rounds))
            print(f"{module:30} {least:7.2f}  after: {after}")


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
    show_later(max(3, rounds // 4))


if __name__ == "__main__":
    main()
