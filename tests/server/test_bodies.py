"""A body on its way in: unpacked, and never more of it than agreed."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_async.dialects import RefusedError
from rerank_async.server._bodies import Body, Budget


def bare(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def feed(body: Body, pieces: list[bytes]) -> None:
    for piece in pieces:
        behind = body.feed(piece)
        while behind:
            behind = body.feed(b"")


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


PACKED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "identity": ("identity", lambda data: data),
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "zlib": ("deflate", zlib.compress),
    "bare": ("deflate", bare),
    "two members": ("gzip", lambda data: gzip.compress(data[:3]) + gzip.compress(data[3:])),
}


@pytest.mark.parametrize("form", PACKED)
@given(data=st.binary(max_size=200), size=st.integers(1, 50))
def test_a_body_comes_out_as_it_was_whatever_its_pieces(form: str, data: bytes, size: int) -> None:
    encoding, pack = PACKED[form]
    body = Body(encoding, 200)
    feed(body, cut(pack(data), size))
    assert body.size in (len(data), 0) or form != "identity"
    assert body.end() == data


@pytest.mark.parametrize("form", [form for form in PACKED if form != "identity"])
@pytest.mark.parametrize("length", [2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20 + 7])
def test_a_step_may_end_anywhere(form: str, length: int) -> None:
    encoding, pack = PACKED[form]
    body = Body(encoding, None)
    feed(body, [pack(bytes(length))])
    assert body.end() == bytes(length)


@pytest.mark.parametrize(
    ("encoding", "raw"),
    [
        ("gzip", b""),
        ("gzip", b"text"),
        ("gzip", gzip.compress(b"text", mtime=0)[:-1]),
        ("gzip", gzip.compress(b"text", mtime=0)[:-8] + bytes(8)),
        ("gzip", gzip.compress(b"text", mtime=0) + b"more"),
        ("gzip", gzip.compress(b"text", mtime=0) + gzip.compress(b"text", mtime=0)[:5]),
        ("deflate", b""),
        ("deflate", b"text"),
        ("deflate", zlib.compress(b"text")[:-1]),
        ("deflate", zlib.compress(b"text") + b"more"),
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_what_is_not_what_it_says_is_refused_with_400(encoding: str, raw: bytes, size: int) -> None:
    body = Body(encoding, None)
    with pytest.raises(RefusedError, match=f"not {encoding}") as caught:
        feed(body, cut(raw, size))
        body.end()
    assert (caught.value.status, caught.value.code) == (400, "invalid_encoding")


def test_a_bomb_is_unpacked_no_further_than_the_limit() -> None:
    bomb = gzip.compress(bytes(64 * 2**20))
    body = Body("gzip", 2 * 2**20)
    assert body.feed(bomb)
    assert body.size <= 2**20
    steps = 0
    with pytest.raises(RefusedError) as caught:
        while body.feed(b""):
            steps += 1
    assert (caught.value.status, caught.value.code) == (413, "body_too_large")
    assert steps <= 2
    assert body.size == 0


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_as_much_as_the_limit_is_taken(encoding: str) -> None:
    pack = gzip.compress if encoding == "gzip" else bytes
    body = Body(encoding, 10)
    feed(body, [pack(b"0123456789")])
    assert body.end() == b"0123456789"
    body = Body(encoding, 9)
    with pytest.raises(RefusedError, match="more than 9 bytes"):
        feed(body, [pack(b"0123456789")])


def test_many_empty_members_are_one_step() -> None:
    body = Body("gzip", 10)
    assert not body.feed(gzip.compress(b"") * 1000)
    assert body.end() == b""


def test_a_budget_lends_no_more_than_it_has() -> None:
    budget = Budget(10)
    assert budget.take(6)
    assert not budget.take(5)
    assert budget.take(4)
    assert budget.free == 0
    budget.give_back(6)
    assert (budget.free, budget.total) == (6, 10)
