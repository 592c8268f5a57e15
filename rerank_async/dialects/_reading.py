"""What every dialect needs to read the other side: the checks of an answer, the words of an error.

The client trusts no response: here is where an answer earns it.
A line belongs here when it holds for all dialects; what one of them calls a field is in its file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from math import isfinite

import msgspec
from msgspec import Struct

from rerank_async._errors import ResponseError
from rerank_async._private import Private

__all__ = [
    "BOM",
    "Answer",
    "ErrorWords",
    "RefusedError",
    "WireRequest",
    "check_answer",
    "error_message",
    "excerpt",
    "read_error",
]

BOM = b"\xef\xbb\xbf"
_EXCERPT = 200
# Sets of more indices than this are not kept for comparing.
_MOST_KNOWN = 2000
# Control characters, line ends, and what is invisible or turns the direction of writing.
_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]+"
)


class Answer(Private, Struct, frozen=True):
    """One exchange's scores, checked and in order.

    Attributes:
        indices: positions in the request's own documents, best first, unique and in range.
        scores: as long as `indices`, finite, never increasing.
        model: by the server's word, or None.
        total_tokens: the exchange's usage, or None when the server left it out.
    """

    indices: Sequence[int]
    scores: Sequence[float]
    model: str | None
    total_tokens: int | None


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
        message: for a person.
        param: the request's field that is wrong, or None.
        code: for a program.
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


def check_answer(
    indices: list[int],
    scores: list[float],
    *,
    sent: int,
    top_n: int | None,
    model: str | None,
    total_tokens: int | None,
) -> Answer:
    """Accept an answer that covers what was asked for, and put it in order.

    Every one of the `sent` documents must have a score; under `top_n`, `min(top_n, sent)` of them
    will do.
    Where the scores already never increase, the server sorted, and its order of equal scores
    stands; otherwise equal scores go by index.

    Args:
        indices: one per result, as the server gave them; whole numbers.
        scores: one per result.
        sent: how many documents the request carried.
        top_n: how many results it asked for; None means all.
        model: handed on.
        total_tokens: handed on.

    Raises:
        ResponseError: saying what is wrong with the answer.
    """
    count = len(indices)
    wanted = sent if top_n is None else min(top_n, sent)
    # All of them is as good as the best of them: some servers ignore top_n.
    if count not in (wanted, sent):
        raise ResponseError(f"the answer has {count} results where {wanted} were asked for")
    if count:
        # One comparison for the answers that most servers give.
        if count != sent or sent > _MOST_KNOWN or set(indices) != _first(sent):
            _check_indices(indices, sent)
        # The sum alone is checked first, a fifth of the cost; a sum of finite scores may overflow.
        total = sum(scores)
        if total - total != 0.0 and not all(map(isfinite, scores)):
            raise ResponseError("the answer holds a score that is not a finite number")
        ordered = sorted(scores, reverse=True)
        if ordered != scores:
            by_index = sorted(range(count), key=indices.__getitem__)
            places = sorted(by_index, key=scores.__getitem__, reverse=True)
            indices = [indices[place] for place in places]
            scores = ordered
        if scores[0] >= 0.0 >= scores[-1]:
            # -0.0 equals 0.0 and prints differently: adding 0.0 leaves one zero only.
            scores = [score + 0.0 for score in scores]
    return Answer(indices, scores, model, total_tokens)


@lru_cache(maxsize=64)
def _first(count: int) -> frozenset[int]:
    """The indices of so many documents."""
    return frozenset(range(count))


def _check_indices(indices: list[int], sent: int) -> None:
    if len(set(indices)) != len(indices):
        doubled = Counter(indices).most_common(1)[0][0]
        raise ResponseError(f"the answer scores index {doubled} more than once")
    if min(indices) < 0 or max(indices) >= sent:
        outside = next(i for i in indices if not 0 <= i < sent)
        raise ResponseError(
            f"the answer scores index {outside}, but only 0 to {sent - 1} were sent"
        )


def excerpt(body: bytes) -> str:
    """The start of a body in at most 200 characters, safe to print on one line."""
    text = body[: 4 * _EXCERPT].decode("utf-8", errors="replace").removeprefix("\ufeff")
    text = _UNPRINTABLE.sub(" ", text).strip()
    if not text:
        return "an empty body" if not body else "a body without text"
    return text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…"


class ErrorWords(Private, Struct, frozen=True):
    """What an error body says, safe to print.

    Attributes:
        message: for a person.
        code: for a program: `code`, or `type` where that is a number or absent; None where there
            is neither.
        param: the field of the request that is wrong, or None.
    """

    message: str
    code: str | None = None
    param: str | None = None


def error_message(body: bytes) -> str:
    """The words of an error body for a person; see `read_error`."""
    return read_error(body).message


def read_error(body: bytes) -> ErrorWords:
    """The words of an error body, whichever of the known shapes it has.

    The message is, tried in turn: `error.message`, `error` as a string, `message`, `detail` as a
    string or as a list of FastAPI's entries; anything else is shown as an excerpt.
    `code`, `type` and `param` stand beside the message, or beside `error`; with FastAPI the place
    of an entry says which field is wrong.
    """
    try:
        decoded = msgspec.json.decode(body.removeprefix(BOM))
    except (ValueError, RecursionError):
        return ErrorWords(excerpt(body))
    found = _find_message(decoded)
    message = _safe(found) if found else excerpt(body)
    if not isinstance(decoded, dict):
        return ErrorWords(message)
    inner = decoded.get("error", decoded.get("detail"))
    places = [inner, decoded] if isinstance(inner, dict) else [decoded]
    code = _first_word(places, ("code", "type", "error_type", "error_code"))
    return ErrorWords(message, code, _first_word(places, ("param",)) or _place(decoded))


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
