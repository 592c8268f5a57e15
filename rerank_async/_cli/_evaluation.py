"""How good rankings are by relevance judgements: reads both, and has `ir_measures` count.

    judgements = read_judgements(Path("qrels/test.tsv"))
    rankings = read_rankings(Path("reranked.jsonl"), judgements)
    assess(rankings, judgements, parse_metrics(METRICS)).metrics["nDCG@10"]

The mean is over every query that has judgements, as `trec_eval -c` takes it: what the rankings lack
counts as 0. A query without judgements is left out.
A line belongs here when it turns files into the numbers that are printed, and not when it prints.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import msgspec
from msgspec import Struct

from rerank_async.bulk._entries import view
from rerank_async.bulk._errors import InputError
from rerank_async.bulk._files import content_ending, lines, name_of
from rerank_async.trec import in_order, parse_judgement, parse_run_line

if TYPE_CHECKING:
    from ir_measures import Measure

__all__ = [
    "METRICS",
    "Evaluation",
    "Judgements",
    "Rankings",
    "assess",
    "parse_metrics",
    "read_judgements",
    "read_rankings",
]

METRICS = "nDCG@10 RR R@100"

Judgements: TypeAlias = dict[str, dict[str, int]]
"""Of each query, how relevant each document is."""

_Lines: TypeAlias = Iterable[tuple[int, bytes]]


class Rankings(Struct, frozen=True):
    """What a file says of the queries that have judgements.

    Attributes:
        name: the file's, for messages.
        scores: the score of each document, by document, for each query that has a ranking.
        failed: queries that have an error in its place.
        partial: queries whose ranking lacks documents that could not be scored.
        unjudged: the number of other queries in the file, which have no judgements.
    """

    name: str
    scores: dict[str, dict[str, float]]
    failed: set[str]
    partial: set[str]
    unjudged: int


class Evaluation(Struct, frozen=True):
    """How good the rankings of a file are.

    Attributes:
        metrics: the mean over all queries that have judgements, by the metric's name.
        judged: the number of queries that have judgements.
        absent: the number of them that are not in the file, and count as 0.
        failed: the number of them that have an error in the place of a ranking, and count as 0.
        partial: the number of them that have a ranking that lacks documents that could not be
            scored.
        unjudged: queries of the file without judgements, which are left out.
        depth: the number of documents in the longest ranking.
    """

    metrics: dict[str, float]
    judged: int
    absent: int
    failed: int
    partial: int
    unjudged: int
    depth: int


# ── metrics ──

_METRIC = re.compile(r"(\w+)(?:\(([^()]*)\))?(?:@([0-9.]+))?")


def parse_metrics(text: str) -> list[Measure]:
    """The metrics that are named, with blanks or commas between: `nDCG@10 RR P(rel=2)@5`.

    Raises:
        ValueError: one is unknown or cannot be computed; the message names it.
        RuntimeError: `ir_measures` is not installed; the message says how to install it.
    """
    try:
        import ir_measures
    except ModuleNotFoundError as error:
        if error.name != "ir_measures":
            raise
        raise RuntimeError('evaluation needs: pip install "rerank-async[eval]"') from None
    # Partly without types.
    pipeline: Any = ir_measures.DefaultPipeline
    found: dict[str, Measure] = {}
    # Commas between parentheses belong to the metric.
    for name in re.findall(r"(?:[^\s,()]|\([^()]*\)?|\))+", text):
        measure = _measure(name)
        if not pipeline.supports(measure):
            raise ValueError(f"ir_measures cannot compute {name} with the packages there are")
        found[str(measure)] = measure
    if not found:
        raise ValueError("no metric is named")
    return list(found.values())


def _measure(name: str) -> Measure:
    # Not by `ir_measures.parse_measure`, which needs classes of `ast` that Python 3.14 has not.
    from ir_measures.measures import registry

    match = _METRIC.fullmatch(name)
    try:
        if match is None:
            raise ValueError
        called, arguments, cutoff = match.groups()
        parameters = _parameters(arguments or "")
        kind = registry[called]
        if cutoff is not None:
            parameters[kind.AT_PARAM] = ast.literal_eval(cutoff)
        measure: Any = kind(**parameters)
        measure.validate_params()
    except (AssertionError, KeyError, SyntaxError, TypeError, ValueError):
        raise ValueError(
            f"{name!r} is no metric that ir_measures knows; they are written as nDCG@10, RR, R@100 "
            "or P(rel=2)@5"
        ) from None
    return cast("Measure", measure)


def _parameters(arguments: str) -> dict[str, object]:
    call = ast.parse(f"_({arguments})", mode="eval").body
    if not isinstance(call, ast.Call) or call.args:
        raise ValueError
    return {str(given.arg): ast.literal_eval(given.value) for given in call.keywords}


# ── files ──

# trec_eval has a counter for each grade up to the highest, and takes memory for them all.
_MOST_RELEVANT = 1_000_000


def read_judgements(path: Path) -> Judgements:
    """The judgements of a file: TREC qrels, or BEIR's `query-id corpus-id score` with its header.

    Raises:
        InputError: it holds no judgements, or something else; the message names the line.
    """
    name = name_of(path)
    judgements: Judgements = {}
    with closing(lines(path)) as numbered:
        for number, line in numbered:
            try:
                found = parse_judgement(line)
            except ValueError as error:
                raise InputError(f"{name}: line {number}: {error}") from None
            if found is None:
                continue
            if abs(found.relevance) > _MOST_RELEVANT:
                raise InputError(
                    f"{name}: line {number}: a relevance of {found.relevance} is beyond "
                    f"{_MOST_RELEVANT:,}: are the columns in their order?"
                )
            documents = judgements.setdefault(found.query_id, {})
            if documents.setdefault(found.doc_id, found.relevance) != found.relevance:
                raise InputError(
                    f"{name}: line {number}: document {found.doc_id!r} has another relevance to "
                    f"query {found.query_id!r} in a line before"
                )
    if not judgements:
        raise InputError(f"{name} holds no judgements")
    return judgements


def read_rankings(path: Path, judgements: Judgements) -> Rankings:
    """The rankings of a TREC run, or of the JSON lines that a bulk job writes.

    Args:
        path: the file; `.jsonl` and `.run` say what it is, and else its first line.
        judgements: the judgements that count; of other queries no more than the number is kept.

    Raises:
        InputError: it holds something else, or no ranking of a query that has judgements.
    """
    name = name_of(path)
    ending = content_ending(path)
    if ending == "parquet":
        raise InputError(f"{name}: rankings are read from a run or from JSON lines, not Parquet")
    with closing(lines(path)) as numbered:
        first = next(numbered, None)
        if first is None:
            raise InputError(f"{name} holds no rankings")
        is_json = first[1].lstrip().startswith(b"{")
        if ending in ("jsonl", "ndjson"):
            is_json = True
        elif ending in ("run", "trec"):
            is_json = False
        read = _read_lines if is_json else _read_run
        rankings, other = read(name, _from(first, numbered), judgements)
    if not rankings.scores and not rankings.failed:
        raise InputError(
            f"{name}: no query of it has judgements: it holds {other!r}, for example, and the "
            f"judgements are of {next(iter(judgements))!r}"
        )
    return rankings


def _from(first: tuple[int, bytes], rest: Generator[tuple[int, bytes], None, None]) -> _Lines:
    return chain((first,), rest)


def _read_run(name: str, numbered: _Lines, judgements: Judgements) -> tuple[Rankings, str]:
    rankings: dict[str, dict[str, float]] = {}
    others: set[str] = set()
    last = ""
    for number, line in numbered:
        try:
            found = parse_run_line(line)
        except ValueError as error:
            raise InputError(f"{name}: line {number}: {error}") from None
        last = found.query_id
        if last not in judgements:
            others.add(last)
            continue
        scores = rankings.setdefault(last, {})
        if found.doc_id in scores:
            raise InputError(
                f"{name}: line {number}: document {found.doc_id!r} stands twice in the ranking of "
                f"query {last!r}"
            )
        scores[found.doc_id] = found.score
    return Rankings(name, rankings, set(), set(), len(others)), last


def _read_lines(name: str, numbered: _Lines, judgements: Judgements) -> tuple[Rankings, str]:
    rankings: dict[str, dict[str, float]] = {}
    failed: set[str] = set()
    partial: set[str] = set()
    seen: dict[str, int] = {}
    last = ""
    for number, data in numbered:
        where = f"{name}: line {number}"
        try:
            line = view(data)
        except (msgspec.DecodeError, RecursionError) as error:
            raise InputError(f"{where} is not a line of rankings: {error}") from None
        if line.query_id is None:
            raise InputError(f"{where} has no query_id, by which judgements are found")
        last = str(line.query_id)
        if seen.setdefault(last, number) != number:
            raise InputError(f"{where}: query {last!r} stands in line {seen[last]} already")
        if last not in judgements:
            continue
        if line.error is not None:
            failed.add(last)
            continue
        if line.missing:
            partial.add(last)
        scores = rankings[last] = {}
        for place, result in enumerate(line.results):
            if result.doc_id is None:
                raise InputError(
                    f"{where}: result {place} has no doc_id, by which judgements are found"
                )
            if not math.isfinite(result.relevance_score):
                raise InputError(f"{where}: the score of result {place} is not a finite number")
            doc_id = str(result.doc_id)
            if doc_id in scores:
                raise InputError(f"{where}: document {doc_id!r} stands twice in the ranking")
            scores[doc_id] = result.relevance_score
    unjudged = len(seen) - len(rankings) - len(failed)
    return Rankings(name, rankings, failed, partial, unjudged), last


# ── numbers ──


def assess(rankings: Rankings, judgements: Judgements, metrics: Iterable[Measure]) -> Evaluation:
    """How good `rankings` are.

    Documents are in the order of their scores, and equal scores in `trec_eval`'s order, by doc_id
    with the greatest first: where a file has them must not decide.
    """
    import ir_measures

    metrics = list(metrics)
    run = {query_id: _with_distinct_scores(scores) for query_id, scores in rankings.scores.items()}
    values = ir_measures.calc_aggregate(metrics, judgements, run)
    absent = len(judgements) - len(rankings.scores) - len(rankings.failed)
    return Evaluation(
        {str(metric): float(values[metric]) for metric in metrics},
        len(judgements),
        absent,
        len(rankings.failed),
        len(rankings.partial),
        rankings.unjudged,
        max(map(len, run.values()), default=0),
    )


def _with_distinct_scores(scores: Mapping[str, float]) -> dict[str, float]:
    """The ranking with other scores, that no two documents share.

    trec_eval keeps scores in single precision, in which scores that differ become equal, and not
    everything that `ir_measures` calls orders equal scores alike.
    """
    ordered = in_order(scores.items())
    return {doc_id: float(len(ordered) - place) for place, (doc_id, _) in enumerate(ordered)}
