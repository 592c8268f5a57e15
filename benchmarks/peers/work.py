"""What the clients are given to do: texts, and the order in which the stub's answers put them.

Both sides import it: the stub to answer, the clients to check.
"""

from __future__ import annotations

WORKERS = 16

# Scores of a corpus: all different, and in no order.
_STEP, _PRIME = 7919, 1_000_003


def documents(count: int) -> list[str]:
    """Texts of about 540 bytes, each of which begins with its number."""
    words = "the quick brown fox jumps over the lazy dog and does so again " * 8
    return [f"{number:06d} {words}" for number in range(count)]


def score_of(number: int) -> float:
    """The score of a text of the corpus."""
    return (number * _STEP % _PRIME) / _PRIME


def best_first(count: int) -> list[int]:
    """The numbers of a corpus of so many, by score, highest first."""
    return sorted(range(count), key=score_of, reverse=True)


def order_of(count: int) -> list[int]:
    """The indices of an answer to so many documents, as the stub orders them."""
    return [place * 7919 % count if count % 7919 else place for place in range(count)]
