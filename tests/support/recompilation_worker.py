"""Print, as JSON, the compiled kernels that training and inference need at each batch size (test_recompilation.py).

It is a separate process, because interpreted kernels do not know their compiled variants. Nothing is compiled.
"""

import json
import sys
from typing import Any

import torch

from se_fused.backends.triton import compiled_code
from se_fused.backends.triton.launch import Launch

# The norms of ResNet-50 with SE: (C, height and width, R). Those inside the blocks have no squeeze-excite.
STAGES = ((256, 56, 16), (512, 28, 32), (1024, 14, 64), (2048, 7, 128))
NORMS = ((64, 112, None), (64, 56, None), (128, 28, None), (256, 14, None), (512, 7, None), *STAGES)
NARROW = ((24, 56, 6), (40, 28, 10))  # N * C is a multiple of 16 for some N only


def launches(n: int, call: str, channels_last: bool) -> list[Launch]:
    found = []
    for c, size, hidden in (*NORMS, *NARROW):
        for dtype in (torch.bfloat16, torch.float32):
            shape = (n, c, size, size)
            if call == "squeeze":
                found += compiled_code.launches_of_scale_shift_act_mean(shape, dtype, channels_last, "silu")
            else:
                found += compiled_code.launches_of_block(shape, dtype, channels_last, call == "train", hidden)
    return found


def as_triton_sees_it(launch: Launch) -> str:
    """The key that Triton itself computes, from the function that its launcher calls."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    kernel = launch.kernel
    binder = create_function_from_signature(kernel.signature, kernel.params, make_backend(GPUTarget("cuda", 90, 32)))
    _, specialization, _ = binder(**launch.arguments)
    return repr((launch.name, specialization, sorted(launch.options.items())))


def answer(batches: list[int], call: str, channels_last: bool) -> dict[str, Any]:
    ours: dict[int, list[str]] = {}
    theirs: dict[int, list[str]] = {}
    for n in batches:
        found = launches(n, call, channels_last)
        ours[n] = [compiled_code.key_of(launch) for launch in found]
        theirs[n] = [as_triton_sees_it(launch) for launch in found]
    return {"ours": ours, "triton": theirs}


if __name__ == "__main__":
    batches = [int(n) for n in sys.argv[1].split(",")]
    calls = {f"{c} {cl}": (c, cl) for c in ("train", "infer", "squeeze") for cl in (True, False)}
    print(json.dumps({name: answer(batches, *call) for name, call in calls.items()}))
