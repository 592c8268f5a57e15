"""What a figure was measured on: printed at the head of every benchmark."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def processor() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def heading(*packages: str) -> str:
    """One line: processor, number of cores, Python, versions of the packages that matter."""
    versions = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"{package} not installed")
    return f"{processor()}, {os.cpu_count()} cores; {', '.join(versions)}"


def pinned_pair() -> tuple[int | None, int | None]:
    """Processors for the client and for the server, pinning this process to the first.

    (None, None) where there is one only, or where the system does not pin.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None, None
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) < 2:
        return None, None
    os.sched_setaffinity(0, {processors[0]})
    return processors[0], processors[1]
