import pickle
from typing import Any

import pytest

from rerank_async import InvalidRequestError
from rerank_async._endpoint import DEFAULT_BASE_URL, Endpoint, default_model, resolve_endpoint
from rerank_async.dialects import get

KEY = "sk-Zq7/+w=~!"
OTHER = "https://rerank.example/v1"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("RERANK_BASE_URL", "RERANK_API_KEY", "RERANK_MODEL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def resolved(
    base_url: Any = None, api_key: Any = None, *, allow_insecure_http: bool = False
) -> Endpoint:
    return resolve_endpoint(
        base_url,
        api_key,
        dialect=get("v1"),
        user_agent="tests/1",
        allow_insecure_http=allow_insecure_http,
    )


def key_of(endpoint: Endpoint) -> str | None:
    sent = endpoint.headers.get("Authorization")
    return None if sent is None else sent.removeprefix("Bearer ")


# ── the environment ──


@pytest.mark.parametrize(
    ("variables", "base_url", "api_key", "url", "key"),
    [
        # arguments alone
        ({}, None, "arg", DEFAULT_BASE_URL, "arg"),
        ({}, OTHER, "arg", OTHER, "arg"),
        ({}, OTHER, None, OTHER, None),
        # an argument goes before the environment
        ({"RERANK_BASE_URL": "https://env.example"}, OTHER, "arg", OTHER, "arg"),
        ({"RERANK_API_KEY": "env"}, None, "arg", DEFAULT_BASE_URL, "arg"),
        ({"OPENAI_API_KEY": "openai"}, None, "arg", DEFAULT_BASE_URL, "arg"),
        # the environment
        ({"RERANK_BASE_URL": OTHER}, None, None, OTHER, None),
        ({"RERANK_API_KEY": "env"}, None, None, DEFAULT_BASE_URL, "env"),
        ({"RERANK_API_KEY": "env"}, OTHER, None, OTHER, "env"),
        (
            {"RERANK_API_KEY": "env", "OPENAI_API_KEY": "openai"},
            None,
            None,
            DEFAULT_BASE_URL,
            "env",
        ),
        # OPENAI_API_KEY for the endpoint whose documentation names it, and nowhere else
        ({"OPENAI_API_KEY": "openai"}, None, None, DEFAULT_BASE_URL, "openai"),
        ({"OPENAI_API_KEY": "openai"}, DEFAULT_BASE_URL, None, DEFAULT_BASE_URL, "openai"),
        ({"OPENAI_API_KEY": "openai"}, DEFAULT_BASE_URL + "/", None, DEFAULT_BASE_URL, "openai"),
        ({"OPENAI_API_KEY": "openai"}, OTHER, None, OTHER, None),
        ({"OPENAI_API_KEY": "openai", "RERANK_BASE_URL": OTHER}, None, None, OTHER, None),
        (
            {"OPENAI_API_KEY": "openai"},
            "https://api.3xcoder.com.evil.example/v1",
            None,
            "https://api.3xcoder.com.evil.example/v1",
            None,
        ),
        (
            {"OPENAI_API_KEY": "openai"},
            "https://api.3xcoder.com/v1/other",
            None,
            "https://api.3xcoder.com/v1/other",
            None,
        ),
        # an empty variable is an unset one
        ({"RERANK_BASE_URL": "", "RERANK_API_KEY": ""}, None, "arg", DEFAULT_BASE_URL, "arg"),
        ({"RERANK_API_KEY": "", "OPENAI_API_KEY": "x"}, None, None, DEFAULT_BASE_URL, "x"),
        ({"RERANK_API_KEY": ""}, OTHER, None, OTHER, None),
    ],
)
def test_the_url_and_the_key_come_from_the_arguments_then_the_environment(
    environment: pytest.MonkeyPatch,
    variables: dict[str, str],
    base_url: str | None,
    api_key: str | None,
    url: str,
    key: str | None,
) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)
    endpoint = resolved(base_url, api_key)
    assert endpoint.base_url == url
    assert key_of(endpoint) == key


@pytest.mark.parametrize("variables", [{}, {"OPENAI_API_KEY": ""}, {"RERANK_API_KEY": ""}])
def test_the_default_endpoint_without_a_key_says_what_to_set(
    environment: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)
    with pytest.raises(InvalidRequestError, match=r"^api_key: .*RERANK_API_KEY.*RERANK_BASE_URL"):
        resolved()


@pytest.mark.parametrize(("value", "model"), [(None, None), ("", None), ("m", "m")])
def test_the_default_model_comes_from_the_environment(
    environment: pytest.MonkeyPatch, value: str | None, model: str | None
) -> None:
    if value is not None:
        environment.setenv("RERANK_MODEL", value)
    assert default_model() == model


def test_every_request_carries_the_same_headers() -> None:
    without = dict(resolved(OTHER).headers)
    assert without == {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "User-Agent": "tests/1",
    }
    assert dict(resolved(OTHER, KEY).headers) == without | {"Authorization": f"Bearer {KEY}"}


# ── the key ──

BAD_KEYS = [
    "",
    " ",
    "secret\n",
    "secret\r\n",
    "secret\r\nX-Evil: 1",
    "secret\0",
    "secret key",
    " secret",
    "secret\t",
    "secret\x7f",
    "secreté",
    "secretключ",
    "secret\u2028",
    "secret\ud800",
]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^api_key must be printable ASCII") as caught:
        resolved(OTHER, key)
    shown = f"{caught.value!s} {caught.value!r} {caught.value.__context__!r}"
    assert "secret" not in shown


@pytest.mark.parametrize("name", ["RERANK_API_KEY", "OPENAI_API_KEY"])
@pytest.mark.parametrize("key", ["secret\n", "secret key", "secreté"])
def test_a_bad_key_in_the_environment_is_refused_and_not_shown(
    environment: pytest.MonkeyPatch, name: str, key: str
) -> None:
    environment.setenv(name, key)
    with pytest.raises(InvalidRequestError, match=r"^api_key must be") as caught:
        resolved()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", [b"secret", 7, ["secret"], True])
def test_a_key_that_is_not_a_string_is_refused(key: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"^api_key must be") as caught:
        resolved(OTHER, key)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["x", "sk-proj_1.2~3", "".join(map(chr, range(0x21, 0x7F)))])
def test_any_visible_ascii_is_a_key(key: str) -> None:
    assert key_of(resolved(OTHER, key)) == key


def test_no_representation_shows_the_key() -> None:
    endpoint = resolved(OTHER, KEY)
    for shown in (
        repr(endpoint),
        str(endpoint),
        f"{endpoint}",
        repr(endpoint.headers),
        repr(list(endpoint.headers.values())),
        repr(vars(type(endpoint))),
    ):
        assert KEY not in shown
    assert OTHER in repr(endpoint)


def test_an_endpoint_is_frozen() -> None:
    endpoint = resolved(OTHER, KEY)
    with pytest.raises(AttributeError):
        endpoint.base_url = "https://evil.example"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("body", "safe"),
    [
        (b"", b""),
        (b"no key here", b"no key here"),
        (KEY.encode(), b"[API key]"),
        (b"key " + KEY.encode() + b" and " + KEY.encode(), b"key [API key] and [API key]"),
        (b"\xff" + KEY.encode() + b"\xff", b"\xff[API key]\xff"),
    ],
)
def test_the_key_is_taken_out_of_what_the_server_quotes(body: bytes, safe: bytes) -> None:
    assert resolved(OTHER, KEY).redact(body) == safe


@pytest.mark.parametrize(
    ("key", "quoted"),
    [
        ('sk-a"b', rb'{"error":"bad key sk-a\"b"}'),
        ("sk-a\\b", rb'{"error":"bad key sk-a\\b"}'),
        ("sk-a/b", rb'{"error":"bad key sk-a\/b"}'),
    ],
)
def test_the_key_is_taken_out_where_json_escapes_it(key: str, quoted: bytes) -> None:
    assert resolved(OTHER, key).redact(quoted) == b'{"error":"bad key [API key]"}'


def test_without_a_key_nothing_is_taken_out() -> None:
    assert resolved(OTHER).redact(b"None [API key]") == b"None [API key]"
    assert resolved(OTHER).redact_headers({"X-Note": "None"}) == {"x-note": "None"}


def test_the_key_is_taken_out_of_headers_and_the_rest_of_them_kept() -> None:
    headers = {"X-Echo": f"Bearer {KEY}", "Retry-After": "7"}
    assert resolved(OTHER, KEY).redact_headers(headers) == {
        "x-echo": "Bearer [API key]",
        "retry-after": "7",
    }
    assert headers["X-Echo"] == f"Bearer {KEY}"


# ── the URL ──


@pytest.mark.parametrize(
    ("url", "trimmed"),
    [
        ("https://host", "https://host"),
        ("https://host/", "https://host"),
        ("https://host/v1", "https://host/v1"),
        ("https://host/v1/", "https://host/v1"),
        ("https://host/v1///", "https://host/v1"),
        ("https://host:8443/a/b/v1/", "https://host:8443/a/b/v1"),
        ("https://host/reranker", "https://host/reranker"),
        ("https://rerank/v1", "https://rerank/v1"),
        ("https://[2001:db8::1]:8443/v1", "https://[2001:db8::1]:8443/v1"),
        ("https://xn--mnchen-3ya.example/v1", "https://xn--mnchen-3ya.example/v1"),
    ],
)
def test_a_good_url_is_kept_without_its_last_slash(url: str, trimmed: str) -> None:
    assert resolved(url, KEY).base_url == trimmed


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("file:///etc/passwd", "it lacks http"),
        ("unix:///run/socket", "it lacks http"),
        ("ftp://host/v1", "it lacks http"),
        ("javascript:alert(1)", "it lacks http"),
        ("host/v1", "it lacks http"),
        ("host:8000/v1", "it lacks http"),
        ("/v1", "it lacks http"),
        ("//host/v1", "it lacks http"),
        ("https:///v1", "or a host"),
        ("https://", "or a host"),
        ("https:host/v1", "or a host"),
        ("https://:443/v1", "or a host"),
        ("https://host:port/v1", "not a URL"),
        ("https://host:99999/v1", "not a URL"),
        ("https://host:0/v1", "must be like https://host/v1"),
        ("https://ho%73t/v1", "must be like https://host/v1"),
        ("https://[::1/v1", "not a URL"),
        ("https://host/v1?key=7", "'?' and '#'"),
        ("https://host/v1#top", "'?' and '#'"),
        ("https://host/v1?", "'?' and '#'"),
        ("https://host/v1#", "'?' and '#'"),
        ("https://host/v1/?", "'?' and '#'"),
        ("https://host?", "'?' and '#'"),
        ("https://ho st/v1", "without spaces"),
        (" https://host/v1", "without spaces"),
        ("https://host/v1 ", "without spaces"),
        ("https://host/v1\n", "without spaces"),
        ("https://ho\tst/v1", "without spaces"),
        ("https://host/v1\0", "without spaces"),
        ("https://münchen.example/v1", "plain ASCII"),
        ("https://аpple.example/v1", "plain ASCII"),
        ("https://host/v1/rerank", "pass 'https://host/v1'"),
        ("https://host/v1/rerank/", "pass 'https://host/v1'"),
        (7, "must be a string"),
        (["https://host"], "must be a string"),
        (b"https://host/v1", "must be a string"),
    ],
)
def test_a_url_that_cannot_be_a_base_is_refused_and_the_message_says_why(
    url: Any, why: str
) -> None:
    with pytest.raises(InvalidRequestError, match=r"^base_url ") as caught:
        resolved(url, KEY)
    assert why in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_bad_url_in_the_environment_is_refused_too(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("RERANK_BASE_URL", "file:///etc/passwd")
    with pytest.raises(InvalidRequestError, match=r"^base_url "):
        resolved(None, KEY)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@host/v1",
        "https://:hunter2@host/v1",
        "https://hunter2@host/v1",
        "https://@host/v1",
        "https://user:hunter2@host:port/v1",
        "https://user:hun/hunter2@host/v1",
        "ftp://user:hunter2@host/v1",
        "//user:hunter2@host/v1",
        "user:hunter2@host/v1",
        "https:/user:hunter2@host/v1",
        "https:user:hunter2@host/v1",
    ],
)
def test_a_url_with_a_password_is_refused_and_the_password_not_shown(url: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^base_url ") as caught:
        resolved(url)
    assert "hunter2" not in f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"


# ── unencrypted ──

LOOPBACK = [
    "http://localhost",
    "http://localhost:8000/v1",
    "http://LOCALHOST:8000/v1",
    "http://rerank.localhost/v1",
    "http://127.0.0.1:8000/v1",
    "http://127.8.9.10/v1",
    "http://[::1]:8000/v1",
]
ELSEWHERE = [
    "http://host/v1",
    "HTTP://host/v1",
    "http://10.0.0.1/v1",
    "http://0.0.0.0/v1",
    "http://[::]/v1",
    "http://[2001:db8::1]/v1",
    "http://localhost.evil.example/v1",
    "http://notlocalhost/v1",
    "http://127.0.0.1.evil.example/v1",
    "http://127.1/v1",
    "http://0x7f.1/v1",
    "http://2130706433/v1",
    "http://evil.example\\.localhost/v1",
]


@pytest.mark.parametrize("url", LOOPBACK)
def test_a_key_may_go_to_this_machine_unencrypted(url: str) -> None:
    assert key_of(resolved(url, KEY)) == KEY


@pytest.mark.parametrize("url", ELSEWHERE)
def test_a_key_does_not_cross_a_network_unencrypted(url: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^base_url") as caught:
        resolved(url, KEY)
    assert KEY not in str(caught.value)


def test_the_refusal_to_send_a_key_unencrypted_names_the_way_out() -> None:
    with pytest.raises(InvalidRequestError, match=r"use https.*allow_insecure_http=True"):
        resolved("http://host/v1", KEY)


def test_a_key_crosses_a_network_unencrypted_when_that_is_asked_for() -> None:
    assert key_of(resolved("http://host/v1", KEY, allow_insecure_http=True)) == KEY


def test_without_a_key_plain_http_needs_no_permission() -> None:
    endpoint = resolved("http://host/v1")
    assert endpoint.base_url == "http://host/v1"
    assert "Authorization" not in endpoint.headers


def test_a_key_from_the_environment_is_guarded_alike(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("RERANK_API_KEY", KEY)
    with pytest.raises(InvalidRequestError, match="unencrypted"):
        resolved("http://host/v1")


def test_the_error_about_a_key_carries_nothing_of_it_when_pickled() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        resolved("http://host/v1", KEY)
    assert KEY.encode() not in pickle.dumps(caught.value)
