"""Run the peers side by side, print what was found, and keep it as JSON.

    python -m benchmarks.peers [--quick] [--only calls many corpus cold] [--keep FILE]

One stub server answers all of them, on a processor of its own; the clients share another, and are
asked in turns, so that all see the same moods of the machine.
CPU is that of the client's whole process, threads included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import pinned_pair, processor
from benchmarks.peers.clients import CLIENTS
from benchmarks.peers.environment import ROOT, peers_python
from benchmarks.peers.page import PAGE, RESULTS, tables
from benchmarks.stub import stub_process

SCHEMA = "rerank-async/peers/1"

# Documents per request, and how many requests make a round of about a tenth of a second for a fast
# client, and for a slow one.
SIZES = {1: (480, 96), 20: (480, 96), 100: (320, 64), 1000: (80, 32)}
SLOW = {"httpx", "cohere", "voyageai"}
CORPUS_ONLY = {"baseten", "baseten-default"}
CORPUS = 200_000
BATCHES = (10, 100, 1000)
MANY = 100_000


class Peer:
    """A worker process.

    Args:
        python: of the environment that it runs in.
        name: of its client.
        origin: of the stub.
        cpu: that it is to run on; None leaves that to the system.
    """

    def __init__(self, python: Path, name: str, origin: str, cpu: int | None) -> None:
        self.name = name
        command = [str(python), "-m", "benchmarks.peers.worker", name, origin]
        self.process = subprocess.Popen(
            [*command, "-" if cpu is None else str(cpu)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
        )

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Have it do something; raises where it could not."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps({"do": what, **arguments}), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self.process.wait()}")
        told: dict[str, Any] = json.loads(line)
        if "error" in told:
            raise RuntimeError(told["error"])
        return told

    def end(self) -> None:
        """End the process, however it fares."""
        self.process.kill()
        self.process.communicate()


@contextmanager
def peers(
    python: Path, names: list[str], origin: str, cpu: int | None, missing: dict[str, str]
) -> Iterator[list[Peer]]:
    """The workers that run; one that cannot is added to `missing`."""
    with ExitStack() as stack:
        running: list[Peer] = []
        for name in names:
            peer = Peer(python, name, origin, cpu)
            stack.callback(peer.end)
            try:
                peer.ask("hello")
            except RuntimeError as error:
                missing.setdefault(name, str(error))
            else:
                running.append(peer)
        yield running


def in_turns(running: list[Peer], number: int) -> list[Peer]:
    """The order of a round: whoever was first is last in the next."""
    place = number % len(running) if running else 0
    return running[place:] + running[:place]


def stub_share(before: float, after: float, wall: float) -> float:
    """How busy the stub was."""
    return (after - before) / wall


def cpu_of(process: int) -> float:
    """CPU seconds of another process so far; 0.0 where the system does not say."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Bench:
    """The measurements, each a method that returns what is kept of it.

    Args:
        python: of the peers' environment.
        origin: of the stub.
        stub: its process.
        cpu: the clients' processor.
        missing: the peers that cannot run, and why; grows.
        quick: a few short rounds, to see whether all works.
    """

    def __init__(
        self,
        python: Path,
        origin: str,
        stub: int,
        cpu: int | None,
        missing: dict[str, str],
        quick: bool,
    ) -> None:
        self.python = python
        self.origin = origin
        self.stub = stub
        self.cpu = cpu
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
            [str(self.python), "-c", program], capture_output=True, text=True, check=True
        )
        found = json.loads(told.stdout)
        wanted = {"Python", "uvloop", "aiohttp", "orjson", "msgspec", "rerank-async"}
        wanted |= {package for client in CLIENTS.values() for package in client.packages}
        known = {name.replace("_", "-"): version for name, version in found.items()}
        return {name: known[name] for name in sorted(wanted) if name in known}

    def calls(self) -> list[dict[str, Any]]:
        """CPU and wall per request, by client and size."""
        rounds = 3 if self.quick else 15
        names = [name for name in CLIENTS if name not in CORPUS_ONLY]
        rows: list[dict[str, Any]] = []
        for size, (fast, slow) in SIZES.items():
            figures: dict[str, list[dict[str, float]]] = {}
            with peers(self.python, names, self.origin, self.cpu, self.missing) as running:
                began, before = time.perf_counter(), cpu_of(self.stub)
                for number in range(rounds + 1):
                    for peer in in_turns(running, number):
                        calls = slow if peer.name in SLOW else fast
                        told = peer.ask("calls", size=size, calls=calls)
                        if number:  # the first round opens, checks and warms up
                            figures.setdefault(peer.name, []).append(told)
                share = stub_share(before, cpu_of(self.stub), time.perf_counter() - began)
            floor = figures["hand-written"]
            for name, told_all in figures.items():
                pairs = list(zip(told_all, floor, strict=True))
                rows.append(
                    {
                        "client": name,
                        "documents": size,
                        "rounds": rounds,
                        "cpu_us": median(told["cpu"] for told in told_all) * 1e6,
                        "wall_us": median(told["wall"] for told in told_all) * 1e6,
                        "cpu_ratio": median(told["cpu"] / one["cpu"] for told, one in pairs),
                        "rate_ratio": median(one["wall"] / told["wall"] for told, one in pairs),
                        "stub_busy": share,
                    }
                )
        return rows

    def many(self) -> list[dict[str, Any]]:
        """What 100,000 calls cost by hand, by `rerank`, and through `rerank_many`."""
        rounds, calls = (2, 500) if self.quick else (10, MANY // 10)
        names = ["hand-written", "transport", "checks", "rerank_async"]
        figures: dict[str, list[dict[str, float]]] = {}
        with peers(self.python, names, self.origin, self.cpu, self.missing) as running:
            for number in range(rounds + 1):
                for peer in in_turns(running, number):
                    told = peer.ask("calls", size=20, calls=calls if number else 64)
                    if number:
                        figures.setdefault(peer.name, []).append(told)
                    if peer.name == "rerank_async":
                        told = peer.ask("many", size=20, calls=calls if number else 64)
                        if number:
                            figures.setdefault("rerank_many", []).append(told)
        floor = figures["hand-written"]
        return [
            {
                "client": name,
                "calls": rounds * calls,
                "rounds": rounds,
                "cpu_us": median(told["cpu"] for told in told_all) * 1e6,
                "cpu_ratio": median(
                    told["cpu"] / one["cpu"] for told, one in zip(told_all, floor, strict=True)
                ),
            }
            for name, told_all in figures.items()
        ]

    def corpus(self) -> list[dict[str, Any]]:
        """One query over 200,000 documents, all results returned."""
        rounds, count = (2, 20_000) if self.quick else (5, CORPUS)
        rows: list[dict[str, Any]] = []
        for batch in BATCHES:
            names = ["hand-written", "rerank_async", "baseten", "baseten-default"]
            figures: dict[str, list[dict[str, Any]]] = {}
            first: dict[str, dict[str, Any]] = {}
            with peers(self.python, names, self.origin, self.cpu, self.missing) as running:
                began, before = time.perf_counter(), cpu_of(self.stub)
                for number in range(rounds + 1):
                    for peer in in_turns(list(running), number):
                        try:
                            told = peer.ask("corpus", count=count, batch=batch)
                        except RuntimeError as error:
                            self.missing.setdefault(
                                f"{peer.name} in batches of {batch}", str(error)
                            )
                            running.remove(peer)
                            continue
                        if number:
                            figures.setdefault(peer.name, []).append(told)
                        else:
                            first[peer.name] = told
                share = stub_share(before, cpu_of(self.stub), time.perf_counter() - began)
            for name, told_all in figures.items():
                rows.append(
                    {
                        "client": name,
                        "documents": count,
                        "batch": batch,
                        "rounds": len(told_all),
                        "documents_per_s": median(count / told["wall"] for told in told_all),
                        "cpu_us_per_document": median(told["cpu"] / count for told in told_all)
                        * 1e6,
                        "rate_to_baseten": _rate_to(told_all, figures.get("baseten")),
                        "rate_to_default": _rate_to(told_all, figures.get("baseten-default")),
                        # Of the first query: what it took beyond the texts themselves.
                        "peak_mib": first[name]["peak"],
                        "grown_mib": first[name]["peak"] - first[name]["before"],
                        "results": first[name]["results"],
                        "is_ordered": first[name]["is_ordered"],
                        "are_scores_right": first[name]["are_scores_right"],
                        "stub_busy": share,
                    }
                )
        return rows

    def cold(self) -> list[dict[str, Any]]:
        """A fresh interpreter that imports, and one that also asks once."""
        rounds = 2 if self.quick else 9
        names = ["nothing", *CLIENTS]
        for name in ("transport", "checks", "baseten-default", *self.missing):
            if name in names:
                names.remove(name)
        figures: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for number in range(rounds + 1):
            for name in names:
                for what in ("import", "first answer"):
                    if name == "nothing" and what != "import":
                        continue
                    took = self._fresh(name, what)
                    if took is not None and number:  # the first round fills the caches
                        figures.setdefault((name, what), []).append(took)
        return [
            {
                "client": name,
                "what": what,
                "rounds": rounds,
                "cpu_ms": median(cpu for cpu, _ in took) * 1e3,
                "wall_ms": median(wall for _, wall in took) * 1e3,
            }
            for (name, what), took in figures.items()
        ]

    def _fresh(self, name: str, what: str) -> tuple[float, float] | None:
        if name == "nothing":
            program = "pass"
        elif what == "import":
            program = "import " + ", ".join(CLIENTS[name].modules)
        else:
            size = 20
            program = (
                "import asyncio\n"
                "from benchmarks.peers.clients import CLIENTS\n"
                "from benchmarks.peers.work import documents\n"
                "async def main():\n"
                f"    client = CLIENTS[{name!r}]({self.origin!r})\n"
                f"    await client.open({size})\n"
                f"    await client.rank(documents({size}))\n"
                "    await client.close()\n"
                "asyncio.run(main())\n"
                # The Rust client's threads crash an interpreter that ends in the usual way.
                "import os\n"
                "os._exit(0)\n"
            )
        began = time.perf_counter()
        process = subprocess.Popen(
            [str(self.python), "-c", program],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - began
        if process.returncode:
            self.missing.setdefault(f"{name}: {what}", f"ended with {process.returncode}")
            return None
        return usage.ru_utime + usage.ru_stime, wall


def _rate_to(ours: list[dict[str, Any]], theirs: list[dict[str, Any]] | None) -> float | None:
    if theirs is None or len(theirs) != len(ours):
        return None
    pairs = zip(ours, theirs, strict=True)
    return float(median(them["wall"] / us["wall"] for us, them in pairs))


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
        bench = Bench(python, origin, process, cpu, missing, arguments.quick)
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
        keep.write_text(json.dumps(results, indent=1) + "\n")
        if keep == RESULTS:
            PAGE.write_text(tables(results, markdown=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
