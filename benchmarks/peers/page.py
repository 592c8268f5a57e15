"""What was found, as tables: plain for a terminal, Markdown for the page in the docs.

A line belongs here when it words a result, or holds it against what is aimed at.

    python -m benchmarks.peers.page
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["PAGE", "RESULTS", "tables"]

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "peers.json"
PAGE = ROOT / "docs" / "explanation" / "measurements.md"

Row: TypeAlias = tuple[str, ...]

# CPU of a request, as a ratio to the hand-written loop's.
CPU_AIM = {20: 1.15, 100: 1.10, 1000: 1.10}
# Documents per second, the same.
RATE_AIM = {100: 0.9, 1000: 0.9}
# How many times less CPU than the SDKs on httpx, at 20 documents.
SDK_AIM = 10.0
# Documents per second, as a ratio to the Rust client's.
CORPUS_AIM = {100: 1.2, 1000: 1.5}
# The Rust client in three ways, each a key of a corpus's row.
RUST = {
    "rate_to_default": "the Rust client's as it comes, not sorted",
    "rate_to_baseten": "the Rust client's with its limit of characters lifted, not sorted",
    "rate_to_sorted": "the Rust client's with its limit of characters lifted, sorted by its user",
}
# A stub that is busy for more of the time than this may be what limits a client.
STUB_LIMIT = 0.8

NAMES = {
    "hand-written": "hand-written aiohttp + orjson",
    "transport": "… on our transport",
    "checks": "… with our checks",
    "rerank_async": "rerank_async",
    "rerank_many": "rerank_async, rerank_many",
    "hand-written-asyncio": "hand-written, asyncio's own loop",
    "rerank_async-asyncio": "rerank_async, asyncio's own loop",
    "httpx": "httpx",
    "cohere": "cohere AsyncClientV2",
    "voyageai": "voyageai AsyncClient",
    "baseten": "baseten-performance-client",
    "baseten-sorted": "… sorted by its user",
    "baseten-default": "… with its default of 8,000 characters",
    "nothing": "Python by itself",
}

INTRO = """<!-- Made by `python -m benchmarks.peers`; do not edit. -->

# Measured side by side

What this client costs beside others, measured in one run on one machine.
`make bench` repeats it on yours, and `benchmarks/results/peers.json` keeps the figures.
"""

HOW = """All clients ask the same stub server, which answers ready-made bodies and speaks each one's dialect.
It has a processor of its own.
The clients share another, each in a process and in an environment apart from the package's own, and are asked in turns.
So a client that would use more processors has one here.
Every figure is a median over the rounds, every ratio a median of the rounds' own ratios: machines have moods.
CPU is that of the client's whole process, its threads included.
Each client's answers are checked once before it is measured.
Clients on asyncio run on uvloop where nothing else is said.
"Stub busy" is the share of the time in which the stub worked while this client was measured; where it is near 100%, the figure is the stub's.
"""  # noqa: E501


def tables(results: dict[str, Any], *, markdown: bool) -> str:
    """Everything that was found.

    Args:
        results: as `python -m benchmarks.peers` keeps them.
        markdown: for the docs; otherwise for a terminal.
    """
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    pinned = "pinned" if results["is_pinned"] else "not pinned"
    machine = (
        f"{results['processor']}, {results['cores']} cores ({pinned}); {versions}.\n"
        f"Measured on {results['date']}."
    )
    parts = [INTRO, HOW, machine] if markdown else ["Clients side by side", machine]
    for part, made in (
        ("calls", _calls),
        ("many", _many),
        ("corpus", _corpus),
        ("cold", _cold),
    ):
        if part in results:
            # They are kept in the order in which they took their turns.
            found = sorted(results[part], key=_place)
            title, words, head, rows, aims = made(found)
            parts.append(f"## {title}" if markdown else f"\n{title}")
            # One sentence to a line, as everywhere in the docs.
            parts.append(("\n" if markdown else " ").join(words))
            aims = aims + _limits(found)
            parts.append(_markdown(head, rows) if markdown else _plain(head, rows))
            parts += ["\n".join(f"- {aim}" for aim in aims)] * bool(aims)
    if results["missing"]:
        lacking = [f"- {name}: {why}" for name, why in results["missing"].items()]
        parts.append(
            "\n".join(["Not measured:" if not markdown else "## Not measured\n", *lacking])
        )
    return ("\n\n" if markdown else "\n").join(part.strip("\n") for part in parts) + "\n"


def _place(row: dict[str, Any]) -> tuple[int, int]:
    return row.get("batch", row.get("documents", 0)), list(NAMES).index(row["client"])


# Title, sentences, head and rows of the table, what is reached and what is missed.
Part: TypeAlias = tuple[str, tuple[str, ...], Row, list[Row], list[str]]


def _calls(found: list[dict[str, Any]]) -> Part:
    rows: list[Row] = [
        (
            f"{row['documents']:,}",
            NAMES[row["client"]],
            f"{row['cpu_us']:,.0f}",
            f"{row['cpu_us'] / row['documents']:,.2f}",
            f"{row['cpu_ratio']:.2f}",
            _middle(row),
            f"{row['wall_us']:,.0f}",
            f"{row['documents'] / row['wall_us'] * 1e6:,.0f}",
            _percent(row["stub_busy"]),
        )
        for row in found
    ]
    aims: list[str] = []
    by = {(row["client"], row["documents"]): row for row in found}
    for size, aim in CPU_AIM.items():
        if ("rerank_async", size) in by:
            ratio = by["rerank_async", size]["cpu_ratio"]
            aims.append(
                f"CPU at {size:,} documents: {ratio:.2f} times the hand-written loop's, "
                f"{_judged(ratio <= aim, f'at most {aim:.2f}')}"
            )
    for size, aim in RATE_AIM.items():
        if ("rerank_async", size) in by:
            ratio = by["rerank_async", size]["rate_ratio"]
            aims.append(
                f"documents/s at {size:,} documents: {ratio:.2f} of the hand-written loop's, "
                f"{_judged(ratio >= aim, f'at least {aim:.1f}')}"
            )
    ours = by.get(("rerank_async", 20))
    for name in ("httpx", "cohere", "voyageai"):
        theirs = by.get((name, 20))
        if ours is not None and theirs is not None:
            times = theirs["cpu_us"] / ours["cpu_us"]
            # Of the SDKs only cohere's is built on httpx.
            judged = f", {_judged(times >= SDK_AIM, 'at least 10')}" if name == "cohere" else ""
            aims.append(f"{NAMES[name]} takes {times:.1f} times our CPU at 20 documents{judged}")
    rounds = found[0]["rounds"]
    words = (
        f"One request after another from 16 workers, medians of {rounds} rounds.",
        "A document has about 540 bytes.",
        "The ratio is of CPU, to the hand-written loop on the same event loop; beside it is the "
        "range of the middle half of the rounds.",
        "The two lines that begin with … are the hand-written loop on parts of this package: what "
        "is left to the whole is flow control, retries and statistics.",
    )
    head = ("documents", "client", "CPU µs", "per document", "ratio", "middle half", "wall µs")
    return "Requests", words, (*head, "documents/s", "stub busy"), rows, aims


def _many(found: list[dict[str, Any]]) -> Part:
    rows: list[Row] = [
        (
            NAMES[row["client"]],
            f"{row['cpu_us']:,.0f}",
            f"{row['cpu_ratio']:.2f}",
            _middle(row),
            _percent(row["stub_busy"]),
        )
        for row in found
    ]
    words = (
        f"{found[0]['calls']:,} calls of 20 documents for each, in {found[0]['rounds']} rounds: "
        "what admission, the retry policy and statistics add to a call, and what it costs to have "
        "the outcomes handed over one by one, in bounded memory.",
    )
    head = ("client", "CPU µs", "ratio", "middle half", "stub busy")
    return "A hundred thousand calls", words, head, rows, []


def _corpus(found: list[dict[str, Any]]) -> Part:
    rows: list[Row] = [
        (
            f"{row['batch']:,}",
            NAMES[row["client"]],
            f"{row['documents_per_s']:,.0f}",
            "–" if row["rate_to_baseten"] is None else f"{row['rate_to_baseten']:.2f}",
            f"{row['cpu_us_per_document']:.2f}",
            f"{row['peak_mib']:,.0f}",
            f"{row['grown_mib']:,.0f}",
            _percent(row["stub_busy"]),
            _rightness(row),
        )
        for row in found
    ]
    aims: list[str] = []
    by = {(row["client"], row["batch"]): row for row in found}
    for batch, aim in CORPUS_AIM.items():
        ours = by.get(("rerank_async", batch))
        for key, what in RUST.items():
            if ours is not None and (ratio := ours[key]) is not None:
                aims.append(
                    f"documents/s in batches of {batch:,}: {ratio:.2f} times {what}, "
                    f"{_judged(ratio >= aim, f'at least {aim:.1f}')}"
                )
    for (client, batch), row in by.items():
        theirs = by.get(("baseten", batch))
        if client == "rerank_async" and theirs is not None:
            less = row["peak_mib"] < theirs["peak_mib"]
            aims.append(
                f"peak memory in batches of {batch:,}: {row['peak_mib']:,.0f} MiB against "
                f"{theirs['peak_mib']:,.0f}, {_judged(less, 'below the Rust client')}"
            )
    count, rounds = found[0]["documents"], found[0]["rounds"]
    words = (
        f"One query over {count:,} documents of about 540 bytes in batches, 16 requests at once, "
        f"all results returned; medians of {rounds} rounds.",
        "The Rust client asks in the dialect of text-embeddings-inference, whose answers are "
        "shorter than those that the others read.",
        "As it comes it puts at most 8,000 characters into a request, whatever the batch; the "
        "other two lines lift that.",
        "It hands its batches over one after another, each as the server sorted it: there is no "
        "ranking of the whole.",
        "So the line in which its user sorts is the one that does the same work as ours; what "
        "comes back unsorted is less.",
        "Peak memory is the process's, in a fresh process, texts included; beside it what it grew "
        "by during the query.",
    )
    head = (
        "batch",
        "client",
        "documents/s",
        "of Rust's",
        "CPU µs per document",
        "peak MiB",
        "grown MiB",
        "stub busy",
        "what came back",
    )
    return "One query over a corpus", words, head, rows, aims


def _rightness(row: dict[str, Any]) -> str:
    if row["results"] != row["documents"]:
        return f"{row['results']:,} results"
    if not row["are_scores_right"]:
        return "scores of other documents"
    return "all, in order" if row["is_ordered"] else "all, not in order"


def _cold(found: list[dict[str, Any]]) -> Part:
    by = {(row["client"], row["what"]): row for row in found}
    rows: list[Row] = [
        (
            NAMES[client],
            f"{row['cpu_ms']:,.0f}",
            f"{row['wall_ms']:,.0f}",
            *(
                (f"{first['cpu_ms']:,.0f}", f"{first['wall_ms']:,.0f}")
                if (first := by.get((client, "first answer")))
                else ("–", "–")
            ),
        )
        for (client, what), row in by.items()
        if what == "import"
    ]
    words = (
        "A fresh interpreter that imports the client, and one that also makes it and asks once "
        f"for 20 documents, on asyncio's own loop; medians of {found[0]['rounds']} rounds.",
        "The interpreter's own start is included, its end is not: each process ends at once, "
        "because the Rust client's threads now and then crash an interpreter that ends in the "
        "usual way.",
        "A client that imports little may import the rest when it is asked, as cohere does.",
    )
    head = ("client", "import CPU ms", "wall ms", "first answer CPU ms", "wall ms")
    return "Cold start", words, head, rows, []


def _limits(found: list[dict[str, Any]]) -> list[str]:
    """A warning for each figure that may be the stub's more than the client's."""
    return [
        f"WARNING: the stub was {_percent(row['stub_busy'])} busy for {NAMES[row['client']]} "
        f"{'in batches of' if 'batch' in row else 'at'} "
        f"{row.get('batch', row.get('documents', 20)):,}: the speed may be the stub's"
        for row in found
        if row.get("stub_busy", 0.0) > STUB_LIMIT
    ]


def _middle(row: dict[str, Any]) -> str:
    low, high = row["cpu_ratio_quartiles"]
    return f"{low:.2f} to {high:.2f}"


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _judged(is_reached: bool, aim: str) -> str:
    return f"{'reached' if is_reached else 'MISSED'} (aim: {aim})"


def _markdown(head: Row, rows: list[Row]) -> str:
    # Words to the left, numbers to the right.
    rule = ["---" if _is_word(rows, place) else "---:" for place in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def _plain(head: Row, rows: list[Row]) -> str:
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if _is_word(rows, place) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    )


def _is_word(rows: list[Row], place: int) -> bool:
    return any(row[place][:1].isalpha() for row in rows)


def main() -> None:
    """Make the page anew from the figures that are kept."""
    PAGE.write_text(tables(json.loads(RESULTS.read_text()), markdown=True))


if __name__ == "__main__":
    main()
