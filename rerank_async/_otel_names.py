"""The names that OpenTelemetry sees: unstable, and all in this one module.

The semantic conventions for generative AI are in development; names may change in any release.
What a convention says is taken over; `rerank` is in none of them yet.
`gen_ai.rerank.candidate.count` and `gen_ai.rerank.top_n` are what the proposal to the conventions
calls them (open-telemetry/semantic-conventions-genai, issue 253), `gen_ai.rerank.query.text` is
spelled after `gen_ai.retrieval.query.text`; what only this library knows begins with
`rerank_async.`.
A line belongs here when it is a name, a fixed value or a bucket.
"""

from __future__ import annotations

from typing import Final

# ── the span and the histograms ──

SCOPE: Final = "rerank_async"

OPERATION: Final = "rerank"
# Whose model answers, the client cannot know; the conventions ask for a value all the same.
PROVIDER: Final = "_OTHER"
TOKEN_TYPE_INPUT: Final = "input"  # noqa: S105  # no password

DURATION: Final = "gen_ai.client.operation.duration"
DURATION_BUCKETS: Final = tuple(0.01 * 2**power for power in range(14))
TOKEN_USAGE: Final = "gen_ai.client.token.usage"  # noqa: S105  # no password
TOKEN_USAGE_BUCKETS: Final = tuple(float(4**power) for power in range(14))

# ── attributes of the conventions ──

GEN_AI_OPERATION_NAME: Final = "gen_ai.operation.name"
GEN_AI_PROVIDER_NAME: Final = "gen_ai.provider.name"
GEN_AI_REQUEST_MODEL: Final = "gen_ai.request.model"
GEN_AI_RESPONSE_MODEL: Final = "gen_ai.response.model"
GEN_AI_USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
GEN_AI_TOKEN_TYPE: Final = "gen_ai.token.type"  # noqa: S105  # no password
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
ERROR_TYPE: Final = "error.type"
HTTP_RESEND_COUNT: Final = "http.request.resend_count"
HTTP_STATUS_CODE: Final = "http.response.status_code"

# ── attributes of none ──

GEN_AI_RERANK_CANDIDATE_COUNT: Final = "gen_ai.rerank.candidate.count"
GEN_AI_RERANK_TOP_N: Final = "gen_ai.rerank.top_n"
GEN_AI_RERANK_QUERY_TEXT: Final = "gen_ai.rerank.query.text"

MISSING: Final = "rerank_async.missing"
START: Final = "rerank_async.start"
DOCUMENTS: Final = "rerank_async.documents"
ATTEMPT: Final = "rerank_async.attempt"
DELAY: Final = "rerank_async.delay"
RETRY_AFTER: Final = "rerank_async.retry_after"
GATE: Final = "rerank_async.gate"
SECONDS: Final = "rerank_async.seconds"
PIECES: Final = "rerank_async.pieces"
REASON: Final = "rerank_async.reason"

# ── events of the span ──

RETRIED: Final = "rerank_async.retried"
THROTTLED: Final = "rerank_async.throttled"
HEDGED: Final = "rerank_async.hedged"
SPLIT: Final = "rerank_async.split"
