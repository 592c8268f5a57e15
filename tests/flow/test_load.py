"""`Load`: what one request weighs; the weights are counted by `admission` and `limiter`."""

import gc

from rerank_async._flow.load import Load


def test_what_nobody_counts_weighs_nothing() -> None:
    assert Load(3) == Load(3, 0, 0)
    assert (Load(3, 20, 7).documents, Load(3, 20, 7).bytes, Load(3, 20, 7).tokens) == (3, 20, 7)


def test_a_load_is_no_work_for_the_garbage_collector() -> None:
    assert not gc.is_tracked(Load(1))
