"""The peers' own environment: made when it is not there, each peer installed by itself.

A line belongs here when it installs something.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = ["peers_python"]

ROOT = Path(__file__).parent.parent.parent
PLACE = ROOT / ".venv-peers"


def _pip(python: Path, *arguments: str) -> str | None:
    """Run pip; its last complaint where it fails."""
    command = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    complaints = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return (complaints or done.stderr.splitlines() or ["pip failed"])[-1]


def peers_python() -> tuple[Path, dict[str, str]]:
    """The interpreter of the peers' environment, and which peers are not in it and why."""
    python = PLACE / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(PLACE)], check=True)
    # What the package needs, as it was when it was last installed there.
    stamp, needed = PLACE / ".package", (ROOT / "pyproject.toml").read_text()
    if not stamp.exists() or stamp.read_text() != needed:
        trouble = _pip(python, "install", "--editable", f"{ROOT}[speed]")
        if trouble is not None:
            raise RuntimeError(f"the package itself cannot be installed for the peers: {trouble}")
        stamp.write_text(needed)
    missing: dict[str, str] = {}
    for line in (Path(__file__).parent / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            trouble = _pip(python, "install", line)
            if trouble is not None:
                missing[line.partition("==")[0]] = trouble
    return python, missing
