"""The wire itself, over loopback: what servers and networks do to a connection, byte by byte.

The servers are scripts over plain sockets; the session and aiohttp are real.
"""

from __future__ import annotations

import asyncio
import gzip
import pickle
import select
import socket
import ssl
import threading
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
import trustme
from aiohttp import http_parser
from aiohttp.client_proto import ResponseHandler

from rerank_async import (
    CertificateError,
    ChunkLimits,
    ConnectError,
    DeadlineExceededError,
    InvalidRequestError,
    RequestTimeoutError,
    RerankError,
    RerankSession,
    ResponseError,
    RetryPolicy,
    SessionClosedError,
    StatusError,
    TransportError,
)
from rerank_async._http import HttpRequest, HttpResponse
from rerank_async._transport import AiohttpTransport, _GuardedConnector, _StaleError
from tests.support import (
    KEY,
    Peer,
    Script,
    ScriptedServer,
    answer_body,
    assert_no_key,
    best_first,
    body_of,
    chunked,
    headers_of,
    http,
    numbered,
    replying,
    score,
    session_over,
    true_answer,
    until,
)

ONCE = RetryPolicy(attempts=1)
QUICK = RetryPolicy(base=1e-6, throttle_base=1e-6)
IMPATIENT = RetryPolicy(attempts=1, attempt_timeout=0.1)
TWO = ["document 1", "document 2"]


def session_to(server: ScriptedServer, retry: RetryPolicy = ONCE, **options: Any) -> RerankSession:
    return session_over(None, server.url, retry=retry, **options)


async def failing(session: RerankSession, expected: type[RerankError] = RerankError) -> Any:
    """The error of a call that must fail, looked through for the key."""
    with pytest.raises(expected) as caught:
        await session.rerank("q", TWO)
    assert_no_key(caught.value)
    return caught.value


def pooled(session: RerankSession) -> list[ResponseHandler]:
    """The idle connections of a session's own pool."""
    sender = session._sender
    assert sender is not None
    transport = sender.transport
    assert isinstance(transport, AiohttpTransport)
    connector = transport._http.connector
    assert connector is not None
    return [handler for idle in connector._conns.values() for handler, _ in idle]


# ── the ordinary case ──


async def test_the_request_on_the_wire_is_the_one_of_the_specification() -> None:
    async with ScriptedServer(score) as server, session_to(server) as session:
        await session.rerank("What?", TWO, top_n=1)
    [raw] = server.requests
    headers = headers_of(raw)
    assert raw.startswith(b"POST /v1/rerank HTTP/1.1\r\n")
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["content-type"] == "application/json"
    assert headers["host"] == f"127.0.0.1:{server.port}"
    assert headers["content-length"] == str(len(body_of(raw)))
    assert "cookie" not in headers
    assert orjson.loads(body_of(raw)) == {
        "model": "m",
        "query": "What?",
        "documents": TWO,
        "top_n": 1,
    }
    assert raw.count(KEY.encode()) == 1


async def test_calls_one_after_the_other_use_one_connection() -> None:
    async with ScriptedServer(score) as server, session_to(server) as session:
        for _ in range(10):
            await session.rerank("q", TWO)
    assert len(server.peers) == 1
    assert len(server.requests) == 10


async def test_there_are_no_more_connections_than_slots() -> None:
    async with ScriptedServer(score) as server, session_to(server, concurrency=3) as session:
        await asyncio.gather(*(session.rerank("q", TWO) for _ in range(30)))
    assert len(server.requests) == 30
    assert len(server.peers) == 3


async def test_more_than_a_hundred_requests_are_on_the_wire_at_once() -> None:
    everyone = asyncio.Event()

    async def together(peer: Peer) -> None:
        raw = await peer.request()
        if len(server.requests) == 150:
            everyone.set()
        await everyone.wait()
        await peer.send(http(true_answer(raw)))

    async with (
        ScriptedServer(together) as server,
        session_to(server, concurrency=150) as session,
    ):
        await asyncio.gather(*(session.rerank("q", TWO) for _ in range(150)))
    assert len(server.peers) == 150


async def test_errors_that_were_read_leave_their_connection_in_the_pool() -> None:
    # 404 is the whole request's; a 400 would be looked into, side by side.
    refusing = replying(*[http(b"{}" + b" " * 300_000, "404 Not Found")] * 5)
    async with ScriptedServer(refusing) as server, session_to(server) as session:
        for _ in range(5):
            await failing(session, StatusError)
    assert len(server.peers) == 1


async def test_a_body_above_a_mebibyte_is_sent_whole_and_without_warnings() -> None:
    documents = [f"document {n} " + "x" * 1000 for n in range(3000)]
    async with (
        ScriptedServer(score) as server,
        session_to(server, chunks=ChunkLimits(max_documents=None)) as session,
    ):
        response = await session.rerank("q", documents)
    assert len(body_of(server.requests[0])) > 3_000_000
    assert orjson.loads(body_of(server.requests[0]))["documents"] == documents
    assert list(response.results.indices) == best_first(documents)


async def test_a_refusal_that_comes_before_the_body_was_read_is_understood() -> None:
    async def refuse_early(peer: Peer) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_recv(peer.sock, 1000)
        await peer.send(http(b"{}", "413 Payload Too Large", "Connection: close"))
        await peer.until_gone()

    documents = ["x" * 3_000_000]
    async with ScriptedServer(refuse_early) as server, session_to(server) as session:
        with pytest.raises(StatusError) as caught:
            await session.rerank("q", documents)
    assert caught.value.status == 413


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
async def test_a_proxy_of_the_environment_gets_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    async with ScriptedServer(score) as proxy, ScriptedServer(score) as server:
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        async with session_to(server) as session:
            await session.rerank("q", TWO)
    assert len(server.requests) == 1
    assert proxy.peers == []


# ── F1: no connection ──


async def test_a_refused_connection_is_tried_as_often_as_the_policy_says() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    async with session_over(None, f"http://127.0.0.1:{port}/v1", retry=QUICK) as session:
        error = await failing(session, ConnectError)
        assert session.statistics().requests == 4
        assert session.statistics().retries == 3
    assert not isinstance(error, CertificateError)
    assert "attempt 4 of 4" in str(error)


async def test_a_name_that_does_not_resolve_is_a_connect_error() -> None:
    async with session_over(None, "https://nonexistent.invalid/v1", retry=ONCE) as session:
        error = await failing(session, ConnectError)
    assert "resolve" in str(error)


@pytest.mark.parametrize("lends", [False, True])
async def test_a_connection_that_never_comes_about_says_that_nobody_was_reached(
    lends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def say_nothing(peer: Peer) -> None:
        await peer.until_gone()

    # TLS that is asked for and never answered: a connection of which nothing comes.
    soon = aiohttp.ClientTimeout(total=None, connect=0.1)
    monkeypatch.setattr("rerank_async._transport._TIMEOUT", soon)
    async with (
        ScriptedServer(say_nothing) as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as lent,
    ):
        url = server.url.replace("http://", "https://")
        async with session_over(lent if lends else None, url, retry=ONCE) as session:
            error = await failing(session, RequestTimeoutError)
    # What a lent pool is full of may be what the server is at work on.
    assert error.reached is lends
    assert "no connection" in str(error)


@pytest.mark.parametrize("lends", [False, True])
@pytest.mark.parametrize("scheme", ["https", "http"])
async def test_an_attempt_that_is_cut_short_says_whether_there_was_a_connection(
    scheme: str, lends: bool
) -> None:
    async def say_nothing(peer: Peer) -> None:
        await peer.until_gone()

    policy = RetryPolicy(attempts=1, attempt_timeout=0.1)
    async with ScriptedServer(say_nothing) as server, aiohttp.ClientSession() as lent:
        url = server.url.replace("http://", f"{scheme}://")
        async with session_over(lent if lends else None, url, retry=policy) as session:
            error = await failing(session, RequestTimeoutError)
    # TLS that is asked for and never answered is no connection yet.
    assert error.reached is (lends or scheme == "http")
    assert ("no answer within" in str(error)) is error.reached
    assert ("no connection within" in str(error)) is not error.reached


async def test_a_job_gives_up_a_server_that_swallows_connections_whatever_the_attempts_time() -> (
    None
):
    async def say_nothing(peer: Peer) -> None:
        await peer.until_gone()

    policy = RetryPolicy(attempts=2, attempt_timeout=0.1, max_outage=2.0)
    async with ScriptedServer(say_nothing) as server:
        url = server.url.replace("http://", "https://")
        async with session_over(None, url, retry=policy, timeout=None) as session:
            error = await failing(session, RequestTimeoutError)
    assert "this server was not reached once" in str(error)


async def test_a_connection_that_is_refused_once_and_then_accepted_serves_the_call() -> None:
    async def refuse(peer: Peer) -> None:
        peer.reset()

    async with ScriptedServer(refuse, score) as server, session_to(server, QUICK) as session:
        await session.rerank("q", TWO)
        assert session.statistics().retries == 1


# ── F2: connections that died in the pool ──


def answer_once_then(end: Callable[[Peer], None]) -> tuple[Script, asyncio.Event]:
    """A script that answers one request and closes when the event is set."""
    now = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.send(http(true_answer(await peer.request())))
        await now.wait()
        end(peer)

    return script, now


@pytest.mark.parametrize("end", [Peer.close, Peer.reset], ids=["FIN", "RST"])
@pytest.mark.parametrize("count", [1, 3])
async def test_dead_pooled_connections_cost_no_retry(
    end: Callable[[Peer], None], count: int
) -> None:
    everyone = asyncio.Event()
    now = asyncio.Event()

    async def script(peer: Peer) -> None:
        raw = await peer.request()
        if len(server.requests) == count:
            everyone.set()
        await everyone.wait()
        await peer.send(http(true_answer(raw)))
        await now.wait()
        end(peer)

    async with (
        ScriptedServer(*[script] * count, score) as server,
        session_to(server) as session,
    ):
        await asyncio.gather(*(session.rerank("q", TWO) for _ in range(count)))
        assert len(pooled(session)) == count
        now.set()
        # The close lies in the kernel: the client's loop has not looked yet.
        await until(lambda: all(peer.sock.fileno() == -1 for peer in server.peers))
        await session.rerank("q", TWO)
        statistics = session.statistics()
    assert (statistics.requests, statistics.retries) == (count + 1, 0)
    assert len(server.peers) == count + 1


@pytest.mark.parametrize("end", [Peer.close, Peer.reset], ids=["FIN", "RST"])
@pytest.mark.parametrize("count", [1, 3])
async def test_a_pooled_connection_that_dies_under_the_request_costs_one_fresh_one(
    end: Callable[[Peer], None], count: int
) -> None:
    everyone = asyncio.Event()

    async def script(peer: Peer) -> None:
        raw = await peer.request()
        if len(server.requests) == count:
            everyone.set()
        await everyone.wait()
        await peer.send(http(true_answer(raw)))
        # The next request arrives, and finds nobody.
        await peer.request()
        end(peer)

    async with (
        ScriptedServer(*[script] * count, score) as server,
        session_to(server) as session,
    ):
        await asyncio.gather(*(session.rerank("q", TWO) for _ in range(count)))
        response = await session.rerank("q", TWO)
        statistics = session.statistics()
    assert len(response.results) == 2
    assert (statistics.requests, statistics.retries) == (count + 1, 0)
    assert statistics.resent == 1
    # Not another pooled one, which may be dead too: a fresh one.
    assert len(server.peers) == count + 1
    assert len(server.peers[-1].requests) == 1


async def test_a_fresh_connection_closed_without_an_answer_is_a_counted_retry() -> None:
    async def hang_up(peer: Peer) -> None:
        await peer.request()
        peer.close()

    async with ScriptedServer(hang_up, score) as server, session_to(server, QUICK) as session:
        await session.rerank("q", TWO)
        statistics = session.statistics()
    assert (statistics.requests, statistics.retries) == (2, 1)

    async with ScriptedServer(hang_up) as server, session_to(server) as session:
        await failing(session, TransportError)
    assert len(server.peers) == 1


async def test_the_second_try_on_a_fresh_connection_is_the_only_one() -> None:
    async def answer_then_hang_up(peer: Peer) -> None:
        await peer.send(http(true_answer(await peer.request())))
        await peer.request()
        peer.close()

    async def hang_up(peer: Peer) -> None:
        await peer.request()
        peer.close()

    async with (
        ScriptedServer(answer_then_hang_up, hang_up) as server,
        session_to(server) as session,
    ):
        await session.rerank("q", TWO)
        await failing(session, TransportError)
        assert session.statistics().retries == 0
    assert len(server.peers) == 2


async def test_a_reused_connection_cut_inside_the_answers_head_is_a_counted_retry() -> None:
    async def cut(peer: Peer) -> None:
        await peer.send(http(true_answer(await peer.request())))
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nConte")
        peer.close()

    async with ScriptedServer(cut, score) as server, session_to(server, QUICK) as session:
        await session.rerank("q", TWO)
        await session.rerank("q", TWO)
        # The server had begun to answer: it had looked at the request.
        assert session.statistics().retries == 1


# ── F3, F4, F6, F7, F8, F11: answers that break, stall, drip ──


async def test_a_reset_inside_the_answer_is_retried_on_another_connection() -> None:
    async def reset(peer: Peer) -> None:
        answer = http(true_answer(await peer.request()))
        await peer.send(answer[:-10])
        peer.reset()

    async with ScriptedServer(reset, score) as server, session_to(server, QUICK) as session:
        await session.rerank("q", TWO)
        assert session.statistics().retries == 1
    async with ScriptedServer(reset) as server, session_to(server) as session:
        await failing(session, TransportError)


async def hang(peer: Peer) -> None:
    await peer.request()
    await peer.until_gone()


async def test_a_server_that_never_answers_is_left_at_the_attempts_timeout() -> None:
    async with ScriptedServer(hang) as server, session_to(server, IMPATIENT) as session:
        error = await failing(session, RequestTimeoutError)
        assert "0.1 s" in str(error)
        await server.peers[0].gone.wait()
        assert pooled(session) == []


async def test_the_calls_deadline_closes_the_connection() -> None:
    async with ScriptedServer(hang) as server, session_to(server) as session:
        with pytest.raises(DeadlineExceededError) as caught:
            await session.rerank("q", TWO, timeout=0.1)
        assert_no_key(caught.value)
        await server.peers[0].gone.wait()


@pytest.mark.parametrize("where", ["head", "body", "1xx"])
async def test_an_answer_that_never_ends_is_left_at_the_attempts_timeout(where: str) -> None:
    async def drip(peer: Peer) -> None:
        raw = await peer.request()
        if where == "1xx":
            while True:
                await peer.send(b"HTTP/1.1 102 Processing\r\n\r\n")
                await asyncio.sleep(0)
        head, _, _ = http(true_answer(raw), length=10**6).partition(b"\r\n\r\n")
        await peer.send(head + (b"\r\n\r\n{" if where == "body" else b"\r\nX-Drip: "))
        while True:
            await peer.send(b" ")
            # Slow enough for its endlessness not to come near any limit of size.
            await asyncio.sleep(0.005)

    async with ScriptedServer(drip) as server, session_to(server, IMPATIENT) as session:
        await failing(session, RequestTimeoutError)
        await server.peers[0].gone.wait()


async def test_an_answer_that_comes_byte_by_byte_is_the_same_answer() -> None:
    documents = numbered(20)

    async def slow(peer: Peer) -> None:
        await peer.drip(http(true_answer(await peer.request())))
        await peer.drip(chunked(true_answer(await peer.request())))
        await peer.until_gone()

    async with ScriptedServer(slow) as server, session_to(server) as session:
        for _ in range(2):
            response = await session.rerank("q", documents)
            assert list(response.results.indices) == best_first(documents)
    assert len(server.peers) == 1


LENGTH = "Content-Length"
FRAMINGS: dict[str, Callable[[bytes], bytes]] = {
    LENGTH: http,
    "chunked": chunked,
    "until close": lambda body: b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body,
    "gzip": lambda body: http(gzip.compress(body, mtime=0), "200 OK", "Content-Encoding: gzip"),
}


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_an_answer_cut_after_any_byte_is_right_or_an_error_never_a_part(framing: str) -> None:
    whole = FRAMINGS[framing](answer_body([0.25, 0.75]))
    cut = 0

    async def cut_off(peer: Peer) -> None:
        await peer.request()
        await peer.send(whole[:cut])
        peer.close()

    right = 0
    async with ScriptedServer(cut_off) as server, session_to(server) as session:
        for place in range(len(whole) + 1):
            cut = place
            try:
                response = await session.rerank("q", TWO)
            except (TransportError, ResponseError) as error:
                assert_no_key(error)
            else:
                right += 1
                assert response.results.indices == (1, 0)
                assert response.results.scores == (0.75, 0.25)
        assert session.statistics().requests == len(whole) + 1
    assert right >= 1
    # With a length, nothing but the whole is right.
    assert right == 1 or framing != LENGTH


@pytest.mark.parametrize(
    "reply",
    [
        http(answer_body([0.25, 0.75]), length=10_000),
        chunked(answer_body([0.25, 0.75]))[:-5],
        chunked(answer_body([0.25, 0.75]), piece=1000).replace(b"\r\n0\r\n\r\n", b"\r\n5\r\n"),
        http(gzip.compress(answer_body([0.25, 0.75]))[:-30], "200 OK", "Content-Encoding: gzip"),
    ],
    ids=["length too long", "chunks cut", "chunk promised", "gzip cut"],
)
async def test_an_answer_shorter_than_it_says_is_an_error(reply: bytes) -> None:
    async def cut(peer: Peer) -> None:
        await peer.request()
        await peer.send(reply)
        peer.close()

    async with ScriptedServer(cut) as server, session_to(server) as session:
        error = await failing(session)
        assert isinstance(error, (TransportError, ResponseError))


# ── F12: what is not HTTP ──


@pytest.mark.parametrize(
    "reply",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Huge: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(5000)) + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nBad Header\x00: 1\r\n\r\n",
        b"Authorization: Bearer " + KEY.encode() + b"\r\n\r\n",
        http(b"not gzip at all", "200 OK", "Content-Encoding: gzip"),
    ],
    ids=[
        "another protocol",
        "garbage status",
        "huge header",
        "many headers",
        "length and chunks",
        "negative length",
        "two lengths",
        "bad chunk size",
        "NUL in a header",
        "the key echoed",
        "bad gzip",
    ],
)
async def test_what_is_not_http_is_an_error_of_ours_without_the_key(reply: bytes) -> None:
    async def babble(peer: Peer) -> None:
        await peer.request()
        await peer.send(reply)
        await peer.until_gone()

    async with ScriptedServer(babble) as server, session_to(server) as session:
        error = await failing(session)
        assert isinstance(error, (TransportError, ResponseError))
        await server.peers[0].gone.wait()


async def test_a_length_beside_chunks_does_not_lift_the_cap() -> None:
    sent = 0

    async def flood(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(
            b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        while True:
            await peer.send(b"10000\r\n" + b" " * 65536 + b"\r\n")
            sent += 65536

    async with ScriptedServer(flood) as server, session_to(server) as session:
        await failing(session)
        await server.peers[0].gone.wait()
    assert sent < 32 * 2**20


# ── F13: answers that nobody asked for ──

FORGED = answer_body([0.5, 0.125], model="forged")


def refuse(*args: Any) -> Any:
    raise ValueError("filedescriptor out of range in select()")


async def test_a_second_answer_in_the_same_packet_is_given_to_nobody() -> None:
    async def twice(peer: Peer) -> None:
        await peer.send(http(true_answer(await peer.request())) + http(FORGED))
        await score(peer)

    async with ScriptedServer(twice) as server, session_to(server) as session:
        for _ in range(6):
            response = await session.rerank("q", TWO)
            assert response.model == "m"
    assert [len(peer.requests) for peer in server.peers] == [1] * 6


@pytest.mark.parametrize(
    "unasked",
    [http(FORGED), http(b"", "408 Request Timeout"), b"HTTP/1.1 200 OK\r\nConte", b"\r\n", b"x"],
    ids=["an answer", "408", "half an answer", "line end", "one byte"],
)
@pytest.mark.parametrize("seen", [False, True], ids=["not read yet", "read"])
@pytest.mark.parametrize("way", ["poll", "select", "loop"])
async def test_a_connection_on_which_something_came_unasked_is_not_used_again(
    way: str, seen: bool, unasked: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way != "poll":
        monkeypatch.delattr(select, "poll", raising=False)
    if way == "loop":
        # As for a file numbered above 1,023.
        monkeypatch.setattr(select, "select", refuse)
    async with ScriptedServer(score) as server, session_to(server) as session:
        first = await session.rerank("q", TWO)
        [idle] = pooled(session)
        read = asyncio.Event()
        receive = ResponseHandler.data_received

        def received(self: ResponseHandler, data: bytes) -> None:
            receive(self, data)
            if self is idle:
                read.set()

        monkeypatch.setattr(ResponseHandler, "data_received", received)
        server.peers[0].send_now(unasked)
        if seen:
            await read.wait()
        else:
            assert readable(idle)
        second = await session.rerank("q", TWO)
        third = await session.rerank("q", TWO)
        assert session.statistics().retries == 0
    assert first == second == third
    assert [len(peer.requests) for peer in server.peers] == [1, 2]


def readable(handler: ResponseHandler) -> bool:
    assert handler.transport is not None
    return bool(WAITS([handler.transport.get_extra_info("socket").fileno()], [], [], 0)[0])


# Before a test takes it away.
WAITS = select.select


@pytest.mark.parametrize("way", ["select", "loop"])
async def test_a_connection_that_stayed_quiet_is_used_again_whoever_says_so(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(select, "poll", raising=False)
    if way == "loop":
        monkeypatch.setattr(select, "select", refuse)
    now = asyncio.Event()

    async def three(peer: Peer) -> None:
        for _ in range(3):
            await peer.send(http(true_answer(await peer.request())))
        await now.wait()
        peer.close()

    async with ScriptedServer(three, score) as server, session_to(server) as session:
        for _ in range(3):
            await session.rerank("q", TWO)
        # Closed, too, is something that the kernel knows and the loop has not heard of.
        now.set()
        await until(lambda: server.peers[0].sock.fileno() == -1)
        for _ in range(3):
            await session.rerank("q", TWO)
        assert session.statistics().retries == session.statistics().resent == 0
    assert [len(peer.requests) for peer in server.peers] == [3, 3]


async def test_aiohttp_still_asks_the_guard_for_every_connection_it_reuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When this fails, aiohttp was changed and the guard against unasked answers is off."""
    asked: list[bool] = []
    get = _GuardedConnector._get

    async def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        connection = await get(self, *args, **kwargs)
        asked.append(connection is not None)
        return connection

    monkeypatch.setattr(_GuardedConnector, "_get", counted)
    async with ScriptedServer(score) as server, session_to(server) as session:
        for _ in range(3):
            await session.rerank("q", TWO)
        assert session._sender is not None
        transport = session._sender.transport
        assert isinstance(transport, AiohttpTransport)
        assert type(transport._http.connector) is _GuardedConnector
    assert len(server.peers) == 1
    assert asked == [False, True, True]


# ── F15, F42, F43: statuses, redirects, cookies ──


@pytest.mark.parametrize(
    "status", ["101 Switching Protocols", "201 Created", "202 Accepted", "204 No Content", "206 P"]
)
async def test_a_success_other_than_200_is_a_status_error_asked_once(status: str) -> None:
    code = int(status.split()[0])
    reply = http(answer_body([0.25, 0.75]), status)
    if code == 101:
        reply = b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
    elif code == 204:
        reply = b"HTTP/1.1 204 No Content\r\n\r\n"
    async with (
        ScriptedServer(replying(reply, reply)) as server,
        session_to(server, QUICK) as session,
    ):
        error = await failing(session, StatusError)
    assert error.status == code
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 Temp", "308 Perm"])
async def test_a_redirect_is_an_error_and_its_target_gets_nothing(status: str) -> None:
    async with ScriptedServer(score) as other:
        reply = http(b"", status, f"Location: {other.url}/rerank")
        async with (
            ScriptedServer(replying(reply)) as server,
            session_to(server, QUICK) as session,
        ):
            error = await failing(session, StatusError)
        assert error.status == int(status.split()[0])
        assert len(server.requests) == 1
        assert other.peers == []


async def test_a_cookie_is_not_kept() -> None:
    async def baking(peer: Peer) -> None:
        while True:
            answer = true_answer(await peer.request())
            await peer.send(http(answer, "200 OK", "Set-Cookie: crumb=1; Path=/"))

    async with ScriptedServer(baking) as server:
        # By name: aiohttp's ordinary jar refuses cookies of bare addresses.
        url = f"http://localhost:{server.port}/v1"
        async with session_over(None, url, retry=ONCE) as session:
            for _ in range(2):
                await session.rerank("q", TWO)
    assert len(server.requests) == 2
    assert all("cookie" not in headers_of(raw) for raw in server.requests)


# ── F39 to F41: too much ──


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_small_answer_that_unpacks_to_a_huge_one_is_refused(framing: str) -> None:
    bomb = gzip.compress(b" " * (64 * 2**20))
    head = "Content-Encoding: gzip"
    if framing == "length":
        reply = http(bomb, "200 OK", head)
    else:
        reply = chunked(bomb, piece=2**16).replace(b"\r\n\r\n", f"\r\n{head}\r\n\r\n".encode(), 1)

    async with ScriptedServer(replying(reply)) as server, session_to(server) as session:
        tracemalloc.start()
        try:
            await failing(session, ResponseError)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        await server.peers[0].gone.wait()
        assert pooled(session) == []
    assert peak < 32 * 2**20


async def test_an_answer_that_says_it_is_too_long_is_not_read() -> None:
    async def long_winded(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
        await peer.until_gone()

    async with ScriptedServer(long_winded) as server, session_to(server) as session:
        await failing(session, ResponseError)
        await server.peers[0].gone.wait()


@pytest.mark.parametrize("framing", ["chunked", "until close"])
async def test_an_answer_without_end_is_read_no_further_than_it_can_be_needed(framing: str) -> None:
    sent = 0

    async def endless(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        how = b"Transfer-Encoding: chunked" if framing == "chunked" else b"Connection: close"
        await peer.send(b"HTTP/1.1 200 OK\r\n" + how + b"\r\n\r\n")
        piece = b" " * 65536
        while True:
            await peer.send(b"10000\r\n" + piece + b"\r\n" if framing == "chunked" else piece)
            sent += len(piece)

    async with ScriptedServer(endless) as server, session_to(server) as session:
        await failing(session, ResponseError)
        await server.peers[0].gone.wait()
    # The cap is about 1 MiB; the rest lies in the buffers of the kernel.
    assert sent < 32 * 2**20


# ── F44: the key ──


async def test_a_server_that_echoes_all_it_got_does_not_get_the_key_into_the_error() -> None:
    async def echo(peer: Peer) -> None:
        while True:
            raw = await peer.request()
            mirrored = orjson.dumps({"error": {"message": raw.decode()}})
            await peer.send(http(mirrored, "400 Bad Request"))

    async with ScriptedServer(echo) as server, session_to(server) as session:
        error = await failing(session, StatusError)
    assert "POST /v1/rerank" in str(error)


# ── F49: TLS ──


def tls_score(authority: trustme.CA, name: str, port: list[int]) -> Any:
    """A TLS server that scores, as an asyncio server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(int(headers_of(head)["content-length"]))
            writer.write(http(true_answer(head + body), "200 OK", "Connection: close"))
            await writer.drain()
            port.append(1)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    return asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)


@pytest.mark.parametrize("name", ["127.0.0.1", "elsewhere.test"])
async def test_a_certificate_that_proves_nothing_is_an_error_asked_once(name: str) -> None:
    authority = trustme.CA()
    served: list[int] = []
    server = await tls_score(authority, name, served)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    trusting = ssl.create_default_context()
    if name == "elsewhere.test":
        authority.configure_trust(trusting)
    async with (
        server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting)) as lent,
    ):
        for lending in (None, lent):
            async with session_over(lending, url, retry=QUICK) as session:
                error = await failing(session, CertificateError)
                assert "local issuer" in str(error) or "mismatch" in str(error)
                assert session.statistics().requests == 1
    assert served == []


async def test_a_lent_session_brings_its_own_certificate_authority() -> None:
    authority = trustme.CA()
    server = await tls_score(authority, "127.0.0.1", [])
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    connector = aiohttp.TCPConnector(ssl=trusting)
    async with server, aiohttp.ClientSession(connector=connector) as lent:
        async with session_over(lent, url, retry=ONCE) as session:
            response = await session.rerank("q", TWO)
        assert not lent.closed
    assert response.results.indices == (1, 0)


# ── a lent session ──


def fresh_documents(number: int) -> list[str]:
    """As many as in every other call, and with another ranking in the next one."""
    return [f"document {(number * 7919 + place * 31) % 97}" for place in range(6)]


async def wrong_rankings(server: ScriptedServer, sessions: list[RerankSession]) -> int:
    wrong = 0
    for number in range(20):
        documents = fresh_documents(number)
        response = await sessions[number % len(sessions)].rerank("q", documents)
        wrong += list(response.results.indices) != best_first(documents)
        # The same answer once more, on the connection that has just become idle.
        [peer] = [peer for peer in server.peers if peer.requests[-1:] == server.requests[-1:]]
        peer.send_now(http(true_answer(peer.requests[-1])))
    return wrong


@pytest.mark.parametrize("count", [1, 2], ids=["one session", "two over one pool"])
@pytest.mark.parametrize("whose", ["own", "lent", "shared connector"])
async def test_a_server_that_repeats_its_answers_ranks_nothing_wrong(
    whose: str, count: int
) -> None:
    async with (
        ScriptedServer(score) as server,
        aiohttp.TCPConnector() as connector,
        aiohttp.ClientSession(connector=connector, connector_owner=False) as one,
        aiohttp.ClientSession(connector=connector, connector_owner=False) as other,
    ):
        kinds: dict[str, list[aiohttp.ClientSession | None]] = {
            "own": [None],
            "lent": [one],
            "shared connector": [one, other],
        }
        lent = kinds[whose]
        sessions = [session_over(lent[n % len(lent)], server.url) for n in range(count)]
        async with AsyncExitStack() as stack:
            for session in sessions:
                await stack.enter_async_context(session)
            assert await wrong_rankings(server, sessions) == 0


async def test_a_connection_that_the_lender_opened_before_is_not_ours_to_use() -> None:
    async with ScriptedServer(score) as server, aiohttp.ClientSession() as lent:
        body = orjson.dumps({"model": "m", "query": "q", "documents": TWO})

        async def ask() -> None:
            async with lent.post(f"{server.url}/rerank", data=body) as response:
                await response.read()

        await ask()
        async with session_over(lent, server.url) as session:
            # A late answer to the lender's request, read where nobody watched for it.
            server.peers[0].send_now(http(FORGED)[:20])
            response = await session.rerank("q", TWO)
            assert response.model == "m"
            assert [len(peer.requests) for peer in server.peers] == [1, 1]
            # What is opened from now on is watched, and shared.
            await ask()
            await session.rerank("q", TWO)
        assert [len(peer.requests) for peer in server.peers] == [1, 3]
        # And the lender's own requests find the pool as it was.
        await ask()
    assert [len(peer.requests) for peer in server.peers] == [1, 4]


async def test_a_late_answer_to_the_lenders_request_is_not_taken_for_ours() -> None:
    async with (
        ScriptedServer(score) as server,
        aiohttp.ClientSession() as lent,
        session_over(lent, server.url) as session,
    ):
        body = orjson.dumps({"model": "m", "query": "q", "documents": TWO})
        async with lent.post(f"{server.url}/rerank", data=body) as response:
            await response.read()
        server.peers[0].send_now(http(FORGED))
        assert (await session.rerank("q", TWO)).model == "m"
    assert [len(peer.requests) for peer in server.peers] == [1, 1]


@pytest.mark.parametrize("end", [Peer.close, Peer.reset], ids=["FIN", "RST"])
async def test_a_lent_connection_that_dies_under_the_request_costs_one_fresh_one(
    end: Callable[[Peer], None],
) -> None:
    async def script(peer: Peer) -> None:
        await peer.send(http(true_answer(await peer.request())))
        await peer.request()
        end(peer)

    async with (
        ScriptedServer(script, score) as server,
        aiohttp.ClientSession() as lent,
        session_over(lent, server.url, retry=ONCE) as session,
    ):
        await session.rerank("q", TWO)
        await session.rerank("q", TWO)
        statistics = session.statistics()
    assert (statistics.requests, statistics.retries, statistics.resent) == (2, 0, 1)


class Connector(aiohttp.TCPConnector):
    """Somebody's own, which may do what it likes."""


class Lookalike:
    """As the sessions of retrying clients and of test doubles are."""

    connector = None

    def __init__(self, inner: aiohttp.ClientSession) -> None:
        self._inner = inner
        self.closed = False

    def request(self, *args: Any, **kwargs: Any) -> Any:
        return self._inner.request(*args, **kwargs)


@pytest.mark.parametrize("kind", ["subclass", "unix", "lookalike"])
async def test_what_cannot_be_guarded_is_refused_unless_it_is_allowed(
    kind: str, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(ScriptedServer(score))
        connector: aiohttp.BaseConnector = Connector()
        if kind == "unix":
            connector = aiohttp.UnixConnector(str(tmp_path / "s"))
        inner = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        lent: Any = Lookalike(inner) if kind == "lookalike" else inner
        with pytest.raises(InvalidRequestError, match="allow_unguarded_http=True") as caught:
            session_over(lent, server.url)
        said = {"subclass": "Connector", "unix": "UnixConnector", "lookalike": "Lookalike"}[kind]
        assert f"over {said};" in str(caught.value)
        assert_no_key(caught.value)
        session = await stack.enter_async_context(
            session_over(lent, server.url, allow_unguarded_http=True, retry=ONCE)
        )
        if kind != "unix":
            assert (await session.rerank("q", TWO)).model == "m"


async def test_only_the_pool_that_is_lent_is_changed() -> None:
    async with aiohttp.ClientSession() as lent, aiohttp.ClientSession() as other:
        get, release = aiohttp.TCPConnector._get, aiohttp.TCPConnector._release
        session_over(lent)
        session_over(lent)
        assert type(lent.connector) is _GuardedConnector
        assert type(other.connector) is aiohttp.TCPConnector
        assert (aiohttp.TCPConnector._get, aiohttp.TCPConnector._release) == (get, release)
        assert lent.connector.limit == 100


async def test_a_lent_session_that_raises_for_status_changes_no_error() -> None:
    reply = http(b'{"error": {"message": "who are you?"}}', "401 Unauthorized")
    async with (
        ScriptedServer(replying(*[reply] * 4)) as server,
        aiohttp.ClientSession(raise_for_status=True) as lent,
        session_over(lent, server.url, retry=QUICK) as session,
    ):
        error = await failing(session, StatusError)
    assert error.status == 401
    assert error.message == "who are you?"
    assert len(server.requests) == 1


async def test_a_lent_session_that_closes_during_a_call_is_an_error_of_ours() -> None:
    async with (
        ScriptedServer(hang) as server,
        aiohttp.ClientSession() as lent,
        session_over(lent, server.url, retry=QUICK) as session,
    ):
        call = asyncio.create_task(session.rerank("q", TWO))
        await until(lambda: len(server.requests) == 1, "the request")
        await lent.close()
        with pytest.raises((TransportError, SessionClosedError)) as caught:
            await call
        assert_no_key(caught.value)


# ── cancelling and closing ──


async def test_cancelling_a_call_closes_its_connection_and_frees_its_slot() -> None:
    async with (
        ScriptedServer(hang, score) as server,
        session_to(server, concurrency=1) as session,
    ):
        call = asyncio.create_task(session.rerank("q", TWO))
        await until(lambda: len(server.requests) == 1, "the request")
        call.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await call
        assert_no_key(caught.value)
        await server.peers[0].gone.wait()
        assert session.statistics().in_flight == 0
        await session.rerank("q", TWO)
    assert len(server.peers) == 2


async def test_closing_a_session_ends_calls_on_the_wire_and_closes_every_connection() -> None:
    async def answer_one(peer: Peer) -> None:
        raw = await peer.request()
        if b"quick" in raw:
            await peer.send(http(true_answer(raw)))
            await peer.request()
        await peer.until_gone()

    async with ScriptedServer(answer_one) as server:
        session = session_to(server, QUICK)
        await session.rerank("quick", TWO)
        calls = [asyncio.create_task(session.rerank("q", TWO)) for _ in range(4)]
        await until(lambda: len(server.requests) == 5, "the requests")
        await session.close()
        assert all(call.done() for call in calls)
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert type(outcome) is SessionClosedError
            assert_no_key(outcome)
        await asyncio.gather(*(peer.gone.wait() for peer in server.peers))


async def test_cancelling_while_connecting_leaves_nothing_open() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    async with session_over(
        None, f"http://127.0.0.1:{listener.getsockname()[1]}/v1", retry=ONCE, concurrency=8
    ) as session:
        calls = [asyncio.create_task(session.rerank("q", TWO)) for _ in range(8)]
        await until(lambda: session.statistics().in_flight == 8)
        for call in calls:
            call.cancel()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
        assert session.statistics().in_flight == 0
    listener.close()


# ── answers at odd times and of odd sizes ──


async def test_an_answer_that_comes_before_the_request_was_sent_whole_is_not_believed() -> None:
    async def early(peer: Peer) -> None:
        await peer.send(http(answer_body([0.9])))
        await peer.gone.wait()

    async with ScriptedServer(early) as server, session_to(server) as session:
        # More than the system's buffers take.
        with pytest.raises(TransportError, match="before the request was sent whole"):
            await session.rerank("q", ["x" * 40_000_000])


async def test_a_large_error_page_keeps_its_status_and_is_retried() -> None:
    page = http(b"<html>" + b"overloaded " * 200_000, status="503 Service Unavailable")
    async with (
        ScriptedServer(replying(page), score) as server,
        session_to(server, RetryPolicy(throttle_base=1e-6)) as session,
    ):
        await session.rerank("q", TWO)
        assert session.statistics().retries == 1


@pytest.mark.looptime
async def test_the_second_try_on_a_fresh_connection_has_what_is_left_of_the_time() -> None:
    tries = 0

    class Slow(AiohttpTransport):
        async def _exchange(self, *arguments: Any) -> HttpResponse:
            nonlocal tries
            tries += 1
            await asyncio.sleep(3)
            raise _StaleError

    transport = Slow()
    began = asyncio.get_running_loop().time()
    try:
        request = HttpRequest("POST", "http://127.0.0.1:1/v1/rerank", {}, b"{}")
        with pytest.raises(RequestTimeoutError):
            await transport.exchange(request, body_limit=100, timeout=5.0)
    finally:
        await transport.close()
    assert tries == 2
    assert asyncio.get_running_loop().time() - began == pytest.approx(5.0)


async def test_a_cancellation_that_nobody_asked_for_is_a_failure_of_the_exchange(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def cancelled(*args: Any, **kwargs: Any) -> Any:
        raise asyncio.CancelledError

    monkeypatch.setattr(aiohttp.ClientSession, "_request", cancelled)
    async with session_over(None, "http://127.0.0.1:1/v1", retry=ONCE) as session:
        with pytest.raises(TransportError, match="cancelled from outside"):
            await session.rerank("q", TWO)


async def test_tls_towards_a_server_without_it_is_no_connection_and_says_what_it_looks_like() -> (
    None
):
    async def plain(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    async with ScriptedServer(plain) as server:
        url = server.url.replace("http://", "https://")
        async with session_over(None, url, retry=ONCE) as session:
            error = await failing(session, ConnectError)
    assert "could not connect: " in str(error)
    assert "does the server speak http:// and not https://?" in str(error)


# ── what is final is not repeated, and says what it was ──

PACKED = gzip.compress(answer_body([0.5, 0.25]))
FINAL = {
    "TLS": (b"\x15\x03\x01\x00\x02\x02\x16", "does the server speak https://"),
    "SSH": (b"SSH-2.0-OpenSSH_9.6\r\n", "it looks like SSH"),
    "mail": (b"220 mail.example.test ESMTP\r\n", "a mail or FTP server"),
    "HTTP/2": (bytes.fromhex("000006040000000000000400000000"), "HTTP/2 alone"),
    "huge header": (
        b"HTTP/1.1 200 OK\r\nX-H: " + b"x" * 100_000 + b"\r\n\r\n",
        "head of the answer",
    ),
    "many headers": (
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(5000)) + b"\r\n",
        "head of the answer",
    ),
    "bad gzip": (http(b"not gzip", "200 OK", "Content-Encoding: gzip"), "not compressed as gzip"),
    "bad deflate": (
        http(b"\xff\xfe\xfd", "200 OK", "Content-Encoding: deflate"),
        "not compressed as deflate",
    ),
    "damaged gzip": (
        http(gzip.compress(b"12345" * 1000)[:40] + b"x" * 84, "200 OK", "Content-Encoding: gzip"),
        "not compressed as gzip",
    ),
    "gzip twice": (
        http(gzip.compress(PACKED), "200 OK", "Content-Encoding: gzip, gzip"),
        "compressed as more than one thing",
    ),
    "x-gzip": (http(PACKED, "200 OK", "Content-Encoding: x-gzip"), "compressed as x-gzip"),
    "a secret": (
        http(PACKED, "200 OK", f"Content-Encoding: {KEY}"),
        "compressed as something unknown here",
    ),
}
PASSING = {
    "no status line": (b"-ERR wrong number of arguments\r\n", "begins with no status line"),
    "garbage status": (b"HTTP/1.1 abc OK\r\n\r\n", "begins with no status line"),
    "negative length": (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", "not valid HTTP"),
    "bad chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "not valid HTTP"),
    "cut": (http(b"{}", length=500), "broke off before its end"),
    "HTML, packed": (
        http(gzip.compress(b"<html>"), "200 OK", "Content-Encoding: gzip"),
        "not JSON",
    ),
}


@pytest.mark.parametrize("name", [*FINAL, *PASSING])
async def test_what_would_come_again_is_asked_for_once_and_the_rest_as_often_as_allowed(
    name: str,
) -> None:
    reply, said = {**FINAL, **PASSING}[name]

    async def babble(peer: Peer) -> None:
        await peer.request()
        await peer.send(reply)
        peer.close()

    async with ScriptedServer(babble) as server, session_to(server, QUICK) as session:
        error = await failing(session)
        assert said in str(error)
        assert session.statistics().requests == (1 if name in FINAL else 4)
    assert (error.condemns is None) == (name in PASSING)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.condemns) == (str(error), error.condemns)


@pytest.mark.parametrize(("name", "package"), [("br", "Brotli"), ("zstd", "backports.zstd")])
async def test_an_encoding_that_needs_a_package_names_it(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for has in ("HAS_BROTLI", "HAS_ZSTD"):
        monkeypatch.setattr(http_parser, has, False)
    reply = http(b"\x0b\x02\x80{}\x03", "200 OK", f"Content-Encoding: {name}")
    async with (
        ScriptedServer(replying(*[reply] * 4)) as server,
        session_to(server, QUICK) as session,
    ):
        error = await failing(session, ResponseError)
    assert f"compressed as {name}" in str(error)
    assert package in str(error)
    assert len(server.requests) == 1


async def test_an_odd_encoding_of_an_answer_that_can_be_read_is_passed_over() -> None:
    async def odd(peer: Peer) -> None:
        while True:
            answer = true_answer(await peer.request())
            await peer.send(http(b"\n" + answer, "200 OK", "Content-Encoding: utf-8"))

    async with ScriptedServer(odd) as server, session_to(server) as session:
        response = await session.rerank("q", TWO)
    assert response.results.indices == (1, 0)


async def test_a_refusal_whose_words_cannot_be_decoded_keeps_its_status() -> None:
    reply = http(b"not gzip", "401 Unauthorized", "Content-Encoding: gzip")
    async with (
        ScriptedServer(replying(*[reply] * 4)) as server,
        session_to(server, QUICK) as session,
    ):
        error = await failing(session, StatusError)
    assert error.status == 401
    assert len(server.requests) == 1


# ── TLS that will not come about ──


@contextmanager
def tls_server(change: Callable[[ssl.SSLContext, trustme.CA], None]) -> Iterator[tuple[str, Any]]:
    """A server that says why it ends a handshake, as asyncio's does not; URL and trust for it."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    change(context, authority)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            # A handshake that fails in wrap_socket would close the socket with bytes unread, and
            # the reset that follows takes the alert with it.
            with context.wrap_socket(
                sock, server_side=True, do_handshake_on_connect=False
            ) as wrapped:
                with suppress(OSError):
                    wrapped.do_handshake()
                    wrapped.recv(65536)
                with suppress(OSError):
                    wrapped.shutdown(socket.SHUT_WR)
                    while wrapped.recv(65536):
                        pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"https://127.0.0.1:{listener.getsockname()[1]}/v1", trusting
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def only_tls_1_1(context: ssl.SSLContext, authority: trustme.CA) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")


def ask_for_a_certificate(context: ssl.SSLContext, authority: trustme.CA) -> None:
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)


def ask_before_tls_1_3(context: ssl.SSLContext, authority: trustme.CA) -> None:
    ask_for_a_certificate(context, authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2


def without_a_common_cipher(context: ssl.SSLContext, authority: trustme.CA) -> None:
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ADH:@SECLEVEL=0")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (only_tls_1_1, "no version of TLS in common"),
        (ask_for_a_certificate, "asks for a client certificate"),
        (ask_before_tls_1_3, "asks for a client certificate"),
        (without_a_common_cipher, "no cipher in common"),
    ],
)
async def test_two_sides_of_tls_that_do_not_agree_are_not_asked_again(
    change: Callable[[ssl.SSLContext, trustme.CA], None], said: str
) -> None:
    with tls_server(change) as (url, trusting):
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting)) as lent,
            session_over(lent, url, retry=QUICK) as session,
        ):
            error = await failing(session, ConnectError)
            assert said in str(error)
            assert error.condemns == "session"
            assert session.statistics().requests == 1


# ── proxies ──


@pytest.mark.parametrize(
    ("status", "requests"),
    [
        ("407 Proxy Authentication Required", 1),
        ("403 Forbidden", 1),
        ("302 Found", 1),
        ("429 Too Many Requests", 4),
        ("502 Bad Gateway", 4),
        ("504 Gateway Timeout", 4),
    ],
)
async def test_a_proxy_that_refuses_to_connect_is_named_and_asked_again_where_that_helps(
    status: str, requests: int
) -> None:
    async def refuse_all(peer: Peer) -> None:
        # CONNECT has no body, and thus no length.
        loop = asyncio.get_running_loop()
        assert (await loop.sock_recv(peer.sock, 65536)).startswith(b"CONNECT ")
        await peer.send(http(b"no", status, f"X-Echo: {KEY}"))
        await peer.until_gone()

    async with (
        ScriptedServer(refuse_all) as proxy,
        aiohttp.ClientSession(proxy=f"http://127.0.0.1:{proxy.port}") as lent,
        session_over(lent, "https://server.test/v1", retry=QUICK) as session,
    ):
        error = await failing(session, ConnectError)
        assert f"the proxy answered {status[:3]}" in str(error)
        assert ("credentials" in str(error)) == status.startswith("407")
        assert session.statistics().requests == requests
    assert error.condemns == ("session" if requests == 1 else None)


async def test_a_proxy_that_is_not_there_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    async with (
        aiohttp.ClientSession(proxy=f"http://127.0.0.1:{port}") as lent,
        session_over(lent, "https://server.test/v1", retry=QUICK) as session,
    ):
        error = await failing(session, ConnectError)
        assert "could not connect to the proxy: " in str(error)
        assert session.statistics().requests == 4


@pytest.mark.parametrize(("status", "requests"), [(401, 1), (400, 1), (503, 4), (429, 4)])
async def test_what_a_lent_sessions_middleware_raises_for_an_answer_is_said(
    status: int, requests: int
) -> None:
    async def raising(request: Any, handler: Any) -> Any:
        response = await handler(request)
        response.raise_for_status()
        return response

    reply = http(b"{}", f"{status} No")
    async with (
        ScriptedServer(replying(*[reply] * 4)) as server,
        aiohttp.ClientSession(middlewares=(raising,)) as lent,
        session_over(lent, server.url, retry=QUICK) as session,
    ):
        error = await failing(session, TransportError)
        assert f"raised ClientResponseError for an answer of status {status}" in str(error)
        assert session.statistics().requests == requests
