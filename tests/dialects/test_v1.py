import json
import math
from contextlib import suppress
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rerank_async import ResponseError
from rerank_async._answers import Answer
from rerank_async.dialects import RefusedError, WireRequest, v1
from tests.support import believed

V1 = v1.V1()

REQUEST = (
    b'{"model":"rerank-model","query":"What is machine learning?",'
    b'"documents":["Machine learning is a field of AI.","The weather is nice.","Caf\xc3\xa9"],'
    b'"top_n":2}'
)
RESPONSE = (
    b'{"object":"list",'
    b'"data":[{"object":"rerank.result","index":2,"relevance_score":0.95},'
    b'{"object":"rerank.result","index":0,"relevance_score":0.72}],'
    b'"model":"rerank-model",'
    b'"usage":{"total_tokens":150}}'
)
DOCUMENTS = ["Machine learning is a field of AI.", "The weather is nice.", "Café"]
QUERY = "What is machine learning?"


def answer_of(*results: bytes, rest: bytes = b"") -> bytes:
    return b'{"data":[' + b",".join(results) + b"]" + rest + b"}"


def result(index: bytes, score: bytes) -> bytes:
    return b'{"index":' + index + b',"relevance_score":' + score + b"}"


GOOD = answer_of(result(b"0", b"0.5"), result(b"1", b"0.25"))


def refused(body: bytes, sent: int = 2, top_n: int | None = None) -> str:
    with pytest.raises(ResponseError) as caught:
        believed(body, sent, top_n)
    return str(caught.value)


# ── golden bytes ──


def test_a_request_is_written_as_specified() -> None:
    assert V1.encode_request("rerank-model", QUERY, DOCUMENTS, 2) == REQUEST


def test_top_n_is_left_out_where_none_is_asked_for() -> None:
    assert V1.encode_request("m", "q", ["a"], None) == (
        b'{"model":"m","query":"q","documents":["a"]}'
    )


def test_a_request_is_read_as_specified() -> None:
    assert V1.decode_request(REQUEST) == WireRequest("rerank-model", QUERY, DOCUMENTS, 2)


def test_a_response_is_written_as_specified() -> None:
    assert V1.encode_response("rerank-model", [(2, 0.95), (0, 0.72)], 150) == RESPONSE


def test_a_response_is_read_as_specified() -> None:
    assert believed(RESPONSE, 3, 2) == Answer([2, 0], [0.95, 0.72], "rerank-model", 150)


def test_the_path_is_the_specified_one() -> None:
    assert V1.path == "/rerank"


@pytest.mark.parametrize("documents", [[], (), ("a",), ["a", "b"], ["", '"', "\\", "\n", "é😀\0"]])
def test_the_bytes_of_documents_and_envelope_are_those_of_the_body(
    documents: list[str] | tuple[str, ...],
) -> None:
    envelope = len(V1.encode_request("m", "q", (), None))
    # The last one has no comma.
    commas = max(len(documents) - 1, 0)
    assert len(V1.encode_request("m", "q", documents, None)) == (
        envelope + sum(V1.document_bytes(text) - 1 for text in documents) + commas
    )


@pytest.mark.parametrize("text", ["\ud800", "a\udfff"])
def test_a_lone_surrogate_is_never_written(text: str) -> None:
    with pytest.raises(TypeError):
        V1.encode_request("m", "q", ["a", text], None)
    with pytest.raises(TypeError):
        V1.encode_request("m", text, ["a"], None)
    with pytest.raises(TypeError):
        V1.document_bytes(text)


TEXT = st.text(min_size=1)


@given(TEXT, TEXT, st.lists(st.text(), min_size=1), st.none() | st.integers(1, 10**9))
def test_a_request_reads_back_as_it_was_written(
    model: str, query: str, documents: list[str], top_n: int | None
) -> None:
    body = V1.encode_request(model, query, documents, top_n)
    assert V1.decode_request(body) == WireRequest(model, query, documents, top_n)
    fields = json.loads(body)
    assert fields.get("top_n") == top_n
    assert fields["documents"] == documents


@given(
    TEXT,
    st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=20),
    st.integers(0, 2**53),
)
def test_a_response_reads_back_as_it_was_written(
    model: str, scores: list[float], tokens: int
) -> None:
    ranking = list(enumerate(sorted(scores, reverse=True)))
    answer = believed(V1.encode_response(model, ranking, tokens), len(scores), None)
    assert list(zip(answer.indices, answer.scores, strict=True)) == ranking
    assert (answer.model, answer.total_tokens) == (model, tokens)


# ── answers that are accepted ──


@pytest.mark.parametrize(
    "rest",
    [
        b"",
        b',"model":null',
        b',"usage":null',
        b',"usage":{}',
        b',"usage":{"total_tokens":null}',
        b',"usage":{"prompt_tokens":7}',
        b',"id":"x","meta":{"deep":[[[1]]]}',
    ],
)
def test_model_and_usage_may_be_absent_and_more_may_be_there(rest: bytes) -> None:
    body = answer_of(result(b"0", b"0.5"), result(b"1", b"0.25"), rest=rest)
    assert believed(body, 2, None) == Answer([0, 1], [0.5, 0.25], None, None)


def test_a_byte_order_mark_and_blanks_are_passed_over() -> None:
    assert believed(b"\xef\xbb\xbf \n" + GOOD + b"\r\n", 2, None) == Answer(
        [0, 1], [0.5, 0.25], None, None
    )


@pytest.mark.parametrize(
    ("score", "read"),
    [
        (b"1", 1.0),
        (b"-7", -7.0),
        (b"1e3", 1000.0),
        (b"5e-324", 5e-324),
        (b"1e-999", 0.0),
        (b"1.7976931348623157e308", 1.7976931348623157e308),
    ],
)
def test_any_finite_number_is_a_score(score: bytes, read: float) -> None:
    assert list(believed(answer_of(result(b"0", score)), 1, None).scores) == [read]


def test_a_negative_zero_is_read_as_zero() -> None:
    scores = believed(answer_of(result(b"0", b"-0.0")), 1, None).scores
    assert math.copysign(1.0, scores[0]) == 1.0


def test_a_permuted_answer_is_put_in_order() -> None:
    body = answer_of(result(b"1", b"0.5"), result(b"2", b"0.9"), result(b"0", b"0.5"))
    assert believed(body, 3, None) == Answer([2, 0, 1], [0.9, 0.5, 0.5], None, None)


def test_a_server_that_ignores_top_n_is_accepted() -> None:
    assert len(believed(GOOD, 2, 1).indices) == 2


def test_an_empty_answer_to_no_documents_is_accepted() -> None:
    assert believed(answer_of(), 0, None) == Answer([], [], None, None)


# ── answers that are not ──


@pytest.mark.parametrize(
    ("index", "why"),
    [
        (b"1", "index 1 more than once"),
        (b"2", "index 2, but only 0 to 1 were sent"),
        (b"-1", "index -1, but only 0 to 1 were sent"),
        (b"18446744073709551616", "index 18446744073709551616, but only 0 to 1"),
        (b"9" * 5000, "data[0].index"),
        (b"true", "Expected `int`, got `bool` - at `$.data[0].index`"),
        (b"false", "Expected `int`, got `bool` - at `$.data[0].index`"),
        (b"0.0", "Expected `int`, got `float` - at `$.data[0].index`"),
        (b"0.5", "Expected `int`, got `float` - at `$.data[0].index`"),
        (b"0e0", "Expected `int`, got `float` - at `$.data[0].index`"),
        (b'"0"', "Expected `int`, got `str` - at `$.data[0].index`"),
        (b"null", "Expected `int`, got `null` - at `$.data[0].index`"),
        (b"[0]", "Expected `int`, got `array` - at `$.data[0].index`"),
        (b"NaN", "not JSON"),
        (b"00", "not JSON"),
    ],
)
def test_a_wrong_index_is_refused_and_the_message_says_how(index: bytes, why: str) -> None:
    assert why in refused(answer_of(result(index, b"0.5"), result(b"1", b"0.25")))


@pytest.mark.parametrize(
    ("score", "why"),
    [
        (b"NaN", "not JSON"),
        (b"nan", "not JSON"),
        (b"Infinity", "not JSON"),
        (b"-Infinity", "not JSON"),
        (b"1e999", "out of range - at `$.data[0].relevance_score`"),
        (b"-1e999", "out of range - at `$.data[0].relevance_score`"),
        (b"9" * 400, "out of range - at `$.data[0].relevance_score`"),
        (b"9" * 5000, "out of range - at `$.data[0].relevance_score`"),
        (b"null", "Expected `float`, got `null` - at `$.data[0].relevance_score`"),
        (b'"0.5"', "Expected `float`, got `str` - at `$.data[0].relevance_score`"),
        (b'"NaN"', "Expected `float`, got `str` - at `$.data[0].relevance_score`"),
        (b"true", "Expected `float`, got `bool` - at `$.data[0].relevance_score`"),
        (b"[0.5]", "Expected `float`, got `array` - at `$.data[0].relevance_score`"),
        (b"", "not JSON"),
    ],
)
def test_a_wrong_score_is_refused_and_the_message_says_how(score: bytes, why: str) -> None:
    assert why in refused(answer_of(result(b"0", score), result(b"1", b"0.25")))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (answer_of(b'{"relevance_score":0.5}'), "required field `index` - at `$.data[0]`"),
        (answer_of(b'{"index":0}'), "required field `relevance_score` - at `$.data[0]`"),
        (answer_of(b'{"index":0,"score":0.5}'), "required field `relevance_score`"),
        (answer_of(b"{}"), "missing required field"),
        (answer_of(b"null"), "got `null` - at `$.data[0]`"),
        (answer_of(b"[0,0.5]"), "got `array` - at `$.data[0]`"),
        (b'{"data":null}', "got `null` - at `$.data`"),
        (b'{"data":{}}', "got `object` - at `$.data`"),
        (b'{"results":[]}', "required field `data`"),
        (b"{}", "required field `data`"),
        (answer_of(result(b"0", b"0.5"), rest=b',"model":7'), "got `int` - at `$.model`"),
        (b"null", "got `null`"),
        (b"[]", "got `array`"),
        (b"7", "got `int`"),
    ],
)
def test_an_answer_of_another_shape_is_refused_and_the_message_says_where(
    body: bytes, why: str
) -> None:
    message = refused(body, 1)
    assert message.startswith("the answer is not a v1 rerank response: ")
    assert why in message


@pytest.mark.parametrize(
    ("results", "sent", "top_n", "why"),
    [
        (0, 2, None, "0 results where 2 were asked for"),
        (1, 2, None, "1 results where 2 were asked for"),
        (3, 2, None, "3 results where 2 were asked for"),
        (1, 3, 2, "1 results where 2 were asked for"),
        (3, 4, 2, "3 results where 2 were asked for"),
    ],
)
def test_a_short_or_long_answer_is_refused(
    results: int, sent: int, top_n: int | None, why: str
) -> None:
    body = answer_of(*[result(b"%d" % index, b"0.5") for index in range(results)])
    assert why in refused(body, sent, top_n)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "it says: an empty body"),
        (b" \n", "it says: a body without text"),
        (b"<html>\n<h1>Log in</h1>\x1b</html>", "it says: <html> <h1>Log in</h1> </html>"),
        (b'{"error":{"message":"no such model","code":7}}', "it says: no such model"),
        (b'{"error":"overloaded","error_type":"overloaded"}', "it says: overloaded"),
        (b'{"code":"Throttling","message":"slow down"}', "it says: slow down"),
        (b'{"detail":"not here"}', "it says: not here"),
        (GOOD + b"x", "it says: {"),
        (GOOD + GOOD, "it says: {"),
        (b"[" * 100_000, "it says: [[["),
        (b'{"a":' * 100_000, 'it says: {"a":'),
        (b'{"data":' + b"[" * 100_000, 'it says: {"data":'),
        (b"\xff\xfe{\x00}\x00", "it says: "),
        (b"\xef\xbb\xbf\xef\xbb\xbf" + GOOD, "it says: "),
        (GOOD.decode().encode("utf-16"), "it says: "),
    ],
)
def test_what_is_no_answer_is_refused_with_a_short_excerpt(body: bytes, words: str) -> None:
    message = refused(body)
    assert words in message
    assert len(message) < 350
    assert message.isprintable()


@pytest.mark.parametrize(
    "rest",
    [
        b',"model":"\xff"',
        b',"model":"\xed\xa0\x80"',
        b',"model":"\\ud800"',
        b',"id":"\\ud800"',
        b',"id":"\xff"',
        b',"\xff":1',
    ],
)
def test_an_answer_that_is_not_utf_8_is_refused(rest: bytes) -> None:
    refused(GOOD[:-1] + rest + b"}")


@pytest.mark.parametrize("end", range(len(RESPONSE)))
def test_an_answer_cut_short_at_any_byte_is_refused(end: int) -> None:
    refused(RESPONSE[:end], 3, 2)


def test_the_message_of_a_refusal_does_not_repeat_a_long_body() -> None:
    assert len(refused(b'{"data":"' + b"a" * 10**6 + b'"}')) < 400


# ── mutations ──

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 6),
    st.floats(),
    st.sampled_from(["0", "", "NaN"]),
    st.just([]),
    st.just({}),
)


@st.composite
def mutated(draw: st.DrawFn) -> tuple[dict[str, Any], int, int | None]:
    """A valid answer, then a few changes; what was sent; what was asked for."""
    sent = draw(st.integers(1, 5))
    top_n = draw(st.none() | st.integers(1, 6))
    count = sent if top_n is None or draw(st.booleans()) else min(top_n, sent)
    indices = draw(st.permutations(range(sent)))[:count]
    scores = draw(st.lists(st.sampled_from([0.9, 0.5, 0.0, -0.5]), min_size=count, max_size=count))
    if draw(st.booleans()):
        scores.sort(reverse=True)
    data: list[Any] = [
        {"object": "rerank.result", "index": index, "relevance_score": score}
        for index, score in zip(indices, scores, strict=True)
    ]
    body: dict[str, Any] = {"data": data, "model": "m", "usage": {"total_tokens": 7}}
    for _ in range(draw(st.integers(0, 2))):
        if not data:
            break
        place = draw(st.integers(0, len(data) - 1))
        item = data[place]
        change = draw(
            st.sampled_from(["drop", "double", "move", "shift", "retype", "remove", "replace"])
        )
        if change == "drop":
            del data[place]
        elif change == "double":
            data.insert(place, dict(item) if isinstance(item, dict) else item)
        elif change == "move":
            data.append(data.pop(place))
        elif change == "replace":
            data[place] = draw(VALUES)
        elif isinstance(item, dict):
            key = draw(st.sampled_from(["index", "relevance_score"]))
            if change == "remove":
                item.pop(key, None)
            elif change == "retype":
                item[key] = draw(VALUES)
            elif type(item.get("index")) is int:
                item["index"] += draw(st.sampled_from([-1, 1, sent]))
    return body, sent, top_n


def trusted(data: list[Any], sent: int, top_n: int | None) -> list[tuple[int, float]] | None:
    """The pairs best first, or None where the answer cannot be trusted; said the long way."""
    pairs: list[tuple[int, float]] = []
    for item in data:
        if not isinstance(item, dict):
            return None
        index: Any = item.get("index")
        score: Any = item.get("relevance_score")
        if type(index) is not int or type(score) not in (int, float):
            return None
        if not 0 <= index < sent or not math.isfinite(score):
            return None
        pairs.append((index, float(score)))
    if len({index for index, _ in pairs}) != len(pairs):
        return None
    if len(pairs) not in (sent, sent if top_n is None else min(top_n, sent)):
        return None
    falling = all(high[1] >= low[1] for high, low in pairwise(pairs))
    return pairs if falling else sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


@given(mutated())
@example(({"data": [{"index": True, "relevance_score": 0.5}]}, 2, 1))
@example(({"data": [{"index": 0, "relevance_score": True}]}, 1, None))
def test_a_changed_answer_is_read_exactly_or_refused(
    case: tuple[dict[str, Any], int, int | None],
) -> None:
    body, sent, top_n = case
    written = json.dumps(body).encode()
    expected = trusted(body["data"], sent, top_n)
    if expected is None:
        refused(written, sent, top_n)
    else:
        answer = believed(written, sent, top_n)
        assert list(zip(answer.indices, answer.scores, strict=True)) == expected


@given(st.data())
def test_a_changed_byte_never_gives_an_answer_that_does_not_cover_what_was_sent(
    data: st.DataObject,
) -> None:
    place = data.draw(st.integers(0, len(RESPONSE) - 1))
    body = bytearray(RESPONSE)
    body[place] = data.draw(st.integers(0, 255))
    try:
        answer = believed(bytes(body), 3, 2)
    except ResponseError:
        return
    assert len(answer.indices) == len(answer.scores) == 2
    assert len(set(answer.indices)) == 2
    assert set(answer.indices) <= {0, 1, 2}
    assert all(map(math.isfinite, answer.scores))
    assert answer.scores[0] >= answer.scores[1]


@given(st.binary(max_size=200))
def test_any_bytes_at_all_are_an_answer_or_refused(body: bytes) -> None:
    refused(body, 1)


# ── the server's side ──


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (b"", None, "the body is not JSON"),
        (b"{", None, "the body is not JSON"),
        (b"\xff", None, "the body is not JSON"),
        (b'{"model":NaN}', None, "the body is not JSON"),
        (b'{"model":"\\ud800"}', None, "the body is not JSON"),
        (b"[" * 100_000, None, "the body is not JSON"),
        (b"[]", None, "must be a JSON object"),
        (b"null", None, "must be a JSON object"),
        (b"{}", "model", "model must be a string"),
        (b'{"model":null,"query":"q","documents":["a"]}', "model", "model must be"),
        (b'{"model":7,"query":"q","documents":["a"]}', "model", "model must be"),
        (b'{"model":"","query":"q","documents":["a"]}', "model", "model must be"),
        (b'{"model":"m","documents":["a"]}', "query", "query must be"),
        (b'{"model":"m","query":"","documents":["a"]}', "query", "not empty"),
        (b'{"model":"m","query":["q"],"documents":["a"]}', "query", "query must be"),
        (b'{"model":"m","query":"q"}', "documents", "documents must be an array"),
        (b'{"model":"m","query":"q","documents":[]}', "documents", "at least one"),
        (b'{"model":"m","query":"q","documents":"a"}', "documents", "an array"),
        (b'{"model":"m","query":"q","documents":{"0":"a"}}', "documents", "an array"),
        (b'{"model":"m","query":"q","documents":["a",7]}', "documents", "documents[1] is not"),
        (b'{"model":"m","query":"q","documents":[{"text":"a"}]}', "documents", "documents[0]"),
        (b'{"model":"m","query":"q","documents":["a",null]}', "documents", "documents[1]"),
    ],
)
def test_a_bad_request_is_refused_by_the_name_of_its_field(
    body: bytes, param: str | None, message: str
) -> None:
    with pytest.raises(RefusedError) as caught:
        V1.decode_request(body)
    assert caught.value.status == 400
    assert caught.value.param == param
    assert message in caught.value.message
    assert caught.value.code == ("invalid_json" if "not JSON" in message else "invalid_request")


@pytest.mark.parametrize(
    "top_n", [b"0", b"-1", b"true", b"false", b"1.0", b'"1"', b"[1]", b"1e3", b"9" * 30]
)
def test_a_bad_top_n_is_refused_by_its_name(top_n: bytes) -> None:
    body = b'{"model":"m","query":"q","documents":["a"],"top_n":' + top_n + b"}"
    with pytest.raises(RefusedError, match=r"^top_n must be") as caught:
        V1.decode_request(body)
    assert caught.value.param == "top_n"


def test_a_null_top_n_and_unknown_fields_are_passed_over() -> None:
    body = b'{"model":"m","query":"q","documents":["", " "],"top_n":null,"user":"u"}'
    assert V1.decode_request(body) == WireRequest("m", "q", ["", " "], None)


@given(st.binary(max_size=200))
def test_any_bytes_at_all_are_a_request_or_refused(body: bytes) -> None:
    with pytest.raises(RefusedError):
        V1.decode_request(body)


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (RefusedError(400, "top_n is wrong", param="top_n"), "invalid_request_error"),
        (RefusedError(429, "slow down", code="rate_limited"), "invalid_request_error"),
        (RefusedError(499, "gone"), "invalid_request_error"),
        (RefusedError(500, "a bug", code="internal"), "server_error"),
        (RefusedError(503, "busy", code="overloaded", retry_after=1.5), "server_error"),
    ],
)
def test_a_refusal_is_written_in_the_openai_shape(refusal: RefusedError, kind: str) -> None:
    assert json.loads(V1.encode_error(refusal)) == {
        "error": {
            "message": refusal.message,
            "type": kind,
            "param": refusal.param,
            "code": refusal.code,
        }
    }


def test_a_refusal_is_written_byte_for_byte() -> None:
    assert V1.encode_error(RefusedError(400, "no", param="top_n")) == (
        b'{"error":{"message":"no","type":"invalid_request_error","param":"top_n",'
        b'"code":"invalid_request"}}'
    )


@pytest.mark.parametrize(
    ("body", "key"),
    [
        (GOOD.replace(b'"index":0', b'"index":1,"index":0', 1), "index"),
        (
            GOOD.replace(b'"relevance_score":0.5', b'"relevance_score":9,"relevance_score":0.5', 1),
            "relevance_score",
        ),
        (
            GOOD.replace(b'{"data":', b'{"data":[{"index":0,"relevance_score":1}],"data":', 1),
            "data",
        ),
    ],
)
def test_two_values_for_one_key_are_refused_by_name(body: bytes, key: str) -> None:
    assert body != GOOD
    assert f"two values for {key!r}" in refused(body)


def test_a_model_called_index_doubles_no_key() -> None:
    body = GOOD[:-1] + b',"model":"index"}'
    assert believed(body, 2, None).model == "index"


@pytest.mark.parametrize(
    "usage",
    [
        b"null",
        b"7",
        b"[]",
        b"{}",
        b'{"total_tokens":-5}',
        b'{"total_tokens":"150"}',
        b'{"total_tokens":150.0}',
        b'{"total_tokens":true}',
        b'{"total_tokens":null}',
    ],
)
def test_an_odd_usage_is_unknown_and_condemns_no_ranking(usage: bytes) -> None:
    answer = believed(GOOD[:-1] + b',"usage":' + usage + b"}", 2, None)
    assert answer.total_tokens is None
    assert list(answer.indices) == [0, 1]


def test_a_doubled_key_that_is_spelled_with_escapes_is_refused() -> None:
    body = GOOD.replace(b'"index":0', b'"index":1,"\\u0069ndex":0', 1)
    assert body != GOOD
    assert "two values for 'index'" in refused(body)


def test_what_only_the_second_reading_cannot_read_is_refused() -> None:
    refused(GOOD[:-1] + b',"index":' + b"9" * 5000 + b"}")


@pytest.mark.parametrize("depth", [100, *range(900, 1100, 10), 5_000, 100_000])
@pytest.mark.parametrize("name", [b"x", b"index"], ids=["read once", "read twice"])
def test_nesting_in_what_is_passed_over_is_read_or_refused_and_nothing_else(
    name: bytes, depth: int
) -> None:
    # How deep is too deep differs between Pythons, and with what stands on the stack already.
    body = GOOD[:-1] + b',"' + name + b'":' + b"[" * depth + b"]" * depth + b"}"
    answer = None
    with suppress(ResponseError):
        answer = believed(body, 2, None)
    assert answer in (None, believed(GOOD, 2, None))


# ── a large body ──

TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\\\n\x00é€😀'))


@given(
    query=TEXTS,
    documents=st.lists(TEXTS, min_size=1, max_size=12),
    top_n=st.none() | st.integers(1, 2**53),
    piece=st.integers(1, 9),
    group=st.integers(1, 4),
)
def test_a_body_in_pieces_is_the_same_to_the_byte(
    query: str, documents: list[str], top_n: int | None, piece: int, group: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(v1, "_PIECE", piece)
        patch.setattr(v1, "_GROUP", group)
        for sequence in (documents, tuple(documents)):
            pieces = list(v1.V1().encode_pieces("m", query, sequence, top_n))
            assert b"".join(pieces) == v1.V1().encode_request("m", query, documents, top_n)
            # Six bytes is the longest that a character can take.
            assert max(map(len, pieces)) <= 6 * piece + 30 + 3 * group


@pytest.mark.parametrize("text", ["\ud800", "long enough \udc00 to be cut", "\ud83d\ude00"])
def test_a_body_in_pieces_refuses_what_the_whole_body_refuses(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(v1, "_PIECE", 3)
    for query, documents in ((text, ["a"]), ("q", ["a", text, "b"])):
        with pytest.raises(TypeError):
            v1.V1().encode_request("m", query, documents, None)
        with pytest.raises(TypeError):
            list(v1.V1().encode_pieces("m", query, documents, None))


@pytest.mark.parametrize("text", ["x", "é", '"', "\n", "\x01", "\U0001f600", "ab\u2028"])
@pytest.mark.parametrize("length", [2**19 - 1, 2**19, 2**19 + 1, 2**20 + 3])
def test_a_long_text_weighs_what_it_takes_in_a_body(text: str, length: int) -> None:
    document = (text * length)[:length]
    assert V1.document_bytes(document) == len(orjson.dumps(document)) + 1
