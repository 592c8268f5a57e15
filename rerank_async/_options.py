"""`SessionOptions`: what a session is made from, as one value that travels.

A session belongs to the event loop that first used it; this belongs to none, and is what objects
hold that are copied, pickled, or used on many loops.
A line belongs here when it says what an argument of `RerankSession` may be.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from attrs import asdict, field, fields, frozen

from rerank_async._chunking import ChunkLimits
from rerank_async._endpoint import check_destination
from rerank_async._errors import InvalidRequestError
from rerank_async._flow.limiter import Concurrency, RateLimit
from rerank_async._http import Transport
from rerank_async._listeners import Listener, checked_listeners
from rerank_async._models import as_model
from rerank_async._policy import HedgePolicy, RetryPolicy
from rerank_async._private import Sealed, Secret, shown
from rerank_async.dialects import Dialect
from rerank_async.dialects import get as get_dialect

if TYPE_CHECKING:
    import aiohttp

__all__ = ["SessionOptions", "as_sealed", "as_timeout"]

T = TypeVar("T")


def as_timeout(timeout: float | None) -> float | None:
    """Seconds that a call may take, as a float; None means that there is no end.

    Raises:
        InvalidRequestError: it is no such number.
    """
    if timeout is None:
        return None
    # The upper end keeps a huge whole number from overflowing a float.
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < 1e9:
        raise InvalidRequestError(
            "timeout must be a number of seconds above 0 and below 1e9, or None for none, not "
            f"{shown(timeout)}"
        )
    return float(timeout)


def as_sealed(api_key: str | Sealed | None) -> Sealed | None:
    """A key as objects keep it; one that is sealed stays as it is.

    Raises:
        InvalidRequestError: it is no string.
    """
    if api_key is None or isinstance(api_key, Sealed):
        return api_key
    try:
        return Sealed(Secret.of(api_key))
    except TypeError as error:
        # A traceback shows this frame with its locals.
        del api_key
        raise InvalidRequestError(f"api_key must be a string, not {error}") from None


def _as_base_url(base_url: str | None) -> str | None:
    if isinstance(base_url, str) and "@" not in base_url:
        return base_url.rstrip("/")
    return base_url


def _as_concurrency(concurrency: int | Concurrency | None) -> Concurrency | None:
    if concurrency is None or isinstance(concurrency, Concurrency):
        return concurrency
    return Concurrency(concurrency)


def _known_dialect(instance: object, attribute: object, dialect: str | Dialect) -> None:
    get_dialect(dialect)


def _one_of_two(instance: object, attribute: object, on_failure: str) -> None:
    if on_failure not in ("raise", "partial"):
        raise InvalidRequestError(f'on_failure must be "raise" or "partial", not {on_failure!r}')


def _none_or(kind: type[Any]) -> Any:
    """A validator for what is None or of a kind."""

    def check(instance: object, attribute: Any, value: object) -> None:
        if value is not None and not isinstance(value, kind):
            raise InvalidRequestError(
                f"{attribute.name} must be a {kind.__name__} or None, not {shown(value)}"
            )

    return check


def _carries(instance: object, attribute: object, http: Any) -> None:
    if http is not None and not hasattr(http, "exchange") and not hasattr(http, "request"):
        raise InvalidRequestError(
            "http must be an aiohttp.ClientSession or have the methods of Transport, not "
            f"{type(http).__name__}"
        )


def _sealing(kind: type[T]) -> type[T]:
    """Seal the key before attrs' own constructor sees it: tracebacks show the frame of that."""
    init = vars(kind)["__init__"]

    @wraps(init)
    def sealing_init(
        self: T, base_url: str | None = None, *, api_key: Any = None, **settings: Any
    ) -> None:
        try:
            key = as_sealed(api_key)
            # Not even a mistake's traceback may show what is no longer needed.
            del api_key
            if isinstance(base_url, str) and "@" in base_url:
                base_url = Secret(base_url)
            init(self, base_url, api_key=key, **settings)
        except InvalidRequestError as error:
            error.__traceback__ = None
            raise

    type.__setattr__(kind, "__init__", sealing_init)
    return kind


@_sealing
@frozen
class SessionOptions:
    """What a `RerankSession` is made from, as one value: frozen, comparable, copied and pickled.

    Each attribute is the argument of `RerankSession` with the same name, the same default and the
    same meaning; read there what it means. `flow` is no option: a `FlowControl` belongs to one
    event loop, and is given to `RerankSession.of` beside the options.

    Arguments are checked when the value is made. What is None and stands in the environment is
    looked up when and where a session is made, so that a value travels without key, URL or model.

    A key that is given is in no representation, and `attrs.asdict` gives it sealed. A pickle
    carries it in the clear, so that the session that is made elsewhere has it: leave it None where
    the other process has `$RERANK_API_KEY`. An `http` travels if it can be pickled, a listener if
    it is a function of a module.

    `attrs.evolve(options, model="other")` gives a copy with another model.

    Attributes:
        base_url: URL of the server, without slashes at its end, or None.
        api_key: key, sealed, or None.
        model: model id, or None.
        dialect: name or object of a dialect.
        chunks: limits of a request, or None for those of the dialect.
        concurrency: requests on the wire at once, over the calls of one session, or None for 16.
        rate: limit per minute of one session, or None.
        retry: policy for retries, or None for `RetryPolicy()`.
        hedge: policy for backups, or None.
        timeout: seconds for a whole call, or None.
        on_failure: "raise" or "partial".
        http: transport or lent session of aiohttp, or None.
        allow_insecure_http: permission for a key to cross a network over `http://`.
        allow_unguarded_http: permission for an `http` whose pool cannot be guarded.
        on_event: listeners, as a tuple.
        seed: number for the dice of a session, or None. Sessions that are made from one value draw
            the same.

    Raises:
        InvalidRequestError: an argument that cannot work; the message names it.
    """

    base_url: str | None = field(default=None, converter=_as_base_url)
    api_key: Sealed | None = field(default=None, converter=as_sealed, kw_only=True)
    model: str | None = field(default=None, converter=as_model, kw_only=True)
    dialect: str | Dialect = field(default="v1", validator=_known_dialect, kw_only=True)
    chunks: ChunkLimits | None = field(default=None, validator=_none_or(ChunkLimits), kw_only=True)
    concurrency: Concurrency | None = field(default=None, converter=_as_concurrency, kw_only=True)
    rate: RateLimit | None = field(default=None, validator=_none_or(RateLimit), kw_only=True)
    retry: RetryPolicy | None = field(default=None, validator=_none_or(RetryPolicy), kw_only=True)
    hedge: HedgePolicy | None = field(default=None, validator=_none_or(HedgePolicy), kw_only=True)
    timeout: float | None = field(default=60.0, converter=as_timeout, kw_only=True)
    on_failure: Literal["raise", "partial"] = field(
        default="raise", validator=_one_of_two, kw_only=True
    )
    http: aiohttp.ClientSession | Transport | None = field(
        default=None, validator=_carries, kw_only=True
    )
    allow_insecure_http: bool = field(default=False, kw_only=True)
    allow_unguarded_http: bool = field(default=False, kw_only=True)
    on_event: tuple[Listener, ...] = field(default=None, converter=checked_listeners, kw_only=True)
    seed: int | None = field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        check_destination(
            self.base_url,
            None if self.api_key is None else self.api_key.open(),
            dialect=get_dialect(self.dialect),
            allow_insecure_http=self.allow_insecure_http,
        )

    def __repr__(self) -> str:
        if not hasattr(self, "seed"):
            # A traceback may show one that was refused half-way through its making.
            return "<SessionOptions not made>"
        told = (
            f"{attribute.name}={value!r}"
            for attribute in fields(SessionOptions)
            if (value := getattr(self, attribute.name)) not in (attribute.default, ())
        )
        return f"SessionOptions({', '.join(told)})"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Frozen; and what it names, such as a transport, is meant to be shared.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self.http is not None and not hasattr(self.http, "exchange"):
            raise TypeError(
                "http: an aiohttp.ClientSession belongs to its event loop and is not pickled"
            )
        state = asdict(self, recurse=False)
        if self.api_key is not None:
            # A sealed key refuses to be pickled; whoever passed it asked for it.
            state["api_key"] = str.__str__(self.api_key.open())
        return _restored, (state,)


def _restored(state: dict[str, Any]) -> SessionOptions:
    """What was pickled; by names, so that another release may know more of them."""
    if state["api_key"] is not None:
        state["api_key"] = Sealed(Secret(state["api_key"]))
    return SessionOptions(**state)
