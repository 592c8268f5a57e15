"""`_shapes`: whose answer it is, by bodies that servers are known to send."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_async._errors import ResponseError
from rerank_async.dialects import get
from rerank_async.dialects._shapes import looks_like
from tests.support import believed

ROW = {"index": 0, "relevance_score": 0.5}


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("TEI", [{"index": 0, "score": 0.5}]),
        ("TEI", [{"index": 0, "score": 0.5, "text": "a"}]),
        ("SGLang", [{"score": 0.5, "index": 0, "document": "a", "meta_info": {"id": "x"}}]),
        ("Infinity", {"object": "rerank", "results": [ROW], "model": "m", "usage": {}, "id": "i"}),
        ("vLLM", {"id": "rerank-1", "model": "m", "usage": {"total_tokens": 3}, "results": [ROW]}),
        ("llama.cpp", {"model": "m", "object": "list", "usage": {}, "results": [ROW]}),
        ("LiteLLM", {"id": "x", "results": [ROW], "meta": {"billed_units": {}}}),
        ("Xinference", {"id": "x", "results": [{**ROW, "document": None}], "meta": {}}),
        ("Xinference", {"id": "x", "results": [], "meta": {}}),
        ("Cohere", {"results": [ROW]}),
        ("Cohere", {"id": "x", "results": [ROW], "tokens": {"input_tokens": 1}}),
        ("ZeroEntropy", {"results": [ROW], "total_bytes": 9, "total_tokens": 3}),
        ("Isaacus", {"results": [{"index": 0, "score": 0.5}], "usage": {}}),
        ("DashScope", {"output": {"results": [ROW]}, "usage": {}, "request_id": "r"}),
        ("NVIDIA", {"rankings": [{"index": 0, "logit": 1.5}]}),
        ("Elastic", {"rerank": [ROW]}),
        ("DeepInfra", {"scores": [0.5, 1], "input_tokens": 3}),
        ("Mixedbread", {"data": [{"index": 0, "score": 0.5}], "top_k": 1, "object": "list"}),
        ("/score", {"data": [{"index": 0, "object": "score", "score": 0.5}], "object": "list"}),
        ("Pinecone", {"data": [{"index": 0, "score": 0.5}], "usage": {"rerank_units": 1}}),
        ("embeddings", {"data": [{"index": 0, "embedding": [0.5]}], "object": "list"}),
        ("chats", {"choices": [{"index": 0, "message": {}}]}),
        ("models", {"data": [{"id": "m", "object": "model", "owned_by": "x"}]}),
    ],
)
def test_a_known_shape_is_named_and_final(name: str, answer: Any) -> None:
    body = json.dumps(answer).encode()
    found = looks_like(body)
    assert found is not None
    assert name in found
    assert looks_like(b"\xef\xbb\xbf" + body) == found
    with pytest.raises(ResponseError, match="looks like the answer of") as caught:
        get("v1").decode_response(body)
    assert name in str(caught.value)
    assert caught.value.final
    assert caught.value.condemns == "session"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><body>results</body></html>",
        b'{"results":[{"index":0,"relevance_sc',
        b"null",
        b"7",
        b"[]",
        b"[[]]",
        b"{}",
        b'{"results":null}',
        b'{"results":{}}',
        b'{"output":[]}',
        b'{"scores":["a"]}',
        b'{"error":{"message":"no"}}',
        b'{"detail":"no"}',
        b'{"data":[]}',
        b'{"data":[{"index":0}]}',
        b'{"data":[{"index":0,"relevance_score":null}]}',
        b"[" * 100_000,
    ],
)
def test_what_no_server_is_known_for_may_be_an_accident(body: bytes) -> None:
    assert looks_like(body) is None
    with pytest.raises(ResponseError) as caught:
        believed(body, 1)
    assert not caught.value.final
    assert caught.value.condemns is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["results", "data", "output", "index", "score", "scores", "meta"]),
            inner,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_at_all_is_looked_at(answer: Any) -> None:
    found = looks_like(json.dumps(answer).encode())
    assert found is None or isinstance(found, str)


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=9))
def test_an_answer_in_the_shape_that_is_asked_for_is_nobody_elses(scores: list[float]) -> None:
    data = [{"index": place, "relevance_score": score} for place, score in enumerate(scores)]
    body = json.dumps({"data": data, "model": "m", "object": "list"}).encode()
    assert looks_like(body) is None
