"""Columns in, columns out: the batch function that every distributed engine can call.

    reranker = BatchReranker("https://host/v1", model="rerank-model", top_n=10)
    columns = await reranker({"query_id": ["q1"], "query": ["open a file"], "documents": [[...]]})
    columns = reranker.run({...})  # the same from a plain function

A failure is a value in a column, never an exception: one bad row must not end a job of a million.
Nothing here knows an engine; `rerank_async.ray` is one that is built on it.
A line belongs here when it turns columns into calls or outcomes into columns, or is about the life
of a session in a process that somebody else runs.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import pickle
import threading
from asyncio import AbstractEventLoop
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import aclosing
from hashlib import sha256
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar, cast
from weakref import WeakSet

from attrs import define, field, frozen

from rerank_async._chunking import ChunkLimits
from rerank_async._errors import InvalidRequestError, RerankError, SessionClosedError
from rerank_async._flow.control import FlowControl
from rerank_async._flow.limiter import Concurrency, RateLimit
from rerank_async._http import Transport
from rerank_async._models import RerankResponse, as_text, as_top_n, is_unicode
from rerank_async._policy import RetryPolicy
from rerank_async._private import Sealed, Secret, hide_frames
from rerank_async._session import RerankSession
from rerank_async._streams import as_completed

__all__ = ["BatchReranker"]

T = TypeVar("T")
Columns: TypeAlias = dict[str, list[Any]]
Outcome: TypeAlias = RerankResponse | Exception

# For work that nobody waits for: ten minutes without an answer are waited out.
_PATIENT = RetryPolicy(max_outage=600.0)

# Seconds that a session's loop gets to close it when the process ends.
_LAST_MOMENT = 5.0


# ── from columns to calls, and back; pure ──


@frozen
class Row:
    """One call to be made; `problem` says why it cannot be."""

    query: Any = field(repr=False)
    documents: Any = field(repr=False)
    top_n: Any = None
    problem: Exception | None = None


@frozen
class Nested:
    """A batch whose rows are one query each, its documents in a list."""

    columns: Columns = field(repr=False)
    rows: list[Row]
    doc_ids: list[list[Any] | None] = field(repr=False)

    def outcome_columns(self, outcomes: Sequence[Outcome]) -> Columns:
        """One value for each row and column; see `BatchReranker`."""
        out: Columns = {
            name: []
            for name in (
                "indices",
                "doc_ids",
                "relevance_scores",
                "model",
                "total_tokens",
                "error_type",
                "error_message",
            )
        }
        for outcome, ids in zip(outcomes, self.doc_ids, strict=True):
            values: tuple[Any, ...]
            if isinstance(outcome, Exception):
                values = (None, None, None, None, None, *problem_of(outcome))
            else:
                indices = list(outcome.results.indices)
                values = (
                    indices,
                    None if ids is None else [ids[index] for index in indices],
                    list(outcome.results.scores),
                    outcome.model,
                    outcome.usage.total_tokens,
                    None,
                    None,
                )
            for column, value in zip(out.values(), values, strict=True):
                column.append(value)
        return out

    def result(self, outcomes: Sequence[Outcome]) -> Columns:
        """The query_id, where there was one, and what became of each row."""
        kept = {name: self.columns[name] for name in ("query_id",) if name in self.columns}
        return kept | self.outcome_columns(outcomes)


@frozen
class Flat:
    """A batch whose rows are one document each; rows with the same query_id are one call.

    Attributes:
        columns: as they came.
        rows: the calls.
        places: for each call, the places of its documents in the columns.
        problems: why a row is in no call, by its place.
    """

    columns: Columns = field(repr=False)
    rows: list[Row]
    places: list[list[int]]
    problems: dict[int, Exception]

    def outcome_columns(self, outcomes: Sequence[Outcome]) -> Columns:
        """One value for each row and column; see `BatchReranker`."""
        count = len(self.columns["query"])
        scores: list[float | None] = [None] * count
        ranks: list[int | None] = [None] * count
        types: list[str | None] = [None] * count
        messages: list[str | None] = [None] * count
        for outcome, places in zip(outcomes, self.places, strict=True):
            if isinstance(outcome, Exception):
                kind, message = problem_of(outcome)
                for place in places:
                    types[place], messages[place] = kind, message
                continue
            found = zip(outcome.results.indices, outcome.results.scores, strict=True)
            for rank, (index, score) in enumerate(found, 1):
                scores[places[index]], ranks[places[index]] = score, rank
        for place, error in self.problems.items():
            types[place], messages[place] = problem_of(error)
        return {
            "relevance_score": scores,
            "rank": ranks,
            "error_type": types,
            "error_message": messages,
        }

    def result(self, outcomes: Sequence[Outcome]) -> Columns:
        """The rows as they came, and what became of each."""
        return self.columns | self.outcome_columns(outcomes)


Work: TypeAlias = Nested | Flat


def problem_of(error: Exception) -> tuple[str, str]:
    """An error as its two columns; what a server sends may not be Unicode, and a column must be."""
    return type(error).__name__, str(error).encode("utf-8", "replace").decode()


def is_refusal(error: Exception) -> bool:
    """Whether every row would hear the same: all of them ask one session for one model."""
    return isinstance(error, RerankError) and error.condemns in ("model", "session")


def is_nested(names: Iterable[str]) -> bool:
    """Whether columns of these names have the documents in lists.

    Raises:
        InvalidRequestError: they are neither that nor flat; the message says what is missing.
    """
    known = set(names)
    wanted = {"query"} if "documents" in known else {"query_id", "query", "text"}
    missing = wanted - known
    if missing:
        raise InvalidRequestError(
            f"the batch has no column {' and no '.join(sorted(missing))}: it must have query and "
            "documents, or query_id, query and text"
        )
    return "documents" in known


def parsed(batch: Mapping[str, Any], top_n: int | None) -> Work:
    """The calls that a batch asks for.

    Args:
        batch: columns of any kind, by their names.
        top_n: of rows that do not say themselves.

    Raises:
        InvalidRequestError: the batch as a whole cannot be used.
    """
    if not isinstance(batch, Mapping):
        raise InvalidRequestError(
            f"a batch must be a dict of columns, not {type(batch).__name__}: a table or a data "
            "frame must be turned into one"
        )
    nested = is_nested(batch)
    columns = {name: _values(f"column {name}", column) for name, column in batch.items()}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InvalidRequestError(f"the batch's columns must be of one length, not: {shown}")
    return _nested(columns, top_n) if nested else _flat(columns, top_n)


def _values(name: str, column: Any) -> list[Any]:
    """A column as a list of plain Python values; nested ones stay as they are.

    Raises:
        InvalidRequestError: it is not one; the message begins with `name`.
    """
    if isinstance(column, (list, tuple)):
        return list(column)
    # pyarrow's columns have the one, those of numpy and pandas the other.
    for method in ("to_pylist", "tolist"):
        make = getattr(column, method, None)
        if make is not None:
            values = make()
            if isinstance(values, list):
                return values
    raise InvalidRequestError(f"{name} must be a list or an array, not {type(column).__name__}")


def is_absent(value: Any) -> bool:
    """Whether it is how an engine writes "no value": None, NaN, or pandas' NA."""
    if isinstance(value, float):
        return value != value
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def _nested(columns: Columns, top_n: int | None) -> Nested:
    count = len(columns["query"])
    ids_column = columns.get("doc_ids", [None] * count)
    top_column = columns.get("top_n", [None] * count)
    rows: list[Row] = []
    doc_ids: list[list[Any] | None] = []
    for query, given, ids, top in zip(
        columns["query"], columns["documents"], ids_column, top_column, strict=True
    ):
        try:
            documents, found = _documents(given, ids)
            rows.append(Row(_text(query), documents, top_n if is_absent(top) else _whole(top)))
        except Exception as problem:
            # Mostly InvalidRequestError; but a column of objects may hold anything.
            rows.append(Row(None, None, problem=problem.with_traceback(None)))
            found = None
        doc_ids.append(found)
    return Nested(columns, rows, doc_ids)


def _documents(given: Any, ids: Any) -> tuple[list[Any], list[Any] | None]:
    """The texts of a row, and their ids where there are any."""
    if is_absent(given) or isinstance(given, (str, bytes, Mapping)):
        raise InvalidRequestError(f"documents must be a list, not {type(given).__name__}")
    items = _values("documents", given)
    found = None if is_absent(ids) else _values("doc_ids", ids)
    if found is not None and len(found) != len(items):
        raise InvalidRequestError(
            f"doc_ids must be as many as documents, and {len(found)} are not {len(items)}"
        )
    if not any(isinstance(item, Mapping) for item in items):
        return [_text(item) for item in items], found
    texts, own = [], []
    for place, item in enumerate(items):
        if isinstance(item, Mapping):
            if "text" not in item:
                raise InvalidRequestError(f"documents[{place}] has no text")
            texts.append(_text(item["text"]))
            doc_id = item.get("doc_id")
            own.append(None if is_absent(doc_id) else doc_id)
        else:
            texts.append(_text(item))
            own.append(None)
    if found is None and any(doc_id is not None for doc_id in own):
        found = own
    return texts, found


def _text(value: Any) -> Any:
    """A subclass of `str`, such as numpy's, as plain text; all else is for others to refuse."""
    return str(value) if isinstance(value, str) and type(value) is not str else value


def _whole(value: Any) -> Any:
    """A whole number that came as a float, because its column has gaps."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _flat(columns: Columns, top_n: int | None) -> Flat:
    queries = [_text(query) for query in columns["query"]]
    texts = [_text(text) for text in columns["text"]]
    groups: dict[str | int, list[int]] = {}
    problems: dict[int, Exception] = {}
    for place, query_id in enumerate(map(_whole, columns["query_id"])):
        if is_absent(query_id):
            problems[place] = InvalidRequestError("query_id is missing")
        elif not isinstance(query_id, (str, int)):
            problems[place] = _not_a("query_id", "string or a whole number", query_id)
        elif not isinstance(queries[place], str):
            problems[place] = _not_a("query", "string", queries[place])
        else:
            groups.setdefault(query_id, []).append(place)
    doc_ids = columns.get("doc_id")
    rows: list[Row] = []
    kept: list[list[int]] = []
    for query_id, places in groups.items():
        query = queries[places[0]]
        if any(queries[place] != query for place in places):
            problem = InvalidRequestError(f"query_id {query_id!r} has more than one query")
            problems.update(dict.fromkeys(places, problem))
            continue
        good: list[int] = []
        seen: set[str] = set()
        for place in places:
            doc_id = None if doc_ids is None else doc_ids[place]
            text = texts[place]
            if not isinstance(text, str):
                problems[place] = _not_a("text", "string", text)
            elif not is_unicode(text):
                problems[place] = InvalidRequestError(
                    "text is not valid Unicode: it holds a lone surrogate"
                )
            elif not is_absent(doc_id) and str(doc_id) in seen:
                problems[place] = InvalidRequestError(
                    f"doc_id {doc_id!r} comes twice for this query: results could not be told apart"
                )
            else:
                seen.add(str(doc_id))
                good.append(place)
        if good:
            rows.append(Row(query, [texts[place] for place in good], top_n))
            kept.append(good)
    return Flat(columns, rows, kept, problems)


def _not_a(name: str, wanted: str, value: Any) -> InvalidRequestError:
    return InvalidRequestError(f"{name} must be a {wanted}, not {type(value).__name__}")


# ── one loop for all plain functions of a process ──

_lock = threading.Lock()
_background: tuple[AbstractEventLoop, threading.Thread] | None = None
_living: WeakSet[_Sessions] = WeakSet()
# Of objects that came out of a pickle, by what they say: an engine makes one for every task.
_by_description: dict[bytes, _Sessions] = {}
# What a fork took along. The sockets are the parent's: here they are neither used nor closed.
_inherited: list[Any] = []


def in_background(work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
    """Do the work on the process's own event loop, which runs in a daemon thread."""
    global _background
    with _lock:
        if _background is None:
            ready: concurrent.futures.Future[AbstractEventLoop] = concurrent.futures.Future()
            thread = threading.Thread(
                target=_serve, args=(ready,), name="rerank_async.batches", daemon=True
            )
            thread.start()
            _background = ready.result(), thread
        loop = _background[0]
    return asyncio.run_coroutine_threadsafe(work, loop)


def _serve(ready: concurrent.futures.Future[AbstractEventLoop]) -> None:
    # When the loop is stopped, the runner ends what is left on it, and closes it.
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        ready.set_result(loop)
        loop.run_forever()


def _end() -> None:
    """Close every session, while there is still a Python to do it."""
    global _background
    for sessions in list(_living):
        with contextlib.suppress(Exception):
            sessions.close()
    with _lock:
        if _background is not None:
            loop, thread = _background
            loop.call_soon_threadsafe(loop.stop)
            thread.join(_LAST_MOMENT)
            _background = None


def _begin_anew() -> None:
    """In a forked process: threads and loops stayed behind."""
    global _lock, _background
    _lock = threading.Lock()
    _inherited.append(_background)
    _background = None
    _inherited.extend(sessions.leave_behind() for sessions in list(_living))


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


# ── sessions, and who closes them ──


async def _keep(session: RerankSession) -> AsyncGenerator[None, None]:
    """Closes the session when the loop ends its async generators, as `asyncio.run` does."""
    try:
        yield
    finally:
        await session.close()


@define(eq=False)
class _Held:
    """A session of one loop; `refused` is why the server takes nothing from it."""

    session: RerankSession
    flow: FlowControl
    refused: Exception | None = None
    keeper: AsyncGenerator[None, None] = field(init=False)
    is_let_go: bool = False

    def __attrs_post_init__(self) -> None:
        self.keeper = _keep(self.session)

    async def close(self) -> None:
        await self.session.close()
        # Several rows may be refused at once, and a generator is closed by one task only.
        if not self.is_let_go:
            self.is_let_go = True
            await self.keeper.aclose()


class _Sessions:
    """At most one session for each event loop."""

    def __init__(self) -> None:
        self.held: dict[AbstractEventLoop, _Held] = {}
        _living.add(self)

    def hold(self, make: Callable[[], _Held]) -> _Held:
        """The running loop's session; made if there is none that the server listens to."""
        loop = asyncio.get_running_loop()
        held = self.held.get(loop)
        if held is None or held.refused is not None:
            for other in [other for other in self.held if other.is_closed()]:
                # Its session was closed when its loop was.
                del self.held[other]
            held = make()
            # Runs to its first yield at once: from then on the loop knows of it.
            with contextlib.suppress(StopIteration):
                held.keeper.asend(None).send(None)
            self.held[loop] = held
        return held

    async def aclose(self) -> None:
        """Close the running loop's session, and then the others."""
        held = self.held.pop(asyncio.get_running_loop(), None)
        if held is not None:
            await held.close()
        self.close()

    def close(self) -> None:
        """Close all.

        Raises:
            InvalidRequestError: one is the running loop's.
        """
        with contextlib.suppress(RuntimeError):
            if asyncio.get_running_loop() in self.held:
                raise InvalidRequestError(
                    "close() would wait for its own event loop: use `await reranker.aclose()`"
                )
        while self.held:
            loop, held = self.held.popitem()
            if loop.is_running():
                closing = asyncio.run_coroutine_threadsafe(held.close(), loop)
                with contextlib.suppress(TimeoutError):
                    closing.result(_LAST_MOMENT)
            elif not loop.is_closed():
                loop.run_until_complete(held.close())

    def leave_behind(self) -> object:
        """Let go of all without closing them."""
        held, self.held = self.held, {}
        return held


# ── the batch function ──


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
        base_url: as in `RerankSession`; None is looked up where the work is done.
        model: as there.
        api_key: None, which is best, means `$RERANK_API_KEY` of the process that does the work.
            A key that is given here goes into the pickle, and so to wherever the engine keeps
            pickles; it is in no representation.
        dialect: as in `RerankSession`.
        concurrency: requests on the wire at once, of each process or actor.
        rate: how much each process or actor may send.
        retry: how failed requests are made again; None means that besides the usual attempts an
            outage of ten minutes is waited out: `RetryPolicy(max_outage=600)`.
        chunks: what one request may carry.
        top_n: how many results a query gets that does not say itself; None means all.
        allow_insecure_http: as in `RerankSession`.
        http: a `Transport` to use in place of the network, for tests.

    Raises:
        InvalidRequestError: an argument that cannot work; the message names it.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        model: str | None = None,
        api_key: str | None = None,
        dialect: str = "v1",
        concurrency: int | Concurrency = 16,
        rate: RateLimit | None = None,
        retry: RetryPolicy | None = None,
        chunks: ChunkLimits | None = None,
        top_n: int | None = None,
        allow_insecure_http: bool = False,
        http: Transport | None = None,
    ) -> None:
        # Masked from here on: a traceback that shows the values of names would show it.
        try:
            api_key = None if api_key is None else Secret.of(api_key)
        except TypeError as error:
            api_key = None
            raise InvalidRequestError(f"api_key must be a string, not {error}") from None
        self._api_key = None if api_key is None else Sealed(api_key)
        # Some serialisers take a masked text for any other.
        api_key = None
        if isinstance(base_url, str) and "@" in base_url:
            base_url = Secret(base_url)
        self._base_url = base_url
        self._model = None if model is None else as_text("model", model)
        self._dialect = dialect
        self._concurrency = concurrency
        self._rate = rate
        self._retry = _PATIENT if retry is None else retry
        self._chunks = chunks
        self._top_n = as_top_n(top_n)
        self._allow_insecure_http = allow_insecure_http
        self._http = http
        self._sessions = _Sessions()
        self._refused: Exception | None = None
        try:
            # Made for its checks alone.
            self.described()
        except InvalidRequestError as error:
            hide_frames(error)
            raise

    @property
    def retry(self) -> RetryPolicy:
        """How failed requests are made again."""
        return self._retry

    def described(self) -> RerankSession:
        """A session to look at, and to check arguments by: it opens nothing before its first call.

        Whether there is a key is known only where the work is done.
        """
        key = self._api_key
        return RerankSession(
            self._base_url,
            api_key="not-known-here" if key is None else key.open(),
            model=self._model,
            dialect=self._dialect,
            concurrency=self._concurrency,
            rate=self._rate,
            retry=self._retry,
            chunks=self._chunks,
            # Nor is it known whether there is anything to protect.
            allow_insecure_http=self._allow_insecure_http or key is None,
            http=self._http,
        )

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("_sessions", "_refused")
        state = {name: value for name, value in vars(self).items() if name not in left_out}
        if self._api_key is not None:
            # A masked key refuses to be pickled; whoever passed it asked for it.
            state["_api_key"] = str(self._api_key.open())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._api_key is not None:
            self._api_key = Sealed(Secret(state["_api_key"]))
        self._refused = None
        with _lock:
            # Its own words only: a hash of them keeps the key out of sight.
            description = sha256(pickle.dumps(state)).digest()
            self._sessions = _by_description.setdefault(description, _Sessions())

    @property
    def top_n(self) -> int | None:
        """How many results a query gets that does not say itself; None means all."""
        return self._top_n

    def __repr__(self) -> str:
        if not hasattr(self, "_refused"):
            # A traceback may show one that was refused half-way through its making.
            return "<BatchReranker not made>"
        where = "$RERANK_BASE_URL" if self._base_url is None else self._base_url
        return f"<BatchReranker {where} model={self._model!r}>"

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
        work = parsed(batch, self._top_n)
        return work.result(await self.outcomes(work.rows))

    def run(self, batch: Mapping[str, Any]) -> Columns:
        """Rerank a batch from a plain function; blocks until it is done. Any thread may call it.

        Raises:
            InvalidRequestError: as `await reranker(batch)` does.
        """
        done = in_background(self(batch))
        del batch
        try:
            return done.result()
        except BaseException:
            # Ctrl-C, say: nobody waits for it any more.
            done.cancel()
            raise

    async def outcomes(self, rows: Sequence[Row]) -> list[Outcome]:
        """What becomes of each row, in their order; nothing is raised on a row's account.

        Raises:
            InvalidRequestError: no session can be made in this process.
        """
        found: list[Outcome | None] = [None] * len(rows)
        held = self._sessions.hold(self._make) if self._refused is None else None

        async def work(number: int, row: Row) -> None:
            found[number] = await self._outcome(held, row)

        # As in `rerank_many`: enough to fill every slot while others wait for a retry.
        done = as_completed(
            rows, work, limit=lambda: 1 if held is None else 2 * held.flow.limiter.limit
        )
        async with aclosing(done):
            async for _ in done:
                pass
        return cast("list[Outcome]", found)

    async def _outcome(self, held: _Held | None, row: Row) -> Outcome:
        if row.problem is not None:
            return row.problem
        if self._refused is not None:
            return self._refused
        assert held is not None
        try:
            return await held.session.rerank(row.query, row.documents, top_n=row.top_n)
        except SessionClosedError as error:
            # Perhaps another object, which shares the session, was told.
            self._refused = self._refused or held.refused
            return self._refused or error.with_traceback(None)
        except Exception as error:
            # Whatever it is: its traceback would keep the documents.
            failure = error.with_traceback(None)
        if not is_refusal(failure):
            return failure
        held.refused = self._refused = held.refused or failure
        # Ends what waits for a slot, so that nothing more is sent.
        await held.close()
        return self._refused

    def _make(self) -> _Held:
        flow = FlowControl(self._concurrency, rate=self._rate)
        session = RerankSession(
            self._base_url,
            api_key=None if self._api_key is None else self._api_key.open(),
            model=self._model,
            dialect=self._dialect,
            flow=flow,
            retry=self._retry,
            chunks=self._chunks,
            timeout=None,
            allow_insecure_http=self._allow_insecure_http,
            http=self._http,
        )
        if session.model is None:
            raise InvalidRequestError(
                "model: pass model= to BatchReranker, or set RERANK_MODEL where the work is done"
            )
        return _Held(session, flow)

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
