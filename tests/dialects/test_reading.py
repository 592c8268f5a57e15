import json
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_async import InvalidRequestError, ResponseError
from rerank_async.dialects import DIALECTS, Answer, get
from rerank_async.dialects._reading import check_answer, error_message, excerpt


def checked(
    indices: Sequence[int], scores: Sequence[float], sent: int, top_n: int | None = None
) -> Answer:
    return check_answer(
        list(indices), list(scores), sent=sent, top_n=top_n, model="m", total_tokens=7
    )


# ── check_answer ──


@pytest.mark.parametrize(
    ("indices", "scores", "expected"),
    [
        # The server sorted: its order of equal scores stands.
        ([2, 0, 1], [0.9, 0.5, 0.1], [2, 0, 1]),
        ([2, 0, 1], [0.5, 0.5, 0.5], [2, 0, 1]),
        ([1, 2, 0], [0.9, 0.5, 0.5], [1, 2, 0]),
        # It did not: equal scores go by index.
        ([0, 1, 2], [0.1, 0.5, 0.9], [2, 1, 0]),
        ([2, 1, 0], [0.5, 0.1, 0.5], [0, 2, 1]),
        ([2, 0, 1], [0.1, 0.9, 0.9], [0, 1, 2]),
        ([1, 0, 2], [-2.0, 3.5, -1.0], [0, 2, 1]),
    ],
)
def test_an_answer_is_put_in_order_best_first(
    indices: list[int], scores: list[float], expected: list[int]
) -> None:
    answer = checked(indices, scores, 3)
    given_scores = dict(zip(indices, scores, strict=True))
    assert list(answer.indices) == expected
    assert list(answer.scores) == [given_scores[index] for index in expected]
    assert (answer.model, answer.total_tokens) == ("m", 7)


@pytest.mark.parametrize(
    ("count", "sent", "top_n"),
    [(3, 3, None), (2, 3, 2), (3, 3, 2), (3, 3, 3), (3, 3, 99), (0, 0, None), (0, 0, 5)],
)
def test_an_answer_covers_all_documents_or_the_best_top_n(
    count: int, sent: int, top_n: int | None
) -> None:
    assert len(checked(range(count), [0.5] * count, sent, top_n).indices) == count


@pytest.mark.parametrize(
    ("count", "sent", "top_n", "wanted"),
    [
        (2, 3, None, 3),
        (0, 3, None, 3),
        (4, 3, None, 3),
        (1, 3, 2, 2),
        (4, 5, 2, 2),
        (3, 5, 2, 2),
        (2, 3, 99, 3),
        (1, 0, None, 0),
    ],
)
def test_too_few_or_too_many_results_are_refused(
    count: int, sent: int, top_n: int | None, wanted: int
) -> None:
    with pytest.raises(
        ResponseError, match=f"^the answer has {count} results where {wanted} were asked for$"
    ):
        checked(range(count), [0.5] * count, sent, top_n)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 1, 1], "scores index 1 more than once"),
        ([2, 2, 2], "scores index 2 more than once"),
        ([0, 1, 3], "scores index 3, but only 0 to 2 were sent"),
        ([0, 1, -1], "scores index -1, but only 0 to 2 were sent"),
        ([10**30, 1, 0], f"scores index {10**30}, but only 0 to 2 were sent"),
    ],
)
def test_an_index_that_names_no_document_of_its_own_is_refused(
    indices: list[int], message: str
) -> None:
    with pytest.raises(ResponseError, match=f"{message}$"):
        checked(indices, [0.9, 0.5, 0.1], 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_score_that_is_not_finite_is_refused(bad: float, place: int) -> None:
    scores = [0.9, 0.5, 0.1]
    scores[place] = bad
    with pytest.raises(ResponseError, match="a score that is not a finite number"):
        checked([0, 1, 2], scores, 3)


def test_infinities_that_cancel_out_are_refused_too() -> None:
    with pytest.raises(ResponseError, match="not a finite number"):
        checked([0, 1], [math.inf, -math.inf], 2)


def test_finite_scores_whose_sum_overflows_are_accepted() -> None:
    assert list(checked([0, 1], [1.7e308, 1.6e308], 2).scores) == [1.7e308, 1.6e308]


@pytest.mark.parametrize("scores", [[-0.0], [1.0, -0.0], [-0.0, -1.0], [-0.0, 0.0], [0.0, -0.0]])
def test_negative_zero_becomes_zero(scores: list[float]) -> None:
    answer = checked(range(len(scores)), scores, len(scores))
    assert "-0.0" not in [str(score) for score in answer.scores]
    assert sorted(answer.scores) == sorted(scores)


@given(st.data(), st.integers(0, 12), st.none() | st.integers(1, 15), st.booleans())
def test_a_good_answer_is_accepted_in_any_order(
    data: st.DataObject, sent: int, top_n: int | None, ignores_top_n: bool
) -> None:
    count = sent if top_n is None or ignores_top_n else min(top_n, sent)
    indices = data.draw(st.permutations(range(sent)))[:count]
    floats = st.sampled_from([-1.0, 0.0, 0.5]) | st.floats(allow_nan=False, allow_infinity=False)
    scores = data.draw(st.lists(floats, min_size=count, max_size=count))
    answer = checked(indices, scores, sent, top_n)
    pairs = list(zip(answer.indices, answer.scores, strict=True))
    assert sorted(pairs) == sorted(zip(indices, scores, strict=True))
    assert all(high >= low for high, low in pairwise(answer.scores))
    if sorted(scores, reverse=True) == scores:
        assert list(answer.indices) == indices
    else:
        assert pairs == sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


# ── excerpt ──


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"", "an empty body"),
        (b" \r\n\t", "a body without text"),
        (b"\x00\x1b\x7f", "a body without text"),
        (b"\xef\xbb\xbf", "a body without text"),
        (b"<html>down</html>", "<html>down</html>"),
        (b"\xef\xbb\xbfwords", "words"),
        (b"one\r\ntwo\tthree", "one two three"),
        (b"\x1b[31mred\x1b[0m", "[31mred [0m"),
        (b"a\x00b\x7fc\xc2\x85d", "a b c d"),
        ("a\u202eb\u2066c\u2028d\u2029e".encode(), "a b c d e"),
        (b"caf\xe9", "caf�"),
        ("検索".encode(), "検索"),
        (b"a" * 200, "a" * 200),
        (b"a" * 201, "a" * 199 + "…"),
        (b"a" * 10**6, "a" * 199 + "…"),
        ("😀".encode() * 200, "😀" * 200),
        ("😀".encode() * 201, "😀" * 200),
    ],
)
def test_an_excerpt_is_one_short_line_that_is_safe_to_print(body: bytes, shown: str) -> None:
    assert excerpt(body) == shown


@given(st.binary(max_size=2000) | st.text(max_size=600).map(lambda text: text.encode()))
def test_no_excerpt_is_long_or_holds_a_control_character(body: bytes) -> None:
    shown = excerpt(body)
    assert 0 < len(shown) <= 200
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)
    assert not set(shown) & set(
        "\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    )
    assert len(shown.splitlines()) == 1


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
