"""Benchmarks of the end of a residual block against PyTorch, eager and compiled, and SE layers of other libraries.

A group of the report is one workload: the same map, dtype and layout.
"""

from block import block_benchmark
from cases import sizes
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
    block_benchmark(benchmark, workloads, settings, sizes(stage), block, dtype, layout, candidate)
