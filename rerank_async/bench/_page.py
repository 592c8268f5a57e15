"""What a written report is made of; `_markdown` and `_html` turn it into files.

All text in it is as it came: each of the two escapes everything.
A line belongs here when both kinds of file need it.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from attrs import field, frozen

__all__ = ["Block", "Chart", "Fold", "Heading", "Page", "Points", "Table", "Text"]


@frozen
class Heading:
    """A line above a part of the page."""

    text: str


@frozen
class Text:
    """A paragraph."""

    text: str


@frozen
class Points:
    """A list of sentences.

    Attributes:
        title: the title above them.
        points: one line each.
        kind: "warning" is what one must know before one believes the figures.
    """

    title: str
    points: tuple[str, ...]
    kind: Literal["plain", "warning"] = "plain"


@frozen
class Table:
    """Rows of cells.

    Attributes:
        head: names of the columns; none for a list of names and values.
        rows: the rows, each of as many cells as there are columns.
        marked: rows that are set apart; a cell says why, since looks alone do not reach everybody.
        words: columns that are text; numbers stand on the right.
        big: the few figures that one looks for first.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marked: frozenset[int] = frozenset()
    words: frozenset[int] = frozenset({0})
    big: bool = False


@frozen
class Chart:
    """A picture beside the page.

    Attributes:
        name: the name of its file, without an ending.
        title: what it shows, for who does not see it.
        caption: a sentence that says how to read it.
        svg: the picture.
    """

    name: str
    title: str
    caption: str
    svg: bytes = field(repr=False)


@frozen
class Fold:
    """What is shown to whoever asks for it.

    Attributes:
        title: the title of what is folded.
        blocks: what is.
    """

    title: str
    blocks: tuple[Heading | Text | Points | Table, ...]


Block: TypeAlias = Heading | Text | Points | Table | Chart | Fold


@frozen
class Page:
    """A page.

    Attributes:
        title: the title of the whole.
        blocks: what stands on it, from top to bottom.
        footer: the last line.
    """

    title: str
    blocks: tuple[Block, ...]
    footer: str
