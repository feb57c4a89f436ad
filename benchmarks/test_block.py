"""The tail of a block, ours against plain PyTorch, eager and compiled, and the SE layers of other libraries.

One group of the report is one workload: the same map, dtype and memory order.
"""

from block import tail_benchmark
from harness import Settings, Shelf


def test_tail(
    benchmark, shelf: Shelf, settings: Settings, stage: str, tail: str, dtype: str, layout: str, peer: str
) -> None:  # fmt: skip
    n, c, h, w = (int(size) for size in stage.split("x"))
    tail_benchmark(benchmark, shelf, settings, (n, c, h, w), tail, dtype, layout, peer)
