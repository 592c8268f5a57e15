"""What input formats ask of their arguments and of what they read. Pure.

A line belongs here when more than one input format needs it.
"""

from __future__ import annotations

from collections.abc import Sequence

from rerank_async._errors import InvalidRequestError
from rerank_async.bulk._rows import Id

__all__ = ["as_positive", "doubled", "is_id"]


def as_positive(name: str, value: int) -> int:
    """Refuse what is not a positive whole number.

    Raises:
        InvalidRequestError: naming the argument `name`.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequestError(f"{name} must be a whole number, not {value!r}")
    if value < 1:
        raise InvalidRequestError(f"{name} must be at least 1, not {value}")
    return value


def doubled(doc_ids: Sequence[Id | None]) -> Id | None:
    """A doc_id that comes twice, by which nobody could tell two results apart; None if there is
    none.

    7 and "7" are the same: many formats of output know strings only.
    """
    # Of one type, as they mostly are, they need not be made strings to be compared.
    if len(set(doc_ids)) == len(doc_ids) and len(set(map(type, doc_ids))) <= 1:
        return None
    words = [str(doc_id) for doc_id in doc_ids if doc_id is not None]
    seen: set[str] = set(words)
    if len(seen) == len(words):
        return None
    for doc_id in doc_ids:
        if doc_id is not None:
            if str(doc_id) not in seen:
                return doc_id
            seen.remove(str(doc_id))
    return None


def is_id(value: object) -> bool:
    """Whether a value of JSON can be an id, or stands for none."""
    return value is None or type(value) in (str, int)
