"""Columns in, columns out: the batch function that every distributed engine can call.

    reranker = BatchReranker("https://host/v1", model="rerank-model", top_n=10)
    columns = await reranker({"query_id": ["q1"], "query": ["open a file"], "documents": [[...]]})
    columns = reranker.run({...})  # the same from a plain function

A failure is a value in a column, never an exception: one bad row must not end a job of a million.
Nothing here knows an engine; `rerank_async.ray` is one that is built on it.
A line belongs here when it is about what travels to another process, or about what becomes of a
query there; columns are in `_columns`, and loops in `_background`.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from hashlib import sha256
from types import TracebackType
from typing import Any, Self, cast

from attrs import define, fields

from rerank_async._background import PerLoop, wait
from rerank_async._chunking import ChunkLimits
from rerank_async._columns import BatchOutcome, BatchQuery, Columns, batch_of
from rerank_async._errors import InvalidRequestError, RerankError, SessionClosedError
from rerank_async._flow.limiter import Concurrency, RateLimit
from rerank_async._http import Transport
from rerank_async._models import as_top_n
from rerank_async._options import SessionOptions
from rerank_async._policy import RetryPolicy
from rerank_async._private import Sealed, hide_frames, shown
from rerank_async._session import RerankSession
from rerank_async._streams import as_completed
from rerank_async.dialects import Dialect

__all__ = ["BatchReranker", "batch_options", "is_refusal"]

# For work that nobody waits for: ten minutes without an answer are waited out.
_PATIENT = RetryPolicy(max_outage=600.0)


def is_refusal(error: Exception) -> bool:
    """Whether every row would hear the same: all of them ask one session for one model."""
    return isinstance(error, RerankError) and error.condemns in ("model", "session")


@define(eq=False)
class _Link:
    """A session of one loop, and what the server said of it.

    Attributes:
        session: session of that loop.
        refused: error for which the server takes nothing from it; None as long as it does.
    """

    session: RerankSession
    refused: Exception | None = None

    async def close(self) -> None:
        await self.session.close()


# Of objects that came out of a pickle, by what they say: an engine makes one for every task.
_by_description: dict[bytes, PerLoop[_Link]] = {}


def batch_options(
    options: SessionOptions | None,
    base_url: str | None,
    *,
    api_key: str | Sealed | None,
    concurrency: int | Concurrency = 16,
    retry: RetryPolicy | None,
    **arguments: Any,
) -> SessionOptions:
    """What the sessions of batches are made from: `options`, or else all the rest.

    Args:
        options: value that a user gave, or None.
        base_url: argument of `BatchReranker`.
        api_key: argument of `BatchReranker`.
        concurrency: argument of `BatchReranker`.
        retry: argument of `BatchReranker`.
        arguments: further arguments of `SessionOptions`, by their names.

    Raises:
        InvalidRequestError: an argument that cannot work, or that stands beside `options`.
    """
    told = SessionOptions(
        base_url,
        api_key=api_key,
        concurrency=concurrency,
        retry=_PATIENT if retry is None else retry,
        timeout=None,
        **arguments,
    )
    if options is None:
        return told
    if not isinstance(options, SessionOptions):
        raise InvalidRequestError(f"options must be SessionOptions, not {shown(options)}")
    untold = SessionOptions(concurrency=16, retry=_PATIENT, timeout=None)
    for attribute in fields(SessionOptions):
        if getattr(told, attribute.name) != getattr(untold, attribute.name):
            raise InvalidRequestError(
                f"{attribute.name} stands beside options: say all about sessions in options, or "
                "all without them"
            )
    if options.on_failure != "raise":
        raise InvalidRequestError(
            'on_failure must be "raise" in the options of batches: their columns have no place '
            "for documents that were not scored"
        )
    return options


class BatchReranker:
    """Reranks batches: a dict of columns in, a dict of columns out. It can be pickled.

    An object is a description until its first batch; then it makes one session for the event loop
    that it runs on, and keeps it. Objects that come out of equal pickles share it, so that there is
    one session for each process or actor, however often an engine sends the object there.
    `await reranker(batch)` runs on the current loop, `reranker.run(batch)` is for plain functions:
    it runs on one loop in a daemon thread that all of the process's objects share.
    Several batches may be in work at once; they share the session's slots.

    Columns are lists, or arrays of numpy, pandas or pyarrow. There are two kinds of batch:

    Nested, a row for each query: `query` and `documents`, the latter a list of strings or of
    `{"doc_id": ..., "text": ...}`; perhaps `query_id`, `doc_ids` (one for each document) and
    `top_n`. What comes out, row by row: `query_id` where there was one; `indices`, `doc_ids` (None
    where there were none) and `relevance_scores`, three lists, best first; `model`;
    `total_tokens`, None when the server did not say; `error_type` and `error_message`.

    Flat, a row for each document: `query_id`, `query` and `text`, perhaps `doc_id`, and whatever
    else. Rows of one batch with the same `query_id` are ranked together, wherever they stand; a
    query whose rows are spread over several batches is ranked in pieces. What comes out: the same
    rows, and `relevance_score`, `rank` (from 1; both None beyond `top_n`), `error_type` and
    `error_message`.

    A row never raises. Whatever goes wrong with it, be it the row itself, stands in `error_type`
    (the name of one of this package's errors) and `error_message`, both None where all is well.
    Once the server answers 401, 403 or 404, everything that is in work on the session is ended, and
    every further row of this object fails at once with that error, without being sent: the server
    would say the same a million times. `close()` makes it forget.

    Args:
        base_url: argument of `RerankSession`; None is looked up where the work is done, and so it
            is with the model and the key.
        model: argument of `RerankSession`.
        api_key: key; None, which is best, means `$RERANK_API_KEY` of the process that does the
            work. A key that is given here goes into the pickle, and so to wherever the engine keeps
            pickles; it is in no representation.
        dialect: argument of `RerankSession`.
        concurrency: number of requests on the wire at once, of each process or actor.
        rate: limit of what each process or actor may send.
        retry: policy for failed requests; None means that besides the usual attempts an outage of
            ten minutes is waited out: `RetryPolicy(max_outage=600)`.
        chunks: limits of what one request may carry.
        top_n: number of results of a query that does not say it itself; None means all.
        allow_insecure_http: argument of `RerankSession`.
        http: `Transport` to use in place of the network, for tests.
        options: all that a session can be told, in place of every argument above but `top_n`, and
            taken as it stands: for work that nobody waits for, give it `timeout=None` and
            `retry=RetryPolicy(max_outage=600)`, which the arguments above mean by themselves.
            Each process makes its sessions from it, so that `on_event` is called there, and what is
            to be shared, such as a `FlowControl`, is not among them. `on_failure` must be "raise".
            None means that it is made of the arguments above.

    Raises:
        InvalidRequestError: an argument that cannot work; the message names it.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        model: str | None = None,
        api_key: str | None = None,
        dialect: str | Dialect = "v1",
        concurrency: int | Concurrency = 16,
        rate: RateLimit | None = None,
        retry: RetryPolicy | None = None,
        chunks: ChunkLimits | None = None,
        top_n: int | None = None,
        allow_insecure_http: bool = False,
        http: Transport | None = None,
        options: SessionOptions | None = None,
    ) -> None:
        try:
            self._top_n = as_top_n(top_n)
            self._options = batch_options(
                options,
                base_url,
                model=model,
                api_key=api_key,
                dialect=dialect,
                concurrency=concurrency,
                rate=rate,
                retry=retry,
                chunks=chunks,
                allow_insecure_http=allow_insecure_http,
                http=http,
            )
        except InvalidRequestError as error:
            hide_frames(error)
            raise
        finally:
            # A traceback shows this frame with its locals; a wrong URL may be a key.
            del api_key, base_url
        self._sessions: PerLoop[_Link] = PerLoop()
        self._refused: Exception | None = None

    @property
    def options(self) -> SessionOptions:
        """What its sessions are made from."""
        return self._options

    @property
    def retry(self) -> RetryPolicy:
        """How failed requests are made again."""
        return RetryPolicy() if self._options.retry is None else self._options.retry

    def __getstate__(self) -> dict[str, Any]:
        return {"_options": self._options, "_top_n": self._top_n}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._refused = None
        # Its own words only: a hash of them keeps the key out of sight.
        description = sha256(pickle.dumps(state)).digest()
        self._sessions = _by_description.setdefault(description, PerLoop())

    @property
    def top_n(self) -> int | None:
        """How many results a query gets that does not say itself; None means all."""
        return self._top_n

    def __repr__(self) -> str:
        if not hasattr(self, "_refused"):
            # A traceback may show one that was refused half-way through its making.
            return "<BatchReranker not made>"
        url = self._options.base_url
        where = "$RERANK_BASE_URL" if url is None else url
        return f"<BatchReranker {where} model={self._options.model!r}>"

    async def __call__(self, batch: Mapping[str, Any]) -> Columns:
        """Rerank a batch on the running event loop; see the class for columns.

        Raises:
            InvalidRequestError: the batch as a whole cannot be used, because a column is missing,
                say; or no session can be made in this process, because it has no API key or model.
        """
        try:
            return await self._columns(batch)
        except BaseException as error:
            # A traceback shows this frame with its locals, and would show those below.
            del batch
            hide_frames(error)
            raise

    async def _columns(self, batch: Mapping[str, Any]) -> Columns:
        parts = batch_of(batch, self._top_n)
        return parts.result(await self.outcomes(parts.queries))

    def run(self, batch: Mapping[str, Any]) -> Columns:
        """Rerank a batch from a plain function; blocks until it is done. Any thread may call it.

        Raises:
            InvalidRequestError: as `await reranker(batch)` does.
        """
        work = self(batch)
        del batch
        return wait(work)

    async def outcomes(self, queries: Sequence[BatchQuery]) -> list[BatchOutcome]:
        """What becomes of each query, in their order; nothing is raised on a query's account.

        Raises:
            InvalidRequestError: no session can be made in this process.
        """
        found: list[BatchOutcome | None] = [None] * len(queries)
        link = self._sessions.here(self._make) if self._refused is None else None

        async def work(number: int, query: BatchQuery) -> None:
            found[number] = await self._outcome(link, query)

        # As in `rerank_many`: enough to fill every slot while others wait for a retry.
        done = as_completed(
            queries, work, limit=lambda: 1 if link is None else 2 * link.session.flow.limiter.limit
        )
        async with aclosing(done):
            async for _ in done:
                pass
        return cast("list[BatchOutcome]", found)

    async def _outcome(self, link: _Link | None, query: BatchQuery) -> BatchOutcome:
        if query.problem is not None:
            return query.problem
        if self._refused is not None:
            return self._refused
        assert link is not None
        try:
            return await link.session.rerank(query.query, query.documents, top_n=query.top_n)
        except SessionClosedError as error:
            # Perhaps another object, which shares the session, was told.
            self._refused = self._refused or link.refused
            return self._refused or error.with_traceback(None)
        except Exception as error:
            # Whatever it is: its traceback would keep the documents.
            failure = error.with_traceback(None)
        if not is_refusal(failure):
            return failure
        link.refused = self._refused = link.refused or failure
        # Ends what waits for a slot, so that nothing more is sent.
        await self._sessions.drop(link)
        return self._refused

    def _make(self) -> _Link:
        session = RerankSession.of(self._options)
        if session.model is None:
            raise InvalidRequestError(
                "model: pass model= to BatchReranker, or set RERANK_MODEL where the work is done"
            )
        return _Link(session)

    async def aclose(self) -> None:
        """Close the sessions, as `close` does, from within an event loop that has one."""
        await self._sessions.aclose()
        self._refused = None

    def close(self) -> None:
        """Close the sessions of this object and of those that share them. Idempotent.

        It need not be called: a session is closed when its loop ends, or the interpreter.
        Rows in work end with `SessionClosedError` as their error.
        Another batch makes a new session, also after a refusal.

        Raises:
            InvalidRequestError: the running loop has a session: `await reranker.aclose()` there.
        """
        self._sessions.close()
        self._refused = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()
