"""`_private`: whatever prints, walks or serialises, it finds no key, no body and no text of a call.

One test fails calls in every way there is, and gives the errors, and all that their frames hold, to
every printer.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import io
import json
import logging
import pickle
import pprint
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import attrs
import devtools
import loguru
import msgspec
import orjson
import pydantic
import pytest
import rich.console
import rich.pretty
import rich.traceback
from hypothesis import given
from hypothesis import strategies as st
from IPython.lib.pretty import pretty

from rerank_async import (
    ChunkLimits,
    HedgePolicy,
    RerankRequest,
    RerankSession,
    RetryPolicy,
    SessionOptions,
)
from rerank_async._answers import Answer
from rerank_async._call import Call
from rerank_async._chunking import Chunk
from rerank_async._endpoint import resolve_endpoint
from rerank_async._errors import RerankError, TransportError
from rerank_async._private import Headers, Secret, SecretBytes, excerpt, hide_frames, shown
from rerank_async._route import Ask, Trail
from rerank_async.batches import BatchReranker
from rerank_async.bench import run_benchmark
from rerank_async.bulk import export_file, plan_file, rerank_file
from rerank_async.dialects import Read, WireRequest, get
from rerank_async.events import CallStarted
from rerank_async.server import LocalServer
from rerank_async.testing import HttpRequest, HttpResponse, MemoryTransport, scoring
from tests.support import (
    KEY,
    PACKAGE,
    ScriptedServer,
    http,
    number_of,
    replying,
    scored,
    session_over,
    steps,
    stream_of,
)

# A long key too: some printers cut what is long before they ask how it wants to be shown.
LONG_KEY = KEY + "-" + "0123456789abcdef" * 20
DOCUMENT = "canary-document 7"
QUERY = "canary-query"
BODY = "canary-body"
CANARIES = (KEY, "canary-document", QUERY, BODY)

# ── the printers ──


def _rich(value: object) -> str:
    out = rich.console.Console(file=io.StringIO(), width=200)
    if not isinstance(value, str):
        # To print a text is to ask for the text.
        out.print(value)
    out.print(rich.pretty.Pretty(value, max_string=20))
    shown: str = out.file.getvalue()  # type: ignore[attr-defined]
    return shown


def _pydantic(value: object) -> str:
    class Model(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
        value: Any

    shown = repr(Model(value=value))
    with suppress(Exception):
        shown += repr(Model(value=value).model_dump())
    with suppress(Exception):
        shown += Model(value=value).model_dump_json()
    with suppress(Exception):
        shown += repr(pydantic.TypeAdapter(Any).dump_python(value, mode="json"))
    return shown


def _members(value: object) -> str:
    # Attributes that are meant to be read (`request.body`) are not looked at, what is inside is.
    return repr(
        [
            (name, member)
            for name, member in inspect.getmembers_static(value)
            if name.startswith("_") and not inspect.isroutine(member)
        ]
    )


def _loguru(value: object) -> str:
    out = io.StringIO()
    logger = loguru.logger
    number = logger.add(out, diagnose=True, backtrace=True)
    try:
        logger.info("{} {!r}", [value], value)
    finally:
        logger.remove(number)
    return out.getvalue()


PRINTERS: dict[str, Callable[[Any], Any]] = {
    "repr": repr,
    "str in a list": lambda value: str([value]),
    "pprint": lambda value: pprint.pformat(value, width=20),
    "rich": _rich,
    "IPython": pretty,
    "devtools": lambda value: devtools.pformat(value) + devtools.pformat({"value": [value]}),
    "pydantic": _pydantic,
    "attrs.asdict": attrs.asdict,
    "msgspec.to_builtins": msgspec.to_builtins,
    "msgspec.json": msgspec.json.encode,
    "orjson": orjson.dumps,
    "vars": vars,
    "json": lambda value: json.dumps(value, default=vars),
    "pickle": pickle.dumps,
    "copy": copy.deepcopy,
    "members": _members,
    "loguru": _loguru,
    "logging": lambda value: logging.LogRecord(
        "n", 10, "p", 1, "%s %r", (value, value), None
    ).getMessage(),
}


def assert_not_shown(
    value: object, canaries: tuple[str, ...] = CANARIES, without: tuple[str, ...] = ()
) -> None:
    for name, printer in PRINTERS.items():
        if name in without:
            continue
        try:
            shown = repr(printer(value))
        except Exception as refused:
            # What cannot be printed cannot leak, if the refusal does not quote it.
            shown = f"{refused!s} {refused!r}"
        for canary in canaries:
            assert canary not in shown, f"{name} of a {type(value).__name__}"


# ── values ──


def endpoint(key: str = KEY) -> Any:
    return resolve_endpoint(
        "https://rerank.test/v1",
        Secret(key),
        dialect=get("v1"),
        user_agent="t",
        allow_insecure_http=False,
    )


VALUES: dict[str, Callable[[], Any]] = {
    "endpoint": endpoint,
    "endpoint, long key": lambda: endpoint(LONG_KEY),
    "headers": lambda: endpoint(LONG_KEY).headers,
    "headers in a dict": lambda: {"headers": endpoint().headers},
    "request": lambda: HttpRequest("POST", "u", endpoint().headers, BODY.encode()),
    "response": lambda: HttpResponse(200, Headers({"x": KEY}), BODY.encode()),
    "answer": lambda: Answer([0], [1.0], "m", None),
    "session": lambda: session_over(MemoryTransport(scoring(number_of))),
    "batches": lambda: BatchReranker("https://rerank.test/v1", model="m", api_key=KEY),
    "options": lambda: SessionOptions("https://rerank.test/v1", model="m", api_key=LONG_KEY),
}


@pytest.mark.parametrize("kind", VALUES)
async def test_no_printer_shows_what_a_value_holds(kind: str) -> None:
    value = VALUES[kind]()
    if kind in ("batches", "options"):
        # That a key which was given goes into the pickle is documented: the engine needs it there.
        shown = [name for name in PRINTERS if name not in ("pickle", "copy")]
        for name in shown:
            with suppress(TypeError, AttributeError, ValueError):
                assert KEY not in repr(PRINTERS[name](value)), name
        return
    assert_not_shown(value)


TEXTS: dict[str, Callable[[], Any]] = {
    "chunk": lambda: Chunk(range(1), [DOCUMENT]),
    "ask": lambda: Ask(1, "m", QUERY, None, None),
    "call": lambda: Call(None, None, Ask(1, "m", QUERY, None, None), Trail("m"), False),  # type: ignore[arg-type]
    "wire request": lambda: WireRequest("m", QUERY, [DOCUMENT], None),
    "answer": lambda: Answer([0], [1.0], KEY, None),
    "read": lambda: Read([0], [1.0], KEY, None),
    "call started": lambda: CallStarted(1, "m", QUERY, 1, None, "u"),
}
# These walk the fields of whatever is a struct, and only who means to calls them.
WALKERS = ("msgspec.to_builtins", "msgspec.json", "orjson", "copy", "pickle", "members", "pydantic")


@pytest.mark.parametrize("kind", TEXTS)
def test_no_printer_shows_the_texts_of_a_struct(kind: str) -> None:
    value = TEXTS[kind]()
    for name, printer in PRINTERS.items():
        if name not in WALKERS:
            with suppress(TypeError, AttributeError, attrs.exceptions.NotAnAttrsClassError):
                shown = repr(printer(value))
                assert not [canary for canary in CANARIES if canary in shown], name


@pytest.mark.parametrize("key", [KEY, LONG_KEY])
def test_the_headers_that_a_transport_gets_print_without_the_key_as_a_dict(key: str) -> None:
    headers = dict(endpoint(key).headers)
    assert headers["Authorization"] == f"Bearer {key}"
    for name in ("repr", "pprint", "rich", "IPython", "devtools", "logging", "loguru", "members"):
        assert KEY not in PRINTERS[name](headers), name
        if name not in ("logging", "loguru"):
            assert KEY not in PRINTERS[name](headers["Authorization"]), name


def test_parts_of_a_secret_are_secret() -> None:
    for part in (
        Secret(KEY)[:9],
        Secret(KEY)[0],
        next(iter(Secret(KEY))),
        Secret(KEY).splitlines(),
    ):
        assert KEY[0] not in repr(part).replace("'[API key]'", "")
    spelled = SecretBytes(KEY.encode())
    for piece in (spelled[:9], spelled.splitlines()):
        assert KEY[:2] not in repr(piece)
    assert Secret(KEY)[3:] == KEY[3:]


@pytest.mark.parametrize(
    "first", [HttpRequest("POST", "u", {"a": "b"}, b"x"), HttpResponse(200, {"a": "b"}, b"x")]
)
def test_an_exchange_is_frozen_and_is_equal_by_what_it_holds(first: Any) -> None:
    again = copy.copy(first)
    assert first == again
    assert hash(first) == hash(again)
    assert first != object()
    for name in ("body", "headers", "new"):
        with pytest.raises(AttributeError, match="frozen"):
            setattr(first, name, b"")
    with pytest.raises(AttributeError, match="frozen"):
        del first.body


# ── failed calls ──


class OddError(BaseException):
    """No `Exception`."""


def _quoting(request: HttpRequest) -> HttpResponse:
    return scored([1.0] * len(orjson.loads(request.body)["documents"]), model=f"{KEY}/{BODY}")


def _echo(status: int) -> Callable[[HttpRequest], HttpResponse]:
    """A server that quotes all that it was sent, in its body and its headers."""

    def handle(request: HttpRequest) -> HttpResponse:
        said = {"error": {"message": request.headers["authorization"]}, "sent": BODY}
        return HttpResponse(
            status, {"x-echo": request.headers["authorization"]}, orjson.dumps(said)
        )

    return handle


def _body(body: bytes) -> Callable[[HttpRequest], HttpResponse]:
    return lambda request: HttpResponse(200, {}, body)


class _Raises(MemoryTransport):
    def __init__(self, error: BaseException) -> None:
        super().__init__(scoring(number_of))
        self._error = error

    async def exchange(
        self, request: HttpRequest, *, body_limit: int, timeout: float | None
    ) -> HttpResponse:
        raise self._error


def _given(*documents: Any) -> Iterator[Any]:
    yield from documents
    raise LookupError("the user's own")


async def _given_async(*documents: Any) -> AsyncIterator[Any]:
    for document in documents:
        yield document
    raise LookupError("the user's own")


def _listener(event: object) -> None:
    raise ValueError("a listener's own")


def _scores() -> MemoryTransport:
    return MemoryTransport(scoring(number_of))


LIST = [DOCUMENT, f"{DOCUMENT}0", f"{DOCUMENT}1"]
FAST: dict[str, Any] = {"retry": RetryPolicy(attempts=2, base=1e-9, throttle_base=1e-9)}
PAIRS = ChunkLimits(max_documents=2)
SLOW: dict[str, Any] = {"delay": 9.0}

# What answers, what the session is given, and what the call is.
FAILURES: dict[str, tuple[Callable[[], Any], dict[str, Any], dict[str, Any]]] = {
    **{
        f"status {status}": (partial(MemoryTransport, _echo(status)), {}, {})
        for status in (400, 401, 403, 404, 409, 413, 422, 429, 500, 503, 302)
    },
    "bisected": (lambda: MemoryTransport(_echo(422)), {"chunks": PAIRS}, {}),
    "partial": (lambda: MemoryTransport(_echo(500)), {"on_failure": "partial"}, {}),
    "the key as model": (lambda: MemoryTransport(_quoting), {}, {}),
    "no JSON": (lambda: MemoryTransport(_body(f"{BODY} {KEY}".encode())), {}, {}),
    "other JSON": (
        lambda: MemoryTransport(_body(b'{"data": [{"' + BODY.encode() + b'": 1}]}')),
        {},
        {},
    ),
    "doubled keys": (
        lambda: MemoryTransport(_body(rb'{"data": [], "\u0061": "canary-body"}')),
        {},
        {},
    ),
    "deadline": (lambda: MemoryTransport(scoring(number_of), **SLOW), {"timeout": 1e-3}, {}),
    "deadline, chunks": (
        lambda: MemoryTransport(scoring(number_of), **SLOW),
        {"timeout": 1e-3, "chunks": PAIRS},
        {},
    ),
    "attempt timeout": (
        lambda: MemoryTransport(scoring(number_of), **SLOW),
        {"retry": RetryPolicy(attempts=2, base=1e-9, attempt_timeout=1e-3)},
        {},
    ),
    "hedged": (
        lambda: MemoryTransport(_echo(500)),
        {"hedge": HedgePolicy(min_samples=1, min_delay=1e-6)},
        {},
    ),
    "listener": (lambda: MemoryTransport(_echo(400)), {"on_event": _listener}, {}),
    "transport error": (lambda: _Raises(TransportError("down")), {}, {}),
    "odd transport": (lambda: _Raises(OddError()), {}, {}),
    "transport with a mistake": (lambda: _Raises(KeyError("mine")), {}, {}),
    "surrogate": (_scores, {}, {"documents": [*LIST, "\ud800"]}),
    "surrogate in chunks": (_scores, {"chunks": PAIRS}, {"documents": [*LIST, "\ud800"]}),
    "surrogate in the query": (_scores, {}, {"query": f"{QUERY} \ud800"}),
    "number": (_scores, {}, {"documents": [*LIST, 3]}),
    "one string": (_scores, {}, {"documents": DOCUMENT}),
    "bad timeout": (_scores, {}, {"timeout": -1}),
    "documents for a timeout": (_scores, {}, {"timeout": LIST}),
    "documents for top_n": (_scores, {}, {"top_n": LIST}),
    "a document for top_n": (_scores, {}, {"top_n": DOCUMENT}),
    "a count that is a text": (
        _scores,
        {"chunks": ChunkLimits(max_tokens=9, count_tokens=lambda text: text)},  # type: ignore[arg-type, return-value]
        {},
    ),
    "bad top_n": (_scores, {}, {"top_n": 0}),
    "number in an iterator": (_scores, {}, {"documents": "iterator"}),
    "iterator": (_scores, {}, {"documents": "raises"}),
    "async iterator": (_scores, {}, {"documents": "raises async"}),
    "no model": (_scores, {"model": None}, {}),
}


async def _fail(kind: str) -> BaseException:
    make, options, arguments = FAILURES[kind]
    transport = make()
    arguments = {"query": QUERY, "documents": list(LIST), **arguments}
    wanted = arguments["documents"]
    if wanted == "iterator":
        arguments["documents"] = iter([*LIST, 3])
    elif wanted == "raises":
        arguments["documents"] = _given(*LIST)
    elif wanted == "raises async":
        arguments["documents"] = _given_async(*LIST)
    session = session_over(transport, **{**FAST, **options})
    try:
        response = await session.rerank(**arguments)
    except BaseException as error:
        return error
    finally:
        await session.close()
    # In partial mode the errors are values.
    return next(iter(response.missing.values()))


def _links(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        link = waiting.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            yield link
            waiting += (link.__cause__, link.__context__)


def _frames(traceback: TracebackType | None) -> Iterator[FrameType]:
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _walk(value: object, depth: int, seen: set[int], canaries: tuple[str, ...]) -> None:
    """Give to the printers what is within reach of one who follows attributes and items."""
    if depth < 0 or id(value) in seen or inspect.ismodule(value) or inspect.isclass(value):
        return
    seen.add(id(value))
    if inspect.isroutine(value) or isinstance(value, (logging.Logger, asyncio.AbstractEventLoop)):
        return
    for printer in (repr, pprint.pformat, pretty, _rich):
        shown = printer(value)
        for canary in canaries:
            assert canary not in shown, f"{printer} of a {type(value).__name__}"
    inner: list[object] = []
    if isinstance(value, dict):
        inner += value.values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        inner += value
    elif isinstance(value, Mapping):
        inner += [value[name] for name in value]
    with suppress(TypeError):
        inner += vars(value).values()
    for child in inner:
        _walk(child, depth - 1, seen, canaries)


def assert_error_shows_nothing(error: BaseException) -> None:
    for link in _links(error):
        for canary in (KEY, "canary-document", QUERY):
            assert canary not in f"{link!s} {link!r} {link.args!r} {vars(link)!r}"
        shown = traceback.TracebackException.from_exception(link, capture_locals=True)
        for summary in shown.stack:
            if str(PACKAGE) in summary.filename:
                for name, value in (summary.locals or {}).items():
                    for canary in CANARIES:
                        assert canary not in value, f"{name} in {summary.name}"
        for frame in _frames(link.__traceback__):
            if str(PACKAGE) in frame.f_code.co_filename:
                seen: set[int] = set()
                for name, value in frame.f_locals.items():
                    # A transport in memory keeps what it was sent, for the tests of whoever uses
                    # it: the key alone is looked for there.
                    _walk(value, 3, seen, (KEY,))
                    # A copy of half of an event loop cannot be let go of.
                    assert_not_shown({name: value}, without=("copy", "pickle"))
    # As rich shows it, with the locals of our frames.
    console = rich.console.Console(file=io.StringIO(), width=200)
    own = error.with_traceback(_ours_alone(error.__traceback__))
    console.print(
        rich.traceback.Traceback.from_exception(
            type(own), own, own.__traceback__, show_locals=True, locals_max_string=1000
        )
    )
    printed: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert "locals" in printed or own.__traceback__ is None
    # The message may quote the beginning of an answer, without the key.
    for canary in (KEY, "canary-document", QUERY):
        assert canary not in printed


def _ours_alone(tb: TracebackType | None) -> TracebackType | None:
    kept = []
    while tb is not None:
        if str(PACKAGE) in tb.tb_frame.f_code.co_filename:
            kept.append(tb)
        tb = tb.tb_next
    found: TracebackType | None = None
    for entry in reversed(kept):
        found = TracebackType(found, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return found


@pytest.mark.parametrize("kind", FAILURES)
async def test_no_printer_finds_a_secret_in_a_failed_call(kind: str) -> None:
    error = await _fail(kind)
    assert error.__traceback__ is not None or kind == "partial"
    if kind in ("iterator", "async iterator"):
        # The user's own frames stay: the mistake is there.
        names = [frame.f_code.co_name for frame in _frames(error.__traceback__)]
        assert names[-1] in ("_given", "_given_async")
    assert_error_shows_nothing(error)


# From its first step on: what is cancelled before has run no line that could hide its arguments.
@pytest.mark.parametrize("turns", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("chunks", [ChunkLimits(), PAIRS])
async def test_no_printer_finds_a_secret_in_a_call_that_was_cancelled(
    turns: int, chunks: ChunkLimits
) -> None:
    async with session_over(
        MemoryTransport(scoring(number_of), delay=9.0), chunks=chunks
    ) as session:
        call = asyncio.create_task(session.rerank(QUERY, list(LIST)))
        await steps(turns)
        call.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await call
    assert_error_shows_nothing(caught.value)


async def test_no_printer_finds_a_secret_in_a_call_whose_session_is_closed() -> None:
    session = session_over(MemoryTransport(scoring(number_of), delay=9.0))
    call = asyncio.create_task(session.rerank(QUERY, list(LIST)))
    await steps(3)
    await session.close()
    assert_error_shows_nothing((await asyncio.gather(call, return_exceptions=True))[0])  # type: ignore[arg-type]
    with pytest.raises(RerankError) as caught:
        await session.rerank(QUERY, list(LIST))
    assert_error_shows_nothing(caught.value)


async def test_no_printer_finds_a_secret_in_a_call_on_another_loop() -> None:
    async with session_over(MemoryTransport(scoring(number_of))) as session:

        def elsewhere() -> BaseException:
            with pytest.raises(RerankError) as caught:
                asyncio.run(session.rerank(QUERY, list(LIST)))
            return caught.value

        assert_error_shows_nothing(await asyncio.to_thread(elsewhere))


WIRE = {
    "not HTTP": replying(b"\x16\x03\x01" + KEY.encode() + BODY.encode() + b"\r\n\r\n"),
    "short": replying(http(BODY.encode(), length=5000)),
    "refused": replying(
        http(b'{"error": "Bearer ' + KEY.encode() + b'"}', "401 no", f"x-echo: {KEY}")
    ),
    "moved": replying(http(b"", "307 moved", f"Location: http://x.test/?{KEY}")),
    "slow": lambda peer: peer.until_gone(),
}


@pytest.mark.parametrize("way", ["error", "cancelled"])
@pytest.mark.parametrize("kind", WIRE)
async def test_no_printer_finds_a_secret_after_a_failure_on_the_wire(kind: str, way: str) -> None:
    policy = RetryPolicy(attempts=1, attempt_timeout=0.2 if way == "error" else 60)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(ScriptedServer(WIRE[kind]))
        session = await stack.enter_async_context(session_over(None, server.url, retry=policy))
        call = asyncio.create_task(session.rerank(QUERY, list(LIST)))
        if way == "cancelled":
            while not server.peers and not call.done():
                await asyncio.sleep(0)
            call.cancel()
        caught = (await asyncio.gather(call, return_exceptions=True))[0]
        assert isinstance(caught, BaseException)
        assert_error_shows_nothing(caught)
        assert_not_shown(vars(session._sender.transport)["_added"])  # type: ignore[union-attr]
        assert KEY not in repr(vars(vars(session._sender.transport)["_http"]))  # type: ignore[union-attr]


async def test_rerank_many_hands_out_errors_without_frames_of_texts() -> None:
    async with session_over(MemoryTransport(_echo(400)), **FAST) as session:
        outcomes = [o async for o in session.rerank_many([RerankRequest(QUERY, list(LIST))])]
        assert_error_shows_nothing(outcomes[0].error)  # type: ignore[union-attr]

        def requests() -> Iterator[RerankRequest]:
            yield RerankRequest(QUERY, list(LIST))
            raise LookupError("the user's own")

        with pytest.raises(LookupError) as caught:
            async for _ in session.rerank_many(stream_of(requests())):
                await steps(9)
    assert_error_shows_nothing(caught.value)


async def test_a_batch_that_is_refused_is_not_shown() -> None:
    async with BatchReranker(
        "https://rerank.test/v1", model="m", api_key=KEY, http=MemoryTransport(_echo(400))
    ) as rerank:
        with pytest.raises(RerankError) as caught:
            await rerank({"query": [QUERY], "texts": [list(LIST)]})
        assert_error_shows_nothing(caught.value)


def test_a_batch_reranker_keeps_its_key_from_serialisers_that_fall_back() -> None:
    reranker = BatchReranker("https://rerank.test/v1", model="m", api_key=KEY)

    def fields(value: object) -> object:
        return vars(value) if hasattr(value, "__dict__") else repr(value)

    assert KEY not in json.dumps(reranker, default=fields)
    assert KEY.encode() not in orjson.dumps(reranker, default=fields)
    assert KEY.encode() not in msgspec.json.encode(vars(reranker), enc_hook=fields)
    # Who pickles it asked for it.
    assert pickle.loads(pickle.dumps(reranker)).options.api_key.open() == KEY


@pytest.mark.parametrize(
    "options", [{"api_key": 3}, {"model": ""}, {"top_n": -1}, {"base_url": f"https://u:{KEY}@h"}]
)
def test_a_batch_reranker_that_is_refused_can_be_shown(options: dict[str, Any]) -> None:
    with pytest.raises(RerankError) as caught:
        BatchReranker(
            **{"base_url": "https://rerank.test/v1", "model": "m", "api_key": KEY, **options}
        )
    assert_error_shows_nothing(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"api_key": [KEY]}, {"api_key": f"{KEY} 2"}, {"model": ""}, {"seeds": 1}]
)
def test_options_that_are_refused_show_no_key(wrong: dict[str, Any]) -> None:
    with pytest.raises((RerankError, TypeError)) as caught:
        SessionOptions(**{"api_key": KEY, **wrong})
    assert_error_shows_nothing(caught.value)
    names = {frame.f_code.co_name for frame in _frames(caught.value.__traceback__)}
    # The constructor that attrs writes, whose arguments are its locals.
    assert "__init__" not in names


@pytest.mark.parametrize("url", [KEY, [KEY], KEY.encode()])
def test_a_key_in_the_place_of_the_url_is_not_shown(url: Any) -> None:
    with pytest.raises(RerankError, match="base_url must be") as caught:
        RerankSession(url, model="m")
    assert KEY not in str(caught.value)


INPUTS = {
    "no JSON": f'{{"query": "{QUERY}", "documents": [{DOCUMENT}',
    "a number": json.dumps({"query": QUERY, "documents": [DOCUMENT, 3]}),
    "no documents": json.dumps({"query": QUERY, "docs": [DOCUMENT]}),
}


@pytest.mark.parametrize("kind", [*INPUTS, "a transport with a mistake"])
async def test_no_printer_finds_a_text_after_a_bulk_job_that_failed(
    kind: str, tmp_path: Path
) -> None:
    good = json.dumps({"query": QUERY, "documents": LIST})
    (tmp_path / "in.jsonl").write_text(f"{good}\n{INPUTS.get(kind, good)}\n")
    http = _scores() if kind in INPUTS else _Raises(LookupError("mine"))
    async with session_over(http, **FAST, timeout=None) as session:
        for job in (rerank_file, plan_file, export_file):
            with pytest.raises((RerankError, LookupError)) as caught:
                await job(session, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
            assert_error_shows_nothing(caught.value)
            if kind not in INPUTS:
                break


async def test_no_printer_finds_the_key_after_a_benchmark_that_failed() -> None:
    with pytest.raises(RerankError) as caught:
        await run_benchmark(
            "https://rerank.test/v1", model="m", api_key=KEY, http=MemoryTransport(_echo(401))
        )
    assert_error_shows_nothing(caught.value)
    with pytest.raises(RerankError) as caught:
        await run_benchmark("https://rerank.test/v1", model="", api_key=KEY)
    assert_error_shows_nothing(caught.value)


def test_a_local_server_does_not_show_its_key() -> None:
    server = LocalServer(api_key=KEY)
    for fields in (vars(server), vars(server._app)):
        for printer in (repr, pprint.pformat, pretty, _rich, devtools.pformat):
            assert KEY not in printer(fields)
    with pytest.raises(ValueError, match="queue") as caught:
        LocalServer(api_key=KEY, queue=-1)
    assert_error_shows_nothing(caught.value)


def test_a_request_counts_its_documents_where_it_is_shown() -> None:
    request = RerankRequest("q", LIST)
    assert repr(request) == (
        "RerankRequest(query='q', documents=<3 documents>, top_n=None, model=None, query_id=None)"
    )
    assert "<documents of a generator>" in repr(RerankRequest("q", _given(*LIST)))
    for printer in (repr, pprint.pformat, pretty, _rich, devtools.pformat):
        assert "canary-document" not in printer(request)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0, "0"),
        (-1.5, "-1.5"),
        (True, "True"),
        (None, "None"),
        ("10", "'10'"),
        (10**99, "1" + 39 * "0" + "…"),
        ("1e3", "'1e3'"),
        ("word", "a value of type str"),
        ("9" * 41, "a value of type str"),
        ([1], "a value of type list"),
        (Secret("k"), "a value of type Secret"),
    ],
)
def test_a_wrong_argument_is_repeated_where_it_cannot_be_a_text(value: Any, written: str) -> None:
    assert shown(value) == written


def test_a_trace_of_a_call_shows_no_key() -> None:
    """Every local of every frame of ours, at every line of a session's life and of a call."""
    shown: set[str] = set()

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if str(PACKAGE) not in frame.f_code.co_filename:
            return None
        # What the caller passes has its name until it is masked, in the first lines of these two.
        if frame.f_code.co_name not in ("of", "__new__"):
            for name, value in list(frame.f_locals.items()):
                if name == "api_key" and type(value) is str:
                    continue
                with suppress(AttributeError):
                    if KEY in repr(value):
                        shown.add(f"{name} in {frame.f_code.co_qualname}")
        return trace

    async def call() -> None:
        async with session_over(MemoryTransport(scoring(number_of))) as session:
            await session.rerank(QUERY, list(LIST))
        async with session_over(MemoryTransport(_quoting), **FAST) as session:
            with suppress(RerankError):
                await session.rerank(QUERY, list(LIST))

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        asyncio.run(call())
    finally:
        sys.settrace(before)
    # Where a server quotes the key, its answer is read before it is known to do so.
    assert {
        name for name in shown if not name.startswith(("body in", "answer in", "model in"))
    } == set()


# ── frames ──


def test_a_mistake_of_our_own_keeps_its_frames() -> None:
    scope: dict[str, Any] = {"__name__": "rerank_async._made_up"}
    exec("def inner(): 1 / 0\ndef outer(call): call()", scope)

    def users() -> None:
        raise LookupError

    with pytest.raises(ZeroDivisionError) as caught:
        scope["outer"](scope["inner"])
    hide_frames(caught.value)
    names = [frame.f_code.co_name for frame in _frames(caught.value.__traceback__)]
    assert names[-2:] == ["outer", "inner"]
    with pytest.raises(LookupError) as theirs:
        scope["outer"](users)
    hide_frames(theirs.value)
    names = [frame.f_code.co_name for frame in _frames(theirs.value.__traceback__)]
    assert names[-2:] == ["test_a_mistake_of_our_own_keeps_its_frames", "users"]


def test_session_refusals_do_not_show_the_key() -> None:
    for options in ({"timeout": -1}, {"chunks": 3}, {"base_url": "ftp://x"}, {"http": 3}):
        with pytest.raises(RerankError) as caught:
            RerankSession(**{"base_url": "https://x.test/v1", "api_key": KEY, **options})  # type: ignore[arg-type]
        for frame in _frames(caught.value.__traceback__):
            if str(PACKAGE) in frame.f_code.co_filename:
                for value in frame.f_locals.values():
                    assert_not_shown(value, (KEY,), without=("copy", "pickle"))


# ── excerpt ──


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"", "an empty body"),
        (b" \r\n\t", "a body without text"),
        (b"\x00\x1b\x7f", "a body without text"),
        (b"\xef\xbb\xbf", "a body without text"),
        (b"<html>down</html>", "<html>down</html>"),
        (b"\xef\xbb\xbfwords", "words"),
        (b"one\r\ntwo\tthree", "one two three"),
        (b"\x1b[31mred\x1b[0m", "[31mred [0m"),
        (b"a\x00b\x7fc\xc2\x85d", "a b c d"),
        ("a\u202eb\u2066c\u2028d\u2029e".encode(), "a b c d e"),
        (b"caf\xe9", "caf�"),
        ("検索".encode(), "検索"),
        (b"a" * 200, "a" * 200),
        (b"a" * 201, "a" * 199 + "…"),
        (b"a" * 10**6, "a" * 199 + "…"),
        ("😀".encode() * 200, "😀" * 200),
        ("😀".encode() * 201, "😀" * 200),
    ],
)
def test_an_excerpt_is_one_short_line_that_is_safe_to_print(body: bytes, shown: str) -> None:
    assert excerpt(body) == shown


@given(st.binary(max_size=2000) | st.text(max_size=600).map(lambda text: text.encode()))
def test_no_excerpt_is_long_or_holds_a_control_character(body: bytes) -> None:
    shown = excerpt(body)
    assert 0 < len(shown) <= 200
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)
    assert not set(shown) & set(
        "\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    )
    assert len(shown.splitlines()) == 1
