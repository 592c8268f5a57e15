"""The scorers of the local server.

Each engine takes a query and documents and gives one float per document, in the documents'
order. Engines are pointwise: a document's score depends on the query and that document alone,
so it is the same in any chunk. Nothing here knows HTTP or asyncio.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from types import MappingProxyType
from typing import Final, Protocol

from attrs import frozen

__all__ = ["ENGINES", "Engine", "LexicalEngine", "Scored", "Stems", "create", "idf_table", "words"]


@frozen
class Scored:
    """What an engine returns for one query and its documents.

    `scores` holds one finite float per document, in the documents' order. `total_tokens` is the
    usage: the query's tokens once per document, plus each document's own tokens.
    """

    scores: list[float]
    total_tokens: int


class Engine(Protocol):
    """A scorer: give it a query and documents, get one score per document."""

    @property
    def name(self) -> str:
        """The name that `create` knows this engine by."""

    def score(self, query: str, documents: Sequence[str]) -> Scored:
        """Score each document against the query; no documents give no scores and no tokens."""


# Letters and digits; not the underscore, so that wait_for is found by "wait".
_WORD: Final = re.compile(r"[^\W_]+")

# The same words as _WORD finds, for ASCII text: keep letters and digits, blank out the rest.
_ASCII_TO_WORDS: Final = "".join(
    character if _WORD.match(character) else " " for character in map(chr, range(128))
)


def words(text: str) -> list[str]:
    """Split text into its tokens: runs of letters and digits in the casefolded text, in order.

    Any script works that puts spaces between its words. Chinese and Japanese do not: there a
    token is everything between two punctuation marks, and matches only that same run. Combining
    marks are neither, so they end a token: a decomposed accent, a Devanagari vowel sign.
    """
    folded = text.casefold()
    if folded.isascii():
        # About three times as fast as the pattern.
        return folded.translate(_ASCII_TO_WORDS).split()
    return _WORD.findall(folded)


# Split like any text, so that a contraction gives its pieces: don't is don and t. There is no
# won't, because its won would take the verb with it.
STOP_WORDS: Final = frozenset(
    words(
        """
        a about above after again against all also although am among an and any are aren't as at
        be because been before being below between both but by
        can cannot could couldn't
        did didn't do does doesn't doing don't done down during
        each either else ever every
        few for from further
        had hadn't has hasn't have haven't having he hence her here hers herself him himself his
        how however
        I I'd if I'll I'm in into is isn't it its itself I've
        just
        may me might more most much must my myself
        neither no nor not
        of off on once only onto or other our ours ourselves out over own
        per perhaps
        quite
        rather
        same shall she should shouldn't since so some such
        than that the their theirs them themselves then there therefore these they they're this
        those though through thus to too toward towards
        under until up upon us
        very via
        was wasn't we were weren't what what's when where whether which while who whom whose why
        will with within without would wouldn't
        yet you your yours yourself yourselves
        """
    )
)


class Stems(dict[str, str]):
    """A memo from a casefolded word to its Snowball English stem, filled as words are looked up.

    A stop word's stem is the empty string. Words of more than `longest` characters are their
    own stems and are not kept; the memo is emptied when it holds `capacity` words, so its size
    is bounded whatever the documents hold.

    Raises RuntimeError, naming the install command, when PyStemmer is not installed.
    """

    def __init__(self, *, capacity: int = 100_000, longest: int = 64) -> None:
        try:
            import Stemmer
        except ModuleNotFoundError:
            raise RuntimeError(
                'the lexical engine needs PyStemmer: pip install "rerank-async[server]"'
            ) from None
        super().__init__()
        self._capacity = capacity
        self._longest = longest
        # This class is the cache, so PyStemmer keeps none of its own.
        self._stem: Callable[[str], str] = Stemmer.Stemmer("english", 0).stemWord

    def __missing__(self, word: str) -> str:
        if len(word) > self._longest:
            return word
        stem = "" if word in STOP_WORDS else self._stem(word)
        if len(self) >= self._capacity:
            self.clear()
        self[word] = stem
        return stem

    def count(self, text_words: Iterable[str]) -> Counter[str]:
        """Count the stems of these words; the stop words are counted under the empty string."""
        return Counter(map(self.__getitem__, text_words))


def idf_table(lines: Iterable[str]) -> dict[str, float]:
    """Read an IDF table: lines `IDF stem stem ...`; blank lines and `#` comments are skipped.

    Raises ValueError when an IDF is not a number or a stem occurs twice.
    """
    table: dict[str, float] = {}
    for line in lines:
        if line.startswith("#") or not line.strip():
            continue
        first, *stems = line.split()
        idf = float(first)
        for stem in stems:
            if stem in table:
                raise ValueError(f"the IDF table has two values for {stem!r}")
            table[stem] = idf
    return table


class LexicalEngine:
    """Okapi BM25 over stems, with inverse document frequencies from a fixed table.

    The score of document d for query q::

        score(q, d) = sum over t in q and d of idf(t) tf (k1 + 1) / (tf + K(d))
                      / sum over t in q of idf(t) (k1 + 1)
        K(d) = k1 (1 - b + b len(d) / avgdl)

    Here q is the set of the query's stems without stop words, tf the number of times that t
    occurs in d, and len(d) the number of d's words that are not stop words; k1 = 1.2, b = 0.75,
    avgdl = 100 words. The weighting is that of Robertson et al., "Okapi at TREC-3" (1994). The
    division makes a score lie in [0, 1); it does not change the order within a query.

    idf(t) comes from the commonest stems of WordNet's glosses, never from the documents at hand:
    BM25 over a request's own documents would make a score depend on its neighbours. A stem that
    is not in the table is no commoner there than any that is, and gets the table's maximum.

    A query of stop words only scores 0.0 everywhere. Tokens are what `words` returns, stop words
    included. One engine serves one thread at a time, because PyStemmer's stemmer does.

    Raises RuntimeError, naming the install command, when PyStemmer is not installed.
    """

    name: Final = "lexical"

    k1: Final = 1.2
    b: Final = 0.75
    average_length: Final = 100

    def __init__(self) -> None:
        self._stems = Stems()
        table = files("rerank_async.server") / "data" / "idf_wordnet.txt"
        self._idf = idf_table(table.read_text(encoding="utf-8").splitlines())
        self._unknown_idf = max(self._idf.values())

    def idf(self, stem: str) -> float:
        """Return the stem's inverse document frequency, in nats."""
        return self._idf.get(stem, self._unknown_idf)

    def score(self, query: str, documents: Sequence[str]) -> Scored:
        """Score each document against the query: floats in [0, 1), in the documents' order."""
        query_words = words(query)
        query_stems = self._stems.count(query_words)
        del query_stems[""]
        idfs = {stem: self.idf(stem) for stem in query_stems}
        # (k1 + 1) stands above and below the line, so it is left out of both.
        ideal = sum(idfs.values())
        weights = [(stem, idf / ideal) for stem, idf in idfs.items()]
        fixed = self.k1 * (1 - self.b)
        per_word = self.k1 * self.b / self.average_length

        scores = []
        total_tokens = len(query_words) * len(documents)
        for document in documents:
            document_words = words(document)
            total_tokens += len(document_words)
            counts = self._stems.count(document_words)
            damping = fixed + per_word * (len(document_words) - counts[""])
            # Added in the query's order, so that companions cannot change a single bit.
            score = 0.0
            for stem, weight in weights:
                tf = counts.get(stem)
                if tf:
                    score += weight * tf / (tf + damping)
            scores.append(score)
        return Scored(scores, total_tokens)


ENGINES: Final[Mapping[str, Callable[[], Engine]]] = MappingProxyType({"lexical": LexicalEngine})


def create(name: str) -> Engine:
    """Make the engine of this name.

    Raises ValueError, listing the known names, for a name that is not in `ENGINES`, and
    RuntimeError when the extra that the engine needs is not installed.
    """
    if name not in ENGINES:
        raise ValueError(f"no engine is named {name!r}; the engines are: {', '.join(ENGINES)}")
    return ENGINES[name]()
