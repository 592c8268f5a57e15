"""`hints`: what headers say about load, and that nonsense in them says nothing."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_async._flow.hints import exhausted_for, remaining, retry_after

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
        # However long it is.
        ({"retry-after": "9" * 12}, 1e12 - 1),
        ({"retry-after": "9" * 13}, 1e12),
        ({"retry-after": "9" * 400}, 1e12),
        ({"retry-after": "9" * 5000}, 1e12),
        ({"retry-after": "9" * 400 + "." + "9" * 400}, 1e12),
        ({"retry-after-ms": "9" * 13, "retry-after": "7"}, 1e9),
        ({"retry-after-ms": "9" * 5000, "retry-after": "7"}, 1e9),
        ({"retry-after": "0" * 50 + "7"}, 7.0),
        ({"retry-after": "7." + "0" * 50}, 7.0),
        ({"retry-after": "0.3333333333333333333"}, 1 / 3),
        # As a date.
        ({"retry-after": IMF}, 30.0),
        ({"retry-after": RFC_850}, 30.0),
        ({"retry-after": ASCTIME}, 30.0),
        ({"retry-after": "Sun, 06 Nov 1994 09:50:07 +0100"}, 30.0),
        # At the end of the calendar, and over it.
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, 253402300799.0 - NOW),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 -0100"}, 253402304399.0 - NOW),
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


def test_a_date_less_than_a_second_away_is_a_hint() -> None:
    headers = {"retry-after": "Sun, 06 Nov 1994 08:49:38 GMT"}
    assert retry_after(headers, NOW + 0.5) == 0.5


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
        "9" * 13 + "e9",
        "-" + "9" * 5000,
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


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the time zone cannot be set here")
@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kolkata"])
def test_a_date_without_a_zone_is_in_utc_wherever_the_client_is(
    zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        for date in (IMF, RFC_850, ASCTIME, "Sun, 06 Nov 1994 08:50:07 -0000"):
            assert retry_after({"retry-after": date}, NOW) == 30.0
    finally:
        monkeypatch.undo()
        time.tzset()


@given(st.integers(0, 10**30))
def test_a_longer_number_is_never_a_shorter_hint(seconds: int) -> None:
    assert retry_after({"retry-after": f"{seconds}"}, NOW) == min(seconds, 1e12)


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


# ── what is left ──

NONSENSE = [
    "",
    " ",
    "many",
    "-1",
    "+1",
    "1e3",
    "1,000",
    "0x10",
    "nan",
    "inf",
    "1/60",
    "10;w=60",
    "٧",
    "７",
    "\xa07",
    "9" * 13,
    "9" * 5000,
]


@pytest.mark.parametrize("what", ["requests", "tokens"])
@pytest.mark.parametrize(
    ("value", "left"),
    [("0", 0.0), ("1", 1.0), (" 149984\t", 149984.0), ("59.5", 59.5), ("999999999999", 1e12 - 1)],
)
def test_what_is_left_is_a_number_of_its_own_header(what: str, value: str, left: float) -> None:
    other = "tokens" if what == "requests" else "requests"
    headers = {f"x-ratelimit-remaining-{what}": value, f"x-ratelimit-limit-{what}": "7"}
    assert remaining(headers, what) == left
    assert remaining(headers, other) is None


@pytest.mark.parametrize("value", NONSENSE)
def test_what_makes_no_sense_is_no_number_of_what_is_left(value: str) -> None:
    assert remaining({"x-ratelimit-remaining-requests": value}, "requests") is None


def test_a_header_that_does_not_say_of_what_is_not_read() -> None:
    assert remaining({"x-ratelimit-remaining": "0", "ratelimit-remaining": "0"}, "requests") is None
    assert remaining({}, "tokens") is None


@given(st.text())
def test_any_header_at_all_leaves_a_number_that_makes_sense_or_none(value: str) -> None:
    left = remaining({"x-ratelimit-remaining-tokens": value}, "tokens")
    assert left is None or 0.0 <= left < 1e13


# ── the IETF's field ──


@pytest.mark.parametrize(
    ("field", "seconds"),
    [
        # draft-ietf-httpapi-ratelimit-headers-08 and later: one item for each policy.
        ('"default";r=0;t=55', 55.0),
        ('"default";t=55;r=0', 55.0),
        ('"default"; r=0; t=55', 55.0),
        ('"default" ;r=0;t=55', 55.0),
        ('"api";r=0;t=55;pk=:QUJD:', 55.0),
        ("default;r=0;t=55", 55.0),
        ('"default";r=50;t=30', None),
        ('"default";r=1;t=30', None),
        ('"default";r=000;t=030', 30.0),
        # Nothing is left, and it is not said until when, or it is over already.
        ('"default";r=0', None),
        ('"default";r=0;t=0', None),
        ('"default";t=55', None),
        ('"default"', None),
        # Several: the longest of those that are used up.
        ('"minute";r=0;t=20, "day";r=900;t=3600', 20.0),
        ('"minute";r=7;t=20, "day";r=0;t=3600', 3600.0),
        ('"minute";r=0;t=20, "day";r=0;t=3600', 3600.0),
        ('"day";r=0;t=3600,"minute";r=0;t=20', 3600.0),
        ('"minute";r=7;t=20, "day";r=900;t=3600', None),
        ('"per user, day";r=7;t=20, "minute";r=0;t=5', 5.0),
        # One has nothing left and no time, the other a time and something left: they do not mix.
        ('"minute";r=0, "day";r=9;t=3600', None),
        ("minute;r=0;t=20, day;r=9;t=3600", 20.0),
        ("minute;r=0;t=5, day;r=0;t=55", 55.0),
        ("minute;r=3;t=5, day;r=0;t=55", 55.0),
        ("minute;w=60, day;r=0;t=55", 55.0),
        # draft -07: a dictionary in one field.
        ("limit=100, remaining=0, reset=5", 5.0),
        ("limit=100,remaining=0,reset=5", 5.0),
        ("remaining=0, reset=55", 55.0),
        ("reset=55, remaining=0", 55.0),
        ("limit=100, remaining=40, reset=5", None),
        ("limit=100, remaining=0, reset=0", None),
        ("limit=100, remaining=0", None),
        ("remaining=0;w=60, reset=5", 5.0),
        # What is not a whole number from 0 to 9 is not read.
        ('"default";r=0.5;t=55', None),
        ('"default";r=0;t=5.5', None),
        ('"default";r=-1;t=55', None),
        ('"default";r=0;t=-55', None),
        ('"default";r=٠;t=55', None),
        ('"default";r=0;t=٥٥', None),
        ('"default";r=０;t=55', None),
        ('"default";r=0;t=' + "9" * 13, None),
        ('"default";r=0;t=' + "9" * 5000, None),
        ('"default";r=;t=', None),
        ('"default";r="0";t=55', None),
        ('"default";r=?0;t=55', None),
        # Other words that end in the same letters.
        ('"default";tr=0;t=55', None),
        ('"default";r=0;at=55', None),
        ("notremaining=0, reset=5", None),
        ("", None),
        (",", None),
        (";;;", None),
        ("0", None),
    ],
)
def test_the_seconds_without_quota_follow_the_table(field: str, seconds: float | None) -> None:
    assert exhausted_for({"ratelimit": field}) == seconds


def test_only_the_field_of_the_standard_is_read() -> None:
    assert exhausted_for({}) is None
    headers = {
        "x-ratelimit-reset-requests": "55",
        "x-ratelimit-remaining-requests": "0",
        "ratelimit-remaining": "0",
        "ratelimit-reset": "55",
        "ratelimit-policy": '"default";q=100;w=60',
    }
    assert exhausted_for(headers) is None


@given(st.text(alphabet='"rt=;, 0159remaining.-٠x') | st.text())
def test_any_field_at_all_is_a_time_that_makes_sense_or_none(field: str) -> None:
    seconds = exhausted_for({"ratelimit": field})
    assert seconds is None or 0.0 < seconds < 1e12


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 10**6)), min_size=1, max_size=5))
def test_of_several_policies_the_longest_that_is_used_up_counts(
    policies: list[tuple[int, int]],
) -> None:
    field = ", ".join(f'"p{n}";r={left};t={reset}' for n, (left, reset) in enumerate(policies))
    longest = max((reset for left, reset in policies if left == 0), default=0)
    assert exhausted_for({"ratelimit": field}) == (longest or None)
