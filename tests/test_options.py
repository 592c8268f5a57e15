"""`SessionOptions`: one value that says all that a session is made from, and travels."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
from typing import Any

import aiohttp
import attrs
import pytest

from rerank_async import (
    FlowControl,
    InvalidRequestError,
    RerankError,
    RerankSession,
    SessionOptions,
)
from rerank_async._private import Sealed, Secret
from rerank_async.batches import BatchReranker
from rerank_async.bench import run_benchmark
from tests.every_option import EVERY, NAMES, Carrier, arguments_of_sessions, every
from tests.support import KEY, MEMORY_URL, memory


class TestTheArguments:
    def test_are_those_of_a_session_with_the_same_defaults_and_types(self) -> None:
        of_session = dict(inspect.signature(RerankSession).parameters)
        of_options = dict(inspect.signature(SessionOptions).parameters)
        del of_session["flow"]
        assert list(of_options) == list(of_session) == NAMES == list(EVERY)
        for name, parameter in of_options.items():
            assert parameter.kind is of_session[name].kind
            assert parameter.default == of_session[name].default, name
            # A key may be given as it was sealed by another value.
            annotation = parameter.annotation.replace("str | Sealed", "str")
            assert annotation.strip('"') == of_session[name].annotation, name

    def test_each_have_a_line_that_says_what_they_are(self) -> None:
        for kind in (SessionOptions, RerankSession):
            text = inspect.getdoc(kind) or ""
            for name in NAMES:
                assert f"\n    {name}: " in text, f"{name} of {kind.__name__}"

    @pytest.mark.parametrize(
        ("wrong", "word"),
        [
            ({"base_url": "rerank.test"}, "base_url must be like"),
            ({"base_url": ""}, "base_url must not be empty"),
            ({"base_url": 7}, "base_url must be a string, not int"),
            ({"base_url": "https://rerank.test/v1/rerank"}, "base_url ends before /rerank"),
            ({"base_url": "http://rerank.test/v1", "api_key": KEY}, "unencrypted"),
            ({"api_key": 7}, "api_key must be a string, not int"),
            ({"api_key": "two words"}, "api_key must be printable"),
            ({"model": ""}, "model must not be empty"),
            ({"dialect": "none"}, "dialect 'none' is not known"),
            ({"chunks": 7}, "chunks must be a ChunkLimits"),
            ({"concurrency": 0}, "concurrency must be a whole number"),
            ({"rate": 7}, "rate must be a RateLimit"),
            ({"retry": 7}, "retry must be a RetryPolicy"),
            ({"hedge": 7}, "hedge must be a HedgePolicy"),
            ({"timeout": 0}, "timeout must be a number of seconds"),
            ({"timeout": True}, "timeout must be a number of seconds"),
            ({"on_failure": "ignore"}, "on_failure must be"),
            ({"http": 7}, "http must be"),
            ({"on_event": 7}, "on_event must be"),
        ],
    )
    def test_that_cannot_work_anywhere_are_refused_when_the_value_is_made(
        self, wrong: dict[str, Any], word: str
    ) -> None:
        with pytest.raises(InvalidRequestError, match=word):
            SessionOptions(**wrong)

    def test_that_are_left_out_are_looked_up_where_a_session_is_made(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for variable in ("RERANK_BASE_URL", "RERANK_API_KEY", "RERANK_MODEL", "OPENAI_API_KEY"):
            monkeypatch.delenv(variable, raising=False)
        options = SessionOptions()
        with pytest.raises(InvalidRequestError, match="api_key"):
            RerankSession.of(options)
        monkeypatch.setenv("RERANK_BASE_URL", "https://there.test/v1")
        monkeypatch.setenv("RERANK_MODEL", "there")
        session = RerankSession.of(options)
        assert (session.base_url, session.model) == ("https://there.test/v1", "there")


class TestTheValue:
    def test_is_frozen_and_equal_by_what_it_holds(self) -> None:
        options = every()
        assert options == every()
        assert hash(options) == hash(every())
        assert options != attrs.evolve(options, api_key="sk-another-key")
        with pytest.raises(AttributeError):
            options.model = "m"  # type: ignore[misc]

    @pytest.mark.parametrize("name", NAMES)
    def test_of_every_argument_comes_back_out_of_a_pickle(self, name: str) -> None:
        options = attrs.evolve(every(), http=None)
        again = pickle.loads(pickle.dumps(options))
        assert getattr(again, name) == getattr(options, name)

    def test_carries_a_key_in_its_pickle_only_where_one_was_passed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RERANK_API_KEY", KEY)
        assert KEY.encode() not in pickle.dumps(SessionOptions(MEMORY_URL))
        assert KEY.encode() in pickle.dumps(SessionOptions(MEMORY_URL, api_key=KEY))

    def test_takes_a_transport_along_that_can_be_pickled(self) -> None:
        again = pickle.loads(pickle.dumps(SessionOptions(MEMORY_URL, http=Carrier())))
        assert type(again.http) is Carrier

    async def test_with_a_lent_session_stays_where_it_is(self) -> None:
        async with aiohttp.ClientSession() as lent:
            options = SessionOptions(MEMORY_URL, http=lent)
            with pytest.raises(TypeError, match="not pickled"):
                pickle.dumps(options)
            # A copy shares what it names.
            assert copy.deepcopy(options).http is lent

    def test_shows_what_was_said_and_not_the_key(self) -> None:
        assert repr(SessionOptions()) == "SessionOptions()"
        shown = repr(SessionOptions(model="m", api_key=KEY, timeout=None))
        assert shown == "SessionOptions(api_key='[API key]', model='m', timeout=None)"

    def test_holds_its_key_sealed(self) -> None:
        options = SessionOptions(api_key=KEY)
        assert options.api_key == Sealed(Secret(KEY))
        assert options.api_key != KEY
        assert KEY not in repr(options)
        assert KEY not in repr(attrs.asdict(options))

    def test_may_be_changed_into_another_with_the_same_key(self) -> None:
        other = attrs.evolve(SessionOptions(api_key=KEY, model="m"), model="n")
        assert (other.model, other.api_key) == ("n", Sealed(Secret(KEY)))


class TestSessions:
    async def test_are_made_of_one_value_as_often_as_one_likes(self) -> None:
        http = memory()
        options = SessionOptions(MEMORY_URL, model="m", http=http)
        for _ in range(2):
            async with RerankSession.of(options) as session:
                response = await session.rerank("q", ["document 1", "document 2"])
            assert response.results.indices == (1, 0)

    def test_run_on_as_many_loops(self) -> None:
        options = SessionOptions(MEMORY_URL, model="m", http=memory())

        async def once() -> int:
            async with RerankSession.of(options) as session:
                return len((await session.rerank("q", ["document 1"])).results)

        assert [asyncio.run(once()) for _ in range(2)] == [1, 1]

    async def test_may_share_a_flow_in_place_of_their_own_slots(self) -> None:
        flow = FlowControl(2)
        options = SessionOptions(MEMORY_URL, model="m", concurrency=9)
        first, second = (RerankSession.of(options, flow=flow) for _ in range(2))
        assert first.flow is second.flow is flow
        assert first.statistics().limit == 2
        assert RerankSession.of(options).statistics().limit == 9

    def test_are_made_of_options_only(self) -> None:
        with pytest.raises(InvalidRequestError, match="options must be SessionOptions"):
            RerankSession.of({"model": "m"})  # type: ignore[arg-type]

    def test_say_what_to_pickle_in_their_place(self) -> None:
        with pytest.raises(TypeError, match="SessionOptions"):
            pickle.dumps(RerankSession(MEMORY_URL))


class TestWhatIsPassedOn:
    """An argument that is added to the options is in no other file that passes them on."""

    @pytest.mark.parametrize("name", NAMES)
    def test_each_argument_reaches_a_session(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = arguments_of_sessions(monkeypatch)
        options = every()
        RerankSession.of(options)
        assert seen[0][name] == getattr(options, name)

    @pytest.mark.parametrize("name", NAMES)
    def test_each_argument_reaches_the_session_of_a_batch_in_another_process(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Columns have no place for what a partial answer lacks.
        options = every(on_failure="raise")
        reranker = pickle.loads(pickle.dumps(BatchReranker(options=options)))
        seen = arguments_of_sessions(monkeypatch)
        reranker._make()
        assert seen[0][name] == getattr(options, name)

    @pytest.mark.parametrize(
        "name", sorted({*inspect.signature(run_benchmark).parameters} & {*NAMES})
    )
    async def test_an_argument_of_a_benchmark_reaches_its_sessions(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = arguments_of_sessions(monkeypatch)
        told = {
            name: EVERY[name]
            for name in ("base_url", "api_key", "model", "dialect", "allow_insecure_http", "http")
        }
        with pytest.raises((RerankError, NotImplementedError)):
            await run_benchmark(**told)
        assert seen[0][name] == getattr(every(), name)
