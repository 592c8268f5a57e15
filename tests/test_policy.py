"""`_policy`: what an error means for the next attempt, by tables."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_async import (
    CertificateError,
    ConnectError,
    DeadlineExceededError,
    HedgePolicy,
    InvalidRequestError,
    RateLimitError,
    RequestTimeoutError,
    RerankError,
    ResponseError,
    RetryPolicy,
    ServerError,
    SessionClosedError,
    StatusError,
    TransportError,
)
from rerank_async._errors import error_for_status
from rerank_async._policy import (
    RETRIED_STATUSES,
    ending_of,
    is_outage,
    is_retryable,
    is_throttle,
    refusal_of,
    retry_delay,
)
from rerank_async.dialects import error_message

# ── what is worth another attempt ──

PASSING = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}


@pytest.mark.parametrize("status", range(100, 600))
def test_a_status_is_retried_when_it_passes_by_itself(status: int) -> None:
    error = error_for_status(status, "", {}, None)
    assert is_retryable(error) == (status in PASSING)
    assert (status in RETRIED_STATUSES) == (status in PASSING)
    assert is_throttle(error) == (status in {429, 503, 529})


@pytest.mark.parametrize("status", [200, 302, 400, 401, 404, 413, 429, 500, 501, 503])
@pytest.mark.parametrize(
    ("told", "retried"),
    [("true", True), ("false", False), ("True", True), (" FALSE ", False)],
)
def test_the_servers_word_on_retrying_overrides_its_status(
    status: int, told: str, retried: bool
) -> None:
    error = error_for_status(status, "", {"X-Should-Retry": told}, None)
    assert is_retryable(error) is retried


@pytest.mark.parametrize("told", ["", "yes", "1", "no", "0", "true, false"])
def test_another_word_on_retrying_is_not_listened_to(told: str) -> None:
    assert is_retryable(error_for_status(503, "", {"x-should-retry": told}, None))
    assert not is_retryable(error_for_status(400, "", {"x-should-retry": told}, None))


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        (TransportError("broke"), True),
        (ConnectError("refused"), True),
        (RequestTimeoutError("slow"), True),
        (ResponseError("nonsense"), True),
        (CertificateError("who are you"), False),
        (InvalidRequestError("no"), False),
        (DeadlineExceededError("late"), False),
        (SessionClosedError("closed"), False),
        (RerankError("something"), False),
        (StatusError("no status"), False),
        (ValueError("foreign"), False),
        (TimeoutError("foreign"), False),
        (ConnectionError("foreign"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_an_error_is_retried_when_it_is_named_and_only_then(
    error: BaseException, retried: bool
) -> None:
    assert is_retryable(error) is retried
    assert not is_throttle(error)


def test_an_answer_that_asking_again_would_not_better_is_not_asked_for_again() -> None:
    error = ResponseError("another model")
    assert is_retryable(error)
    error.final = True
    assert not is_retryable(error)


# ── what a failure says about load ──


@pytest.mark.parametrize("status", range(100, 600))
def test_a_status_ends_an_attempt_by_what_it_says_about_load(status: int) -> None:
    error = error_for_status(status, "", {}, None)
    expected = "other"
    if status in {429, 503, 529}:
        expected = "throttled"
    elif status in {408, 504, 524}:
        expected = "timeout"
    assert ending_of(error) == expected
    assert is_outage(error) == (status in PASSING)


@pytest.mark.parametrize(
    ("error", "ending", "outage"),
    [
        (TransportError("broke"), "reset", True),
        (ConnectError("refused"), "reset", True),
        (RequestTimeoutError("slow"), "timeout", True),
        (CertificateError("who are you"), "other", False),
        (ResponseError("nonsense"), "other", False),
        (DeadlineExceededError("late"), "other", False),
        (SessionClosedError("closed"), "other", False),
        (InvalidRequestError("no"), "other", False),
        (RerankError("something"), "other", False),
        (TimeoutError("foreign"), "other", False),
        (ConnectionError("foreign"), "other", False),
        (KeyboardInterrupt(), "other", False),
    ],
)
def test_a_failure_ends_an_attempt_by_what_it_says_about_load(
    error: BaseException, ending: str, outage: bool
) -> None:
    assert ending_of(error) == ending
    assert is_outage(error) is outage


def test_a_server_that_says_not_to_come_again_is_not_waited_for() -> None:
    error = error_for_status(503, "", {"x-should-retry": "false"}, None)
    assert not is_outage(error)
    assert ending_of(error) == "throttled"


# ── what a server refuses ──

TOO_MANY = [
    # Text Embeddings Inference
    (413, "batch size 64 > maximum allowed batch size 32"),
    (422, "batch size 64 > maximum allowed batch size 32"),
    # Cohere, and those who speak like it
    (400, "too many documents"),
    (400, "invalid request: too many documents, the maximum is 1000 and 1200 were passed"),
    (400, "invalid request: list of documents must not exceed 10000 documents"),
    (400, "total number of documents exceeded: got 1200, limit is 1000"),
    # Voyage
    (400, "Request to model 'rerank-2.5' failed. The number of documents exceeds the limit 1000."),
    (400, "The max allowed number of documents is 1000. Your request has 1001."),
    (400, "The batch size limit is 1000. Your batch size is 1001."),
    # Pinecone, Together, DashScope, Jina
    (400, "Too many documents: 150. bge-reranker-v2-m3 takes a maximum of 100 documents"),
    (400, "Too many documents. Max allowed: 1024"),
    (400, "Value error, batch size is invalid, it should not be larger than 500."),
    (400, "The number of documents should not be larger than 500"),
    (422, "[documents] Number of documents exceeds 2048"),
    (400, "documents count 1316 exceeds the maximum of 500"),
    # pydantic 2 and 1, behind FastAPI
    (422, "body.documents: List should have at most 1000 items after validation, not 1001"),
    (422, "body.passages: List should have at most 512 items after validation, not 513"),
    (422, "body.documents: ensure this value has at most 1000 items"),
    # other checkers of JSON: OpenAI's, ajv, zod, AWS's, msgspec
    (
        400,
        "Invalid 'input': array too long. Expected an array with maximum length 2048, but got an "
        "array with length 3000 instead.",
    ),
    (400, "body/documents must NOT have more than 1000 items"),
    (400, "Array must contain at most 1000 element(s)"),
    (400, "Too big: expected array to have <=1000 items"),
    (400, "Malformed input request: #/documents: expected maximum item count: 1000, found: 1200"),
    (400, "Expected `array` of length <= 1000 - at `$.documents`"),
    # gateways of their own making
    (400, "max_documents is 100"),
    (400, "Maximum 1,000 documents per request"),
    (400, "up to 100 texts are accepted at a time"),
    (413, "Too many texts in one request"),
    (413, "TOO MANY PASSAGES"),
]

TOO_LONG = [
    # vLLM, in three of its versions
    (
        400,
        "This model's maximum context length is 512 tokens. However, you requested 600 tokens in "
        "the input for score. Please reduce the length of the input.",
    ),
    (
        400,
        "You passed 600 input tokens and requested 1 output tokens. However, the model's context "
        "length is only 512 tokens, resulting in a maximum input length of 511 tokens.",
    ),
    (
        400,
        "The prompt (total length 600) is too long to fit into the model (context length 512).",
    ),
    # SGLang, llama.cpp
    (400, "The input (600 tokens) is longer than the model's context length (512 tokens)."),
    (400, "the request exceeds the available context size, try increasing it"),
    (
        400,
        "input (1077 tokens) is too large to process. increase the physical batch size (current "
        "batch size: 512)",
    ),
    # Voyage
    (
        400,
        "Request to model 'rerank-2' failed. The max allowed tokens per submitted batch is 600000. "
        "Your batch has 812345 tokens after truncation. Please lower the number of tokens",
    ),
    (400, "The total number of tokens (query and documents) exceeds 600000"),
    # OpenAI and its like
    (400, "Invalid 'input[3]': maximum context length is 8192 tokens."),
    (400, "Requested 350000 tokens, max 300000 tokens per request"),
    (400, "too many input tokens: 40960"),
    (400, "Input text exceeds maximum length of 8192 tokens"),
    (400, "Total tokens 42000 exceed the limit of 30000 per request"),
    # Text Embeddings Inference
    (413, "`inputs` must have less than 512 tokens. Given: 600"),
    (422, "`inputs` must have less than 512 tokens. Given: 600"),
    # Pinecone
    (
        400,
        "Request contains a query+document pair with 1300 tokens, which exceeds the maximum token "
        "limit of 1024 for each query+document pair within a reranking request",
    ),
    # 413 needs no words
    (413, ""),
    (413, "Request Entity Too Large"),
    (413, "<html> <head><title>413 Request Entity Too Large</title></head> <body> <center>nginx"),
    (413, "Payload Too Large"),
    (413, "length limit exceeded"),
    (413, "Maximum request body size 1048576 exceeded, actual body size 2000000"),
    (413, "no"),
    # the same with other statuses
    (400, "http: request body too large"),
    (400, "Request payload size exceeds the limit: 10485760 bytes."),
    (400, "Total payload size exceeds 5MB"),
    (400, "request entity too large"),
]

ELSEWHERE = [
    (400, ""),
    (400, "no"),
    (422, "Unprocessable Entity"),
    # an empty or a wrong document
    (400, "`inputs` cannot be empty"),
    (400, "Input cannot contain empty strings or empty lists"),
    (400, "documents[3] must not be blank"),
    (422, "body.documents.12: Input should be a valid string"),
    (422, "body.documents: Field required"),
    (422, "body.documents: List should have at least 1 item after validation, not 0"),
    # one document that is too long, in characters
    (422, "body.documents.3: String should have at most 122880 characters"),
    (400, "body/documents/3 must NOT have more than 8000 characters"),
    (400, "Expected `str` of length <= 8000 - at `$.documents[3]`"),
    # other arguments
    (400, "top_n (5) cannot be greater than the number of documents (3)"),
    (400, "top_n must be at most 1000 items"),
    (422, "body.top_n: Input should be less than or equal to 1000"),
    (400, "top_k is too large: it exceeds the number of documents"),
    (400, "query is too long"),
    (400, "The query has 9000 tokens, which exceeds the maximum of 8000 tokens"),
    (400, "The model `rerank-9` does not exist"),
    (400, "Missing required parameter: 'documents'."),
    (400, "truncate_prompt_tokens value (1000) is greater than max_model_len (512)."),
    (422, "body.max_chunks_per_document: Extra inputs are not permitted"),
    # the body
    (400, "Expecting value: line 1 column 1 (char 0)"),
    (400, "Unexpected token < in JSON at position 0"),
    (400, "json: cannot unmarshal object into Go struct field .documents of type string"),
    (422, "Tokenization error: invalid utf-8 sequence"),
    # a document's content
    (400, "Input data may contain inappropriate content."),
    (400, "The response was filtered due to the prompt triggering the content policy."),
]


@pytest.mark.parametrize(
    ("reason", "status", "message"),
    [
        *(("documents", *case) for case in TOO_MANY),
        *(("bytes", *case) for case in TOO_LONG),
        *(("content", *case) for case in ELSEWHERE),
    ],
)
def test_what_is_refused_is_read_from_the_servers_words(
    reason: str, status: int, message: str
) -> None:
    assert refusal_of(error_for_status(status, message, {}, None)) == reason


@pytest.mark.parametrize(
    ("reason", "body"),
    [
        (
            "documents",
            {"error": "batch size 64 > maximum allowed batch size 32", "error_type": "Validation"},
        ),
        ("documents", {"message": "too many documents"}),
        (
            "documents",
            {
                "detail": [
                    {
                        "type": "too_long",
                        "loc": ["body", "documents"],
                        "msg": "List should have at most 1000 items after validation, not 1001",
                        "ctx": {"field_type": "List", "max_length": 1000, "actual_length": 1001},
                    }
                ]
            },
        ),
        (
            "bytes",
            {
                "error": {
                    "message": "This model's maximum context length is 512 tokens. However, you "
                    "requested 600 tokens in the input. Please reduce the length of the input.",
                    "type": "BadRequestError",
                    "param": None,
                    "code": 400,
                }
            },
        ),
        (
            "content",
            {
                "detail": [
                    {
                        "type": "string_type",
                        "loc": ["body", "documents", 12],
                        "msg": "Input should be a valid string",
                    }
                ]
            },
        ),
    ],
)
@pytest.mark.parametrize("status", [400, 422])
def test_what_is_refused_is_read_from_every_shape_of_body(
    reason: str, body: object, status: int
) -> None:
    message = error_message(orjson.dumps(body))
    assert refusal_of(error_for_status(status, message, {}, None)) == reason


def test_other_statuses_are_not_about_the_requests_size_whatever_they_say() -> None:
    for status in {*range(300, 600)} - {400, 413, 422}:
        error = error_for_status(status, "too many documents, more than 512 tokens", {}, None)
        assert refusal_of(error) is None


@pytest.mark.parametrize(
    "error",
    [
        TransportError("too many documents"),
        ResponseError("too many documents"),
        InvalidRequestError("too many documents"),
    ],
)
def test_what_is_no_status_refuses_nothing(error: RerankError) -> None:
    assert refusal_of(error) is None


@given(st.text(alphabet="max toknsdcue_123,<=> ", max_size=200) | st.text(max_size=200))
def test_any_words_at_all_are_one_of_the_reasons(message: str) -> None:
    for status in (400, 413, 422):
        reason = refusal_of(error_for_status(status, message, {}, None))
        assert reason in ({"documents", "bytes"} | ({"content"} if status != 413 else set()))


# ── how long to wait ──

BROKEN = TransportError("broke")
FAILED = ServerError("failed", status=500)
BUSY = ServerError("busy", status=503)
LIMITED = RateLimitError("slow down", status=429)


def hinted(seconds: float) -> RateLimitError:
    return RateLimitError("slow down", status=429, retry_after=seconds)


@pytest.mark.parametrize(
    ("error", "attempt", "draw", "delay"),
    [
        # base 0.05, doubled each time, a part of it drawn
        (BROKEN, 1, 0.0, 0.0),
        (BROKEN, 1, 0.5, 0.025),
        (BROKEN, 1, 0.999, 0.04995),
        (BROKEN, 2, 0.5, 0.05),
        (BROKEN, 3, 0.999, 0.1998),
        (FAILED, 3, 0.5, 0.1),
        (ResponseError("nonsense"), 1, 0.5, 0.025),
        # throttled: 1, 2, 4
        (LIMITED, 1, 0.0, 0.0),
        (LIMITED, 1, 0.5, 0.5),
        (LIMITED, 2, 0.5, 1.0),
        (BUSY, 3, 0.999, 3.996),
        (ServerError("overloaded", status=529), 3, 0.5, 2.0),
        # a hint is waited for in full, and up to a tenth more
        (hinted(10.0), 1, 0.0, 10.0),
        (hinted(10.0), 1, 0.5, 10.5),
        (hinted(10.0), 1, 0.999, 10.999),
        (hinted(10.0), 3, 0.5, 10.5),
        (hinted(120.0), 1, 0.5, 126.0),
        (ServerError("busy", status=503, retry_after=10.0), 1, 0.5, 10.5),
        # a hint shorter than the drawn wait does not shorten it
        (hinted(0.0), 1, 0.5, 0.5),
        (hinted(0.1), 3, 0.5, 2.0),
        # too long a hint
        (hinted(120.1), 1, 0.0, None),
        (hinted(1e9), 1, 0.5, None),
        # enough attempts
        (BROKEN, 4, 0.0, None),
        (BROKEN, 5, 0.0, None),
        (hinted(1.0), 4, 0.5, None),
        # not worth another
        (InvalidRequestError("no"), 1, 0.5, None),
        (StatusError("no", status=404), 1, 0.5, None),
    ],
)
def test_the_wait_follows_the_table(
    error: RerankError, attempt: int, draw: float, delay: float | None
) -> None:
    found = retry_delay(RetryPolicy(), error, attempt, draw, None)
    assert found == (None if delay is None else pytest.approx(delay, abs=1e-12))


@pytest.mark.parametrize(
    ("attempt", "upper"),
    [(1, 3.0), (2, 6.0), (3, 10.0), (4, 10.0), (60, 10.0), (2000, 10.0), (10**7, 10.0)],
)
def test_no_drawn_wait_is_longer_than_max_wait(attempt: int, upper: float) -> None:
    policy = RetryPolicy(attempts=10**8, base=3.0, throttle_base=3.0, max_wait=10.0)
    for error in (BROKEN, LIMITED):
        assert retry_delay(policy, error, attempt, 0.5, None) == upper / 2


@pytest.mark.parametrize(
    ("left", "delay"),
    [
        (None, 10.5),
        (60.0, 10.5),
        (10.51, 10.5),
        (10.5, None),
        (10.4, None),
        (0.0, None),
        (-1.0, None),
    ],
)
def test_a_wait_that_would_outlast_the_deadline_is_not_begun(
    left: float | None, delay: float | None
) -> None:
    assert retry_delay(RetryPolicy(), hinted(10.0), 1, 0.5, left) == delay


def test_with_no_time_left_even_no_wait_is_too_long() -> None:
    assert retry_delay(RetryPolicy(), BROKEN, 1, 0.0, 0.0) is None


@pytest.mark.parametrize(
    ("left", "needed", "delay"),
    [
        (None, 1e9, 10.5),
        (12.0, 0.0, 10.5),
        (12.0, 1.0, 10.5),
        (12.0, 1.49, 10.5),
        (12.0, 1.5, None),
        (12.0, 2.0, None),
        (12.0, 20.0, None),
    ],
)
def test_a_wait_that_leaves_too_little_time_for_the_attempt_is_not_begun(
    left: float | None, needed: float, delay: float | None
) -> None:
    assert retry_delay(RetryPolicy(), hinted(10.0), 1, 0.5, left, needed) == delay


@pytest.mark.parametrize(
    ("max_outage", "hint", "waits"),
    [
        (None, 120.0, True),
        (None, 121.0, False),
        (60.0, 120.0, True),
        (60.0, 121.0, False),
        (1800.0, 121.0, True),
        (1800.0, 1800.0, True),
        (1800.0, 1801.0, False),
    ],
)
def test_hints_are_waited_for_as_long_as_an_outage_may_last(
    max_outage: float | None, hint: float, waits: bool
) -> None:
    policy = RetryPolicy(max_outage=max_outage)
    assert policy.longest_hint == max(120.0, max_outage or 0.0)
    delay = retry_delay(policy, hinted(hint), 1, 0.5, None)
    assert delay == (pytest.approx(1.05 * hint) if waits else None)


@pytest.mark.parametrize("attempts", [1, 2, 7])
def test_there_are_as_many_attempts_as_the_policy_says(attempts: int) -> None:
    policy = RetryPolicy(attempts=attempts)
    allowed = [n for n in range(1, 12) if retry_delay(policy, BROKEN, n, 0.5, None) is not None]
    assert allowed == list(range(1, attempts))


SECONDS = st.floats(0.001, 1000.0)


@given(
    policy=st.builds(
        RetryPolicy,
        attempts=st.integers(1, 2000),
        base=SECONDS,
        throttle_base=SECONDS,
        max_wait=SECONDS,
        max_retry_after=SECONDS,
    ),
    status=st.sampled_from([0, 429, 500, 503, 529]),
    hint=st.none() | st.floats(0.0, 2000.0),
    attempt=st.integers(1, 2000),
    draw=st.floats(0.0, 1.0, exclude_max=True),
    left=st.none() | st.floats(-10.0, 3000.0),
)
def test_a_wait_stays_within_every_bound(
    policy: RetryPolicy,
    status: int,
    hint: float | None,
    attempt: int,
    draw: float,
    left: float | None,
) -> None:
    error = error_for_status(status, "", {}, hint) if status else BROKEN
    delay = retry_delay(policy, error, attempt, draw, left)
    told = hint if status else None
    if delay is None:
        assert (
            attempt >= policy.attempts
            or (told is not None and told > policy.max_retry_after)
            or (left is not None and left <= max(policy.max_wait, 1.1 * (told or 0.0)))
        )
        return
    assert 0.0 <= delay <= max(policy.max_wait, 1.1 * (told or 0.0))
    assert attempt < policy.attempts
    assert left is None or delay < left
    assert told is None or told <= delay


# ── the policy itself ──


def test_a_policy_is_by_default_what_the_documentation_says() -> None:
    assert RetryPolicy() == RetryPolicy(4, 0.05, 1.0, 20.0, 120.0, 30.0, None)


@pytest.mark.parametrize("attempts", [0, -1, True, False, 1.0, 2.5, "3", None])
def test_attempts_that_are_no_positive_whole_number_are_refused(attempts: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"^attempts must be"):
        RetryPolicy(attempts=attempts)


@pytest.mark.parametrize(
    "name",
    ["base", "throttle_base", "max_wait", "max_retry_after", "attempt_timeout", "max_outage"],
)
@pytest.mark.parametrize("value", [0, 0.0, -1, -0.5, float("nan"), float("inf"), True, "1"])
def test_seconds_that_are_not_above_zero_are_refused_by_their_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{name} must be"):
        RetryPolicy(**{name: value})


def test_the_time_of_one_attempt_may_be_unbounded_and_an_outage_not_waited_out() -> None:
    assert RetryPolicy(attempt_timeout=None).attempt_timeout is None
    assert RetryPolicy().max_outage is None
    for name in ("base", "throttle_base", "max_wait", "max_retry_after"):
        none: dict[str, Any] = {name: None}
        with pytest.raises(InvalidRequestError, match=f"^{name} must be"):
            RetryPolicy(**none)


# ── backups ──


@pytest.mark.parametrize("name", ["percentile", "max_extra"])
@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0, -0.1, 1.5, 95, float("nan"), True, "0.5", None])
def test_a_share_that_is_not_between_0_and_1_is_refused_by_its_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{name} must be"):
        HedgePolicy(**{name: value})


@pytest.mark.parametrize("name", ["min_delay", "quiet"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, "1", None])
def test_seconds_of_a_backup_that_are_not_above_zero_are_refused_by_their_name(
    name: str, value: Any
) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{name} must be"):
        HedgePolicy(**{name: value})


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "50", None])
def test_samples_that_are_no_positive_whole_number_are_refused(value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"^min_samples must be .*, not [^:]*$"):
        HedgePolicy(min_samples=value)


def test_what_a_backup_may_be_is_taken_as_it_is() -> None:
    hedge = HedgePolicy(percentile=0.5, min_delay=1, max_extra=0.999, min_samples=1, quiet=0.1)
    assert (hedge.percentile, hedge.min_delay, hedge.max_extra) == (0.5, 1, 0.999)
    assert HedgePolicy() == HedgePolicy(0.95, 0.05, 0.05, 50, 10.0)
