"""A page as one HTML file that needs nothing else: no network, no scripts, no files beside it.

Everything that comes from outside goes through `_escaped`, or stands in a chart's SVG, where
matplotlib has escaped it.
A line belongs here when it is about HTML or CSS; what stands on a page is in `_report` and
`_compare`.
"""

from __future__ import annotations

import re
from html import escape

from rerank_async.bench import _drawing
from rerank_async.bench._page import Block, Chart, Fold, Heading, Page, Points, Table, Text
from rerank_async.bench._words import one_line

__all__ = ["to_html"]

# The colours of charts by their names, as they are in the light and in the dark.
_COLORS = {
    "blue": (_drawing.BLUE, "#5ab4f0"),
    "green": (_drawing.GREEN, "#2fc79a"),
    "orange": (_drawing.ORANGE, "#f0b429"),
    "vermillion": (_drawing.VERMILLION, "#f5803e"),
    "purple": (_drawing.PURPLE, "#dd9fc1"),
    "sky": (_drawing.SKY, "#2f6690"),
    "ink": (_drawing.INK, "#e6e9ed"),
    "grey": (_drawing.GREY, "#9aa3af"),
    "grid": (_drawing.GRID, "#2e343c"),
    "paper": (_drawing.PAPER, "#16191d"),
}
_NAMES = {light: f"var(--{name})" for name, (light, _) in _COLORS.items()}
# The page's own ground shows through, with its shades.
_NAMES[_drawing.PAPER] = "none"

_STYLE = """
:root { color-scheme: light dark; LIGHT --line: #d5d9de; --soft: #f4f6f8; --warn: #fff4dc;
  --shade: #00000038; }
@media (prefers-color-scheme: dark) {
  :root { DARK --line: #3a414a; --soft: #1f242a; --warn: #3a2f14;
    --shade: #ffffff40; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
p { margin: .5rem 0; overflow-wrap: anywhere; }
/* A shade at the side to which there is more to scroll to. */
.wide { overflow-x: auto; margin: .8rem 0; background:
  linear-gradient(to right, var(--paper) 40%, transparent) left / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--paper) 40%, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) left / 1rem 100% no-repeat scroll,
  linear-gradient(to left, var(--shade), transparent) right / 1rem 100% no-repeat scroll; }
.wide:focus-visible, summary:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .55rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; vertical-align: top; }
thead th { white-space: normal; vertical-align: bottom; }
th { font-weight: 600; }
td.w, th.w { text-align: left; }
.list { table-layout: fixed; width: 100%; max-width: 44rem; }
.list th, .list td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.list th { font-weight: 400; white-space: pre-wrap; width: 40%; }
tr.marked > * { background: var(--soft); font-weight: 700; }
dl.big { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem;
  margin: 1rem 0; }
dl.big div { background: var(--soft); border: 1px solid var(--line); border-radius: .4rem;
  padding: .6rem .8rem; }
dl.big dt { font-size: .85rem; }
dl.big dd { margin: 0; font-size: 1.5rem; font-weight: 700; font-variant-numeric: tabular-nums; }
.points { border-left: 4px solid var(--line); padding: .3rem .9rem; margin: 1rem 0; }
.points.warning { border-color: var(--orange); background: var(--warn); }
.points p { font-weight: 600; }
.points ul { margin: .3rem 0; padding-left: 1.2rem; overflow-wrap: anywhere; }
figure { margin: 1.4rem 0 2rem; }
figure svg { display: block; width: 100%; min-width: 34rem; max-width: 52rem; height: auto; }
figcaption { font-size: .9rem; color: var(--grey); }
details { border-bottom: 1px solid var(--line); padding: .3rem 0; }
summary { cursor: pointer; padding: .3rem 0; }
footer { margin-top: 3rem; font-size: .85rem; color: var(--grey); }
@media print { .wide { overflow: visible; } figure { break-inside: avoid; } }
"""


def to_html(page: Page) -> str:
    """The whole file."""
    style = _STYLE
    for word, which in (("LIGHT", 0), ("DARK", 1)):
        colors = " ".join(f"--{name}: {both[which]};" for name, both in _COLORS.items())
        style = style.replace(word, colors)
    title = _escaped(page.title)
    blocks = "\n".join(_html_block(block) for block in page.blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{title}</h1>\n{blocks}\n<footer>{_escaped(page.footer)}</footer>\n"
        "</main>\n</body>\n</html>\n"
    )


def _escaped(text: str) -> str:
    return escape(one_line(text))


def _html_block(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{_escaped(text)}</h2>"
        case Text(text):
            return f"<p>{_escaped(text)}</p>"
        case Points(title, points, kind):
            items = "".join(f"<li>{_escaped(point)}</li>" for point in points)
            word = "Warning: " if kind == "warning" else ""
            return (
                f'<div class="points {kind}"><p>{word}{_escaped(title)}</p><ul>{items}</ul></div>'
            )
        case Table():
            return _big(block) if block.big else _html_table(block)
        case Chart():
            return _figure(block)
        case Fold(title, blocks):
            inner = "\n".join(_html_block(each) for each in blocks)
            return f"<details><summary>{_escaped(title)}</summary>\n{inner}\n</details>"


def _big(table: Table) -> str:
    items = "".join(
        f"<div><dt>{_escaped(name)}</dt><dd>{_escaped(value)}</dd></div>"
        for name, value in table.rows
    )
    return f'<dl class="big">{items}</dl>'


def _html_table(table: Table) -> str:
    def cell(tag: str, place: int, text: str, more: str = "") -> str:
        side = ' class="w"' if place in table.words else ""
        return f"<{tag}{side}{more}>{_escaped(text)}</{tag}>"

    rows = []
    for number, row in enumerate(table.rows):
        first, *others = row
        cells = cell("th", 0, first, ' scope="row"')
        cells += "".join(cell("td", place, text) for place, text in enumerate(others, 1))
        marked = ' class="marked"' if number in table.marked else ""
        rows.append(f"<tr{marked}>{cells}</tr>")
    body = "<tbody>" + "\n".join(rows) + "</tbody>"
    if not table.head:
        return f'<table class="list">{body}</table>'
    head = "".join(cell("th", i, text, ' scope="col"') for i, text in enumerate(table.head))
    # What is wider than the window is scrolled to, with keys too.
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="Table">'
        f"<table><thead><tr>{head}</tr></thead>{body}</table></div>"
    )


def _figure(chart: Chart) -> str:
    text = chart.svg.decode("utf-8")
    # From the root on: what stands before it is for files.
    svg = text[text.index("<svg") :]
    title = _escaped(chart.title)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
    # Colours become those of the page's scheme. A name in the text is no colour.
    svg = re.sub(r"(?<=: )#[0-9a-f]{6}(?=[;\"])", lambda m: _NAMES.get(m[0], m[0]), svg)
    return (
        f'<figure><div class="wide" tabindex="0" role="region" aria-label="{title}">{svg}</div>'
        f"<figcaption>{_escaped(chart.caption)}</figcaption></figure>"
    )
