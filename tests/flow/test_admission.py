"""`_flow.admission`: who may go now, and that what has left leaves nothing behind."""

from math import inf

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rerank_async._flow.admission import Admission
from rerank_async._flow.buckets import Bucket
from rerank_async._flow.load import Load

LIMITS = st.none() | st.integers(1, 50)


class Going(RuleBasedStateMachine):
    """Requests that enter and leave, under limits of every kind at once."""

    @initialize(
        limit=st.integers(1, 5),
        max_documents=LIMITS,
        max_bytes=LIMITS,
        requests=st.none() | st.sampled_from([60.0, 600.0]),
        tokens=st.none() | st.sampled_from([600.0, 6000.0]),
    )
    def open(
        self,
        limit: int,
        max_documents: int | None,
        max_bytes: int | None,
        requests: float | None,
        tokens: float | None,
    ) -> None:
        self.max_documents, self.max_bytes = max_documents, max_bytes
        self.requests = None if requests is None else Bucket(requests)
        self.tokens = None if tokens is None else Bucket(tokens)
        self.admission = Admission(
            limit,
            max_documents=max_documents,
            max_bytes=max_bytes,
            requests=self.requests,
            tokens=self.tokens,
        )
        self.now = 50.0
        self.inside: list[tuple[int, int]] = []

    def levels(self) -> list[float]:
        return [b.level(self.now) for b in (self.requests, self.tokens) if b is not None]

    def fits(self, documents: int, size: int) -> bool:
        if len(self.inside) >= self.admission.limit:
            return False
        if not self.inside:
            return True
        all_documents = documents + sum(documents for documents, _ in self.inside)
        all_bytes = size + sum(size for _, size in self.inside)
        return (self.max_documents is None or all_documents <= self.max_documents) and (
            self.max_bytes is None or all_bytes <= self.max_bytes
        )

    @rule(documents=st.integers(1, 80), size=st.integers(1, 80), tokens=st.integers(0, 300))
    def come(self, documents: int, size: int, tokens: int) -> None:
        levels = self.levels()
        wait = self.admission.enter(self.now, Load(documents, size, tokens))
        assert (wait == inf) == (not self.fits(documents, size))
        if wait == 0.0:
            self.inside.append((documents, size))
        else:
            assert wait > 0.0
            # Whoever waits takes nothing from the rates.
            assert self.levels() == levels

    @rule(documents=st.integers(1, 80), size=st.integers(1, 80), tokens=st.integers(0, 300))
    def come_back_in_time(self, documents: int, size: int, tokens: int) -> None:
        for _ in range(5):
            wait = self.admission.enter(self.now, Load(documents, size, tokens))
            if wait == inf:
                return
            if wait == 0.0:
                self.inside.append((documents, size))
                return
            # A hair more, for the rounding of the sum.
            self.now += wait + 1e-9
        raise AssertionError("after the time it named it let nobody in")

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(self.inside) - 1))
        self.admission.leave(Load(*self.inside.pop(place)))

    @rule(documents=st.integers(1, 80), size=st.integers(1, 80), tokens=st.integers(0, 5))
    def come_and_turn_back(self, documents: int, size: int, tokens: int) -> None:
        levels = self.levels()
        if self.admission.enter(self.now, Load(documents, size, tokens)) == 0.0:
            self.admission.take_back(self.now, Load(documents, size, tokens))
            assert self.levels() == pytest.approx(levels)

    @rule(limit=st.integers(1, 5))
    def change_the_limit(self, limit: int) -> None:
        self.admission.limit = limit

    @rule(seconds=st.floats(0.01, 100.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(seconds=st.floats(0.1, 100.0), draw=st.floats(0.0, 1.0, exclude_max=True))
    def close(self, seconds: float, draw: float) -> None:
        self.admission.gate.close(self.now, seconds, draw)
        assert self.admission.enter(self.now, Load(1, 1, 0)) >= seconds - 1e-9

    @invariant()
    def what_is_counted_is_what_is_inside(self) -> None:
        assert self.admission.requests == len(self.inside)
        assert self.admission.documents == sum(documents for documents, _ in self.inside)
        assert self.admission.bytes == sum(size for _, size in self.inside)

    @invariant()
    def the_weights_are_within_their_limits_unless_one_is_alone(self) -> None:
        if len(self.inside) > 1:
            assert self.max_documents is None or self.admission.documents <= self.max_documents
            assert self.max_bytes is None or self.admission.bytes <= self.max_bytes

    def teardown(self) -> None:
        for documents, size in getattr(self, "inside", ()):
            self.admission.leave(Load(documents, size))
        if hasattr(self, "admission"):
            found = self.admission
            assert (found.requests, found.documents, found.bytes) == (0, 0, 0)


TestGoing = Going.TestCase


def test_as_many_go_as_there_are_slots() -> None:
    admission = Admission(3)
    assert [admission.enter(0.0, Load(1000, 10**9, 10**9)) for _ in range(5)] == [0.0] * 3 + [
        inf
    ] * 2
    admission.leave(Load(1000, 10**9))
    assert admission.enter(0.0, Load(1, 1, 1)) == 0.0
    assert admission.enter(0.0, Load(1, 1, 1)) == inf


@pytest.mark.parametrize(
    ("inside", "coming", "goes"),
    [
        ((40, 10), (60, 10), True),
        ((40, 10), (61, 10), False),
        ((10, 400), (10, 600), True),
        ((10, 400), (10, 601), False),
        ((99, 999), (1, 1), True),
        ((100, 10), (1, 1), False),
        # Larger than the limit: alone, or not at all.
        (None, (101, 10), True),
        (None, (10, 10**9), True),
        ((1, 1), (101, 10), False),
        ((500, 1), (1, 1), False),
    ],
)
def test_the_weight_of_all_that_are_inside_is_limited(
    inside: tuple[int, int] | None, coming: tuple[int, int], goes: bool
) -> None:
    admission = Admission(10, max_documents=100, max_bytes=1000)
    if inside is not None:
        assert admission.enter(0.0, Load(*inside, 0)) == 0.0
    assert admission.enter(0.0, Load(*coming, 0)) == (0.0 if goes else inf)


def test_the_longest_of_gate_and_rates_is_waited_for() -> None:
    admission = Admission(10, requests=Bucket(60.0), tokens=Bucket(600.0))
    assert admission.enter(0.0, Load(1, 1, 40)) == 0.0
    # One request a second; ten tokens a second, and a debt of 30.
    assert admission.enter(0.0, Load(1, 1, 5)) == pytest.approx(3.5)
    assert admission.enter(0.0, Load(1, 1, 0)) == pytest.approx(3.0)
    admission.gate.close(0.0, 20.0, 0.0)
    assert admission.enter(0.0, Load(1, 1, 5)) == 20.0
    assert admission.enter(19.0, Load(1, 1, 5)) == 1.0
    assert admission.enter(20.0, Load(1, 1, 5)) == 0.0
    assert admission.enter(20.0, Load(1, 1, 0)) == pytest.approx(1.0)


def test_without_a_free_slot_no_time_is_named() -> None:
    admission = Admission(1)
    assert admission.enter(0.0, Load(1, 1, 0)) == 0.0
    admission.gate.close(0.0, 5.0, 0.0)
    assert admission.enter(0.0, Load(1, 1, 0)) == inf
    admission.leave(Load(1, 1))
    assert admission.enter(0.0, Load(1, 1, 0)) == 5.0


def test_a_limit_that_shrinks_calls_nobody_back() -> None:
    admission = Admission(4)
    for _ in range(4):
        assert admission.enter(0.0, Load(1, 1, 0)) == 0.0
    admission.limit = 2
    for _ in range(2):
        assert admission.enter(0.0, Load(1, 1, 0)) == inf
        admission.leave(Load(1, 1))
    assert admission.enter(0.0, Load(1, 1, 0)) == inf
    admission.leave(Load(1, 1))
    assert admission.enter(0.0, Load(1, 1, 0)) == 0.0


def test_what_was_not_sent_is_given_back_to_both_rates() -> None:
    admission = Admission(10, requests=Bucket(60.0), tokens=Bucket(600.0))
    assert admission.enter(0.0, Load(1, 1, 40)) == 0.0
    admission.take_back(0.0, Load(1, 1, 40))
    assert admission.enter(0.0, Load(1, 1, 10)) == 0.0


def test_no_more_is_given_back_than_was_taken() -> None:
    requests, tokens = Bucket(600.0), Bucket(6000.0)
    admission = Admission(10, requests=requests, tokens=tokens)
    for _ in range(3):
        assert admission.enter(0.0, Load(1, 1, 20)) == 0.0
    admission.take_back(0.0, Load(1, 1, 20))
    assert (requests.level(0.0), tokens.level(0.0)) == (8.0, 60.0)
