"""Each streaming kernel alone, against the bandwidth of a copy: what the tail's time is made of.

A kernel's bytes are those that it must move: its maps once each, and the mask. One group of the report is one map.
"""

from collections.abc import Callable

import pytest
import torch

from se_fused import backends
from se_fused.measure import device_seconds, keep_freed_memory, synchronizer
from se_fused.ops import affine as affine_definition
from se_fused.ops import moments as moments_definition
from se_fused.ops.layout import mask_numel, pack_mask
from se_fused.workloads import DTYPES, LAYOUTS

# name -> maps read, maps written, masks
PASSES = {"moments": (1, 0, 0), "affine": (2, 1, 1), "moments_backward": (2, 1, 1), "affine_backward": (2, 1, 0)}


@pytest.mark.parametrize("kernel", PASSES)
@pytest.mark.parametrize("name", backends.AUTO_ORDER)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stream(
    benchmark,
    copy_speed: Callable[[int], float],
    device: str,
    stage: str,
    dtype: str,
    layout: str,
    name: str,
    kernel: str,
) -> None:
    keep_freed_memory()
    backend = backends.BACKENDS[name]
    if (reason := backends.why_not(backend, device, DTYPES[dtype])) is not None:
        pytest.skip(f"{name}: {reason}")
    n, c, h, w = (int(size) for size in stage.split("x"))
    torch.manual_seed(0)

    def draw() -> torch.Tensor:
        return torch.randn(n, c, h, w, device=device).to(DTYPES[dtype]).to(memory_format=LAYOUTS[layout])

    x, other = draw(), draw()
    a, b, k = (torch.randn(n, c, device=device) for _ in range(3))
    mask = pack_mask(draw() > 0)
    nothing = torch.empty(0, device=device)
    calls = {
        "moments": lambda streams: streams.moments(x),
        "affine": lambda streams: streams.affine(x, other, a, b, 1, True),
        "moments_backward": lambda streams: streams.moments_backward(other, x, None, mask, k, a, b, 1, True),
        "affine_backward": lambda streams: (streams.affine_backward(other, x, nothing, k, a, b, k),),
    }
    run = calls[kernel]

    class Definition:
        moments, moments_backward = moments_definition.moments, moments_definition.moments_backward
        affine, affine_backward = affine_definition.affine, affine_definition.affine_backward

    # nothing is timed before it agrees with the definition (its bound is held by the tests)
    for mine, theirs in zip(run(backend), run(Definition), strict=True):
        if mine.dtype != torch.uint8:
            error = (mine.float() - theirs.float()).norm() / theirs.float().norm().clamp_min(1e-30)
            assert error < 1e-5 + torch.finfo(mine.dtype).eps, f"{kernel}: relative error {error:.1e}"
    wait = synchronizer(device)
    benchmark.group = f"streams {stage} {dtype} {layout}"
    benchmark(lambda: (run(backend), wait()))
    reads, writes, masks = PASSES[kernel]
    counted = (reads + writes) * x.nbytes + masks * mask_numel(x)
    info = {
        "title": f"{kernel} ({name})",
        "backend": backend.name,
        "shape": [n, c, h, w],
        "dtype": dtype,
        "layout": layout,
    }
    benchmark.extra_info.update(info, candidate="se_fused", device=device, counted_bytes=counted)
    if benchmark.stats is None:  # --benchmark-disable
        return
    seconds = benchmark.stats.stats.median
    if device == "cuda":
        seconds = benchmark.extra_info["device_seconds"] = device_seconds(lambda: run(backend), device)
    speed = counted / seconds
    benchmark.extra_info.update(gb_per_second=speed / 1e9, share_of_copy=speed / copy_speed(counted))
