"""One program of a Triton launch. It runs in its own process, which imports this module by name."""

from typing import Any

import torch


def one_program(kernel: str, arguments: dict[str, Any], start: Any) -> None:
    from se_fused.backends.triton import excitation, excitation_backward, l2_grouped
    from support.interpreter import round_bfloat16

    round_bfloat16()
    torch.set_num_threads(1)
    kernels = {
        "excitation": excitation.excitation_kernel,
        "backward": excitation_backward.excitation_backward_kernel,
        "l2_grouped": l2_grouped.l2_grouped_kernel,
    }
    start.wait(120)  # wait until all have imported PyTorch, so that no program ends before the others begin
    kernels[kernel][(1,)](**arguments)
