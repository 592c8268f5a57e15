"""The program, run in an empty folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.support import PROGRAM, Done, Run, execute


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the program in an empty folder with these arguments."""

    async def run(*arguments: str, stdin: bytes = b"", **env: str) -> Done:
        return await execute(*PROGRAM, *arguments, cwd=tmp_path, stdin=stdin, **env)

    return run
