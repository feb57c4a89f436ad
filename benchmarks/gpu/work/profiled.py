"""What Nsight Compute looks at: the tail of ResNet-50's four stages, each kernel once after a warm-up.

    ncu --metrics dram__bytes_read.sum,dram__bytes_write.sum,gpu__time_duration.sum,lts__t_sector_hit_rate.pct \\
        --nvtx --nvtx-include "measured/" --csv python benchmarks/profiled.py cuda

Counted bytes stand beside its figures in the output: read x, read the residual, write y, and so on.
"""

import sys

import torch

from se_fused import backends, functional

SHAPES = [(128, 256, 56, 56), (128, 512, 28, 28), (128, 1024, 14, 14), (128, 2048, 7, 7)]


def main(name: str) -> None:
    """Run inference and a training step of each stage on the backend ``name``."""
    for shape in SHAPES:
        c = shape[1]
        r = c // 16
        x = torch.randn(shape, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
        residual = torch.randn_like(x)
        fc = [torch.randn(size, device="cuda", dtype=torch.bfloat16) * c**-0.5 for size in ((r, c), (r,), (c, r), (c,))]
        bn = [torch.ones(c, device="cuda"), torch.zeros(c, device="cuda")]
        one, mask = x.nbytes, x.numel() // 8
        counted = {"inference": 3 * one, "forward": 4 * one + mask, "backward": 6 * one + mask}
        print(f"# {shape} bfloat16 channels_last, counted bytes: {counted}", flush=True)
        with backends.use_backend(name):
            for measured in (False, True):
                if measured:
                    torch.cuda.synchronize()
                    torch.cuda.nvtx.range_push("measured")
                with torch.no_grad():
                    functional.squeeze_excite(x, *fc, residual, out_act="relu")
                given = x.detach().requires_grad_()
                y = functional.batch_norm_squeeze_excite(
                    given, None, None, *bn, *fc, residual.requires_grad_(), training=True, out_act="relu"
                )
                y.backward(torch.ones_like(y))
                torch.cuda.synchronize()
                if measured:
                    torch.cuda.nvtx.range_pop()


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["cuda"]))
