"""A row: one query and the documents to rank for it, as files have it, and what it is known by.

A line belongs here when it says what a row is; where rows come from is in `_inputs`, what becomes
of them in `_entries`.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b, sha256
from typing import TypeAlias

from msgspec import Struct

from rerank_async._private import Private

__all__ = ["Id", "Row"]

Id: TypeAlias = str | int


class Row(Private, Struct, frozen=True):
    """One query and the documents to rank for it.

    Attributes:
        query: the text to compare documents against; not empty.
        documents: the texts of the documents.
        query_id: the input's own id, a string or a whole number; None when it gave none.
        doc_ids: the id of each document, None where the input gave none; None when it gave none at
            all.
        top_n: the number of results that are wanted; None wants all.
        start: the number of documents of the same query in the rows before. It is above 0 only
            where one query is ranked over a whole corpus, which makes many rows.
        content: the bytes of the line that the row was read from, which then decide about its
            digest; None where it was read from something else.
    """

    query: str
    documents: Sequence[str]
    query_id: Id | None = None
    doc_ids: Sequence[Id | None] | None = None
    top_n: int | None = None
    start: int = 0
    content: bytes | None = None

    def digest(self) -> bytes:
        """16 bytes that differ when anything that decides about the answer differs.

        `start` is not among it: where a row stands is not what it is.
        """
        if self.content is not None:
            # Processors have instructions for this one, and it lets go of the interpreter.
            return sha256(self.content).digest()[:16]
        texts = "\0".join(self.documents)
        lengths = ",".join(map(str, map(len, self.documents)))
        # The lengths keep texts apart that hold the separator themselves.
        head = f"{self.query_id!r}\0{self.top_n}\0{len(self.query)}\0{lengths}\0{self.query}\0"
        hasher = blake2b(head.encode("utf-8", "surrogatepass"), digest_size=16)
        hasher.update(texts.encode("utf-8", "surrogatepass"))
        if self.doc_ids is not None:
            # A list, whatever holds them: a tuple is written otherwise.
            hasher.update(repr([*self.doc_ids]).encode("utf-8", "surrogatepass"))
        return hasher.digest()

    def key(self, digest: bytes) -> str:
        """What the row is known by, on whatever line it stands: its id, or else its content."""
        return f"content:{digest.hex()}" if self.query_id is None else f"id:{self.query_id}"
