"""Arrow tables in, Arrow tables out: outcomes as columns, and the rows of a query as one row. Pure.

A line belongs here when it is about types of columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import pyarrow as pa

from rerank_async._columns import Batch, BatchOutcome, Nested

__all__ = [
    "FLAT",
    "NESTED",
    "ArrowTable",
    "columns_of",
    "group_row",
    "outcome_table",
    "ungrouped",
]

# pyarrow publishes no types.
ArrowTable: TypeAlias = Any

# The columns that are looked at.
FLAT = ("query_id", "query", "text", "doc_id")
NESTED = ("query_id", "query", "documents", "doc_ids", "top_n")


def columns_of(table: ArrowTable, names: Sequence[str]) -> dict[str, list[Any]]:
    """Those of the columns that the table has, as a batch."""
    return {name: table[name].to_pylist() for name in names if name in table.column_names}


def outcome_table(batch: Batch, table: ArrowTable, outcomes: Sequence[BatchOutcome]) -> ArrowTable:
    """What became of each row, in columns whose types do not depend on what is in them.

    Left to itself, Ray makes tensors of lists that happen to be of one length, and a column of
    nothing but None has no type at all; blocks of one dataset would then not fit together.
    """
    types = {
        "indices": pa.list_(pa.int64()),
        "doc_ids": pa.list_(_id_type(table.schema)),
        "relevance_scores": pa.list_(pa.float64()),
        "model": pa.string(),
        "total_tokens": pa.int64(),
        "relevance_score": pa.float64(),
        "rank": pa.int64(),
        "error_type": pa.string(),
        "error_message": pa.string(),
    }
    columns = {
        name: pa.array(values, types[name])
        for name, values in batch.outcome_columns(outcomes).items()
    }
    kept = table.column_names
    if isinstance(batch, Nested):
        kept = [name for name in ("query_id",) if name in kept]
    # Where a flat table has such a column already, the new one takes its place.
    return pa.table({name: table[name] for name in kept} | columns)


def _id_type(schema: Any) -> Any:
    """The type of a nested table's document ids; text where it has none."""
    found = None
    if "doc_ids" in schema.names:
        found = getattr(schema.field("doc_ids").type, "value_type", None)
    elif "documents" in schema.names:
        item = getattr(schema.field("documents").type, "value_type", None)
        if item is not None and pa.types.is_struct(item):
            place = item.get_field_index("doc_id")
            found = None if place < 0 else item.field(place).type
    return pa.string() if found is None or pa.types.is_null(found) else found


def group_row(group: ArrowTable) -> ArrowTable:
    """All rows of one query as one row, each column a list, so that nothing can part them."""
    if "doc_id" in group.column_names:
        # A shuffle has no order of its own, and by it equal scores would stand now so, now so.
        group = group.sort_by("doc_id")
    ends = pa.array([0, group.num_rows], pa.int32())
    return pa.table(
        {
            name: pa.ListArray.from_arrays(ends, group[name].combine_chunks())
            for name in group.column_names
        }
    )


def ungrouped(table: ArrowTable) -> ArrowTable:
    """The rows that `group_row` made one row of, of many queries."""
    return pa.table({name: table[name].combine_chunks().flatten() for name in table.column_names})
