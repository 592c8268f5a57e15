import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_async import InvalidRequestError
from rerank_async.dialects import DIALECTS, get
from rerank_async.dialects._reading import error_message

# ── error_message ──


@pytest.mark.parametrize(
    ("body", "message"),
    [
        # OpenAI and those who speak like it
        (
            b'{"error":{"message":"no such model","type":"invalid_request_error","param":"model",'
            b'"code":"model_not_found"}}',
            "no such model",
        ),
        # TEI
        (b'{"error":"Model is overloaded","error_type":"overloaded"}', "Model is overloaded"),
        # Cohere
        (b'{"message":"invalid api token","id":"7"}', "invalid api token"),
        # DashScope, with HTTP 200 as well
        (
            b'{"code":"InvalidParameter","message":"batch too large","request_id":"r7"}',
            "batch too large",
        ),
        (b'{"code":20012,"message":"busy","data":null}', "busy"),
        # Voyage and Jina
        (b'{"detail":"top_k is too large"}', "top_k is too large"),
        # FastAPI's own
        (
            b'{"detail":[{"loc":["body","documents",0],"msg":"str type expected","type":"t"},'
            b'{"loc":["body"],"msg":"second","type":"t"}]}',
            "body.documents.0: str type expected",
        ),
        (b'{"detail":[{"msg":"field required"}]}', "field required"),
        (b'{"detail":{"message":"nested"}}', "nested"),
        # The first that has words
        (b'{"error":{"code":7},"message":"words"}', "words"),
        (b'{"error":null,"detail":"words"}', "words"),
        (b'{"error":"","message":"words"}', "words"),
        # Nothing known: the body itself
        (b'{"error":{"code":7}}', '{"error":{"code":7}}'),
        (b'{"error":{"message":7}}', '{"error":{"message":7}}'),
        (b'{"detail":["plain"]}', '{"detail":["plain"]}'),
        (b'{"detail":[]}', '{"detail":[]}'),
        (b'["error"]', '["error"]'),
        (b'"down"', '"down"'),
        (b"null", "null"),
        (b"Bad Gateway", "Bad Gateway"),
        (b"<html><h1>502</h1></html>", "<html><h1>502</h1></html>"),
        (b"", "an empty body"),
        (b'{"error":{"message":"cut', '{"error":{"message":"cut'),
        (b"[" * 100_000, "[" * 199 + "…"),
        (b'{"error":' * 50_000, ('{"error":' * 23)[:199] + "…"),
        (b"9" * 5000, "9" * 199 + "…"),
        # What it says is shown safely
        (b'{"error":"a\\u0000b\\u001b[31m\\u202ec"}', "a b [31m c"),
        (b'{"error":{"message":"' + b"a" * 500 + b'"}}', "a" * 199 + "…"),
    ],
)
def test_the_words_of_an_error_are_found_whatever_its_shape(body: bytes, message: str) -> None:
    assert error_message(body) == message


def test_a_byte_order_mark_does_not_hide_the_words_of_an_error() -> None:
    assert error_message(b'\xef\xbb\xbf{"error":{"message":"no such model"}}') == "no such model"


@pytest.mark.parametrize(
    "body", [b'{"error":{"message":""}}', b'{"detail":[{}]}', b'{"detail":[{"msg":""}]}']
)
def test_a_body_without_words_is_not_called_empty(body: bytes) -> None:
    assert error_message(body) == body.decode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "message", "detail", "loc", "msg"]), inner, max_size=3
        )
    ),
)


@given(JSON)
def test_any_json_at_all_has_a_message(value: Any) -> None:
    assert 0 < len(error_message(json.dumps(value).encode())) <= 200


@given(st.binary(max_size=300))
def test_any_bytes_at_all_have_a_message(body: bytes) -> None:
    assert 0 < len(error_message(body)) <= 200


# ── the table of dialects ──


def test_a_dialect_goes_by_its_own_name() -> None:
    assert {name: dialect.name for name, dialect in DIALECTS.items()} == {n: n for n in DIALECTS}
    assert get("v1") is DIALECTS["v1"]


@pytest.mark.parametrize("name", ["v2", "", "V1"])
def test_an_unknown_dialect_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=rf"^dialect {name!r} is not known: .*\bv1\b"):
        get(name)
