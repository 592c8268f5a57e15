"""A Ctrl-C that comes while a command is still being imported."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from rerank_async._program import is_ours
from tests.cli.support import PROGRAM, environment, execute
from tests.support import PACKAGE

# It says that it is being imported, and comes to no end.
SLOW = """
import time
print("importing", flush=True)
while True:
    time.sleep(0.01)
"""
SCRIPT = "import sys\nfrom rerank_async.__main__ import main\nsys.exit(main())\n"


@pytest.mark.parametrize("way", ["module", "script"])
# What the package imports, what the command line imports, what one command imports.
@pytest.mark.parametrize("slow", ["aiohttp", "typer", "uvloop"])
async def test_ends_with_130_and_without_a_traceback(way: str, slow: str, tmp_path: Path) -> None:
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / f"{slow}.py").write_text(SLOW)
    script = tmp_path / "rerank-async"
    script.write_text(SCRIPT)
    process = await asyncio.create_subprocess_exec(
        *(PROGRAM if way == "module" else (sys.executable, str(script))),
        *("serve", "--port", "0"),
        cwd=tmp_path,
        env=environment(PYTHONPATH=f"{tmp_path / 'slow'}:{PACKAGE.parent}"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"importing\n"
        process.send_signal(signal.SIGINT)
        assert await process.communicate() == (b"", b"")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 130


async def test_a_program_that_uses_the_package_keeps_its_handler(tmp_path: Path) -> None:
    program = (
        "import signal, rerank_async\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    (tmp_path / "app.py").write_text(program)
    for arguments in (["app.py", "rerank-async"], ["-m", "app", "-m", "other"]):
        done = await execute(sys.executable, *arguments, cwd=tmp_path)
        assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize(
    ("argv", "original", "ours"),
    [
        (["-m", "serve"], ["python", "-X", "dev", "-m", "rerank_async", "serve"], True),
        (["/bin/rerank-async", "serve"], ["python", "/bin/rerank-async", "serve"], True),
        # A process that scores.
        (["/bin/rerank-async", "serve"], ["python", "-c", "from multiprocessing…"], False),
        (["-m"], ["python", "-m", "pytest"], False),
        (["-c"], ["python", "-c", "…", "rerank-async"], False),
        ([""], ["python"], False),
        ([], [], False),
    ],
)
def test_it_is_known_whether_the_process_is_the_command(
    argv: list[str], original: list[str], ours: bool
) -> None:
    assert is_ours(argv, original) is ours
