"""The end of a residual block: ours against plain PyTorch, eager and compiled, and the SE layers of other libraries.

One group of the report is one workload: the same map, dtype and memory order.
"""

from block import block_benchmark
from harness import Settings, WorkloadCache


def test_block(
    benchmark,
    workloads: WorkloadCache,
    settings: Settings,
    stage: str,
    block: str,
    dtype: str,
    layout: str,
    candidate: str,
) -> None:
    n, c, h, w = (int(size) for size in stage.split("x"))
    block_benchmark(benchmark, workloads, settings, (n, c, h, w), block, dtype, layout, candidate)
