"""`_condemned`: how far a refusal reaches, by what servers are known to say."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_async._condemned import Condemned, condemned
from rerank_async._errors import error_for_status
from rerank_async._policy import RETRIED_STATUSES, is_retryable, refusal_of
from rerank_async.dialects import read_error


def of(status: int, body: object, **hint: float) -> Condemned | None:
    """What an answer condemns, read from its body as a session reads it."""
    said = read_error(body.encode() if isinstance(body, str) else json.dumps(body).encode())
    return condemned(status, said.message, said.code, said.param, hint.get("retry_after"))


def openai(message: str, code: object = None, param: str | None = None, kind: str = "t") -> object:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


PAGE = "<!DOCTYPE html><html><body><h1>403 Forbidden</h1>nginx</body></html>"


# ── by the status alone ──


@pytest.mark.parametrize("status", [*range(100, 200), *range(201, 600)])
def test_what_is_retried_condemns_nothing(status: int) -> None:
    found = of(status, openai("no"))
    if status in RETRIED_STATUSES:
        assert found is None
    elif status < 500:
        assert found is not None


@pytest.mark.parametrize(
    ("status", "what"),
    [
        (202, "request"),
        (301, "session"),
        (307, "session"),
        (400, "request"),
        (401, "session"),
        (402, "session"),
        (403, "session"),
        (404, "session"),
        (405, "session"),
        (407, "session"),
        (409, "request"),
        (410, "session"),
        (413, "request"),
        (415, "session"),
        (418, "request"),
        (422, "request"),
        (429, None),
        (500, None),
        (501, "session"),
        (503, None),
        (511, "session"),
        (529, None),
    ],
)
def test_a_status_alone_condemns_so_much(status: int, what: Condemned | None) -> None:
    assert of(status, openai("no")) == what
    assert error_for_status(status, "no", {}, None).condemns == what


# ── the model ──


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, openai("The model `no-such-model` does not exist.", 404, kind="NotFoundError")),
        (404, openai("The model 'x' does not exist or you do not have access to it.", "x")),
        (404, openai("no", "model_not_found")),
        (
            404,
            {"detail": "[address=127.0.0.1:1, pid=2] Model not found in the model list, uid: x."},
        ),
        (404, {"message": "model 'x' not found, make sure the correct model ID was used"}),
        (404, {"detail": "Unknown model x"}),
        (404, {"error": "model x is not loaded"}),
        (410, {"message": "this model was retired on 1 May"}),
        (403, openai("You do not have access to the model x", "forbidden")),
        (403, {"code": "Model.AccessDenied", "message": "denied", "request_id": "r"}),
        (403, {"code": "AccessDenied", "message": "Model access denied."}),
        (403, openai("no", param="model")),
        (400, openai("no", param="model")),
        (400, openai("no", param="body.model")),
        (400, openai("no", "model_not_supported")),
        (400, openai("/rerank: Missing required parameter: 'model'.", "400", "model")),
        (400, {"code": "InvalidModel", "message": "no"}),
        (422, {"detail": [{"loc": ["body", "model"], "msg": "Field required", "type": "missing"}]}),
    ],
)
def test_what_is_said_about_the_model_condemns_the_model(status: int, body: object) -> None:
    assert of(status, body) == "model"
    said = read_error(json.dumps(body).encode())
    error = error_for_status(status, said.message, {}, None, code=said.code, param=said.param)
    assert not is_retryable(error)
    # Neither halves nor quarters would make the model known.
    assert refusal_of(error) is None


@pytest.mark.parametrize(
    "message",
    [
        "The model `rerank-9` does not exist",
        "This model's maximum context length is 512 tokens. However, your prompt contains at "
        "least 513 input tokens, which exceeds this limit.",
        "input (3007 tokens) is too large to process for this model",
        "documents[3]: the language is not supported by the model",
        "Document 4 is invalid: 'this model does not exist any more'",
        "the query 'unknown model x' is not allowed",
        "The model does not support inputs longer than 512 tokens",
        "batch size 64 > maximum allowed batch size 32",
        "validation of data model failed",
        "model overloaded with too many documents",
    ],
)
@pytest.mark.parametrize("status", [400, 413, 422])
def test_words_alone_of_a_refused_request_condemn_no_model(status: int, message: str) -> None:
    assert of(status, openai(message)) == "request"


@pytest.mark.parametrize(
    "body",
    [
        {"detail": "Not Found"},
        openai("File Not Found", 404, kind="not_found_error"),
        openai("Invalid URL (POST /v1/models/x/rerank)"),
        {"message": "no Route matched with those values"},
        "404 page not found",
        PAGE,
        "<html><body>no such model</body></html>",
        "",
    ],
)
def test_a_path_that_is_not_there_condemns_the_session(body: object) -> None:
    assert of(404, body) == "session"


def test_a_firewalls_page_condemns_the_request_that_it_refused() -> None:
    assert of(403, PAGE) == "request"
    assert of(403, {"message": "the key may not rerank"}) == "session"
    assert of(403, "RBAC: access denied") == "session"


@pytest.mark.parametrize(
    "body",
    [
        openai("Your chosen model requires moderation and your input was flagged", 403),
        openai("no", "content_filter"),
        openai("The request was refused by our content policy", "content_policy_violation"),
        {"code": "DataInspectionFailed", "message": "Input may contain inappropriate content."},
        {"message": "Input text blocked by a guardrail of this model"},
        {"error": "blocked by the web application firewall"},
        {"detail": "documents[3] was flagged as unsafe"},
    ],
)
def test_what_is_said_about_the_texts_condemns_the_request_that_held_them(body: object) -> None:
    assert of(403, body) == "request"


@pytest.mark.parametrize(
    "body",
    [
        openai("Your account was blocked"),
        {"message": "The request was blocked: this address is not allowed"},
        {"message": "User is not authorized to access this resource with an explicit deny"},
        {"detail": "Forbidden"},
    ],
)
def test_a_403_about_the_account_condemns_the_session(body: object) -> None:
    assert of(403, body) == "session"


# ── the quota ──

USED_UP = [
    openai(
        "You exceeded your current quota, please check your plan and billing details.",
        "insufficient_quota",
        kind="insufficient_quota",
    ),
    openai("no", "insufficient_quota"),
    openai("no", kind="insufficient_quota"),
    openai("no", "billing_hard_limit_reached"),
    openai("Your credit balance is too low to access the API", kind="x"),
    openai("Budget has been exceeded! Current cost: 5.1, Max budget: 5.0", "400"),
    openai("no", kind="budget_exceeded"),
    openai("no", kind="exceeded_current_quota_error"),
    {"message": "You are using a Trial key, which is limited to 1000 API calls / month."},
    {"detail": "Quota exceeded for the month"},
    {"detail": "Your monthly limit was reached"},
    {"error": "your quota is used up"},
    {"message": "You have used up your quota."},
    {"message": "You have run out of credits"},
    {"message": "Insufficient credits. Add more using https://x.test/credits"},
    {"code": "Arrearage", "message": "Access denied, your account is not in good standing."},
    {"code": 30001, "message": "Sorry, your account balance is insufficient: billing"},
]


@pytest.mark.parametrize("body", USED_UP)
@pytest.mark.parametrize("status", [402, 403, 429])
def test_a_quota_that_is_used_up_condemns_the_session_and_is_not_tried_again(
    status: int, body: object
) -> None:
    assert of(status, body) == "session"
    said = read_error(json.dumps(body).encode())
    error = error_for_status(status, said.message, {}, None, code=said.code, param=said.param)
    assert not is_retryable(error)


@pytest.mark.parametrize(
    "body",
    [
        openai("Rate limit reached for requests", "rate_limit_exceeded", kind="requests"),
        openai("Rate limit reached on tokens per minute (TPM): Limit 30, Used 30", "x"),
        openai("Quota exceeded for metric requests and limit requests per minute"),
        openai("Rate limit reached on requests per day. Please try again in 7m12s."),
        {"message": "You are using a Trial key, which is limited to 10 API calls / minute."},
        {"message": "Resource has been exhausted (e.g. check quota)."},
        {"code": "Throttling.AllocationQuota", "message": "Allocated quota exceeded"},
        {"message": "Concurrent request quota exceeded"},
        {"message": "Your quota of parallel requests is used up"},
        {"message": "capacity quota exceeded for the moment"},
        {"message": "Quota temporarily exceeded"},
        {"code": "Throttling.RateQuota", "message": "Requests rate limit exceeded"},
        {"error": "Model is overloaded", "error_type": "overloaded"},
        {"message": "Too Many Requests"},
        {"message": "Out of call volume quota. Quota will be replenished in 02:13:00"},
        "slow down",
        PAGE,
        "",
    ],
)
def test_a_quota_that_comes_back_condemns_nothing(body: object) -> None:
    assert of(429, body) is None


def test_a_server_that_says_when_to_come_back_has_its_way_over_vague_words() -> None:
    vague = {"message": "You exceeded your current quota"}
    assert of(429, vague) == "session"
    assert of(429, vague, retry_after=20.0) is None
    plain = openai("no", "insufficient_quota")
    assert of(429, plain, retry_after=20.0) == "session"


# ── anything at all ──


@given(st.integers(100, 599), st.text(), st.none() | st.text(), st.none() | st.text())
def test_any_words_at_all_are_read(
    status: int, message: str, code: str | None, param: str | None
) -> None:
    assert condemned(status, message, code, param, None) in (None, "request", "model", "session")
