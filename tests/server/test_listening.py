"""Where the server listens, and who can reach it."""

from __future__ import annotations

import socket
from typing import Any

import aiohttp
import pytest

from rerank_async.server import LocalServer, _listening


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost", "127.1"])
async def test_this_machine_alone_needs_no_key(host: str) -> None:
    for _, address in await _listening.resolve(host):
        assert _listening.is_loopback(address)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "::ffff:0.0.0.0", "10.0.0.1", "192.168.1.1", "fe80::1", "2001:db8::1"]
)
def test_an_address_that_others_can_reach_is_refused_without_a_key(host: str) -> None:
    with pytest.raises(ValueError, match=f"^{host} can be reached by others"):
        LocalServer(host=host)
    LocalServer(host=host, api_key="k")
    LocalServer(host=host, allow_no_key=True)


@pytest.mark.parametrize("host", ["0", "0x0", "some-name", "both"])
async def test_a_name_is_refused_by_what_it_stands_for(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    async def resolve(host: str) -> list[Any]:
        found = [(socket.AF_INET, "127.0.0.1")] if host == "both" else []
        return [*found, (socket.AF_INET, "192.0.2.7")]

    if not host.startswith("0"):
        monkeypatch.setattr(_listening, "resolve", resolve)
    with pytest.raises(ValueError, match=rf"^{host} \(.*\) can be reached by others"):
        await LocalServer(host=host).__aenter__()


async def test_open_to_everybody_it_answers_everybody_who_has_the_key() -> None:
    async with (
        LocalServer(host="0.0.0.0", api_key="k") as server,
        aiohttp.ClientSession() as client,
    ):
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        async with client.get(f"{url}/models") as response:
            assert response.status == 401
        async with client.get(f"{url}/models", headers={"Authorization": "Bearer k"}) as response:
            assert response.status == 200


async def test_all_addresses_of_a_name_share_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(host: str) -> list[Any]:
        return [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.0.0.2")]

    monkeypatch.setattr(_listening, "resolve", resolve)
    async with LocalServer(host="two.test") as server, aiohttp.ClientSession() as client:
        for address in ("127.0.0.1", "127.0.0.2"):
            url = server.url.replace("two.test", address)
            async with client.get(f"{url}/models") as response:
                assert response.status == 200


async def test_a_system_that_counts_no_descriptors_has_no_highest_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_listening, "_resource", None)
    assert _listening.highest_descriptor() is None
    async with LocalServer() as server:
        assert server.url
