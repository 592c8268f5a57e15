"""Run the peers side by side, print what was found, and keep it as JSON.

    python -m benchmarks.peers [--quick] [--only calls many corpus cold] [--keep FILE]

One stub server answers all of them, on a processor of its own; the clients share another, and are
asked in turns, so that all see the same moods of the machine.
CPU is that of the client's whole process, threads included.
A client that cannot be installed, or that fails, is a line in the output.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

from benchmarks.machine import pinned_pair, processor
from benchmarks.peers.clients import CLIENTS
from benchmarks.peers.environment import ROOT, peers_python
from benchmarks.peers.page import PAGE, RESULTS, tables
from benchmarks.peers.processes import LIMIT, Peer, PeerError, Place, in_turns, peers
from benchmarks.stub import stub_process

SCHEMA = "rerank-async/peers/2"

# Documents per request, and how many requests make a round of about a tenth of a second for a fast
# client, and for a slow one.
SIZES = {1: (480, 96), 20: (480, 96), 100: (320, 64), 1000: (80, 32)}
SLOW = {"httpx", "cohere", "voyageai"}
ON_ASYNCIO = {"hand-written-asyncio", "rerank_async-asyncio"}
CORPUS_ONLY = {"baseten", "baseten-sorted", "baseten-default"}
CORPUS = 200_000
BATCHES = (10, 100, 1000)
MANY = 100_000

Told: TypeAlias = dict[str, Any]
# By what: of each round what was told, the first of which warms up and is not measured.
Rounds: TypeAlias = dict[str, list[Told]]
# What it is called in the figures, who is asked, for what, and with which arguments.
Job: TypeAlias = tuple[str, Peer, str, dict[str, Any]]


def against(client: str, rounds: Rounds) -> list[Told]:
    """The measured rounds of the loop that a client is held against: one on the same event loop."""
    floor = "hand-written-asyncio" if client in ON_ASYNCIO else "hand-written"
    if floor not in rounds:
        raise PeerError(f"{floor} failed: there is nothing to compare with")
    return rounds[floor][1:]


def figures(client: str, rounds: Rounds) -> dict[str, Any]:
    """What is kept of a client's requests: medians, their spread, and each round."""
    told, floor = rounds[client][1:], against(client, rounds)
    ratios = [one["cpu"] / other["cpu"] for one, other in zip(told, floor, strict=True)]
    rates = [other["wall"] / one["wall"] for one, other in zip(told, floor, strict=True)]
    quarters = quantiles(ratios, n=4, method="inclusive")
    return {
        "rounds": len(told),
        "cpu_us": median(one["cpu"] for one in told) * 1e6,
        "wall_us": median(one["wall"] for one in told) * 1e6,
        "cpu_ratio": median(ratios),
        "cpu_ratio_quartiles": [quarters[0], quarters[2]],
        "rate_ratio": median(rates),
        "stub_busy": median(one["stub_busy"] for one in told),
        "cpu_us_of_rounds": [round(one["cpu"] * 1e6, 2) for one in told],
        "wall_us_of_rounds": [round(one["wall"] * 1e6, 2) for one in told],
    }


def rate_to(ours: Sequence[Told], theirs: Sequence[Told] | None) -> float | None:
    """How many times their speed ours is; None where they were not measured."""
    if theirs is None:
        return None
    pairs = zip(ours, theirs, strict=True)
    return float(median(them["wall"] / us["wall"] for us, them in pairs))


class Bench:
    """The measurements, each a method that returns what is kept of it.

    Args:
        place: where the clients run.
        missing: what cannot be measured, and why; grows.
        quick: a few short rounds, to see whether all works.
    """

    def __init__(self, place: Place, missing: dict[str, str], quick: bool) -> None:
        self.place = place
        self.missing = missing
        self.quick = quick

    def versions(self) -> dict[str, str]:
        """Of everything that is compared, and of what it runs on."""
        program = (
            "import json, platform; from importlib.metadata import distributions as d; "
            "print(json.dumps({i.name: i.version for i in d()} | {'Python': "
            "platform.python_version()}))"
        )
        told = subprocess.run(
            [str(self.place.python), "-c", program], capture_output=True, text=True, check=True
        )
        found = json.loads(told.stdout)
        wanted = {"Python", "uvloop", "aiohttp", "orjson", "msgspec", "rerank-async"}
        wanted |= {package for client in CLIENTS.values() for package in client.packages}
        known = {name.replace("_", "-"): version for name, version in found.items()}
        return {name: known[name] for name in sorted(wanted) if name in known}

    def _rounds(self, jobs: list[Job], rounds: int, where: str, **warm: Any) -> Rounds:
        """So many rounds of the jobs in turns, after one that warms up.

        A job whose client fails is given up, and said to be missing.
        """
        told: Rounds = {job[0]: [] for job in jobs}
        for number in range(rounds + 1):
            for name, peer, what, arguments in in_turns(jobs, number):
                if name not in told:
                    continue
                try:
                    answer = peer.ask(what, **(arguments if number else arguments | warm))
                except PeerError as error:
                    self.missing.setdefault(f"{name} {where}", str(error))
                    del told[name]
                else:
                    told[name].append(answer)
        return told

    def calls(self) -> list[Told]:
        """CPU and wall per request, by client and size."""
        rounds = 3 if self.quick else 15
        names = [name for name in CLIENTS if name not in CORPUS_ONLY]
        rows: list[Told] = []
        for size, (fast, slow) in SIZES.items():
            with peers(self.place, names, self.missing) as running:
                jobs: list[Job] = [
                    (name, peer, "calls", {"size": size, "calls": slow if name in SLOW else fast})
                    for name, peer in running.items()
                ]
                told = self._rounds(jobs, rounds, f"at {size:,} documents")
            rows += [{"client": name, "documents": size, **figures(name, told)} for name in told]
        return rows

    def many(self) -> list[Told]:
        """What 100,000 calls cost by hand, by `rerank`, and through `rerank_many`."""
        rounds, calls = (2, 500) if self.quick else (10, MANY // 10)
        names = ["hand-written", "transport", "checks", "rerank_async"]
        arguments = {"size": 20, "calls": calls}
        with peers(self.place, names, self.missing) as running:
            jobs: list[Job] = [(name, peer, "calls", arguments) for name, peer in running.items()]
            if ours := running.get("rerank_async"):
                jobs.append(("rerank_many", ours, "many", arguments))
            told = self._rounds(jobs, rounds, "a hundred thousand times", calls=64)
        return [{"client": name, "calls": rounds * calls, **figures(name, told)} for name in told]

    def corpus(self) -> list[Told]:
        """One query over 200,000 documents, all results returned."""
        rounds, count = (2, 20_000) if self.quick else (5, CORPUS)
        names = ["hand-written", "rerank_async", *sorted(CORPUS_ONLY)]
        rows: list[Told] = []
        for batch in BATCHES:
            with peers(self.place, names, self.missing) as running:
                jobs: list[Job] = [
                    (name, peer, "corpus", {"count": count, "batch": batch})
                    for name, peer in running.items()
                ]
                told = self._rounds(jobs, rounds, f"in batches of {batch:,}")
            measured = {name: answers[1:] for name, answers in told.items()}
            for name, answers in measured.items():
                first = told[name][0]
                rates = [count / one["wall"] for one in answers]
                rows.append(
                    {
                        "client": name,
                        "documents": count,
                        "batch": batch,
                        "rounds": len(answers),
                        "documents_per_s": median(rates),
                        "cpu_us_per_document": median(one["cpu"] for one in answers) / count * 1e6,
                        "rate_to_baseten": rate_to(answers, measured.get("baseten")),
                        "rate_to_sorted": rate_to(answers, measured.get("baseten-sorted")),
                        "rate_to_default": rate_to(answers, measured.get("baseten-default")),
                        # Of the first query: what it took beyond the texts themselves.
                        "peak_mib": first["peak"],
                        "grown_mib": first["peak"] - first["before"],
                        "results": first["results"],
                        "is_ordered": first["is_ordered"],
                        "are_scores_right": first["are_scores_right"],
                        "stub_busy": median(one["stub_busy"] for one in answers),
                        "documents_per_s_of_rounds": [round(rate) for rate in rates],
                    }
                )
        return rows

    def cold(self) -> list[Told]:
        """A fresh interpreter that imports, and one that also asks once."""
        rounds = 2 if self.quick else 9
        left_out = {"transport", "checks", *ON_ASYNCIO, "baseten-sorted", "baseten-default"}
        names = [
            name
            for name, client in CLIENTS.items()
            if name not in left_out and not self.missing.keys() & {name, *client.packages}
        ]
        jobs = [("nothing", "import")]
        jobs += [(name, what) for name in names for what in ("import", "first answer")]
        took: dict[tuple[str, str], list[tuple[float, float]]] = {job: [] for job in jobs}
        with TemporaryDirectory() as compiled:
            for number in range(rounds + 1):
                for job in in_turns(jobs, number):
                    if job not in took:
                        continue
                    try:
                        seconds = self._fresh(*job, compiled)
                    except PeerError as error:
                        self.missing.setdefault(" ".join(job), str(error))
                        del took[job]
                    else:
                        took[job] += [seconds] * bool(number)  # the first fills the caches
        return [
            {
                "client": name,
                "what": what,
                "rounds": rounds,
                "cpu_ms": median(cpu for cpu, _ in seconds) * 1e3,
                "wall_ms": median(wall for _, wall in seconds) * 1e3,
                "cpu_ms_of_rounds": [round(cpu * 1e3, 2) for cpu, _ in seconds],
                "wall_ms_of_rounds": [round(wall * 1e3, 2) for _, wall in seconds],
            }
            for (name, what), seconds in took.items()
        ]

    def _fresh(self, name: str, what: str, compiled: str) -> tuple[float, float]:
        """CPU and wall seconds of an interpreter, whose modules have been compiled before."""
        if name == "nothing":
            program = "pass\n"
        elif what == "import":
            program = f"import {', '.join(CLIENTS[name].modules)}\n"
        else:
            size = 20
            program = (
                "import asyncio\n"
                "from benchmarks.peers.clients import CLIENTS\n"
                "from benchmarks.peers.work import documents\n"
                "async def main():\n"
                f"    client = CLIENTS[{name!r}]({self.place.origin!r})\n"
                f"    await client.open({size})\n"
                f"    await client.rank(documents({size}))\n"
                "    await client.close()\n"
                "asyncio.run(main())\n"
            )
        # All end alike, and at once: the Rust client's threads now and then crash an interpreter
        # that ends in the usual way.
        program += "import os\nos._exit(0)\n"
        # An installed package has its bytecode beside it; a checkout may not.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        began = time.perf_counter()
        process = subprocess.Popen(
            [str(self.place.python), "-c", program],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        watch = threading.Timer(LIMIT, process.kill)
        watch.daemon = True
        watch.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            watch.cancel()
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise PeerError(f"ended with {process.returncode}")
        return usage.ru_utime + usage.ru_stime, wall


def kept(results: dict[str, Any]) -> str:
    """The figures as JSON, a row to a line."""
    lines = []
    for name, value in results.items():
        if isinstance(value, list):
            rows = ",\n  ".join(json.dumps(row) for row in value)
            lines.append(f" {json.dumps(name)}: [\n  {rows}\n ]")
        else:
            lines.append(f" {json.dumps(name)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> int:
    """Build the environment, measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few short rounds; nothing is kept")
    parts = ("calls", "many", "corpus", "cold")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--keep", type=Path, help="keep the figures in this file")
    arguments = parser.parse_args()
    python, missing = peers_python()
    cpu, server_cpu = pinned_pair()
    with stub_process(server_cpu) as (origin, process):
        bench = Bench(Place(python, origin, process, cpu), missing, arguments.quick)
        results: dict[str, Any] = {
            "schema": SCHEMA,
            "date": datetime.now(UTC).date().isoformat(),
            "processor": processor(),
            "cores": os.cpu_count(),
            "is_pinned": cpu is not None,
            "versions": bench.versions(),
        }
        for part in parts:
            if part in arguments.only:
                results[part] = getattr(bench, part)()
    results["missing"] = missing
    print(tables(results, markdown=False))
    keep = arguments.keep
    if keep is None and not arguments.quick and set(arguments.only) == set(parts):
        keep = RESULTS
    if keep is not None:
        keep.parent.mkdir(exist_ok=True)
        keep.write_text(kept(results))
        if keep == RESULTS:
            PAGE.write_text(tables(results, markdown=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
