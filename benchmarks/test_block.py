"""Benchmarks of the end of a residual block against PyTorch, eager and compiled, and SE layers of other libraries.

A group of the report is one workload: the same map, dtype and layout.
"""

from block import block_benchmark
from cases import sizes
from harness import Bench


def test_block(
    bench: Bench,
    stage: str,
    block: str,
    dtype: str,
    layout: str,
    candidate: str,
) -> None:
    block_benchmark(bench, sizes(stage), block, dtype, layout, candidate)
