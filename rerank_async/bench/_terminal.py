"""How lists and tables of figures stand on a terminal, or go into a pipe as plain lines.

A line belongs here when it is about widths and lines; which figures there are is in `_tables`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from attrs import frozen
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from rerank_async.bench._words import one_line

__all__ = ["Column", "show_line", "show_list", "show_table"]

# As wide as vLLM's.
_RULE = 50


@frozen
class Column:
    """A column of a table.

    Attributes:
        name: the head of the column.
        cells: the cells of all rows.
        group: columns of one group stay beside each other where the table is cut.
        is_text: whether it stands on the left.
    """

    name: str
    cells: Sequence[str]
    group: int
    is_text: bool = False

    @property
    def width(self) -> int:
        """Of its widest cell."""
        return max(map(cell_len, (self.name, *self.cells)))

    def laid(self, text: str) -> str:
        """A cell as wide as the column."""
        space = " " * (self.width - cell_len(text))
        return text + space if self.is_text else space + text


def show_line(console: Console, text: str, style: str = "", *, indent: str = "") -> None:
    """A paragraph: broken between words on a terminal, one line elsewhere."""
    lines = [indent + one_line(text)]
    if console.is_terminal:
        width = max(20, console.width)
        lines = textwrap.wrap(
            lines[0], width, break_on_hyphens=False, subsequent_indent=indent
        ) or [""]
    for line in lines:
        console.print(Text(line, style), soft_wrap=True)


def show_rule(console: Console, title: str, mark: str) -> None:
    """A heading in the middle of a rule."""
    console.print(
        Text(f" {title} ".center(_RULE, mark) if title else mark * _RULE, "bold"), soft_wrap=True
    )


def show_list(
    console: Console, title: str, sections: Sequence[tuple[str, Sequence[tuple[str, str]]]]
) -> None:
    """Names on the left and values on the right, in the manner of vLLM's `bench serve`."""
    show_rule(console, title, "=")
    for heading, rows in sections:
        if heading:
            console.print(Text(heading.center(_RULE, "-"), "bold"), soft_wrap=True)
        for name, value in rows:
            label = f"{name}:".ljust(41)
            if len(label) + cell_len(value) <= max(60, min(console.width, 100)):
                console.print(Text(f"{label}{value}"), soft_wrap=True)
            else:
                # A sentence: on lines of its own.
                console.print(Text(f"{name}:"), soft_wrap=True)
                show_line(console, value, indent="  ")
    show_rule(console, "", "=")


def show_table(
    console: Console, columns: Sequence[Column], bold: frozenset[int] = frozenset()
) -> None:
    """A table; one that is wider than the terminal goes on below, with its first column again."""
    for block in _blocks(columns, console.width):
        gap = _gap(block, console.width)
        console.print(
            Text(gap.join(column.laid(column.name) for column in block).rstrip(), "bold"),
            soft_wrap=True,
        )
        for row in range(len(block[0].cells)):
            line = gap.join(column.laid(column.cells[row]) for column in block).rstrip()
            console.print(Text(line, "bold" if row in bold else ""), soft_wrap=True)
        console.print()


def _gap(block: Sequence[Column], width: int) -> str:
    """Two blanks between columns, or one where only that fits."""
    return "  " if sum(column.width + 2 for column in block) - 2 <= width else " "


def _blocks(columns: Sequence[Column], width: int) -> list[list[Column]]:
    """The columns in as many tables as it takes."""
    first, *others = columns
    groups: dict[int, list[Column]] = {}
    for column in others:
        groups.setdefault(column.group, []).append(column)
    blocks = [[first]]
    for group in groups.values():
        together = [*blocks[-1], *group]
        if len(blocks[-1]) > 1 and sum(column.width + 1 for column in together) - 1 > width:
            blocks.append([first, *group])
        else:
            blocks[-1] = together
    return blocks
