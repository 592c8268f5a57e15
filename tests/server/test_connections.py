"""Connections over real loopback sockets, told byte by byte what an attacker would send."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

import pytest
from attrs import define

from rerank_async.server import Limits, LocalServer, engines
from rerank_async.server.engines import Scored

KEY = "sk-only-on-these-wires-77c1"
RIGHT = f"Authorization: Bearer {KEY}\r\n".encode()
WRONG = b"Authorization: Bearer sk-this-is-another-one\r\n"
BODY = json.dumps({"model": "m", "query": "file", "documents": ["a file", "a door"]}).encode()
HEALTH = b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n"
LAST_HEALTH = b"GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
MIB = 2**20


def post(
    *headers: bytes, body: bytes = BODY, key: bytes = RIGHT, length: int | None = None
) -> bytes:
    """A request; `length` is what it says of its body, -1 for nothing."""
    length = len(body) if length is None else length
    more = b"".join(header + b"\r\n" for header in headers)
    if length >= 0:
        more += b"Content-Length: %d\r\n" % length
    kind = b"Content-Type: application/json\r\n"
    return b"POST /v1/rerank HTTP/1.1\r\nHost: h\r\n" + key + kind + more + b"\r\n" + body


def chunked(body: bytes) -> bytes:
    return b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"


@define
class Wire:
    """A client that knows no HTTP but what it needs to tell answers apart."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer: its status, its headers in lower case, its body."""
        async with asyncio.timeout(30):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
            headers = {
                name.lower(): value.strip()
                for name, _, value in (line.partition(":") for line in lines)
            }
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return int(first.split()[1]), headers, body

    async def error(self) -> tuple[int, str]:
        """The next answer, which must be a refusal in our form: its status and code."""
        status, headers, body = await self.answer()
        assert headers["content-type"] == "application/json"
        error = json.loads(body)["error"]
        assert list(error) == ["message", "type", "param", "code"]
        return status, error["code"]

    async def ended(self) -> bytes:
        """What still comes until the server closes the connection."""
        async with asyncio.timeout(30):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""


def port_of(server: LocalServer) -> int:
    return int(server.url.rpartition(":")[2].partition("/")[0])


@asynccontextmanager
async def wire(server: LocalServer, sent: bytes = b"") -> AsyncGenerator[Wire, None]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
    writer.write(sent)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()


@pytest.fixture
async def server() -> AsyncGenerator[LocalServer, None]:
    async with LocalServer(api_key=KEY) as one:
        yield one


def places(server: LocalServer) -> Any:
    assert server._doors is not None
    return server._doors.places


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.to_thread(threading.Event().wait, 0.001)


MALFORMED: dict[str, tuple[bytes, int]] = {
    "space after a name": (post(key=f"Authorization : Bearer {KEY}\r\n".encode()), 400),
    "NUL in a value": (post(key=f"Authorization: Bearer {KEY}\0\r\n".encode()), 400),
    "bare CR": (post(key=f"Authorization: Bearer {KEY}\rX: y\r\n".encode()), 400),
    "folded header": (post(b"X: " + KEY.encode() + b"\r\n more"), 400),
    "two keys": (post(RIGHT.rstrip()), 400),
    "no colon": (post(KEY.encode()), 400),
    "header too long": (post(b"X: " + KEY.encode() * 1000), 431),
    "name too long": (post(KEY.encode() * 1000 + b": x"), 431),
    "too many headers": (post(*[b"X: " + KEY.encode()] * 150), 431),
    "head too long": (post(*[b"X: " + b"y" * 1000] * 90), 431),
    "endless header": (post(b"X: " + KEY.encode() * 40_000), 431),
    "target too long": (b"GET /" + KEY.encode() * 500 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 414),
    "not a method": (b"GIVE@ /" + KEY.encode() + b" HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "method in small letters": (b"get /health HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "HTTP/2 in words": (b"GET /health HTTP/2.0\r\nHost: h\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /" + KEY.encode() + b"\r\n\r\n", 400),
    "TLS": (bytes.fromhex("16030100a5010000a10303") + KEY.encode() * 8, 400),
    "zeros": (bytes(5000), 400),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET /health HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n", 400),
    "two lengths": (post(b"Content-Length: 3"), 400),
    "length and chunks": (post(b"Transfer-Encoding: chunked"), 400),
    "negative length": (post(b"Content-Length: -3", length=-1), 400),
    "length no machine has": (post(b"Content-Length: 1" + b"0" * 40, length=-1), 400),
    "bad chunk size": (post(b"Transfer-Encoding: chunked", length=-1, body=KEY.encode()), 400),
    "bad second chunk": (
        post(b"Transfer-Encoding: chunked", length=-1, body=b"3\r\n{  \r\n" + KEY.encode()), 400
    ),
}  # fmt: skip


class TestAMalformedRequest:
    @pytest.mark.parametrize("name", MALFORMED)
    async def test_is_one_line_in_the_log_and_an_answer_of_ours_without_its_content(
        self, server: LocalServer, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        sent, status = MALFORMED[name]
        with caplog.at_level(logging.INFO):
            async with wire(server, sent) as client:
                answered, headers, body = await client.answer()
                assert await client.ended() == b""
        assert answered == status
        assert headers["content-type"] == "application/json"
        assert list(json.loads(body)["error"]) == ["message", "type", "param", "code"]
        [record] = [one for one in caplog.records if one.name != "asyncio"]
        assert (record.name, record.levelname) == ("rerank_async.server", "WARNING")
        assert record.exc_info is None
        line = record.getMessage()
        assert line.startswith("malformed request from 127.0.0.1: ")
        assert len(line) < 200
        assert "\n" not in line
        for piece in (KEY, KEY[:10], "yyyy"):
            assert piece not in line + str(headers) + body.decode()

    async def test_in_a_flood_is_counted(
        self, server: LocalServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(80):
            async with wire(server, b"nonsense\r\n\r\n") as client:
                assert (await client.error())[0] == 400
        assert len(caplog.records) <= 60
        await server.__aexit__(None, None, None)
        assert "more malformed requests" in caplog.records[-1].getMessage()

    async def test_behind_a_good_one_lets_the_good_one_be_answered(
        self, server: LocalServer
    ) -> None:
        async with wire(server, HEALTH + post()) as client:
            assert (await client.answer())[0] == 200
            client.writer.write(b"nonsense\r\n\r\n")
            assert (await client.answer())[0] == 200
            assert await client.error() == (400, "malformed_request")
            assert await client.ended() == b""

    async def test_of_another_transfer_encoding_is_answered_501(self, server: LocalServer) -> None:
        sent = post(b"Transfer-Encoding: gzip, chunked", length=-1, body=b"0\r\n\r\n")
        async with wire(server, sent) as client:
            assert await client.error() == (501, "unsupported_encoding")


class TestARefusedBody:
    @pytest.mark.parametrize(
        ("headers", "key", "status"),
        [
            ([], WRONG, 401),
            ([], b"", 401),
            ([b"Content-Encoding: br"], RIGHT, 415),
            ([b"Expect: tea"], RIGHT, 417),
        ],
    )
    async def test_is_not_kept_and_the_client_hears_why_although_it_goes_on_sending(
        self, server: LocalServer, headers: list[bytes], key: bytes, status: int
    ) -> None:
        sent = post(*headers, key=key, body=b"", length=64 * MIB)
        async with wire(server, sent) as client:
            for _ in range(64):
                client.writer.write(bytes(MIB))
                await client.writer.drain()
            answered, headers_back, _ = await client.answer()
            assert (answered, headers_back["connection"]) == (status, "close")
            assert await client.ended() == b""
        assert server._bodies.free == server._bodies.total

    async def test_is_not_waited_for(self, server: LocalServer) -> None:
        async with wire(server, post(key=WRONG, body=b"", length=MIB)) as client:
            assert (await client.answer())[0] == 401
            assert await client.ended() == b""

    async def test_that_is_chunked_is_not_kept_either(self, server: LocalServer) -> None:
        head = post(b"Transfer-Encoding: chunked", key=WRONG, length=-1, body=b"")
        async with wire(server, head) as client:
            assert (await client.answer())[0] == 401
            client.writer.write((b"%x\r\n" % MIB + bytes(MIB) + b"\r\n") * 8)
            assert await client.ended() == b""

    async def test_that_was_there_already_does_not_cost_the_connection(
        self, server: LocalServer
    ) -> None:
        async with wire(server, post(key=WRONG)) as client:
            assert await client.error() == (401, "invalid_api_key")
            client.writer.write(post())
            assert (await client.answer())[0] == 200

    async def test_behind_a_good_request_is_refused_after_it(self, server: LocalServer) -> None:
        sent = HEALTH + post() + post(key=WRONG, body=bytes(MIB)) + LAST_HEALTH
        async with wire(server, sent) as client:
            assert [(await client.answer())[0] for _ in range(3)] == [200, 200, 401]
            assert await client.ended() == b""

    async def test_over_the_limit_is_refused_before_and_while_it_comes(self) -> None:
        async with LocalServer(max_bytes=1000) as small:
            async with wire(small, post(body=b"", length=1001)) as client:
                assert await client.error() == (413, "body_too_large")
            head = post(b"Transfer-Encoding: chunked", length=-1, body=b"")
            async with wire(small, head + chunked(bytes(MIB))[:-7]) as client:
                assert await client.error() == (413, "body_too_large")
                assert await client.ended() == b""
            assert small._bodies.free == small._bodies.total

    async def test_is_not_asked_for(self, server: LocalServer) -> None:
        expects = b"Expect: 100-continue"
        async with wire(server, post(expects, key=WRONG, body=b"", length=100)) as client:
            assert (await client.answer())[0] == 401
        async with wire(server, post(expects, body=b"", length=len(BODY))) as client:
            assert (await client.answer())[0] == 100
            client.writer.write(BODY)
            assert (await client.answer())[0] == 200


class TestAnEncodedBody:
    @pytest.mark.parametrize("pieces", [1, 1000])
    async def test_is_unpacked(self, server: LocalServer, pieces: int) -> None:
        packed = gzip.compress(BODY)
        async with wire(server, post(b"Content-Encoding: gzip", body=packed)) as client:
            assert (await client.answer())[0] == 200
            client.writer.write(post(b"Content-Encoding: gzip", body=b"", length=len(packed)))
            for start in range(0, len(packed), len(packed) // pieces or 1):
                client.writer.write(packed[start : start + (len(packed) // pieces or 1)])
                await client.writer.drain()
            assert (await client.answer())[0] == 200

    @pytest.mark.parametrize(
        ("encoding", "body", "status"),
        [
            (b"gzip", BODY, 400),
            (b"gzip", gzip.compress(BODY, mtime=0)[:-1], 400),
            (b"deflate", BODY, 400),
            (b"br", BODY, 415),
            (b"gzip, gzip", BODY, 415),
            (b"\xff", BODY, 415),
        ],
    )
    async def test_that_is_none_is_a_refusal_in_our_form(
        self, server: LocalServer, encoding: bytes, body: bytes, status: int
    ) -> None:
        async with wire(server, post(b"Content-Encoding: " + encoding, body=body)) as client:
            assert (await client.error())[0] == status

    async def test_that_is_a_bomb_is_not_unpacked_without_the_key(
        self, server: LocalServer
    ) -> None:
        bomb = gzip.compress(bytes(200 * MIB))
        async with wire(server, post(b"Content-Encoding: gzip", body=bomb, key=WRONG)) as client:
            assert (await client.answer())[0] == 401

    async def test_that_is_a_bomb_is_unpacked_up_to_the_limit_with_the_key(
        self, server: LocalServer
    ) -> None:
        bomb = gzip.compress(bytes(200 * MIB))
        async with wire(server, post(b"Content-Encoding: gzip", body=bomb)) as client:
            assert await client.error() == (413, "body_too_large")
        await until(lambda: server._bodies.free == server._bodies.total)


class TestTheMemoryForBodies:
    async def test_is_shared_by_all_and_more_is_refused_with_a_hint(self) -> None:
        async with LocalServer(limits=Limits(body_bytes=MIB)) as server:
            async with wire(server, post(body=b"", length=MIB)) as holds:
                await until(lambda: server._bodies.free == 0)
                async with wire(server, post()) as client:
                    status, headers, _ = await client.answer()
                    assert (status, headers["retry-after"]) == (503, "1")
                    assert headers["connection"] == "close"
                holds.writer.transport.abort()
            await until(lambda: server._bodies.free == MIB)
            async with wire(server, post()) as client:
                assert (await client.answer())[0] == 200

    @pytest.mark.parametrize("packed", [True, False])
    async def test_counts_what_was_not_announced_as_it_comes(self, packed: bool) -> None:
        big = json.dumps({"model": "m", "query": "q", "documents": ["x" * MIB] * 3}).encode()
        async with LocalServer(limits=Limits(body_bytes=2 * MIB)) as server:
            if packed:
                sent = post(b"Content-Encoding: gzip", body=gzip.compress(big))
            else:
                sent = post(b"Transfer-Encoding: chunked", length=-1, body=chunked(big))
            async with wire(server, sent) as client:
                assert await client.error() == (503, "unavailable")
            await until(lambda: server._bodies.free == 2 * MIB)

    async def test_is_given_back_after_every_kind_of_end(self, server: LocalServer) -> None:
        for sent in (post(), post(body=b"{"), post(body=b"", length=9), post(key=WRONG)):
            async with wire(server, sent) as client:
                if b"Content-Length: 9" not in sent:
                    await client.answer()
        await until(lambda: len(places(server)) == 0)
        assert server._bodies.free == server._bodies.total


class TestTime:
    @pytest.mark.parametrize("sent", [b"", b"POST /v1/re", post()[:60]])
    async def test_is_limited_for_a_head(self, sent: bytes) -> None:
        async with LocalServer(limits=Limits(head=0.1)) as server, wire(server, sent) as client:
            if sent:
                assert await client.error() == (408, "timeout")
            assert await client.ended() == b""

    async def test_of_a_head_does_not_begin_anew_with_every_byte(self) -> None:
        async with LocalServer(limits=Limits(head=0.2)) as server, wire(server) as client:
            ended = asyncio.ensure_future(client.ended())
            for byte in post():
                client.writer.write(bytes([byte]))
                await asyncio.wait([ended], timeout=0.02)
                if ended.done():
                    break
            assert b" 408 " in await ended

    async def test_is_limited_between_requests(self) -> None:
        limits = Limits(idle=0.1)
        async with LocalServer(limits=limits) as server, wire(server, HEALTH) as client:
            assert (await client.answer())[0] == 200
            assert await client.ended() == b""

    async def test_is_limited_for_a_body(self) -> None:
        async with LocalServer(limits=Limits(body=0.1)) as server:
            async with wire(server, post(body=BODY[:5], length=len(BODY))) as client:
                assert await client.error() == (408, "timeout")
                assert await client.ended() == b""
            assert server._bodies.free == server._bodies.total

    @pytest.mark.parametrize("rounds", [1, 400])
    async def test_is_limited_for_an_answer_that_nobody_takes(self, rounds: int) -> None:
        body = json.dumps({"model": "m", "query": "q", "documents": ["x"] * 200_000}).encode()
        limits = Limits(write=0.2, idle=0.2)
        async with LocalServer(limits=limits) as server, wire(server) as client:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            if rounds == 1:
                client.writer.write(post(body=body))
            else:
                client.writer.write(HEALTH * rounds)
            await until(lambda: len(places(server)) == 1)
            await until(lambda: len(places(server)) == 0)
            assert server._bodies.free == server._bodies.total

    async def test_is_not_limited_while_scoring(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gate = threading.Event()

        class Slow:
            name = "slow"

            def score(self, query: str, documents: Sequence[str]) -> Scored:
                assert gate.wait(30)
                return Scored([0.0] * len(documents), 1)

        monkeypatch.setattr(engines, "ENGINES", MappingProxyType({"slow": Slow}))
        limits = Limits(head=0.05, idle=0.05, body=0.05, write=0.05)
        async with LocalServer("slow", limits=limits) as server, wire(server, post()) as client:
            answer = asyncio.ensure_future(client.answer())
            await until(lambda: server._scoring == 1)
            async with wire(server) as other:
                # As long as every limit, by the server's own clock.
                assert await other.ended() == b""
            assert not answer.done()
            gate.set()
            assert (await answer)[0] == 200


class TestPlaces:
    async def test_are_taken_from_those_who_have_been_without_a_request_for_longest(self) -> None:
        async with (
            LocalServer(limits=Limits(connections=3)) as server,
            wire(server, HEALTH) as idle,
            wire(server) as slow,
            wire(server) as slower,
        ):
            assert (await idle.answer())[0] == 200
            await until(lambda: len(places(server)) == 3)
            async with wire(server, HEALTH) as client:
                assert (await client.answer())[0] == 200
                assert await idle.ended() == b""
                slow.writer.write(HEALTH)
                slower.writer.write(HEALTH)
                assert (await slow.answer())[0] == 200
                assert (await slower.answer())[0] == 200

    async def test_are_there_for_the_health_check_when_all_are_in_work(self) -> None:
        async with (
            LocalServer(limits=Limits(connections=2)) as server,
            wire(server, post(body=b"", length=9)) as one,
            wire(server, post(body=b"", length=9)),
        ):
            await until(lambda: server._bodies.total - server._bodies.free == 18)
            async with wire(server, HEALTH) as client:
                status, headers, _ = await client.answer()
                assert (status, headers["connection"]) == (200, "close")
            for request in (post(), b"GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n"):
                async with wire(server, request) as client:
                    status, headers, _ = await client.answer()
                    assert (status, headers["retry-after"]) == (503, "1")
            one.writer.transport.abort()
            await until(lambda: server._bodies.total - server._bodies.free == 9)
            async with wire(server, post()) as client:
                assert (await client.answer())[0] == 200

    async def test_are_given_back(self, server: LocalServer) -> None:
        for sent in (HEALTH, LAST_HEALTH, post(), post(key=WRONG), b"", b"x\r\n\r\n", b"POST /"):
            async with wire(server, sent) as client:
                if sent.endswith(b"\r\n\r\n"):
                    await client.answer()
        await until(lambda: len(places(server)) == 0)


class TestHttp:
    async def test_a_head_request_gets_headers_only(self, server: LocalServer) -> None:
        sent = b"HEAD /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
        async with wire(server, sent) as client:
            head = await client.reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert b"Content-Length: 15\r\n" in head
            assert await client.ended() == b""

    async def test_http_1_0_is_answered_and_never_told_to_continue(
        self, server: LocalServer
    ) -> None:
        sent = post(b"Expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0", 1)
        async with wire(server, sent) as client:
            assert (await client.answer())[0] == 200
            assert await client.ended() == b""

    @pytest.mark.parametrize(
        ("sent", "status"),
        [
            (b"OPTIONS * HTTP/1.1\r\nHost: h\r\n" + RIGHT + b"\r\n", 404),
            (b"OPTIONS /v1/rerank HTTP/1.1\r\nHost: h\r\n" + RIGHT + b"\r\n", 405),
            (b"CONNECT elsewhere:1 HTTP/1.1\r\nHost: h\r\n\r\nmore", 401),
            (b"GET /%0d%0aX-Evil:%201 HTTP/1.1\r\nHost: h\r\n" + RIGHT + b"\r\n", 404),
            (b"POST /v1%2Frerank HTTP/1.1\r\nHost: h\r\n" + RIGHT + b"\r\n", 404),
            (b"POST //v1/rerank HTTP/1.1\r\nHost: h\r\n" + RIGHT + b"\r\n", 404),
            (post().replace(b" /v1", b" http://elsewhere/v1", 1), 200),
            (post().replace(b"rerank ", b"rerank?key=value ", 1), 200),
            (post(key=f"authorization:   bearer   {KEY}  \r\n".encode()), 200),
            (post(key=f"Authorization: Bearer {KEY}\xe9\r\n".encode("latin-1")), 401),
            (post(body=b'{"model": "\xff"}'), 400),
            (post(length=-1, body=b""), 400),
        ],
    )
    async def test_odd_requests_are_answered_in_our_form(
        self, server: LocalServer, sent: bytes, status: int
    ) -> None:
        async with wire(server, sent) as client:
            answered, headers, body = await client.answer()
        assert answered == status
        assert "x-evil" not in headers
        assert "error" in json.loads(body) or status == 200

    async def test_nothing_of_a_request_comes_back_in_a_header(self, server: LocalServer) -> None:
        sent = post(b"X-Request-Id: echo-me", b"Origin: http://echo-me", b"Cookie: echo-me")
        async with wire(server, sent) as client:
            status, headers, _ = await client.answer()
        assert status == 200
        assert "echo-me" not in str(headers)
        assert set(headers) == {"content-type", "content-length", "date", "server"}
        assert "aiohttp" not in headers["server"]

    async def test_an_upgrade_is_declined_and_what_follows_is_thrown_away(
        self, server: LocalServer
    ) -> None:
        upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"
        sent = b"GET /health HTTP/1.1\r\nHost: h\r\n" + upgrade + bytes(MIB)
        async with wire(server, sent) as client:
            assert (await client.answer())[0] == 200
            assert await client.ended() == b""

    async def test_requests_in_a_row_are_answered_in_a_row(self, server: LocalServer) -> None:
        sent = (HEALTH + post() + post(key=b"")) * 30 + LAST_HEALTH
        async with wire(server, sent) as client:
            statuses = [(await client.answer())[0] for _ in range(91)]
            assert statuses == [200, 200, 401] * 30 + [200]
            assert await client.ended() == b""

    async def test_a_request_may_come_byte_by_byte(self, server: LocalServer) -> None:
        async with wire(server) as client:
            for byte in post() + post(b"Transfer-Encoding: chunked", length=-1, body=chunked(BODY)):
                client.writer.write(bytes([byte]))
                await asyncio.sleep(0)
            assert (await client.answer())[0] == 200
            assert (await client.answer())[0] == 200


class TestTheEnd:
    async def test_comes_at_once_for_those_without_a_request(self) -> None:
        server = await LocalServer(drain=30.0).__aenter__()
        async with wire(server, HEALTH) as idle, wire(server, b"POST /v1") as slow:
            assert (await idle.answer())[0] == 200
            await until(lambda: len(places(server)) == 2)
            async with asyncio.timeout(10):
                await server.__aexit__(None, None, None)
            assert await idle.ended() == b""
            assert await slow.ended() == b""

    async def test_waits_for_a_body_for_as_long_as_the_drain_and_no_longer(self) -> None:
        server = await LocalServer(drain=0.1).__aenter__()
        async with wire(server, post(body=b"", length=9)) as client:
            await until(lambda: server._bodies.free < server._bodies.total)
            async with asyncio.timeout(10):
                await server.__aexit__(None, None, None)
            assert await client.ended() == b""

    async def test_takes_a_body_that_arrives_in_time_and_nothing_after_it(self) -> None:
        server = await LocalServer(drain=30.0).__aenter__()
        async with wire(server, post(body=b"", length=len(BODY))) as client:
            await until(lambda: server._bodies.free < server._bodies.total)
            ending = asyncio.ensure_future(server.__aexit__(None, None, None))
            await until(lambda: bool(server._doors and server._doors.closing))
            client.writer.write(BODY + HEALTH)
            status, headers, _ = await client.answer()
            assert (status, headers["connection"]) == (200, "close")
            assert await client.ended() == b""
            await ending
