"""`_blame`: which error of a row stops the whole job."""

from __future__ import annotations

import pytest

from rerank_async import (
    AuthenticationError,
    ConnectError,
    PayloadTooLargeError,
    RateLimitError,
    RequestTimeoutError,
    RerankError,
    ResponseError,
    ServerError,
)
from rerank_async.bulk._blame import reason_to_stop


@pytest.mark.parametrize(
    ("error", "when_quiet", "else_where"),
    [
        # The row's own fault, whatever became of the others.
        (PayloadTooLargeError("too large", status=413), None, None),
        (ResponseError("two scores for index 0"), None, None),
        (ServerError("a bug", status=500), None, None),
        # The server's, where it answers nobody.
        (ServerError("down", status=503), "outage", None),
        (ConnectError("refused"), "outage", None),
        (RequestTimeoutError("too slow"), "outage", None),
        # Everybody's, whoever was answered meanwhile.
        (AuthenticationError("no such key", status=401), "refused", "refused"),
        (RateLimitError("tomorrow", status=429, retry_after=3600.0), "outage", "outage"),
        (RateLimitError("soon", status=429, retry_after=60.0), "outage", None),
    ],
    ids=lambda value: str(value) if isinstance(value, RerankError) else "",
)
def test_an_error_stops_the_job_or_is_about_its_row(
    error: RerankError, when_quiet: str | None, else_where: str | None
) -> None:
    assert reason_to_stop(error, is_quiet=True, longest_hint=300.0) == when_quiet
    assert reason_to_stop(error, is_quiet=False, longest_hint=300.0) == else_where
