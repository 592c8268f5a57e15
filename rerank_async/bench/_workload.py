"""What is asked: requests that are made, or read, before anything is measured.

Sizes are written in a small grammar, the same for documents in a request, words in a document and
words in a query:

    100                   always so many
    uniform:10-200        each number from 10 to 200 as often as the others
    normal:100,20         mean and standard deviation; what would be below 1 becomes 1
    lognormal:100,0.5     median and sigma of the logarithm: most are short, a few are long
    10:0.8,1000:0.2       one of these, so often; the shares need not add up to 1

A line belongs here when it says what a request holds; when it is sent is `_arrivals`'.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from hashlib import sha256
from itertools import count
from pathlib import Path
from random import Random
from typing import NamedTuple, Protocol

from attrs import frozen

from rerank_async._errors import InvalidRequestError
from rerank_async.bench._result import Workload
from rerank_async.bulk._inputs.requests import Requests
from rerank_async.dialects import get as get_dialect

__all__ = ["Request", "RequestPool", "Sizes", "file_pool", "made_pool", "parse_sizes", "word_of"]

# A request of more documents, or a text of more words, is a slip of the finger.
_MOST = 1_000_000
# Of requests that are made, and of those that are read: enough to be different, few enough to be
# made in a second and to fit into memory.
_MADE, _MADE_CHARACTERS = 256, 32 * 2**20
_READ, _READ_CHARACTERS = 10_000, 256 * 2**20
# Texts are cut from this many words: to draw every word anew takes twenty times as long.
_STOCK = 100_000

# ── sizes ──


class Sizes(Protocol):
    """How large things are."""

    def draw(self, dice: Random) -> int:
        """One of them; at least 1."""
        ...


@frozen
class _Fixed:
    size: int

    def draw(self, dice: Random) -> int:
        return self.size


@frozen
class _Uniform:
    low: int
    high: int

    def draw(self, dice: Random) -> int:
        return dice.randint(self.low, self.high)


@frozen
class _Normal:
    mean: float
    deviation: float

    def draw(self, dice: Random) -> int:
        return _clamped(dice.gauss(self.mean, self.deviation))


@frozen
class _LogNormal:
    median: float
    sigma: float

    def draw(self, dice: Random) -> int:
        return _clamped(self.median * dice.lognormvariate(0.0, self.sigma))


@frozen
class _Choice:
    sizes: tuple[int, ...]
    weights: tuple[float, ...]

    def draw(self, dice: Random) -> int:
        return dice.choices(self.sizes, self.weights)[0]


def _clamped(size: float) -> int:
    return max(1, min(_MOST, round(size)))


_WHOLE = r"([0-9]{1,7})"
_NUMBER = r"([0-9]{1,7}(?:\.[0-9]{1,9})?)"
_FIXED = re.compile(_WHOLE)
_UNIFORM = re.compile(rf"uniform:{_WHOLE}-{_WHOLE}")
_NORMAL = re.compile(rf"(normal|lognormal):{_NUMBER},{_NUMBER}")
_CHOICE = re.compile(rf"{_WHOLE}:{_NUMBER}")


def parse_sizes(name: str, text: str) -> Sizes:
    """What a size of the grammar above means.

    Args:
        name: what it is the size of, for the message.
        text: the sizes as they were written.

    Raises:
        InvalidRequestError: it is not in the grammar, or a number is out of range.
    """
    text = text.strip().lower().replace(" ", "")
    if match := _FIXED.fullmatch(text):
        return _Fixed(_size(name, match[1]))
    if match := _UNIFORM.fullmatch(text):
        low, high = _size(name, match[1]), _size(name, match[2])
        if low > high:
            raise InvalidRequestError(f"{name}: {text} ends before it begins")
        return _Uniform(low, high)
    if match := _NORMAL.fullmatch(text):
        middle, spread = float(match[2]), float(match[3])
        if not 1 <= middle <= _MOST:
            raise InvalidRequestError(f"{name}: {text} must have its middle from 1 to {_MOST:,}")
        if match[1] == "normal":
            return _Normal(middle, spread)
        if spread > 5:
            raise InvalidRequestError(f"{name}: the sigma of {text} must be at most 5")
        return _LogNormal(middle, spread)
    pairs = [_CHOICE.fullmatch(part) for part in text.split(",")]
    if all(pairs):
        sizes = tuple(_size(name, match[1]) for match in pairs if match)
        weights = tuple(float(match[2]) for match in pairs if match)
        if not sum(weights) > 0:
            raise InvalidRequestError(f"{name}: the shares of {text} are all 0")
        return _Choice(sizes, weights)
    raise InvalidRequestError(
        f"{name} must be like 100, uniform:10-200, normal:100,20, lognormal:100,0.5 or "
        f"10:0.8,1000:0.2, not {text!r}"
    )


def _size(name: str, digits: str) -> int:
    size = int(digits)
    if not 1 <= size <= _MOST:
        raise InvalidRequestError(f"{name} must be from 1 to {_MOST:,}, not {size:,}")
    return size


# ── texts ──

_TEXT = """
a about after again all also an and any are as at back be because been before being between both
but by call came can city come could country day did different do does down each end even every
example eyes far few file find first follow for form found from gave get give go good great group
had hand has have he head help her here high him his home house how if in into is it its just keep
kind know land large last later learn left letter life light like line list little live long look
made make man many may me mean men might more most mother mountain move much must my name near
need never new next night no not now number of off old on once one only open or other our out over
own page paper part people place plant play point question quick read right river run said same
saw say school sea second see sentence set she should show side small so some something sometimes
soon sound spell state still stop story study such take talk tell than that the their them then
there these they thing think this those thought three through time to together too took tree try
turn two under until up us use very walk want was watch water way we well went were what when
where which while white who why will with without word work world would write year you young your
server request model index score query document ranking search result answer machine language
network memory cache latency measure weight vector value table column process thread socket buffer
stream packet window clock signal sample error limit budget bridge harbor engine wheel copper
silver garden winter summer market office doctor lawyer contract treaty island ocean desert forest
valley protein enzyme planet comet orbit gravity magnet current battery circuit bread butter
pepper
"""
_WORDS = _TEXT.split()

_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
_MADE_WORDS = len(_SYLLABLES) ** 4
# Without a divisor in common with their number, so that it passes through all of them.
_STRIDE = 7_368_787


def word_of(number: int) -> str:
    """A made word of eight letters; the first 24,010,000 numbers have different ones."""
    number = number * _STRIDE % _MADE_WORDS
    word = ""
    for _ in range(4):
        number, place = divmod(number, len(_SYLLABLES))
        word += _SYLLABLES[place]
    return word


class _Texts:
    """Texts of so many words; each begins with a made word that no other one has."""

    def __init__(self, dice: Random) -> None:
        self._dice = dice
        self._stock = dice.choices(_WORDS, k=_STOCK)
        self._numbers = count(dice.randrange(_MADE_WORDS))

    def text(self, words: int) -> str:
        return " ".join([word_of(next(self._numbers)), *self.words(words - 1)])

    def words(self, words: int) -> Iterator[str]:
        while words > 0:
            start = self._dice.randrange(_STOCK)
            piece = self._stock[start : start + words]
            words -= len(piece)
            yield from piece


# ── the pool ──


class Request(NamedTuple):
    """One to send.

    Attributes:
        query: the text.
        documents: the texts.
        top_n: None asks for all results.
    """

    query: str
    documents: list[str]
    top_n: int | None


class RequestPool:
    """Requests that lie ready, given out in turn, and again from the first.

    Args:
        requests: the requests; at least one.
        workload: what they are, for the report.
        first_word: the first word of the next query, as a number of `word_of`; the queries are
            without their first words then, and get a new one each time. None leaves them as they
            are.
        notes: what one should know of them.

    Attributes:
        workload: what they are, for the report.
        notes: what one should know of them.
        given: the number of requests that were given out.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        workload: Workload,
        *,
        first_word: int | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self._requests = requests
        self._first_word = first_word
        self.workload = workload
        self.notes = tuple(notes)
        self.given = 0

    def __len__(self) -> int:
        return len(self._requests)

    def take(self) -> Request:
        """The next one."""
        request = self._requests[self.given % len(self._requests)]
        self.given += 1
        if self._first_word is None:
            return request
        # A server that remembers pairs of query and document has seen none of these.
        query = word_of(self._first_word + self.given) + request.query
        return Request(query, request.documents, request.top_n)

    def repeats(self) -> str | None:
        """A note on how often each was sent; None where none was twice."""
        times = self.given / len(self._requests)
        if times <= 1:
            return None
        how, again = "each was sent", ""
        if self._first_word is not None:
            how, again = "their documents were sent", ", each time with another query"
        number = f"{max(times, 1.1):,.1f}".removesuffix(".0")
        return (
            f"{len(self._requests):,} different requests: {how} about {number} times{again}; "
            "a server that caches looks faster than it is"
        )


def made_pool(
    *,
    documents: str,
    document_words: str,
    query_words: str,
    top_n: int | None,
    seed: int,
    model: str,
    dialect: str,
) -> RequestPool:
    """Requests made of words, the same ones for the same seed.

    Args:
        documents: the number of documents in a request, in the grammar of sizes.
        document_words: the number of words in a document, in the grammar of sizes.
        query_words: the number of words in a query, in the grammar of sizes.
        top_n: results asked for; None asks for all.
        seed: the seed of all that is drawn.
        model: the model to be asked, for the sizes of bodies.
        dialect: the same.

    Raises:
        InvalidRequestError: a size is not in the grammar; the message names it.
    """
    counts = parse_sizes("documents", documents)
    lengths = parse_sizes("document_words", document_words)
    query_lengths = parse_sizes("query_words", query_words)
    dice = Random(seed)
    texts = _Texts(dice)
    requests: list[Request] = []
    characters = 0
    while len(requests) < _MADE and (not requests or characters < _MADE_CHARACTERS):
        tail = "".join(f" {word}" for word in texts.words(query_lengths.draw(dice) - 1))
        own = [texts.text(lengths.draw(dice)) for _ in range(counts.draw(dice))]
        requests.append(Request(tail, own, top_n))
        characters += sum(map(len, own))
    first_word = dice.randrange(_MADE_WORDS)
    whole = [request._replace(query=word_of(first_word) + request.query) for request in requests]
    workload = Workload(
        source="generated",
        documents=documents,
        document_words=document_words,
        query_words=query_words,
        top_n=top_n,
        seed=seed,
        mean_documents=_mean_documents(whole),
        mean_body_bytes=_mean_body(whole, model, dialect),
    )
    return RequestPool(requests, workload, first_word=first_word)


def file_pool(path: Path, *, top_n: int | None, seed: int, model: str, dialect: str) -> RequestPool:
    """The requests of a file in the form that `bulk` reads, `-` for standard input.

    Args:
        path: JSON lines, perhaps compressed.
        top_n: results asked for where a line does not say; None asks for all.
        seed: the seed that the report names.
        model: the model to be asked, for the sizes of bodies.
        dialect: the same.

    Raises:
        InputError: it cannot be read; the message names the line.
        InvalidRequestError: it holds no requests, or one that cannot be measured.
    """
    source = Requests(path, top_n)
    requests: list[Request] = []
    notes: list[str] = []
    characters = 0
    hasher = sha256()
    with closing(source.rows()) as rows:
        for number, row in enumerate(rows, 1):
            if not row.documents:
                raise InvalidRequestError(
                    f"{source.name}: request {number} has no documents, so nothing would be sent"
                )
            if len(requests) == _READ or characters > _READ_CHARACTERS:
                notes.append(
                    f"of {source.name} only the first {len(requests):,} requests were used"
                )
                break
            requests.append(Request(row.query, list(row.documents), row.top_n))
            hasher.update(row.digest())
            characters += sum(map(len, row.documents))
    if not requests:
        raise InvalidRequestError(f"{source.name} holds no requests")
    workload = Workload(
        source=source.name,
        documents=None,
        document_words=None,
        query_words=None,
        top_n=top_n,
        seed=seed,
        mean_documents=_mean_documents(requests),
        mean_body_bytes=_mean_body(requests, model, dialect),
        digest=hasher.hexdigest()[:32],
    )
    return RequestPool(requests, workload, notes=notes)


def _mean_documents(requests: Sequence[Request]) -> float:
    return sum(len(request.documents) for request in requests) / len(requests)


def _mean_body(requests: Sequence[Request], model: str, name: str) -> float:
    dialect = get_dialect(name)
    size = 0
    for number, request in enumerate(requests, 1):
        try:
            size += len(
                dialect.encode_request(model, request.query, request.documents, request.top_n)
            )
        except TypeError:
            raise InvalidRequestError(f"request {number} holds text that is no Unicode") from None
    return size / len(requests)
