"""`rerank-async eval`: how good rankings are, and how much better than others.

A line belongs here when it reads an option of this command, or shows its numbers.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from rerank_async._cli._options import takes
from rerank_async._cli._shared import file_named, give_up
from rerank_async._errors import RerankError

if TYPE_CHECKING:
    from rerank_async._cli._evaluation import Evaluation

__all__ = ["EXAMPLE", "evaluate"]

EXAMPLE = (
    "Example: rerank-async eval reranked.jsonl qrels/test.tsv --before first-stage.run "
    '--metrics "nDCG@10 RR R@20"'
)


class EvalArguments(Struct, frozen=True):
    """What was asked of `eval`: each field is one of its arguments or options, with its help."""

    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A TREC run, or rankings of a bulk job in .jsonl.")
    ]
    qrels: Annotated[
        str, typer.Argument(metavar="QRELS", help="The judgements: TREC qrels, or BEIR's .tsv.")
    ]
    before: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Other rankings, such as the first stage's, to compare."),
    ] = None
    metrics: Annotated[
        str | None,
        typer.Option(
            help="As ir_measures writes them, with blanks between: nDCG@10 RR R@100 if left out."
        ),
    ] = None
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the numbers in full, and the counts, as JSON.")
    ] = False


@takes(EvalArguments)
def evaluate(asked: EvalArguments) -> None:
    """Print how good rankings are by relevance judgements.

    The mean is over all queries that have judgements: one that RUN lacks counts as 0.
    Files may end in .gz or .zst; - is standard input.

    On a terminal it is a table, in a pipe lines of metric and value, or with --before of metric,
    value before, value after and difference, with tabs between.
    """
    if [asked.run, asked.qrels, asked.before].count("-") > 1:
        raise give_up("only one of the files can be standard input", 2)
    judged = file_named("QRELS", asked.qrels)
    files = [] if asked.before is None else [file_named("--before", asked.before)]
    files.append(file_named("RUN", asked.run))
    # Slow to import, both what it reads with and what it counts with (`benchmarks/importing.py`).
    from rerank_async._cli._evaluation import (
        METRICS,
        assess,
        parse_metrics,
        read_judgements,
        read_rankings,
    )

    try:
        wanted = parse_metrics(METRICS if asked.metrics is None else asked.metrics)
    except RuntimeError as error:
        raise give_up(str(error), 2) from None
    except ValueError as error:
        raise give_up(f"--metrics: {error}", 2) from None
    found: list[Evaluation] = []
    try:
        judgements = read_judgements(judged)
        for file in files:
            rankings = read_rankings(file, judgements)
            found.append(assess(rankings, judgements, wanted))
            _say_what_lacks(rankings.name, found[-1])
    except RerankError as error:
        raise give_up(str(error), 2 if isinstance(error, ValueError) else 1) from None
    last = found[-1]
    first = None if asked.before is None else found[0]
    if asked.as_json:
        sys.stdout.write(orjson.dumps(_body(first, last), option=orjson.OPT_INDENT_2).decode())
        sys.stdout.write("\n")
    elif sys.stdout.isatty():
        _show_metrics(first, last)
    else:
        for row in _rows(first, last):
            print(*row, sep="\t")


def _say_what_lacks(name: str, found: Evaluation) -> None:
    """Everything that one should know before one believes the numbers, on standard error."""
    for number, what in (
        (found.failed, "with an error in place of a ranking: counted as 0"),
        (found.absent, "with judgements not in the file: counted as 0"),
        (found.partial, "with a ranking that lacks documents which could not be scored"),
        (found.unjudged, "without judgements: left out"),
    ):
        if number:
            queries = "query" if number == 1 else "queries"
            print(f"rerank-async: {name}: {number:,} {queries} {what}", file=sys.stderr)
    for metric in found.metrics:
        recall = re.fullmatch(r"(R\b.*@)(\d+)", metric)
        if recall and 0 < found.depth < int(recall[2]):
            print(
                f"rerank-async: {name}: no ranking is longer than {found.depth}, so that {metric} "
                f"is {recall[1]}{found.depth}",
                file=sys.stderr,
            )


def _body(first: Evaluation | None, last: Evaluation) -> dict[str, Any]:
    body = _dict_of(last)
    if first is not None:
        body["before"] = _dict_of(first)
        body["difference"] = {
            metric: value - first.metrics[metric] for metric, value in last.metrics.items()
        }
    return body


def _dict_of(found: Evaluation) -> dict[str, Any]:
    return {
        "metrics": found.metrics,
        "queries": {
            "judged": found.judged,
            "absent": found.absent,
            "failed": found.failed,
            "partial": found.partial,
            "unjudged": found.unjudged,
        },
        "depth": found.depth,
    }


def _rows(first: Evaluation | None, last: Evaluation) -> list[tuple[str, ...]]:
    if first is None:
        return [(metric, f"{value:.4f}") for metric, value in last.metrics.items()]
    return [
        (metric, f"{before:.4f}", f"{after:.4f}", _difference(before, after))
        for metric, after in last.metrics.items()
        for before in (first.metrics[metric],)
    ]


def _difference(before: float, after: float) -> str:
    # Of numbers that look the same the difference is +0.0000, never -0.0000.
    return f"{round(after - before, 4) + 0.0:+.4f}"


def _show_metrics(first: Evaluation | None, last: Evaluation) -> None:
    names = ("value",) if first is None else ("before", "after", "difference")
    table = Table("metric", *names, box=None, header_style="bold", caption_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in _rows(first, last):
        table.add_row(*row)
    queries = "query" if last.judged == 1 else "queries"
    table.caption = f"mean over {last.judged:,} {queries}"
    Console(highlight=False).print(table)
