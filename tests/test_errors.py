import copy
import pickle
import re

import pytest

from rerank_async import _errors
from rerank_async._errors import (
    AuthenticationError,
    BadRequestError,
    CertificateError,
    ConnectError,
    DeadlineExceededError,
    InvalidRequestError,
    NotFoundError,
    PayloadTooLargeError,
    PermissionDeniedError,
    RateLimitError,
    RequestTimeoutError,
    RerankError,
    ResponseError,
    ServerError,
    SessionClosedError,
    StatusError,
    TransportError,
    UnprocessableError,
    error_for_status,
)

CLASSES: dict[str, type[RerankError]] = {name: getattr(_errors, name) for name in _errors.__all__}


def made(kind: type[RerankError]) -> RerankError:
    """An error of that class with every attribute set."""
    error: RerankError
    if issubclass(kind, (RateLimitError, ServerError)):
        error = kind("slow down", status=529, headers={"X-Request-ID": "r7"}, retry_after=2.5)
    elif issubclass(kind, StatusError):
        error = kind("no", status=418, headers={"X-Request-ID": "r7"})
    else:
        error = kind("what happened")
    if isinstance(error, ResponseError):
        error.final = True
    error.context = "documents 0 to 9, attempt 2 of 4"
    return error


def documented_tree() -> dict[str, tuple[str | None, str | None, int | None]]:
    """Name → documented parent, other base and status, read from the module's docstring."""
    tree: dict[str, tuple[str | None, str | None, int | None]] = {}
    above: dict[int, str] = {}
    for line in (_errors.__doc__ or "").splitlines():
        if not re.match(r" {4}(RerankError(?:$|  )|[│├└ ]*[├└]─ )", line):
            continue
        # What follows three spaces is prose.
        drawn = re.split(r"(?<=\S) {3,}", line)[0]
        for name, note in re.findall(r"([A-Z]\w+Error)(?: \((\w+)\))?", drawn):
            depth = re.search("[A-Z]", line).start()  # type: ignore[union-attr]
            above = {place: parent for place, parent in above.items() if place < depth}
            status = int(note) if note.isdigit() else None
            base = note if note.endswith("Error") else None
            tree[name] = (above[max(above)] if above else None, base, status)
            last = name
        above[depth] = last
    return tree


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequestError),
        (401, AuthenticationError),
        (402, BadRequestError),
        (403, PermissionDeniedError),
        (404, NotFoundError),
        (405, BadRequestError),
        (408, BadRequestError),
        (413, PayloadTooLargeError),
        (418, BadRequestError),
        (422, UnprocessableError),
        (429, RateLimitError),
        (499, BadRequestError),
        (500, ServerError),
        (501, ServerError),
        (503, ServerError),
        (529, ServerError),
        (599, ServerError),
        (100, StatusError),
        (101, StatusError),
        (202, StatusError),
        (204, StatusError),
        (206, StatusError),
        (302, StatusError),
        (399, StatusError),
        (600, StatusError),
        (999, StatusError),
    ],
)
def test_a_status_means_one_class_exactly(status: int, kind: type[StatusError]) -> None:
    error = error_for_status(status, "words", {"X-Request-Id": "r7"}, None)
    assert type(error) is kind
    assert (error.status, error.message, error.request_id) == (status, "words", "r7")


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (RerankError("it broke"), None),
        (TransportError("broke"), None),
        (ConnectError("refused"), None),
        (RequestTimeoutError("slow"), None),
        (DeadlineExceededError("late"), None),
        (ResponseError("nonsense"), None),
        (ResponseError("another dialect").condemning("session"), "session"),
        (InvalidRequestError("no"), "request"),
        (CertificateError("who are you"), "session"),
        (SessionClosedError("closed"), "session"),
        (AuthenticationError("no", status=401), "session"),
        (NotFoundError("Not Found", status=404), "session"),
        (NotFoundError("no such model", status=404), "model"),
        (NotFoundError("no", status=404, code="model_not_found"), "model"),
        (BadRequestError("no", status=400, param="model"), "model"),
        (PermissionDeniedError("not for you", status=403), "session"),
        (UnprocessableError("no", status=422), "request"),
        (RateLimitError("slow down", status=429), None),
        (RateLimitError("no", status=429, code="insufficient_quota"), "session"),
        (ServerError("broke", status=500), None),
    ],
)
def test_an_error_says_what_it_condemns_and_so_does_its_copy(
    error: RerankError, what: str | None
) -> None:
    assert error.condemns == what
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert twin.condemns == what
        assert twin.retry_after is None


@pytest.mark.parametrize("status", range(100, 600))
def test_only_429_and_5xx_carry_a_hint_to_wait(status: int) -> None:
    error = error_for_status(status, "", {}, 1.5)
    hinted = isinstance(error, (RateLimitError, ServerError))
    assert hinted == (status == 429 or status >= 500)
    assert error.retry_after == (1.5 if hinted else None)


@pytest.mark.parametrize("name", _errors.__all__)
def test_an_error_survives_pickle_and_copy_with_all_its_attributes(name: str) -> None:
    error = made(CLASSES[name])
    for twin in (
        pickle.loads(pickle.dumps(error)),
        copy.copy(error),
        copy.deepcopy(error),
    ):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert twin.args == error.args
        assert vars(twin) == vars(error)


@pytest.mark.parametrize("name", _errors.__all__)
def test_an_error_shows_its_context_once_it_has_one(name: str) -> None:
    error = made(CLASSES[name])
    context, error.context = error.context, None
    without = str(error)
    error.context = context
    assert str(error) == f"{without} [{context}]"


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (RerankError("it broke"), "it broke"),
        (StatusError("no", status=418), "the server answered 418: no"),
        (StatusError(status=418), "the server answered 418: no message"),
        (
            StatusError("no", status=418, headers={"X-Request-ID": "r7"}),
            "the server answered 418: no (request id r7)",
        ),
        (
            RateLimitError("slow", status=429, retry_after=1.5),
            "the server answered 429: slow (it asks to wait 1.5 s)",
        ),
        (
            ServerError("busy", status=503, headers={"x-request-id": "r7"}, retry_after=0.0),
            "the server answered 503: busy (request id r7) (it asks to wait 0 s)",
        ),
    ],
)
def test_an_error_says_what_is_known_and_no_more(error: RerankError, shown: str) -> None:
    assert str(error) == shown


def test_headers_are_found_in_lower_case_and_are_a_copy() -> None:
    headers = {"X-Request-ID": "r7", "Retry-After": "3"}
    error = StatusError("no", status=429, headers=headers)
    headers.clear()
    assert error.headers == {"x-request-id": "r7", "retry-after": "3"}
    assert StatusError("no", status=429).request_id is None


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        (InvalidRequestError, ValueError),
        (RequestTimeoutError, TimeoutError),
        (DeadlineExceededError, TimeoutError),
    ],
)
def test_an_error_joins_the_standard_tree_where_callers_look_for_it(
    kind: type[RerankError], base: type[Exception]
) -> None:
    assert issubclass(kind, base)


@pytest.mark.parametrize("kind", [TransportError, StatusError, ResponseError])
def test_what_the_server_did_is_neither_a_value_error_nor_a_timeout(
    kind: type[RerankError],
) -> None:
    assert not issubclass(kind, (ValueError, TimeoutError, OSError))


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    tree = documented_tree()
    assert set(tree) == set(_errors.__all__)
    for name, (parent, base, status) in tree.items():
        kind = CLASSES[name]
        public = [c.__name__ for c in kind.__mro__[1:] if c.__name__ in CLASSES]
        assert public[:1] == ([] if parent is None else [parent]), name
        standard = {c for c in (ValueError, TimeoutError) if issubclass(kind, c)}
        assert {c.__name__ for c in standard} == (set() if base is None else {base}), name
        if status is not None:
            assert type(error_for_status(status, "", {}, None)) is kind


@pytest.mark.parametrize(
    ("status", "location", "words"),
    [
        (401, "", "check the API key"),
        (403, "", "check what the API key may do"),
        (404, "", "check base_url and model"),
        (413, "", "lower ChunkLimits"),
        (301, "https://new.example/v1/rerank?token=secret", "redirects to https://new.example, "),
        (307, "https://user:secret@new.example/", "redirects to https://new.example, "),
        (302, "/login", "it redirects, which is not followed: correct base_url"),
        (302, "http://[::1", "it redirects, which is not followed: correct base_url"),
    ],
)
def test_the_message_says_what_to_do_where_the_status_does(
    status: int, location: str, words: str
) -> None:
    shown = str(error_for_status(status, "no", {"Location": location}, None))
    assert words in shown
    assert "secret" not in shown
