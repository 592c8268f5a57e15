"""An async-first client for rerank endpoints: many calls, long lists in chunks, one ranking.

    async with RerankSession(model="rerank-model") as session:
        response = await session.rerank("What is machine learning?", documents, top_n=2)

The public names stand here, and only those; `rerank_async.dialects`, `rerank_async.server` and
`rerank_async.testing` are public by their paths.
"""

# First of all: importing the rest takes longest.
from rerank_async._program import quit_at_once

quit_at_once()

# ruff: noqa: E402
from rerank_async._chunking import ChunkLimits
from rerank_async._errors import (
    AuthenticationError,
    BadRequestError,
    CertificateError,
    ConnectError,
    DeadlineExceededError,
    InvalidRequestError,
    NotFoundError,
    PayloadTooLargeError,
    PermissionDeniedError,
    RateLimitError,
    RequestTimeoutError,
    RerankError,
    ResponseError,
    ServerError,
    SessionClosedError,
    StatusError,
    StoppedError,
    TransportError,
    UnprocessableError,
)
from rerank_async._flow.control import FlowControl
from rerank_async._flow.limiter import Concurrency, RateLimit
from rerank_async._listeners import Statistics
from rerank_async._models import (
    Documents,
    Failed,
    Missing,
    Reranked,
    RerankRequest,
    RerankResponse,
    RerankResult,
    Results,
    Usage,
)
from rerank_async._options import SessionOptions
from rerank_async._policy import HedgePolicy, RetryPolicy
from rerank_async._session import RerankSession
from rerank_async._version import __version__

__all__ = [
    "AuthenticationError",
    "BadRequestError",
    "CertificateError",
    "ChunkLimits",
    "Concurrency",
    "ConnectError",
    "DeadlineExceededError",
    "Documents",
    "Failed",
    "FlowControl",
    "HedgePolicy",
    "InvalidRequestError",
    "Missing",
    "NotFoundError",
    "PayloadTooLargeError",
    "PermissionDeniedError",
    "RateLimit",
    "RateLimitError",
    "RequestTimeoutError",
    "RerankError",
    "RerankRequest",
    "RerankResponse",
    "RerankResult",
    "RerankSession",
    "Reranked",
    "ResponseError",
    "Results",
    "RetryPolicy",
    "ServerError",
    "SessionClosedError",
    "SessionOptions",
    "Statistics",
    "StatusError",
    "StoppedError",
    "TransportError",
    "UnprocessableError",
    "Usage",
    "__version__",
]
