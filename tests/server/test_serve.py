"""The local server over real loopback sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from types import MappingProxyType
from typing import Any

import aiohttp
import pytest

from rerank_async import ChunkLimits, RerankSession, RetryPolicy
from rerank_async.server import LocalServer, engines
from rerank_async.server.engines import Engine, Scored

GOOD: dict[str, Any] = {"model": "m", "query": "file", "documents": ["a file", "a door"]}


class GatedEngine:
    """Scores nothing before its gate is opened; the gate and the counts are the test's to see."""

    name = "gated"

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.gate = threading.Event()

    def score(self, query: str, documents: Sequence[str]) -> Scored:
        self.begun.append(query)
        assert self.gate.wait(30)
        self.ended.append(query)
        return Scored([float(len(document)) for document in documents], 1)


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> Iterator[GatedEngine]:
    engine = GatedEngine()

    def make() -> Engine:
        return engine

    known = MappingProxyType({**engines.ENGINES, "gated": make})
    monkeypatch.setattr(engines, "ENGINES", known)
    yield engine
    engine.gate.set()


@pytest.fixture
async def client() -> Any:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        yield session


async def ask(
    client: aiohttp.ClientSession, server: LocalServer, **fields: Any
) -> tuple[int, dict[str, str], Any]:
    async with client.post(f"{server.url}/rerank", json=GOOD | fields) as response:
        headers = {name.lower(): value for name, value in response.headers.items()}
        return response.status, headers, await response.json()


async def in_thread(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that another thread does."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.to_thread(threading.Event().wait, 0.001)
    assert condition(), what


class TestAServer:
    async def test_answers(self, client: aiohttp.ClientSession) -> None:
        async with LocalServer() as server:
            status, headers, body = await ask(client, server, top_n=1)
        assert status == 200
        assert headers["content-type"] == "application/json"
        assert [result["index"] for result in body["data"]] == [0]
        assert body["model"] == "m"

    async def test_answers_from_a_process_as_from_a_thread(
        self, client: aiohttp.ClientSession
    ) -> None:
        async with LocalServer() as one, LocalServer(workers=1) as other:
            assert (await ask(client, one))[2] == (await ask(client, other))[2]

    async def test_listens_on_loopback_only_unless_told_otherwise(self) -> None:
        async with LocalServer() as server:
            assert server._runner is not None
            [address] = server._runner.addresses
            assert address[0] == "127.0.0.1"
            assert server.url == f"http://127.0.0.1:{address[1]}/v1"
            with socket.socket() as elsewhere:
                elsewhere.setblocking(False)
                with pytest.raises(ConnectionRefusedError):
                    await asyncio.get_running_loop().sock_connect(
                        elsewhere, ("127.0.0.2", address[1])
                    )

    async def test_listens_where_it_is_told(self, client: aiohttp.ClientSession) -> None:
        async with LocalServer(host="127.0.0.2") as server:
            assert server.url.startswith("http://127.0.0.2:")
            assert (await ask(client, server))[0] == 200

    async def test_refuses_a_port_that_is_taken(self) -> None:
        async with LocalServer() as first:
            server = LocalServer(port=port_of(first))
            with pytest.raises(OSError, match="in use"):
                await server.__aenter__()
            # It gave back what it had begun to hold.
            await server.__aexit__(None, None, None)

    async def test_refuses_in_the_same_words_over_the_wire(
        self, client: aiohttp.ClientSession
    ) -> None:
        async with LocalServer(api_key="k", max_documents=1) as server:
            status, headers, body = await ask(client, server)
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
            assert body["error"]["code"] == "invalid_api_key"
            client.headers["Authorization"] = "Bearer k"
            status, _, body = await ask(client, server)
            assert (status, body["error"]["param"]) == (413, "documents")
            async with client.get(f"{server.url}/rerank") as response:
                assert (response.status, response.headers["Allow"]) == (405, "POST")

    async def test_survives_bytes_in_the_head_that_are_not_utf8(self) -> None:
        async with LocalServer() as server:
            for head, status in (
                (b"GET /%ff HTTP/1.1\r\n", b"404"),
                (b"POST /v1/rerank HTTP/1.1\r\nContent-Type: \xff\r\n", b"415"),
            ):
                answer = await raw(server, head + b"Host: h\r\nConnection: close\r\n\r\n")
                assert answer.startswith(b"HTTP/1.1 " + status)
                assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]

    @pytest.mark.parametrize("declared", [True, False])
    async def test_refuses_a_body_over_its_limit_in_the_openai_shape(
        self, client: aiohttp.ClientSession, declared: bool
    ) -> None:
        body = json.dumps(GOOD | {"documents": ["x" * 5000]}).encode()

        async def pieces() -> Any:
            yield body[:2000]
            yield body[2000:]

        async with LocalServer(max_bytes=1000) as server:
            async with client.post(
                f"{server.url}/rerank",
                data=body if declared else pieces(),
                headers={"Content-Type": "application/json"},
            ) as response:
                error = (await response.json())["error"]
            assert (response.status, error["code"]) == (413, "body_too_large")
            assert "1,000" in error["message"]
            assert (await ask(client, server))[0] == 200


def port_of(server: LocalServer) -> int:
    return int(server.url.rpartition(":")[2].partition("/")[0])


async def raw(server: LocalServer, request: bytes) -> bytes:
    port = port_of(server)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


class TestTheQueue:
    async def test_refuses_with_a_hint_when_it_is_full(
        self, client: aiohttp.ClientSession, gated: GatedEngine
    ) -> None:
        async with LocalServer("gated", queue=1) as server:
            waiting = [asyncio.create_task(ask(client, server)) for _ in range(2)]
            await in_thread(lambda: server._scoring == 2, "two requests in work")
            status, headers, body = await ask(client, server)
            assert status == 429
            assert headers["retry-after"] == "1"
            assert headers["retry-after-ms"] == "1000"
            assert body["error"]["code"] == "rate_limit_exceeded"
            assert set(body["error"]) == {"message", "type", "param", "code"}
            gated.gate.set()
            assert [status for status, _, _ in await asyncio.gather(*waiting)] == [200, 200]
            assert (await ask(client, server))[0] == 200

    async def test_of_length_zero_lets_in_what_can_be_scored_at_once(
        self, client: aiohttp.ClientSession, gated: GatedEngine
    ) -> None:
        async with LocalServer("gated", queue=0) as server:
            first = asyncio.create_task(ask(client, server))
            await in_thread(lambda: bool(gated.begun), "the first request")
            assert (await ask(client, server))[0] == 429
            gated.gate.set()
            assert (await first)[0] == 200

    async def test_gets_back_the_place_of_a_client_that_hangs_up(
        self, client: aiohttp.ClientSession, gated: GatedEngine
    ) -> None:
        async with LocalServer("gated", queue=1) as server:
            first = asyncio.create_task(ask(client, server, query="first"))
            await in_thread(lambda: gated.begun == ["first"], "the first request")
            gone = asyncio.create_task(ask(client, server, query="gone"))
            await in_thread(lambda: server._scoring == 2, "the second request")
            assert (await ask(client, server))[0] == 429
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            await in_thread(lambda: server._scoring == 1, "the place")
            last = asyncio.create_task(ask(client, server, query="last"))
            await in_thread(lambda: server._scoring == 2, "the third request")
            gated.gate.set()
            assert [(await task)[0] for task in (first, last)] == [200, 200]
            # Nobody waited for that answer, so it was not worked out.
            assert gated.begun == ["first", "last"]


class TestScoring:
    async def test_does_not_keep_the_event_loop_waiting(
        self, client: aiohttp.ClientSession, gated: GatedEngine
    ) -> None:
        async with LocalServer("gated") as server:
            blocked = asyncio.create_task(ask(client, server))
            await in_thread(lambda: bool(gated.begun), "the request in work")
            async with client.get(server.url.removesuffix("/v1") + "/health") as response:
                assert (response.status, await response.json()) == (200, {"status": "ok"})
            assert not gated.ended
            gated.gate.set()
            assert (await blocked)[0] == 200

    async def test_in_work_is_finished_when_the_server_stops(
        self, client: aiohttp.ClientSession, gated: GatedEngine
    ) -> None:
        server = await LocalServer("gated").__aenter__()
        blocked = asyncio.create_task(ask(client, server))
        await in_thread(lambda: bool(gated.begun), "the request in work")
        stopping = asyncio.create_task(server.__aexit__(None, None, None))
        port = port_of(server)
        await in_thread(lambda: not listens(port), "the end of listening")
        assert not stopping.done()
        gated.gate.set()
        assert (await blocked)[0] == 200
        await stopping

    async def test_that_outlasts_the_drain_is_given_up(
        self, client: aiohttp.ClientSession, gated: GatedEngine
    ) -> None:
        server = await LocalServer("gated", drain=0.05).__aenter__()
        blocked = asyncio.create_task(ask(client, server))
        await in_thread(lambda: bool(gated.begun), "the request in work")
        stopping = asyncio.create_task(server.__aexit__(None, None, None))
        with pytest.raises(aiohttp.ClientError):
            await blocked
        gated.gate.set()
        await stopping

    async def test_is_taken_up_again_after_its_process_was_killed(
        self, client: aiohttp.ClientSession, capfd: pytest.CaptureFixture[str]
    ) -> None:
        async with LocalServer(workers=1) as server:
            expected = (await ask(client, server))[2]
            assert isinstance(server._executor, ProcessPoolExecutor)
            [process] = server._executor._processes.values()
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            await asyncio.to_thread(process.join)
            status, headers, body = await ask(client, server)
            assert status == 503
            assert headers["retry-after"] == "1"
            assert body["error"]["code"] == "unavailable"
            assert (await ask(client, server))[2] == expected
        assert "a scoring process ended" in capfd.readouterr().err


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class TestScriptedFaults:
    async def test_come_as_429_and_503_and_a_reset_in_turn(self) -> None:
        seen: list[int | str] = []
        async with LocalServer(faults=0.5) as server:
            for _ in range(6):
                # A connection for each, since aiohttp asks again when a kept one breaks.
                async with aiohttp.ClientSession() as client:
                    try:
                        status, headers, _ = await ask(client, server)
                    except aiohttp.ClientError as error:
                        seen.append("reset" if "reset by peer" in repr(error) else repr(error))
                    else:
                        seen.append(status)
                        assert ("retry-after-ms" in headers) == (status != 200)
        assert seen == [200, 429, 200, 503, 200, "reset"]

    async def test_spare_what_needs_no_scoring(self, client: aiohttp.ClientSession) -> None:
        async with LocalServer(faults=0.9) as server:
            for _ in range(20):
                async with client.get(f"{server.url}/models") as response:
                    assert response.status == 200

    async def test_change_no_ranking_and_are_counted_as_retries(self) -> None:
        documents = [f"file {'open ' * (place % 7)} number {place}" for place in range(200)]
        rankings, retries, throttled = [], [], []
        for share in (0.0, 0.5):
            async with (
                LocalServer(faults=share) as server,
                RerankSession(
                    server.url,
                    model="lexical",
                    chunks=ChunkLimits(20),
                    concurrency=4,
                    # No chunk is to meet faults only, in whatever order they come back.
                    retry=RetryPolicy(attempts=20, max_wait=0.1),
                ) as session,
            ):
                response = await session.rerank("open the file", documents)
                counts = session.statistics()
            rankings.append([(r.index, r.relevance_score) for r in response.results])
            retries.append(counts.retries)
            throttled.append(counts.throttled)
        assert rankings[0] == rankings[1]
        assert len(rankings[0]) == 200
        # Ten chunks, every second answer a fault, of which every third is a reset.
        assert retries == [0, 9]
        assert throttled == [0, 6]


class TestTheArguments:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"engine": "nonsense"}, "lexical"),
            ({"host": ""}, "host"),
            ({"workers": -1}, "workers"),
            ({"queue": -1}, "queue"),
            ({"max_documents": 0}, "max_documents"),
            ({"api_key": ""}, "api_key"),
            ({"faults": 1.0}, "faults"),
            ({"faults": -0.1}, "faults"),
        ],
    )
    def test_out_of_range_are_refused_by_name(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            LocalServer(**options)

    async def test_may_name_an_ipv6_address(self) -> None:
        assert LocalServer(host="::1", port=80).url == "http://[::1]:80/v1"


async def test_a_server_that_stops_leaves_no_process_and_no_thread() -> None:
    before = set(threading.enumerate())
    async with LocalServer(workers=1) as server:
        assert isinstance(server._executor, ProcessPoolExecutor)
        [process] = server._executor._processes.values()
    assert process.exitcode == 0
    async with LocalServer() as server:
        pass
    left = {thread.name for thread in set(threading.enumerate()) - before}
    # asyncio's own pool of threads stays until the loop ends.
    assert not {name for name in left if not name.startswith("asyncio_")}
