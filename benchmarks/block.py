"""The block benchmark that test_block.py and test_scaling.py share."""

from typing import Any

from harness import Bench, Contender, WorkloadSpec

from se_fused._formats import DTYPES
from se_fused.bench.workloads.block import BlockWorkload

__all__ = ["block_benchmark"]


def block_benchmark(
    bench: Bench,
    shape: tuple[int, int, int, int],
    block: str,
    dtype: str,
    layout: str,
    candidate: str,
    info: dict[str, Any] | None = None,
) -> None:
    """Measure one candidate of a block against se_fused, or se_fused against a copy of as many bytes.

    Args:
        block: batch norm and mode, such as "se-infer" or "bn_se-train".
        info: additional entries of ``extra_info``.
    """
    norm, _, mode = block.partition("-")
    key = " ".join([block, "x".join(map(str, shape)), dtype, layout])
    spec = WorkloadSpec(
        key,
        lambda: BlockWorkload(shape, DTYPES[dtype], layout, mode, bench.settings.device, batch_norm=norm == "bn_se"),
    )
    bench.workloads.start_group(key)
    mine, to = Contender(spec, candidate, layout), Contender(spec, "se_fused", layout)
    bench.run(mine, to, kind="block", group=key, info=info)
