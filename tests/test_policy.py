from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_async import (
    CertificateError,
    ConnectError,
    DeadlineExceededError,
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
    is_retryable,
    is_throttle,
    retry_after,
    retry_delay,
)

# Sun, 06 Nov 1994 08:49:37 GMT, the moment of RFC 9110's own examples.
NOW = 784111777.0
IMF = "Sun, 06 Nov 1994 08:50:07 GMT"
RFC_850 = "Sunday, 06-Nov-94 08:50:07 GMT"
ASCTIME = "Sun Nov  6 08:50:07 1994"


# ── Retry-After ──


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "007"}, 7.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": " 7 "}, 7.0),
        ({"retry-after": "\t7"}, 7.0),
        ({"retry-after": "1000000000"}, 1e9),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "0.5"}, 0.0005),
        ({"retry-after-ms": "0", "retry-after": "7"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        ({"retry-after-ms": "-1", "retry-after": "7"}, 7.0),
        ({"retry-after-ms": "nan", "retry-after": IMF}, 30.0),
        # As a date.
        ({"retry-after": IMF}, 30.0),
        ({"retry-after": RFC_850}, 30.0),
        ({"retry-after": ASCTIME}, 30.0),
        ({"retry-after": "Sun, 06 Nov 1994 09:50:07 +0100"}, 30.0),
        # From the server's own clock, where it shows one.
        ({"retry-after": IMF, "date": "Sun, 06 Nov 1994 08:50:00 GMT"}, 7.0),
        ({"retry-after": IMF, "date": "Sunday, 06-Nov-94 08:50:00 GMT"}, 7.0),
        ({"retry-after": IMF, "date": "not a date"}, 30.0),
        ({"retry-after": IMF, "date": ""}, 30.0),
        ({"retry-after": "7", "date": "Sun, 06 Nov 1994 08:50:00 GMT"}, 7.0),
        # Dates that have passed.
        ({"retry-after": "Sun, 06 Nov 1994 08:49:36 GMT"}, None),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, None),
        ({"retry-after": IMF, "date": "Sun, 06 Nov 1994 08:50:08 GMT"}, None),
    ],
)
def test_a_hint_is_read_in_seconds(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, NOW) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "nan",
        "NaN",
        "inf",
        "Infinity",
        "-inf",
        "-1",
        "-0",
        "+7",
        "1e309",
        "1e3",
        "1_000",
        "1,000",
        "0x10",
        ".5",
        "7 s",
        "7; 8",
        "7, 7",
        "٧",
        "７",
        "\xa07",
        "7\u2003",
        "9" * 13,
        "9" * 5000,
        "soon",
        "Sun, 06 Nov",
        "Fri, 01 Jan 100000 00:00:00 GMT",
        "Sun, 06 Nov 1994 25:50:07 GMT",
        "Sun, 31 Feb 2094 08:50:07 GMT",
        "Sun, ٠٦ Nov 2094 08:50:07 GMT",
        "Sun, 06 Nov 2094 08:50:07 +9999",
    ],
)
@pytest.mark.parametrize("name", ["retry-after", "retry-after-ms"])
def test_what_makes_no_sense_is_no_hint(name: str, value: str) -> None:
    assert retry_after({name: value}, NOW) is None


@given(st.text(), st.text(), st.text())
def test_any_header_at_all_is_a_hint_that_makes_sense_or_none(
    value: str, milliseconds: str, date: str
) -> None:
    headers = {"retry-after": value, "retry-after-ms": milliseconds, "date": date}
    hint = retry_after(headers, NOW)
    assert hint is None or 0.0 <= hint < 1e13


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_plain_seconds_and_milliseconds_mean_what_they_say(seconds: int, now: int) -> None:
    assert retry_after({"retry-after": f"{seconds}"}, float(now)) == seconds
    assert retry_after({"retry-after-ms": f"{seconds}"}, float(now)) == seconds / 1000


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


@pytest.mark.parametrize("attempts", [0, -1, True, False, 1.0, 2.5, "3", None])
def test_attempts_that_are_no_positive_whole_number_are_refused(attempts: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"^attempts must be"):
        RetryPolicy(attempts=attempts)


@pytest.mark.parametrize(
    "name", ["base", "throttle_base", "max_wait", "max_retry_after", "attempt_timeout"]
)
@pytest.mark.parametrize("value", [0, 0.0, -1, -0.5, float("nan"), True, "1"])
def test_seconds_that_are_not_above_zero_are_refused_by_their_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{name} must be"):
        RetryPolicy(**{name: value})


def test_only_the_time_of_one_attempt_may_be_unbounded() -> None:
    assert RetryPolicy(attempt_timeout=None).attempt_timeout is None
    for name in ("base", "throttle_base", "max_wait", "max_retry_after"):
        none: dict[str, Any] = {name: None}
        with pytest.raises(InvalidRequestError, match=f"^{name} must be"):
            RetryPolicy(**none)
