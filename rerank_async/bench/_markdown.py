"""A page as Markdown, as GitHub and most others read it.

A line belongs here when it is about Markdown's marks; what stands on a page is in `_report` and
`_compare`.
"""

from __future__ import annotations

import re

from rerank_async.bench._page import Block, Chart, Fold, Heading, Page, Points, Table, Text
from rerank_async.bench._words import one_line

__all__ = ["escaped", "to_markdown"]

# Within a word an underscore is only itself, and names are full of them.
_MARKS = re.compile(r"[\\`*\[\]{}<>&|#~$!]|(?<![^\W_])_|_(?![^\W_])")
# What GitHub makes a link or a mention of by itself.
_LINKS = re.compile(r"(?<=[a-z])(?=:/)|(?<=www)(?=\.)|(?=@)", re.IGNORECASE)
# What makes a list or a heading of a line that begins with it.
_BEGINNINGS = re.compile(r"^(\d+)(?=[.)](?:\s|$))|^(?=[-+=](?:[-=\s]|$))")


def escaped(text: str) -> str:
    """`text` on one line, so that it is read as it is written here."""
    text = " ".join(one_line(text).split())
    text = _MARKS.sub(lambda match: f"\\{match[0]}", text)
    text = _LINKS.sub(lambda _: "\\", text)
    return _BEGINNINGS.sub(lambda match: f"{match[1] or ''}\\", text)


def to_markdown(page: Page) -> str:
    """The whole file; its charts are files beside it."""
    parts = [f"# {escaped(page.title)}", *(_markdown_block(block) for block in page.blocks)]
    return "\n\n".join([*parts, "---", escaped(page.footer)]) + "\n"


def _markdown_block(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {escaped(text)}"
        case Text(text):
            return escaped(text)
        case Points(title, points, kind):
            mark = "**Warning:** " if kind == "warning" else ""
            return f"{mark}{escaped(title)}\n\n" + "\n".join(f"- {escaped(p)}" for p in points)
        case Table():
            return _markdown_table(block)
        case Chart(name, title, caption):
            return f"![{escaped(title)}]({name}.svg)\n\n{escaped(caption)}"
        case Fold(title, blocks):
            return "\n\n".join(
                [f"### {escaped(title)}", *(_markdown_block(inner) for inner in blocks)]
            )


def _markdown_table(table: Table) -> str:
    # A table must have a head; of a list of names and values it is empty.
    head = table.head or ("",) * len(table.rows[0])
    rule = ["---" if i in table.words else "---:" for i in range(len(head))]
    lines = [[escaped(cell) for cell in head], rule]
    for place, row in enumerate(table.rows):
        cells = [escaped(cell) for cell in row]
        if place in table.marked:
            cells = [f"**{cell}**" if cell else "" for cell in cells]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
