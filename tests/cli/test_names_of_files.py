"""Every option that takes a file's name: a URI stays one, or is refused before anything happens."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest
from typer.testing import CliRunner

import rerank_async._cli  # noqa: F401 — registers the commands
from rerank_async._cli._shared import app

# Each with what else the command needs; FILE is the place of the name.
PLACES = {
    ("rerank", "FILE"): ["rerank", "query", "FILE", "--local"],
    ("bulk", "INPUT"): ["bulk", "FILE", "out.jsonl"],
    ("bulk", "OUTPUT"): ["bulk", "in.jsonl", "FILE"],
    ("bulk", "--run"): ["bulk", "folder", "out.jsonl", "--run", "FILE"],
    ("bulk", "--cache"): ["bulk", "in.jsonl", "out.jsonl", "--cache", "FILE"],
    ("bulk", "--job"): ["bulk", "in.jsonl", "out.jsonl", "--job", "FILE"],
    ("bench", "--requests"): ["bench", "--local", "--requests", "FILE"],
    ("bench", "--output"): ["bench", "--local", "--output", "FILE"],
    ("bench", "--compare"): ["bench", "--compare", "a.json", "FILE"],
    ("eval", "RUN"): ["eval", "FILE", "qrels.tsv"],
    ("eval", "QRELS"): ["eval", "a.run", "FILE"],
    ("eval", "--before"): ["eval", "a.run", "qrels.tsv", "--before", "FILE"],
}
# Those that take a text which is no name of a file.
OTHERS = {
    "rerank": {"query", "url", "model"},
    "bulk": {"url", "model", "query", "query_id", "tag", "ray"},
    "bench": {
        *("url", "model", "dialect", "concurrency", "rate", "duration", "warm_up", "timeout"),
        *("documents", "document_words", "query_words", "goodput", "name"),
    },
    "eval": {"metrics"},
    "serve": {"host", "engine", "api_key"},
    "demo": set(),
}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RERANK_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("RERANK_MODEL", "m")


def test_the_table_holds_every_option_that_takes_a_name() -> None:
    commands: dict[str, Any] = {
        str(one.name or getattr(one.callback, "__name__", "")): one.callback
        for one in app.registered_commands
    }
    assert set(commands) == set(OTHERS)
    for name, command in commands.items():
        kinds = {option: str(kind) for option, kind in get_type_hints(command).items()}
        # One of these would hand a URI to pathlib before anybody looked at it.
        assert not [option for option, kind in kinds.items() if "Path" in kind or "File" in kind]
        texts = {option for option, kind in kinds.items() if re.search(r"\bstr\b", kind)}
        named = {place.lstrip("-").lower() for of, place in PLACES if of == name}
        assert texts == OTHERS[name] | named


@pytest.mark.parametrize("uri", ["s3://bucket/x.jsonl", "gs://bucket/x", "file://host/x.jsonl"])
@pytest.mark.parametrize("place", PLACES, ids=" ".join)
def test_a_uri_is_refused_as_it_was_typed_and_nothing_is_made(
    place: tuple[str, str], uri: str, tmp_path: Path
) -> None:
    arguments = [uri if word == "FILE" else word for word in PLACES[place]]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"rerank-async: {place[1]}: {uri} ")
    assert list(tmp_path.iterdir()) == []


def test_a_file_uri_of_this_machine_is_its_path(tmp_path: Path) -> None:
    (tmp_path / "a.run").write_text("1 Q0 d 1 1.0 x\n")
    (tmp_path / "the qrels.tsv").write_text("1 0 d 1\n")
    run, qrels = (tmp_path / "a.run").as_uri(), (tmp_path / "the qrels.tsv").as_uri()
    done = CliRunner().invoke(app, ["eval", run, qrels, "--metrics", "RR"])
    assert (done.exit_code, done.stdout) == (0, "RR\t1.0000\n")


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("s3://bucket/in", "s3://bucket/out"),
        ("file:///data/in", "file:///data/out"),
        ("gs://bucket/in?x=1", "hdfs://name:8020/out"),
        ("in", "out"),
    ],
)
def test_many_machines_get_input_and_output_as_they_were_typed(
    source: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def rerank_parquet(*places: Any, **_: Any) -> None:
        given.extend(places)
        raise ImportError("this is all that is wanted of it")

    monkeypatch.setitem(
        sys.modules, "rerank_async.ray", SimpleNamespace(rerank_parquet=rerank_parquet)
    )
    CliRunner().invoke(app, ["bulk", source, output, "--ray", "local"])
    assert given == [source, output]
    assert list(tmp_path.iterdir()) == []
