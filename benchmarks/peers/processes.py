"""The workers as the coordinator sees them: started, asked in turns, watched and ended.

A line belongs here when it holds a process; what is asked of it, and why, is in `__main__`.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeVar

from benchmarks.peers.clients import CLIENTS
from benchmarks.peers.environment import ROOT

__all__ = ["Peer", "PeerError", "Place", "cpu_of", "in_turns", "peers"]

T = TypeVar("T")

# Seconds after which a client that has not answered is given up: no round takes a tenth of it.
LIMIT = 120.0


class PeerError(RuntimeError):
    """A client could not do what it was asked."""


class Place:
    """Where the clients are measured.

    Args:
        python: of the peers' environment.
        origin: of the stub.
        stub: its process.
        cpu: that the clients share; None leaves that to the system.
    """

    def __init__(self, python: Path, origin: str, stub: int, cpu: int | None) -> None:
        self.python = python
        self.origin = origin
        self.stub = stub
        self.cpu = cpu


class Peer:
    """A worker process.

    Args:
        place: where it runs.
        name: of its client.
        limit: seconds for each answer.
    """

    def __init__(self, place: Place, name: str, limit: float = LIMIT) -> None:
        self.name = name
        self._limit = limit
        self._stub = place.stub
        self._complaints = TemporaryFile()  # noqa: SIM115 - closed by `end`
        command = [str(place.python), "-m", "benchmarks.peers.worker", name, place.origin]
        self.process = subprocess.Popen(
            [*command, "-" if place.cpu is None else str(place.cpu)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            cwd=ROOT,
        )

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Have it do something; adds how busy the stub was meanwhile.

        Raises:
            PeerError: it could not, died, or did not answer in time.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        watch = threading.Timer(self._limit, self.process.kill)
        watch.daemon = True
        watch.start()
        began, before = time.perf_counter(), cpu_of(self._stub)
        try:
            print(json.dumps({"do": what, **arguments}), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watch.cancel()
        busy = (cpu_of(self._stub) - before) / (time.perf_counter() - began)
        if not line:
            raise PeerError(self._why(time.perf_counter() - began))
        told: dict[str, Any] = json.loads(line)
        if "error" in told:
            raise PeerError(told["error"])
        return told | {"stub_busy": busy}

    def _why(self, seconds: float) -> str:
        if seconds >= self._limit:
            return f"no answer within {self._limit:g} s"
        status = self.process.wait()
        self._complaints.seek(0)
        said = self._complaints.read().decode(errors="replace").strip().splitlines()
        return f"ended with {status}{': ' + said[-1] if said else ''}"

    def end(self) -> None:
        """End the process, however it fares."""
        self.process.kill()
        self.process.communicate()
        self._complaints.close()


@contextmanager
def peers(place: Place, names: Sequence[str], missing: dict[str, str]) -> Iterator[dict[str, Peer]]:
    """The workers that run, by name; one that does not is added to `missing`.

    Args:
        place: where they run.
        names: of the clients.
        missing: packages and clients that cannot be had, and why.
    """
    with ExitStack() as stack:
        running: dict[str, Peer] = {}
        for name in names:
            if any(package in missing for package in CLIENTS[name].packages):
                continue
            peer = Peer(place, name)
            stack.callback(peer.end)
            try:
                peer.ask("hello")
            except PeerError as error:
                missing.setdefault(name, str(error))
            else:
                running[name] = peer
        yield running


def in_turns(all_of_them: Sequence[T], number: int) -> list[T]:
    """The order of a round: whoever was first is last in the next."""
    place = number % len(all_of_them) if all_of_them else 0
    return [*all_of_them[place:], *all_of_them[:place]]


def cpu_of(process: int) -> float:
    """CPU seconds of another process with one thread; 0.0 where the system does not say."""
    try:
        # Nanoseconds; the clock ticks in `stat` are too coarse for a round.
        return int(Path(f"/proc/{process}/schedstat").read_text().split()[0]) / 1e9
    except OSError:
        pass
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
