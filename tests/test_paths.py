"""Names of files: what is a path, what is a URI, and what only looks like one."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from rerank_async import InvalidRequestError
from rerank_async._paths import local_path, scheme_of


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("s3://bucket/x", "s3"),
        ("S3://bucket/x", "s3"),
        ("gs://bucket/x", "gs"),
        ("hdfs://name:8020/x", "hdfs"),
        ("abfs+odd.one-2://x/y", "abfs+odd.one-2"),
        ("https://host/x.jsonl", "https"),
        ("file:///x", "file"),
        ("file:/x", "file"),
        # pathlib takes one of two slashes away.
        (PurePosixPath("s3://bucket/x"), "s3"),
        ("x", None),
        ("/x/y.jsonl", None),
        ("-", None),
        ("C:/data/x.jsonl", None),
        ("C:\\data\\x.jsonl", None),
        ("c://data", None),
        ("./s3://bucket/x", None),
        ("s3:x", None),
        ("12:/x", None),
    ],
)
def test_two_letters_a_colon_and_a_slash_make_a_uri(
    name: str | PurePosixPath, scheme: str | None
) -> None:
    assert scheme_of(name) == scheme


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("x/y.jsonl", "x/y.jsonl"),
        ("-", "-"),
        (Path("x"), "x"),
        ("file:///x/y.jsonl", "/x/y.jsonl"),
        ("file://localhost/x/y", "/x/y"),
        ("file:/x/y", "/x/y"),
        ("FILE:///x", "/x"),
        ("file:///with%20blank/%C3%A9%3F", "/with blank/é?"),
        ("file:///C:/data/x", "C:/data/x"),
    ],
)
def test_paths_and_file_uris_of_this_machine_are_paths(name: str | Path, path: str) -> None:
    assert local_path("output", name) == Path(path)


@pytest.mark.parametrize(
    "name",
    [
        "s3://bucket/x.jsonl",
        "gs://b/x",
        "https://host/x",
        "file://host/x",
        "file:///x?y",
        "file:///x#y",
    ],
)
def test_a_uri_of_something_else_is_refused_as_it_was_typed(name: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        local_path("output", name)
    assert str(caught.value).startswith("output: ")
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["", 7, None, b"x"])
def test_what_is_no_name_is_refused(name: object) -> None:
    with pytest.raises(InvalidRequestError, match=r"^output "):
        local_path("output", name)  # type: ignore[arg-type]
