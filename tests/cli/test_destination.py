"""Before documents and a key go to the default endpoint, a third party's, it is said."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import rerank_async._cli  # noqa: F401 — registers the commands
from rerank_async import TransportError
from rerank_async._cli._shared import app
from rerank_async._transport import AiohttpTransport

KEY = "sk-of-somebody-else-77"
COMMANDS = {
    "rerank": ["rerank", "query", "docs.txt"],
    "bulk": ["bulk", "in.jsonl", "out.jsonl", "--quiet", "--max-outage", "0.1"],
    "bench": ["bench", "--quiet", "--duration", "0.1s", "--warm-up", "0s"],
    "ray": ["bulk", "in", "out", "--ray", "local"],
}


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What stood on standard error each time that something was to be sent."""
    found: list[str] = []

    def look(*_: Any, **__: Any) -> None:
        sys.stderr.flush()
        buffer: Any = sys.stderr.buffer
        found.append(buffer.getvalue().decode())

    async def exchange(*_: Any, **__: Any) -> None:
        look()
        raise TransportError("no further")

    def rerank_parquet(*_: Any, **__: Any) -> None:
        look()
        raise TransportError("no further")

    monkeypatch.setattr(AiohttpTransport, "exchange", exchange)
    monkeypatch.setitem(
        sys.modules, "rerank_async.ray", SimpleNamespace(rerank_parquet=rerank_parquet)
    )
    monkeypatch.chdir(tmp_path)
    for name in ("RERANK_BASE_URL", "RERANK_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "docs.txt").write_text("a document\n")
    (tmp_path / "in.jsonl").write_text('{"query": "q", "documents": ["a document"]}\n')
    return found


@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "RERANK_API_KEY"])
@pytest.mark.parametrize("command", COMMANDS)
def test_it_is_said_before_anything_is_sent(
    command: str, variable: str, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, KEY)
    done = CliRunner().invoke(app, [*COMMANDS[command], "--model", "m"])
    assert seen
    for shown in seen:
        [line] = [line for line in shown.splitlines() if "api.3xcoder.com" in line]
        assert line.startswith(
            f"rerank-async: no URL is given: the documents and the key of {variable} "
        )
    assert KEY not in done.output


@pytest.mark.parametrize("named_by", ["option", "variable"])
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_said_where_the_server_was_named(
    command: str, named_by: str, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    url = "http://127.0.0.1:9/v1"
    if named_by == "variable":
        monkeypatch.setenv("RERANK_BASE_URL", url)
    more = ["--url", url] if named_by == "option" else []
    CliRunner().invoke(app, [*COMMANDS[command], "--model", "m", *more])
    assert seen
    assert not any("no URL is given" in shown for shown in seen)


def test_what_sends_nothing_says_nothing(seen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    done = CliRunner().invoke(app, [*COMMANDS["bulk"], "--model", "m", "--dry-run"])
    assert done.exit_code == 0
    assert "no URL is given" not in done.stderr
    assert not seen
