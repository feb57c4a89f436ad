"""Compile what calls would launch for GPUs that need not be present, and print the results as JSON.

Used by tests/backends/triton/test_compiled_code.py. It is a separate process, because the tests' process interprets
kernels instead of compiling them. Arguments: how many processes at a time, and "all" or "some" calls.
"""

import json
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from se_fused._formats import DTYPES
from se_fused.backends.triton import compiled_code, launch_configs

STAGES = {"256x56x56": (128, 256, 56, 56), "1024x14x14": (128, 1024, 14, 14), "2048x7x7": (128, 2048, 7, 7)}
ODD = {"odd": (3, 33, 7, 5), "ones": (1, 1, 2, 1), "S=1": (5, 24, 1, 1)}
B200 = launch_configs.Device(multiprocessors=148, l2_bytes=126 * 2**20, major=10)
MI300 = launch_configs.Device(multiprocessors=304, l2_bytes=32 * 2**20, is_nvidia=False)


@dataclass(frozen=True)
class Job:
    """One call to compile for one architecture."""

    architecture: int | str
    dtype: str
    channels_last: bool
    shape: str
    call: str  # "train", "infer", "conv1x1_squeeze_excite", "scale_shift_act_mean" or "gated_conv1x1"
    act: str = "relu"
    excitation: bool = True
    out_act: str = "relu"


def jobs() -> list[Job]:
    both = (True, False)
    found = [Job(90, d, cl, "256x56x56", call) for d in DTYPES for cl in both for call in ("train", "infer")]
    found += [Job(a, d, cl, "256x56x56", "train") for a in (80, 100) for d in ("bfloat16", "float32") for cl in both]
    found += [Job(a, "bfloat16", True, "256x56x56", "infer") for a in (80, 100)]
    found += [Job(a, "bfloat16", True, "256x56x56", "infer", excitation=False) for a in (80, 90, 100)]
    found += [Job(90, "bfloat16", cl, shape, "train") for cl in both for shape in ("1024x14x14", "2048x7x7")]
    found += [Job(a, "bfloat16", False, "2048x7x7", "train") for a in (80, 100, "gfx942")]
    found += [Job(90, d, False, "2048x7x7", "train", out_act="silu") for d in ("float32", "bfloat16")]
    found += [Job(90, "bfloat16", cl, shape, call) for cl in both for shape in ODD for call in ("train", "infer")]
    found += [Job(90, "float32", True, "256x56x56", "train", act) for act in ("gelu_tanh", "mish")]
    found += [Job(90, "bfloat16", cl, "256x56x56", "train", out_act="silu") for cl in both]
    found += [Job(90, "bfloat16", True, "256x56x56", "train", excitation=False)]
    found += [
        Job(a, d, True, "256x56x56", "conv1x1_squeeze_excite") for a in compiled_code.ARCHITECTURES for d in DTYPES
    ]
    found += [Job(90, d, True, "2048x7x7", "conv1x1_squeeze_excite") for d in ("float32", "bfloat16")]
    found += [Job(90, d, cl, "256x56x56", "scale_shift_act_mean", out_act="hard_swish") for d in DTYPES for cl in both]
    found += [Job(90, "bfloat16", cl, shape, "scale_shift_act_mean") for cl in both for shape in (*STAGES, *ODD)]
    found += [
        Job(a, "bfloat16", cl, shape, "scale_shift_act_mean", out_act="silu")
        for a in (80, 100, "gfx942")
        for cl, shape in ((True, "256x56x56"), (False, "2048x7x7"))
    ]
    found += [Job(a, d, True, "256x56x56", "gated_conv1x1") for a in compiled_code.ARCHITECTURES for d in DTYPES]
    found += [Job(90, d, True, "2048x7x7", "gated_conv1x1") for d in ("float32", "bfloat16")]
    found += [
        Job("gfx942", "bfloat16", True, "256x56x56", call)
        for call in ("train", "infer", "conv1x1_squeeze_excite", "gated_conv1x1")
    ]
    return found


# The kernels that changes break most often: those of an aligned and of an unaligned map, for sm_90 in bfloat16.
SOME = [
    *(Job(90, "bfloat16", cl, "256x56x56", call) for cl in (True, False) for call in ("train", "infer")),
    Job(90, "bfloat16", False, "2048x7x7", "train"),
    Job(90, "bfloat16", True, "256x56x56", "train", excitation=False),
    *(Job(90, "bfloat16", False, shape, "scale_shift_act_mean") for shape in ("256x56x56", "2048x7x7")),
    Job(90, "bfloat16", True, "256x56x56", "conv1x1_squeeze_excite"),
]


def launches(job: Job) -> list[Any]:
    shape = (STAGES | ODD)[job.shape]
    dtype = DTYPES[job.dtype]
    if job.call == "conv1x1_squeeze_excite":
        return compiled_code.launches_of_conv1x1_squeeze_excite(shape, dtype)
    if job.call == "gated_conv1x1":
        return compiled_code.launches_of_gated_conv1x1(shape, dtype)
    if job.call == "scale_shift_act_mean":
        return compiled_code.launches_of_scale_shift_act_mean(shape, dtype, job.channels_last, job.out_act)
    hidden = max(shape[1] // 16, 1) if job.excitation else None
    return compiled_code.launches_of_block(
        shape, dtype, job.channels_last, job.call == "train", hidden, job.out_act, job.act
    )


def compiled(job: Job) -> list[dict[str, Any]]:
    rows = []
    with launch_configs.standing_in({"gfx942": MI300, 100: B200}.get(job.architecture, launch_configs.H200)):
        for launch in launches(job):
            code = compiled_code.compiled(launch, job.architecture)
            sass = code.asm.get("sass", "")
            rows.append(
                {
                    "kernel": launch.name, "architecture": job.architecture, "dtype": job.dtype, "shape": job.shape,
                    "layout": "channels_last" if job.channels_last else "contiguous", "call": job.call,
                    "registers": code.registers, "spill_bytes": code.spill_bytes, "shared_bytes": code.shared_bytes,
                    "loads": code.loads, "stores": code.stores, "warps": launch.options["num_warps"],
                    "float64": bool(re.search(r"\bf64\b", code.asm["ttir"])),
                    "float_atomics": bool(re.search(r"tt\.atomic_rmw fadd", code.asm["ttir"])),
                    "tensor_cores": sorted(set(re.findall(r"\b(HGMMA|HMMA|UTC\w*MMA)\b", sass))),
                    "acquires": len(re.findall(r"CCTL\.IVALL", sass)),
                    "releases": len(re.findall(r"MEMBAR\S*\.GPU", sass)),
                    "excitation": job.excitation, "from_sum": bool(launch.arguments.get("FROM_SUM")),
                    "narrow_offsets": compiled_code.narrow_offsets(code.asm["ttir"]),
                }
            )  # fmt: skip
    return rows


if __name__ == "__main__":
    todo = [job for job in jobs() if sys.argv[2] == "all" or job in SOME]
    with ProcessPoolExecutor(int(sys.argv[1])) as pool:
        print(json.dumps([row for rows in pool.map(compiled, todo) for row in rows]))
