"""What dialects read and give: an answer's columns, the server's request, the words of an error.

A line belongs here when it holds for all dialects; what one of them calls a field is in its file,
and whether an answer is believed is decided in `_answers`.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from rerank_async._errors import Meaning
from rerank_async._private import Private, excerpt

__all__ = [
    "BOM",
    "Failure",
    "Read",
    "RefusedError",
    "WireRequest",
    "error_message",
    "read_error",
]

BOM = b"\xef\xbb\xbf"


class Read(Private, Struct, frozen=True):
    """What one answer says, unchecked: the core checks it, whatever dialect read it.

    Attributes:
        indices: positions in the request's own documents, one for each result, in the answer's
            order. A list; where an answer gives scores by position, `list(range(len(scores)))`.
        scores: one for each index. A list.
        model: the name of the model that answered, or None where the answer says none or none that
            can be believed.
        total_tokens: the tokens that the exchange cost, or None where the answer does not say so in
            tokens.
    """

    indices: list[int]
    scores: list[float]
    model: str | None = None
    total_tokens: int | None = None


class WireRequest(Private, Struct, frozen=True):
    """A request as the server reads it; the fields are those of the v1 exchange."""

    model: str
    query: str
    documents: list[str]
    top_n: int | None


class RefusedError(Exception):
    """The server's side will not do this: a status, and what the error body says.

    Attributes:
        status: the HTTP status.
        message: the words for a person.
        param: the request's field that is wrong, or None.
        code: the word for a program.
        retry_after: seconds after which to try again, or None.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str = "invalid_request",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after


class Failure(Private, Struct, frozen=True):
    """What an error says, and means; its words are safe to print.

    Attributes:
        message: the words for a person.
        code: the word for a program, from `code`, or from `type` where that is a number or absent;
            None where there is neither.
        param: the field of the request that is wrong, or None.
        means: what the dialect knows it to mean, whatever its status is; None leaves that to the
            status and the words.
    """

    message: str
    code: str | None = None
    param: str | None = None
    means: Meaning | None = None


def error_message(body: bytes) -> str:
    """The words of an error body for a person; see `read_error`."""
    return read_error(body).message


def read_error(body: bytes) -> Failure:
    """The words of an error body, whichever of the known shapes it has.

    The message is, tried in turn: `error.message`, `error` as a string, `message`, `detail` as a
    string or as a list of FastAPI's entries; anything else is shown as an excerpt.
    `code`, `type` and `param` stand beside the message, or beside `error`; with FastAPI the place
    of an entry says which field is wrong.
    """
    try:
        decoded = msgspec.json.decode(body.removeprefix(BOM))
    except (ValueError, RecursionError):
        return Failure(excerpt(body))
    found = _find_message(decoded)
    message = _safe(found) if found else excerpt(body)
    if not isinstance(decoded, dict):
        return Failure(message)
    inner = decoded.get("error", decoded.get("detail"))
    places = [inner, decoded] if isinstance(inner, dict) else [decoded]
    code = _first_word(places, ("code", "type", "error_type", "error_code"))
    return Failure(message, code, _first_word(places, ("param",)) or _place(decoded))


def _first_word(places: list[dict[str, object]], keys: tuple[str, ...]) -> str | None:
    """The first of these fields that is a word: many servers repeat the status as the code."""
    for place in places:
        for key in keys:
            value = place.get(key)
            if isinstance(value, str) and value and not value.isdecimal():
                return _safe(value)
    return None


def _place(decoded: dict[str, object]) -> str | None:
    """The field that the first of FastAPI's entries is about."""
    match decoded.get("detail"):
        case [{"loc": [_, *_] as place}, *_]:
            return _safe(".".join(map(str, place)))
    return None


def _safe(text: str) -> str:
    return excerpt(text.encode("utf-8", errors="replace"))


def _find_message(decoded: object) -> str | None:
    if not isinstance(decoded, dict):
        return None
    for key in ("error", "message", "detail"):
        value = decoded.get(key)
        if isinstance(value, str) and value:
            return value
        if isinstance(value, dict) and isinstance(value.get("message"), str) and value["message"]:
            message: str = value["message"]
            return message
        if isinstance(value, list) and value and isinstance(value[0], dict):
            entry = value[0]
            where = ".".join(map(str, entry["loc"])) if isinstance(entry.get("loc"), list) else ""
            return f"{where}: {entry.get('msg', '')}" if where else str(entry.get("msg", ""))
    return None
