"""The shell of `make mutants`: it reads the modules, starts the processes, and prints the sums.

python -m mutants [--seed N] [--sample N] [--minutes N] [--workers N] [MODULE …]
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import math
import os
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

# Imported here once for all processes that are forked: what the tests and the package need.
import aiohttp  # noqa: F401
import hypothesis.strategies  # noqa: F401
import orjson  # noqa: F401
import tenacity  # noqa: F401

from mutants import _child
from mutants._plan import (
    Fate,
    Mutant,
    applied,
    equivalents,
    in_order,
    is_pure,
    mutants_of,
    share,
    stages_of,
    table,
)

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rerank_async"
EQUIVALENT = Path(__file__).with_name("equivalent.toml")
# Below this somebody has added lines that no test needs.
LEAST = 0.97
# A mutant may compute so many times as long as the unchanged module, and so many seconds more.
_TIMES, _MORE = 3, 5
# Seconds after which a mutant is ended that waits and computes nothing.
_WAITING = 120.0

# Test files that run together.
Stage = tuple[str, ...]


def sources() -> dict[str, str]:
    """The text of each pure module, by its path in the package without `.py`."""
    texts = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).with_suffix("").as_posix()
        if is_pure(module):
            texts[module] = path.read_text(encoding="utf-8")
    return texts


@dataclass(frozen=True)
class Run:
    """Tests to run.

    Attributes:
        stage: the test files.
        mutant: what is changed, or None where nothing is.
        text: the changed module's text; empty where nothing is changed.
        cpu: the seconds of computing after which the run is ended, or None for no end.
    """

    stage: Stage
    mutant: Mutant | None = None
    text: str = ""
    cpu: int | None = None


@dataclass(frozen=True)
class Ended:
    """A run that is over.

    Attributes:
        status: pytest's exit status, or None where the run was ended by a limit.
        cpu: the seconds that it computed.
        output: what it printed.
    """

    run: Run
    status: int | None
    cpu: float
    output: str


class Pool:
    """At most so many processes at work; each has a file in `folder` for what it prints."""

    def __init__(self, workers: int, folder: Path) -> None:
        self._workers = workers
        self._folder = folder
        self._at_work: dict[int, tuple[Run, float]] = {}

    def ended(self, queue: deque[Run], until: float) -> Iterator[Ended]:
        """Run what is in the queue, which may grow, as long as the clock is below `until`.

        What is at work at that moment is ended, and not given.
        """
        try:
            while (queue or self._at_work) and time.monotonic() < until:
                while queue and len(self._at_work) < self._workers:
                    self._start(queue.popleft())
                yield from self._over()
                time.sleep(0.01)
        finally:
            for pid in self._at_work:
                _kill(pid)
                os.waitpid(pid, 0)
            self._at_work.clear()

    def _start(self, run: Run) -> None:
        changed = None
        if run.mutant is not None:
            module = run.mutant.module
            name = f"rerank_async.{module.replace('/', '.')}".removesuffix(".__init__")
            changed = (name, PACKAGE / f"{module}.py", run.text)
        pid = _child.start(run.stage, changed, output=self._folder, cpu=run.cpu)
        self._at_work[pid] = (run, time.monotonic())

    def _over(self) -> Iterator[Ended]:
        for pid, (run, since) in list(self._at_work.items()):
            gone, status, used = os.wait4(pid, os.WNOHANG)
            if gone:
                del self._at_work[pid]
                # What its tests have started ends with it.
                _kill(pid)
                code = os.waitstatus_to_exitcode(status)
                output = self._folder / str(pid)
                printed = output.read_text(encoding="utf-8", errors="replace")
                output.unlink()
                spent = used.ru_utime + used.ru_stime
                yield Ended(run, code if code >= 0 else None, spent, printed)
            elif run.cpu is not None and time.monotonic() - since > _WAITING:
                _kill(pid)


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def limits(pool: Pool, stages: set[Stage], until: float) -> dict[Stage, int]:
    """For each stage the seconds that a mutant may compute in it.

    Raises:
        RuntimeError: a test fails although nothing was changed, or there was no time to run them.
    """
    found = {}
    for ended in pool.ended(deque(Run(stage) for stage in sorted(stages)), until):
        if ended.status != 0:
            raise RuntimeError(f"nothing was changed, and a test fails:\n{ended.output}")
        found[ended.run.stage] = math.ceil(ended.cpu * _TIMES + _MORE)
    if len(found) < len(stages):
        raise RuntimeError("the time was over before the unchanged modules were tested")
    return found


def judged(
    pool: Pool,
    mutants: Sequence[Mutant],
    texts: dict[str, str],
    cpu: dict[Stage, int],
    until: float,
) -> Iterator[tuple[Mutant, Fate]]:
    """What became of each mutant for which there was time."""

    def run(mutant: Mutant, stage: Stage) -> Run:
        text = applied(texts[mutant.module], mutant.edits)
        return Run(stage, mutant, text, cpu[stage])

    queue = deque(run(mutant, stages_of(mutant.module)[0]) for mutant in mutants)
    for ended in pool.ended(queue, until):
        mutant = ended.run.mutant
        assert mutant is not None
        stages = stages_of(mutant.module)
        if ended.status is None:
            yield mutant, "hung"
        elif ended.status != 0:
            yield mutant, "killed"
        elif ended.run.stage != stages[-1]:
            queue.appendleft(run(mutant, stages[stages.index(ended.run.stage) + 1]))
        else:
            yield mutant, "survived"


def main() -> int:
    """Judge a sample; 0 where enough of it was killed, 1 where not, 2 where it cannot be judged."""
    options = _options()
    until = time.monotonic() + 60 * options.minutes
    texts = sources()
    try:
        listed = equivalents(EQUIVALENT.read_text(encoding="utf-8"))
        for module in options.modules:
            if module not in texts:
                raise ValueError(
                    f"there is no pure module {module!r}; there are {', '.join(texts)}"
                )
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    made = [mutant for module, text in texts.items() for mutant in mutants_of(module, text)]
    for key in listed.left_over(made):
        print("equivalent.toml has an entry that fits no mutant any more:", *key)
    wanted = options.modules or texts
    sample = in_order((mutant for mutant in made if mutant.module in wanted), options.seed)
    sample = sample[: options.sample]
    print(f"{len(sample)} of {len(made)} mutants, by seed {options.seed}", flush=True)
    results: list[tuple[Mutant, Fate]] = [
        (mutant, "equivalent") for mutant in sample if mutant in listed
    ]
    rest = [mutant for mutant in sample if mutant not in listed]
    stages = {stage for mutant in rest for stage in stages_of(mutant.module)}
    for plugin in entry_points(group="pytest11"):
        plugin.load()
    # Collectors need not look at what is there already in each process that is forked.
    gc.freeze()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        pool = Pool(options.workers, Path(folder))
        try:
            cpu = limits(pool, stages, until)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 2
        for mutant, fate in judged(pool, rest, texts, cpu, until):
            results.append((mutant, fate))
            if fate in options.shown:
                print(f"{fate}: {mutant}", flush=True)
    if len(results) < len(sample):
        print(f"\nthe time was over before {len(sample) - len(results)} of them were run")
    print(f"\n{table(results)}")
    return 0 if share([fate for _, fate in results]) >= LEAST else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mutants", description=__doc__)
    parser.add_argument("modules", nargs="*", help="such as _flow/hints; all if none is named")
    parser.add_argument("--seed", type=int, default=1, help="which sample")
    parser.add_argument(
        "--sample", type=int, help="how many; as many as there is time for if left out"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="when to end")
    parser.add_argument("--workers", type=int, default=2, help="processes at work")
    parser.add_argument(
        "--shown", nargs="*", default=["survived"], help="of what a line is printed, such as hung"
    )
    return parser.parse_args()


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
