"""What the local server answers, as plain values: no socket, no event loop."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_async.server import App
from rerank_async.server.engines import Scored
from rerank_async.testing import HttpRequest, HttpResponse

KEY = "sk-only-in-this-file-61f0c2"
GOOD: dict[str, Any] = {"model": "m", "query": "q", "documents": ["1", "2"]}


class Numbers:
    """Scores a document by the number that it is; one token each."""

    name = "numbers"

    def score(self, query: str, documents: Sequence[str]) -> Scored:
        return Scored([float(document) for document in documents], len(documents))


class Lengths:
    """Scores any document at all."""

    name = "lengths"

    def score(self, query: str, documents: Sequence[str]) -> Scored:
        return Scored([float(len(document)) for document in documents], len(documents))


def app(**options: Any) -> App:
    return App(Numbers(), **options)


def request(
    body: object = None,
    *,
    method: str = "POST",
    path: str = "/v1/rerank",
    media_type: str | None = "application/json",
    authorization: str | None = None,
) -> HttpRequest:
    headers = {}
    if media_type is not None:
        headers["content-type"] = media_type
    if authorization is not None:
        headers["authorization"] = authorization
    raw = body if isinstance(body, bytes) else orjson.dumps(GOOD if body is None else body)
    return HttpRequest(method, path, headers, raw)


def get(path: str, authorization: str | None = None) -> HttpRequest:
    return request(b"", method="GET", path=path, media_type=None, authorization=authorization)


def error_of(response: HttpResponse) -> dict[str, Any]:
    """The error of a refusal, which must have the OpenAI shape and nothing else."""
    assert response.headers["content-type"] == "application/json"
    body = json.loads(response.body)
    assert list(body) == ["error"]
    error = body["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert isinstance(error["code"], str)
    assert isinstance(error, dict)
    return error


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


class TestABadParameter:
    @pytest.mark.parametrize(
        ("body", "param"),
        [
            (without("model"), "model"),
            (GOOD | {"model": ""}, "model"),
            (GOOD | {"model": None}, "model"),
            (GOOD | {"model": 7}, "model"),
            (without("query"), "query"),
            (GOOD | {"query": ""}, "query"),
            (GOOD | {"query": ["q"]}, "query"),
            (without("documents"), "documents"),
            (GOOD | {"documents": []}, "documents"),
            (GOOD | {"documents": None}, "documents"),
            (GOOD | {"documents": "one string"}, "documents"),
            (GOOD | {"documents": {"0": "text"}}, "documents"),
            (GOOD | {"documents": ["1", None]}, "documents"),
            (GOOD | {"documents": [{"text": "1"}]}, "documents"),
            (GOOD | {"top_n": 0}, "top_n"),
            (GOOD | {"top_n": -1}, "top_n"),
            (GOOD | {"top_n": 1.0}, "top_n"),
            (GOOD | {"top_n": "1"}, "top_n"),
            (GOOD | {"top_n": True}, "top_n"),
            (GOOD | {"top_n": [1]}, "top_n"),
        ],
        ids=lambda value: value if isinstance(value, str) else orjson.dumps(value).decode(),
    )
    def test_is_answered_400_with_its_name(self, body: dict[str, Any], param: str) -> None:
        response = app().handle(request(body))
        error = error_of(response)
        assert response.status == 400
        assert error["param"] == param
        assert param in error["message"]
        assert error["type"] == "invalid_request_error"

    def test_among_the_documents_is_named_by_its_place(self) -> None:
        response = app().handle(request(GOOD | {"documents": ["0", "1", 2, None]}))
        assert error_of(response)["message"].startswith("documents[2] ")

    def test_that_comes_first_is_the_one_that_is_named(self) -> None:
        assert error_of(app().handle(request({})))["param"] == "model"


def headed(**headers: str) -> HttpRequest:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpRequest("POST", "/v1/rerank", {"content-type": "application/json"} | named)


class TestAHead:
    """What is decided before a byte of body is there."""

    @pytest.mark.parametrize(
        ("headers", "status", "code"),
        [
            ({"authorization": "Bearer wrong", "content_type": "text/plain"}, 401, None),
            ({"authorization": "Bearer wrong", "content_length": "99999"}, 401, None),
            ({"authorization": "Bearer wrong", "content_encoding": "br"}, 401, None),
            ({"content_type": "text/plain"}, 415, "unsupported_media_type"),
            ({"content_type": "application/json; charset=latin-1"}, 415, "unsupported_media_type"),
            ({"content_type": 'application/json; charset="utf-16"'}, 415, "unsupported_media_type"),
            ({"content_encoding": "br"}, 415, "unsupported_encoding"),
            ({"content_encoding": "gzip, gzip"}, 415, "unsupported_encoding"),
            ({"content_encoding": "identity, gzip"}, 415, "unsupported_encoding"),
            ({"content_encoding": "\udcff"}, 415, "unsupported_encoding"),
            ({"transfer_encoding": "gzip, chunked"}, 501, "unsupported_encoding"),
            ({"content_length": "1001"}, 413, "body_too_large"),
            ({"content_length": "9" * 5000}, 413, "body_too_large"),
            ({"content_length": "-1"}, 400, "invalid_length"),
            ({"content_length": "\N{SUPERSCRIPT TWO}"}, 400, "invalid_length"),
            ({"expect": "tea"}, 417, "expectation_failed"),
        ],
    )
    def test_is_refused_without_its_body(
        self, headers: dict[str, str], status: int, code: str | None
    ) -> None:
        right = {"authorization": f"Bearer {KEY}"}
        response = app(api_key=KEY, max_bytes=1000).answer_at_once(headed(**right | headers))
        assert response is not None
        assert response.status == status
        assert error_of(response)["code"] == (code or "invalid_api_key")
        assert ("accept-encoding" in response.headers) == ("content_encoding" in headers) or (
            status == 401
        )

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"content_length": "1000"},
            {"content_encoding": "gzip"},
            {"content_encoding": "X-GZIP"},
            {"content_encoding": "deflate"},
            {"content_encoding": "identity"},
            {"content_encoding": ""},
            {"transfer_encoding": "Chunked"},
            {"expect": "100-Continue"},
            {"content_type": 'application/json; charset="UTF-8"'},
        ],
    )
    def test_is_let_in(self, headers: dict[str, str]) -> None:
        assert app(max_bytes=1000).answer_at_once(headed(**headers)) is None

    def test_says_how_the_body_is_encoded(self) -> None:
        plain = request()
        packed = HttpRequest(
            plain.method,
            plain.url,
            {**plain.headers, "content-encoding": "gzip"},
            gzip.compress(plain.body),
        )
        assert app().handle(packed) == app().handle(plain)

    def test_that_promises_another_encoding_than_comes_is_answered_400(self) -> None:
        plain = request()
        wrong = HttpRequest(
            plain.method, plain.url, {**plain.headers, "content-encoding": "gzip"}, plain.body
        )
        response = app().handle(wrong)
        assert (response.status, error_of(response)["code"]) == (400, "invalid_encoding")

    def test_may_hide_how_large_the_body_is_and_the_body_is_refused_then(self) -> None:
        response = app(max_bytes=10).handle(request())
        assert (response.status, error_of(response)["code"]) == (413, "body_too_large")


class TestABodyThatIsNoRequest:
    @pytest.mark.parametrize(
        "body", [b"", b"{", b"not json", b"\xff\xfe", b'{"model": NaN}', b'{"model": "\xff"}']
    )
    def test_is_answered_400_when_it_is_not_json(self, body: bytes) -> None:
        response = app().handle(request(body))
        error = error_of(response)
        assert (response.status, error["param"], error["code"]) == (400, None, "invalid_json")

    @pytest.mark.parametrize("body", [b"[]", b"null", b'"text"', b"1", b"true"])
    def test_is_answered_400_when_it_is_not_an_object(self, body: bytes) -> None:
        response = app().handle(request(body))
        error = error_of(response)
        assert (response.status, error["param"]) == (400, None)
        assert "object" in error["message"]

    @pytest.mark.parametrize(
        "media_type",
        ["text/plain", "application/x-www-form-urlencoded", "application/jsonl", "\udcff", None],
    )
    def test_is_answered_415_when_its_media_type_is_not_json(self, media_type: str | None) -> None:
        response = app().handle(request(media_type=media_type))
        error = error_of(response)
        assert (response.status, error["code"]) == (415, "unsupported_media_type")

    @pytest.mark.parametrize(
        "media_type",
        ["application/json", "application/json; charset=utf-8", "Application/JSON ;charset=UTF-8"],
    )
    def test_is_not_one_whose_media_type_has_parameters(self, media_type: str) -> None:
        assert app().handle(request(media_type=media_type)).status == 200

    def test_is_answered_400_when_it_nests_too_deeply(self) -> None:
        response = app().handle(request(b'{"model":' + b"[" * 100_000 + b"]" * 100_000 + b"}"))
        assert response.status == 400
        assert error_of(response)


class TestTooManyDocuments:
    def test_are_answered_413_with_both_numbers(self) -> None:
        response = app(max_documents=2).handle(request(GOOD | {"documents": ["1", "2", "3"]}))
        error = error_of(response)
        assert (response.status, error["param"]) == (413, "documents")
        assert "3" in error["message"]
        assert "2" in error["message"]

    def test_are_not_as_many_as_the_limit(self) -> None:
        assert app(max_documents=2).handle(request()).status == 200

    def test_do_not_exist_without_a_limit(self) -> None:
        assert app().handle(request(GOOD | {"documents": ["1"] * 5000})).status == 200


class TestTheKey:
    @pytest.mark.parametrize(
        "key",
        ["", " ", "\t", "a b", "key\n", " key", "schl\N{LATIN SMALL LETTER U WITH DIAERESIS}ssel"],
    )
    def test_that_no_client_could_send_is_refused_and_not_shown(self, key: str) -> None:
        with pytest.raises(ValueError, match="api_key must be printable ASCII") as caught:
            app(api_key=key)
        assert "ssel" not in str(caught.value)

    @pytest.mark.parametrize(
        "authorization",
        [
            None,
            "",
            "Bearer",
            "Bearer ",
            "Bearer wrong",
            f"Bearer {KEY}x",
            f"Bearer {KEY[:-1]}",
            f"Bearer {KEY} {KEY}",
            f"Basic {KEY}",
            KEY,
            "Bearer schl\N{LATIN SMALL LETTER U WITH DIAERESIS}ssel",
            "Bearer \udcff",
        ],
    )
    def test_is_asked_for_with_401(self, authorization: str | None) -> None:
        response = app(api_key=KEY).handle(request(authorization=authorization))
        error = error_of(response)
        assert (response.status, error["code"]) == (401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
        assert "Authorization: Bearer" in error["message"]

    @pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
    def test_lets_in_whatever_the_case_of_the_scheme(self, scheme: str) -> None:
        assert app(api_key=KEY).handle(request(authorization=f"{scheme} {KEY}")).status == 200

    def test_is_asked_for_before_the_body_is_read(self) -> None:
        assert app(api_key=KEY).handle(request(b"not json")).status == 401

    def test_is_asked_for_by_the_models(self) -> None:
        assert app(api_key=KEY).handle(get("/v1/models")).status == 401
        assert app(api_key=KEY).handle(get("/v1/models", f"Bearer {KEY}")).status == 200

    def test_is_not_asked_for_by_the_health_check(self) -> None:
        assert app(api_key=KEY).handle(get("/health")).status == 200

    def test_that_comes_unasked_is_passed_over(self) -> None:
        assert app().handle(request(authorization=f"Bearer {KEY}")).status == 200

    def test_is_in_no_answer(self) -> None:
        server = app(api_key=KEY, max_documents=2)
        right = f"Bearer {KEY}"
        requests = [
            request(authorization=right),
            request(b"{", authorization=right),
            request({}, authorization=right),
            request(GOOD | {"documents": ["1"] * 3}, authorization=right),
            request(authorization=f"Basic {KEY}"),
            request(authorization=right, media_type="text/plain"),
            request(authorization=right, method="PUT"),
            get("/v1/models", right),
            get("/nothing", right),
            get("/health", right),
            request(),
        ]
        responses = [server.handle(one) for one in requests]
        statuses = [200, 400, 400, 413, 401, 415, 405, 200, 404, 200, 401]
        assert [response.status for response in responses] == statuses
        for response in responses:
            assert KEY.encode() not in response.body
            assert KEY not in str(response.headers)


class TestAnAddress:
    @pytest.mark.parametrize(
        "path", ["/", "/rerank", "/v1", "/v1/rerank/", "/v2/rerank", "/v1/embeddings", "/\udcff"]
    )
    def test_where_nothing_is_gives_404_and_says_what_there_is(self, path: str) -> None:
        response = app(api_key=KEY).handle(request(path=path, authorization=f"Bearer {KEY}"))
        error = error_of(response)
        assert (response.status, error["code"]) == (404, "not_found")
        assert "POST /v1/rerank" in error["message"]

    @pytest.mark.parametrize(
        ("path", "status"),
        [
            ("/", 404),
            ("/health", 200),
            ("/health?deep=1", 200),
            ("/health#x", 200),
            ("http://elsewhere/health", 200),
            ("HTTP://elsewhere", 404),
            ("http://elsewhere?x=/health", 404),
            ("http://elsewhere?/v1/rerank", 404),
            ("/health/", 401),
            ("/Health", 401),
            ("/%68ealth", 401),
            ("/health/../v1/rerank", 401),
            ("//health", 401),
            ("//elsewhere/health", 401),
            ("/v1/rerank", 401),
            ("//v1/rerank", 401),
            ("/v1%2Frerank", 401),
            ("/v1/models", 401),
            ("/v1/nothing", 401),
            ("/metrics", 401),
            ("/docs", 401),
            ("*", 401),
            ("", 401),
            ("elsewhere:443", 401),
            ("http://[bad/v1/rerank", 401),
        ],
    )
    def test_is_open_without_a_key_only_for_the_health_check_and_the_root(
        self, path: str, status: int
    ) -> None:
        assert app(api_key=KEY).handle(get(path)).status == status

    @pytest.mark.parametrize(
        "path", ["http://elsewhere/v1/rerank", "/v1/rerank?x=1", "http://h:80/v1/rerank?x#y"]
    )
    def test_may_be_spelled_with_its_host_and_a_query(self, path: str) -> None:
        assert app().handle(request(path=path)).status == 200

    @pytest.mark.parametrize("path", ["//v1/rerank", "/v1%2Frerank", "/v1/%72erank", "/V1/rerank"])
    def test_is_read_as_it_is_spelled(self, path: str) -> None:
        assert app().handle(request(path=path)).status == 404

    def test_is_not_repeated_at_length(self) -> None:
        response = app().handle(get("/" + "a" * 5000))
        assert response.status == 404
        assert len(response.body) < 500

    @pytest.mark.parametrize("path", ["/health", "/v1/models"])
    def test_that_can_be_got_can_be_asked_for_its_head(self, path: str) -> None:
        asked = request(b"", method="HEAD", path=path, media_type=None)
        assert app().handle(asked) == app().handle(get(path))

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("GET", "/v1/rerank", "POST"),
            ("PUT", "/v1/rerank", "POST"),
            ("DELETE", "/v1/rerank", "POST"),
            ("POST", "/health", "GET"),
            ("POST", "/v1/models", "GET"),
        ],
    )
    def test_asked_with_a_method_it_does_not_take_says_which_it_does(
        self, method: str, path: str, allowed: str
    ) -> None:
        response = app().handle(request(method=method, path=path))
        error = error_of(response)
        assert (response.status, error["code"]) == (405, "method_not_allowed")
        assert response.headers["allow"] == allowed
        assert allowed in error["message"]

    def test_health_says_ok(self) -> None:
        response = app().handle(get("/health"))
        assert (response.status, json.loads(response.body)) == (200, {"status": "ok"})

    def test_models_lists_the_engine(self) -> None:
        response = app().handle(get("/v1/models"))
        assert response.status == 200
        body = json.loads(response.body)
        assert body["object"] == "list"
        [model] = body["data"]
        assert (model["id"], model["object"]) == ("numbers", "model")


class TestTheRanking:
    def test_has_exactly_the_shape_of_the_specification(self) -> None:
        response = app().handle(
            request({"model": "some-model", "query": "q", "documents": ["0.5", "2", "1"]})
        )
        assert response.status == 200
        assert response.headers["content-type"] == "application/json"
        assert response.body == (
            b'{"object":"list","data":['
            b'{"object":"rerank.result","index":1,"relevance_score":2.0},'
            b'{"object":"rerank.result","index":2,"relevance_score":1.0},'
            b'{"object":"rerank.result","index":0,"relevance_score":0.5}],'
            b'"model":"some-model","usage":{"total_tokens":3}}'
        )

    def test_puts_equal_scores_in_the_order_of_their_documents(self) -> None:
        assert ranked(["1", "3", "1", "3", "2", "3"]) == [1, 3, 5, 4, 0, 2]

    @pytest.mark.parametrize(
        ("top_n", "indices"), [(1, [2]), (2, [2, 0]), (3, [2, 0, 1]), (99, [2, 0, 1])]
    )
    def test_is_cut_to_top_n(self, top_n: int, indices: list[int]) -> None:
        assert ranked(["2", "1", "3"], top_n=top_n) == indices

    def test_is_whole_when_top_n_is_null(self) -> None:
        assert ranked(["2", "1", "3"], top_n=None) == [2, 0, 1]

    def test_counts_the_tokens_of_all_documents_not_of_the_best(self) -> None:
        response = app().handle(request(GOOD | {"documents": ["1"] * 9, "top_n": 1}))
        assert json.loads(response.body)["usage"] == {"total_tokens": 9}

    def test_passes_over_fields_that_it_does_not_know(self) -> None:
        assert app().handle(request(GOOD | {"user": "u", "return_documents": True})).status == 200


def ranked(documents: list[str], **more: Any) -> list[int]:
    response = app().handle(request(GOOD | {"documents": documents} | more))
    return [result["index"] for result in json.loads(response.body)["data"]]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
# Near misses: each field is left out, right, or anything.
NEARLY = st.fixed_dictionaries(
    {},
    optional={
        "model": st.just("m") | JSON,
        "query": st.just("q") | JSON,
        "documents": st.lists(st.text(), max_size=4) | JSON,
        "top_n": st.integers() | JSON,
    },
)


@given(NEARLY | JSON)
def test_any_json_is_answered_or_refused(body: object) -> None:
    raw = json.dumps(body).encode()
    response = App(Lengths(), max_documents=3).handle(request(raw))
    assert response.status in (200, 400, 413)
    if response.status == 200:
        assert isinstance(body, dict)
        expected = min(len(body["documents"]), body.get("top_n") or 3)
        assert len(json.loads(response.body)["data"]) == expected
    else:
        error_of(response)


@given(st.binary())
def test_any_bytes_are_answered_or_refused(body: bytes) -> None:
    assert App(Lengths()).handle(request(body)).status in (200, 400)
