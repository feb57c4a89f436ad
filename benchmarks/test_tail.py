"""The tail of a block, ours against plain PyTorch, eager and compiled.

One group of the report is one workload: the same map, dtype and memory order.
"""

from collections.abc import Callable

import pytest

from se_fused.workloads import DTYPES, TailWorkload


@pytest.mark.parametrize("peer", ["se_fused", "eager", "compile"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", ["train", "infer"])
def test_tail(
    run_benchmark: Callable[..., None], device: str, stage: str, mode: str, dtype: str, layout: str, peer: str
) -> None:
    n, c, h, w = (int(size) for size in stage.split("x"))
    run_benchmark(TailWorkload((n, c, h, w), DTYPES[dtype], layout, mode, device), peer, layout)
