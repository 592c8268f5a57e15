"""The command line as a whole: its version, its help, its words for a wrong use."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from rerank_async import __version__
from rerank_async._cli._shared import app
from tests.cli.support import Done, Run, execute, one_line


async def test_the_version_is_printed(run: Run) -> None:
    assert await run("--version") == Done(0, f"rerank-async {__version__}\n", "")


class TestHelp:
    @pytest.mark.parametrize(
        ("command", "options"),
        [
            (
                "rerank",
                (
                    *("--top-n", "--url", "--model", "--format"),
                    *("--json", "--local", "--allow-insecure-http"),
                ),
            ),
            (
                "serve",
                (
                    *("--host", "--port", "--engine", "--api-key"),
                    *("--max-documents", "--workers", "--queue", "--faults"),
                ),
            ),
            ("eval", ("--before", "--metrics", "--json")),
            ("demo", ("--faults",)),
        ],
    )
    async def test_of_a_command_names_every_option(
        self, run: Run, command: str, options: tuple[str, ...]
    ) -> None:
        done = await run(command, "--help", COLUMNS="100")
        assert done.code == 0
        for option in options:
            assert re.search(rf"(?m)^\W*{option}\b", done.out), option
        assert f"Example: rerank-async {command}" in done.out

    def test_says_something_about_every_option_there_is(self) -> None:
        group: Any = typer.main.get_command(app)
        for name, command in group.commands.items():
            assert command.help, name
            for parameter in command.params:
                assert parameter.help, f"{name} {parameter.name}"

    async def test_lists_the_commands(self, run: Run) -> None:
        done = await run("--help")
        assert done.code == 0
        for command in ("rerank", "eval", "serve", "demo"):
            assert re.search(rf"(?m)^\W*{command}\b", done.out), command


class TestWrongUse:
    @pytest.mark.parametrize(
        ("arguments", "word"),
        [
            (["serve", "--engine", "nonsense"], "lexical"),
            (["serve", "--faults", "1"], "faults"),
            (["serve", "--host", ""], "host"),
            (["demo", "--faults", "-0.5"], "faults"),
        ],
    )
    async def test_of_another_command_is_one_line_and_exit_2(
        self, run: Run, arguments: list[str], word: str
    ) -> None:
        done = await run(*arguments)
        assert done.code == 2
        assert word in one_line(done)


class TestAMissingExtra:
    @pytest.mark.parametrize(
        ("module", "extra", "arguments"),
        [
            ("typer", "cli", ["--version"]),
            ("rich", "cli", ["--version"]),
            ("Stemmer", "server", ["serve", "--port", "0"]),
            ("Stemmer", "server", ["rerank", "q", "--local"]),
            ("Stemmer", "server", ["demo"]),
        ],
    )
    async def test_is_named_with_the_command_that_installs_it(
        self, tmp_path: Path, module: str, extra: str, arguments: list[str]
    ) -> None:
        program = (
            "import sys, tokenize\n"
            f"sys.modules[{module!r}] = None\n"
            # The demo says it before it reads the standard library.
            "tokenize.open = None\n"
            "from rerank_async.__main__ import main\n"
            f"sys.argv = ['rerank-async', *{arguments!r}]\n"
            "sys.exit(main())\n"
        )
        done = await execute(sys.executable, "-c", program, cwd=tmp_path)
        assert (done.code, done.out) == (2, "")
        [line] = done.err.splitlines()
        assert f'pip install "rerank-async[{extra}]"' in line
