"""Ray: reranking on many machines, as a `Dataset` or from Parquet to Parquet.

    ranked = rerank_dataset(ray.data.read_parquet("requests/"), model="rerank-model", actors=4)
    summary = rerank_parquet("requests/", "rankings/", model="rerank-model", actors=4)

Public by path; it needs the extra `ray`. Inside this package `import ray` means Ray itself, because
imports here are absolute. The reranking is in `rerank_async.batches`, which knows no engine; what
belongs here is what Ray has to be told, and how work outlives the machines that did it.
"""

from __future__ import annotations

try:
    import pyarrow
    import ray.data
except ImportError as _missing:
    if (_missing.name or "").partition(".")[0] not in ("ray", "pyarrow"):
        raise
    raise ImportError(
        'rerank_async.ray needs Ray Data: pip install "rerank-async[ray]"', name=_missing.name
    ) from None

from rerank_async.ray._dataset import rerank_dataset
from rerank_async.ray._parquet import RaySummary, rerank_parquet

__all__ = ["RaySummary", "rerank_dataset", "rerank_parquet"]

# They were imported for the message alone.
del pyarrow, ray
