"""The page of a report: well formed, legible without a network, and deaf to hostile names."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from attrs import evolve

from rerank_async.bench import _drawing
from rerank_async.bench._charts import draw
from rerank_async.bench._html import to_html
from rerank_async.bench._page import Chart, Page, Table
from rerank_async.bench._report import page_of
from rerank_async.bench._result import Benchmark
from tests.bench import made

pytest.importorskip("matplotlib")

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Reader(HTMLParser):
    """Reads a page as a browser would, and complains where that would have to guess."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.marked: list[list[str]] = []
        self.terms: dict[str, str] = {}
        self._term = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert len(found) == len(attrs), f"{tag}: an attribute twice"
        self.tags.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
            if found.get("class") == "marked":
                self.marked.append(self.rows[-1])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            return
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        if self.open and self.open[-1] == "dt":
            self._term = data
        if self.open and self.open[-1] == "dd":
            self.terms[self._term] = data


def read(benchmark: Benchmark, *, charts: bool = True) -> tuple[str, Reader]:
    """The page as text and as it is read; without charts it is made much faster."""
    with _drawing.style():
        drawn = draw(benchmark) if charts else []
        found = [
            Chart(one.name, one.title, one.caption, _drawing.svg_of(one.figure, one.name))
            for one in drawn
        ]
    text = to_html(page_of(benchmark, found))
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return text, reader


@pytest.mark.parametrize(
    "benchmark",
    [
        made.benchmark(),
        made.open_benchmark(),
        made.benchmark(made.level()),
        made.benchmark(made.failed_level(1), made.failed_level(2)),
    ],
    ids=["closed", "open", "one", "failed"],
)
def test_every_tag_is_closed_no_id_is_twice_and_every_reference_leads_somewhere(
    benchmark: Benchmark,
) -> None:
    text, page = read(benchmark)
    ids = [found["id"] for _, found in page.tags if "id" in found]
    assert len(ids) == len(set(ids))
    for name in re.findall(r"url\(#([^)]+)\)", text):
        assert name in ids
    for _, found in page.tags:
        for key, value in found.items():
            if key.endswith("href"):
                assert value is not None
                assert value.removeprefix("#") in ids


def test_nothing_is_fetched_from_anywhere() -> None:
    text, page = read(made.benchmark())
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "base"}
    for _, found in page.tags:
        assert not any(key.startswith("on") or key == "src" for key in found)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    # Names of vocabularies are no addresses; the address of the server is text.
    addresses = set(re.findall(r"https?://[^\s\"'<,]+", text))
    assert addresses == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
        "http://rerank.test:8000/v1",
    }


def test_the_page_shows_the_knee_the_table_and_the_charts() -> None:
    _, page = read(made.benchmark())
    assert page.terms == {
        "requests/s": "1,093",
        "documents/s": "109,268",
        "median latency (ms)": "29.3",
        "p99 latency (ms)": "72.6",
        "failed requests": "0",
    }
    assert ["1", "140", "14,000", "7.64", "7.14", "17.7"] in [row[:6] for row in page.rows]
    (marked,) = page.marked
    assert marked[:3] == ["32 (knee)", "1,093", "109,268"]
    images = [found for tag, found in page.tags if tag == "svg"]
    assert [found["aria-label"] for found in images] == [
        "Throughput against load",
        "Latency percentiles against load",
        "Distribution of latency",
        "Documents, latency and errors over time",
    ]
    assert all(found["role"] == "img" for found in images)
    # Words in a chart are words.
    assert "knee: 32 at once" in page.text
    assert "The knee is at 32 at once. From here on" in page.text


def test_every_level_can_be_unfolded() -> None:
    _, page = read(made.benchmark(), charts=False)
    assert [tag for tag, _ in page.tags].count("details") == 9
    assert ["Successful requests", f"{made.benchmark().levels[-1].succeeded:,}"] in page.rows


def test_where_everything_failed_the_page_says_so() -> None:
    _, page = read(made.benchmark(made.failed_level()), charts=False)
    assert page.terms["median latency (ms)"] == "–"
    assert page.terms["failed requests"] == "2,000"
    assert ["E2EL", "no request succeeded"] in page.rows
    assert ["  ServerError", "1,990"] in page.rows


def test_a_hostile_name_is_text_wherever_it_stands() -> None:
    evil = "</title></style><script>alert(1)</script><img src=x onerror=y>\" ' &amp; \x1b"
    benchmark = made.benchmark(
        made.level(1, failures={evil: 1}, why=evil),
        made.level(2),
        name=evil,
        target=evolve(made.TARGET, model=evil, url=evil, dialect=evil),
        workload=evolve(made.WORKLOAD, source=evil, documents=evil),
        machine=evolve(made.MACHINE, processor=evil, packages={evil: evil}),
        notes=(evil,),
        rerank_async=evil,
        started=evil,
    )
    text, page = read(benchmark)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "img" not in {tag for tag, _ in page.tags}
    assert page.text.count("<script>alert(1)</script>") >= 12
    assert "\x1b" not in text


def test_the_charts_take_the_colours_of_the_page_in_the_light_and_in_the_dark() -> None:
    text, _ = read(made.open_benchmark())
    style = text[text.index("<style>") : text.index("</style>")]
    assert "prefers-color-scheme: dark" in style
    pictures = text[text.index("<svg") :]
    assert "stroke: var(--blue)" in pictures
    assert "fill: var(--ink)" in pictures
    assert f"fill: {_drawing.INK}" not in pictures
    # No paper of their own: a white sheet on a dark page would blind.
    assert not re.search(r"fill: (#ffffff|white)", pictures)
    assert "var(--paper)" not in pictures
    for name in set(re.findall(r"var\((--\w+)\)", text)):
        assert style.count(f"{name}:") == 2, name


def _luminance(color: str) -> float:
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground_as_accessibility_asks(scheme: str) -> None:
    text, _ = read(made.benchmark(made.level()), charts=False)
    light, dark = text[: text.index("</style>")].split("prefers-color-scheme: dark")
    block = light if scheme == "light" else dark
    colors = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block))
    for ground in ("paper", "soft", "warn"):
        assert _contrast(colors["ink"], colors[ground]) >= 7
    assert _contrast(colors["grey"], colors["paper"]) >= 4.5
    for name in ("blue", "green", "vermillion"):
        assert _contrast(colors[name], colors["paper"]) >= 3


def test_a_table_says_which_cells_are_heads_and_scrolls_by_itself() -> None:
    text = to_html(Page("T", (Table(("a", "b"), (("x", "1"),)),), "F"))
    assert '<th class="w" scope="col">a</th><th scope="col">b</th>' in text
    assert '<th class="w" scope="row">x</th><td>1</td>' in text
    assert '<div class="wide" tabindex="0"' in text
