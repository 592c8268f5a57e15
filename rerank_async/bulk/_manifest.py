"""What a job is: the words that two runs of it must have in common, and their fingerprint. Pure.

A line belongs here when it is about those words; where they are kept is `_job`.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import TypeAlias

import orjson
from attrs import frozen

from rerank_async._chunking import ChunkLimits

__all__ = [
    "FORMAT",
    "Contents",
    "Manifest",
    "Tally",
    "Words",
    "differences",
    "limit_words",
    "read",
    "written",
]

Words: TypeAlias = Mapping[str, str | int | bool | None]

# Of the job's directory; a change that an older version would misread needs a new number.
FORMAT = 1

# In the words of whoever runs the job.
_NAMES = {
    "endpoint": "the server",
    "query": "the query",
    "depth": "the depth",
    "rows": "the input's number of rows",
    "documents": "the input's number of documents",
    "digest": "the input's content",
    "identical_once": "whether identical documents are sent once",
    "kind": "the kind of input",
}


@frozen
class Contents:
    """What an input holds, whatever the order of its rows.

    Attributes:
        rows: the number of rows.
        documents: the number of documents of all rows together.
        digest: the sum of the rows' digests, in hexadecimal; a sum, so that the order does not
            count.
    """

    rows: int
    documents: int
    digest: str


class Tally:
    """The contents of an input that is being read."""

    def __init__(self) -> None:
        self.rows = 0
        self.documents = 0
        self._sum = 0

    def add(self, digest: bytes, documents: int) -> None:
        """Count one row."""
        self.rows += 1
        self.documents += documents
        self._sum += int.from_bytes(digest, "big")

    def contents(self) -> Contents:
        """What was counted so far."""
        return Contents(self.rows, self.documents, f"{self._sum % 2**128:032x}")


@frozen
class Manifest:
    """What a job is.

    Attributes:
        words: the values that decide about the result besides the rows: endpoint, model, options.
        contents: the contents of the input; None when it is read as it comes, and they cannot be
            known before.
    """

    words: Words
    contents: Contents | None

    def fingerprint(self) -> str:
        """64 hexadecimal digits that two jobs have in common when they may share their results."""
        return sha256(orjson.dumps(self._plain(), option=orjson.OPT_SORT_KEYS)).hexdigest()

    def _plain(self) -> dict[str, object]:
        contents = self.contents
        return {
            "words": dict(self.words),
            "contents": None
            if contents is None
            else {
                "rows": contents.rows,
                "documents": contents.documents,
                "digest": contents.digest,
            },
        }


def limit_words(limits: ChunkLimits) -> dict[str, str | int | bool | None]:
    """What of a request's limits decides about the result: where a list is cut.

    Limits that are not set are left out, as they were before there were words for them.
    """
    words: dict[str, str | int | bool | None] = {"max_documents": limits.max_documents}
    for name in ("max_bytes", "max_tokens"):
        value: int | None = getattr(limits, name)
        if value is not None:
            words[name] = value
    return words


def written(manifest: Manifest, **notes: str) -> bytes:
    """The manifest as the bytes of its file; `notes` are for people only."""
    body = {"format": FORMAT, **notes, **manifest._plain(), "fingerprint": manifest.fingerprint()}
    body["checksum"] = _checksum(body)
    return orjson.dumps(body, option=orjson.OPT_INDENT_2) + b"\n"


def read(data: bytes) -> Manifest:
    """The manifest that `written` wrote.

    Raises:
        ValueError: it is of another format, or not as it was written; the message says which.
    """
    try:
        body = orjson.loads(data)
        checksum = body.pop("checksum")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ValueError("it is damaged") from None
    if body.get("format") != FORMAT:
        raise ValueError(f"it is of format {body.get('format')!r}, and this version reads {FORMAT}")
    if checksum != _checksum(body):
        raise ValueError("it is damaged: its checksum does not fit")
    contents = body["contents"]
    return Manifest(body["words"], None if contents is None else Contents(**contents))


def _checksum(body: Mapping[str, object]) -> str:
    return sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()


def differences(then: Manifest, now: Manifest) -> list[str]:
    """What has changed between two manifests, a phrase each; nothing where they agree."""
    changed = []
    for name in dict.fromkeys((*then.words, *now.words)):
        before, after = then.words.get(name), now.words.get(name)
        if before != after:
            changed.append(f"{_NAMES.get(name, name)} was {_shown(before)}, now {_shown(after)}")
    if (then.contents is None) != (now.contents is None):
        changed.append(
            "the input was read as it came, now it is checked first"
            if then.contents is None
            else "the input was checked first, now it is read as it comes"
        )
    elif then.contents is not None and now.contents is not None:
        for name in ("rows", "documents"):
            before, after = getattr(then.contents, name), getattr(now.contents, name)
            if before != after:
                changed.append(f"{_NAMES[name]} was {before:,}, now {after:,}")
        if not changed and then.contents.digest != now.contents.digest:
            changed.append(f"{_NAMES['digest']} is another")
    return changed


def _shown(value: object) -> str:
    if value is None:
        return "not given"
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}…"
