"""Steps of each command, ordered by how much information they give per second."""

import os
from collections.abc import Sequence
from dataclasses import replace

from .runner import Step
from .target import REHEARSAL

__all__ = ["BUDGETS", "COMMANDS", "jobs", "steps"]

BUDGETS = {"right": 230.0, "where": 230.0, "claims": 300.0}
"""Default of --budget in seconds. On a lent machine, calls of 150 to 300 seconds are the cheapest."""
COMMANDS = tuple(BUDGETS)

_WAITING = (
    "excitation",
    "excitation_backward",
    "l2_grouped",
)  # their blocks wait for each other, so they may hang; they run first
_CUDA = (
    *_WAITING,
    "cluster_fused",
    "moments",
    "scale_shift_act",
    "moments_backward",
    "scale_shift_act_backward",
    "scale_shift_act_mean",
)
_TRITON = tuple(family for family in _CUDA if family != "cluster_fused")
_METRICS = ",".join(
    (
        "gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum", "lts__t_sector_hit_rate.pct",
        "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed", "sm__throughput.avg.pct_of_peak_sustained_elapsed",
        "launch__registers_per_thread",
    )
)  # fmt: skip


def jobs() -> int:
    """Number of processes at the same time: 3/8 of the CPUs, between 2 and 6.

    Steps that do not measure time mostly wait for compilers and for the host. Six processes that check stage 1 in
    float64 need 64 GB of GPU memory, by a count of their tensors.
    """
    return min(max((os.cpu_count() or 2) * 3 // 8, 2), 6)


def _work(name: str, *arguments: str) -> tuple[str, ...]:
    return ("-m", f"benchmarks.gpu.work.{name}", *arguments)


def _pytest(*arguments: str) -> tuple[str, ...]:
    return ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--tier", "nightly", *arguments)


def _interpreted(backend: str, rehearse: bool) -> dict[str, str]:
    return {"TRITON_INTERPRET": "1"} if rehearse and backend == "triton" else {}


def _families(backend: str, families: Sequence[str], rehearse: bool) -> list[Step]:
    limit = 60.0 if backend == "cuda" else 100.0  # Triton also compiles its kernels
    return [
        Step(
            f"{family} {backend}", _work("kernels", backend, family), 12.0, limit,
            environment=_interpreted(backend, rehearse), settles=f"whether {backend}'s {family} is right",
        )
        for family in families
    ]  # fmt: skip


# The op contract's calls on one backend, and whole residual blocks: each pair of values, because triples would take too
# long here.
_CALLS = ("tests/backends/test_contract.py", "tests/backends/test_residual_block.py", "--tier", "test", "-k")


def _right(rehearse: bool) -> list[Step]:
    cuda, triton = _families("cuda", _CUDA, rehearse), _families("triton", _TRITON, rehearse)
    waiting = len(_WAITING)
    found = [*cuda[:waiting], *triton[:waiting], *cuda[waiting:], *triton[waiting:]]
    sanitizer = ("--tool", "memcheck", "--error-exitcode", "1", "--target-processes", "all", "python3")
    if rehearse:
        # A few families are enough for a rehearsal, because the others use the same code of the runner.
        found = [
            step
            for step in found
            if step.name.split()[0] in ("excitation", "l2_grouped", "cluster_fused", "scale_shift_act_mean")
        ]
        few = (*_CALLS, "cuda and odd-S")
        return [
            *found,
            Step("contract cuda 1/2", _pytest(*few), 10.0, 60.0, reader="pytest",
                 environment={"SE_FUSED_TEST_SHARD": "0/2"}),
            Step("memcheck", (*sanitizer, *_pytest(*few)), 10.0, 60.0, reader="sanitizer", tool="compute-sanitizer"),
        ]  # fmt: skip
    gpu, backends = "tests/backends/test_gpu.py", "tests/backends"
    cuda_contract = _pytest(f"{backends}/cuda/test_contract.py", f"{backends}/cuda/test_plan.py")
    triton_contract = _pytest(f"{backends}/triton/test_contract.py", "tests/functional/test_conv1x1_squeeze_excite.py")
    return [
        *found,
        # compiled launches on the device: two streams at once, graphs, the stages, reproducible bits
        Step("device tests", _pytest(gpu, "-k", "not compile and not int32 and not autotuning"), 45.0, 120.0,
             reader="pytest", settles="graphs, two streams, ResNet-50's stages against eager PyTorch"),
        Step("memcheck", (*sanitizer, *_pytest(gpu, "-m", "sanitizer")), 40.0, 100.0, reader="sanitizer",
             tool="compute-sanitizer", environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
             settles="no memory access out of bounds"),
        *(Step(f"contract cuda {i + 1}/3", cuda_contract, 40.0, 100.0,
               reader="pytest", environment={"SE_FUSED_TEST_SHARD": f"{i}/3"}, settles="the op contract")
          for i in range(3)),
        *(Step(f"contract triton {i + 1}/8", triton_contract, 70.0, 150.0,
               reader="pytest", environment={"SE_FUSED_TEST_SHARD": f"{i}/8"}, settles="the op contract")
          for i in range(8)),
        *(Step(f"calls {backend} {i + 1}/{of}", _pytest(*_CALLS, f"{backend}- or {backend}]"), 40.0, 150.0,
               reader="pytest", environment={"SE_FUSED_TEST_SHARD": f"{i}/{of}"}, settles="the op contract")
          for backend, of in (("cuda", 1), ("triton", 6)) for i in range(of)),
        Step("2^31 elements", _pytest(gpu, "-k", "int32"), 30.0, 90.0, alone=True, reader="pytest",
             settles="64-bit offsets"),
    ]  # fmt: skip


def _where(rehearse: bool, variants: Sequence[tuple[str, str]]) -> list[Step]:
    found = [
        Step("ahead", _work("ahead", "where", *(("--processes", "2") if rehearse else ())), 40.0, 90.0,
             environment=_interpreted("triton", rehearse), settles="compilation before the timed steps"),
    ]  # fmt: skip
    for name, libraries in variants:
        more = {} if not libraries else {"SE_FUSED_LIBRARIES": libraries}
        arguments = ("cuda", *(("--variant", name) if name else ()))
        found.append(
            Step(f"times cuda {name}".strip(), _work("times", *arguments), 30.0, 80.0, alone=True, environment=more,
                 settles="device time of every CUDA kernel")
        )  # fmt: skip
    found.append(
        Step("times triton", _work("times", "triton"), 35.0, 90.0, alone=True,
             environment=_interpreted("triton", rehearse), settles="device time of every Triton kernel")
    )  # fmt: skip
    for backend in ("cuda",) if rehearse else ("cuda", "triton"):
        # --clock-control none: do not change the GPU's clocks; --cache-control none: measure hits in L2 as in use
        arguments = (
            "--csv", "--metrics", _METRICS, "--clock-control", "none", "--cache-control", "none", "--nvtx",
            "--nvtx-include", "measured/", "python3", *_work("profiled", backend),
        )  # fmt: skip
        found.append(
            Step(f"ncu {backend}", arguments, 35.0, 80.0, alone=True, reader="ncu", tool="ncu",
                 settles="bytes of memory, L2 hits, registers")
        )  # fmt: skip
    return found


def _claims(rehearse: bool) -> list[Step]:
    def network(mode: str, batch: int, seconds: float) -> Step:
        return Step(
            f"networks {mode} {batch}", _work("networks", mode, str(batch)), seconds, 2.5 * seconds, alone=True,
            settles="se_fused and timm, eager and compiled, with SE and without",
        )  # fmt: skip

    blocks = Step(
        "blocks", _work("blocks"), 40.0, 90.0, alone=True, settles="se_fused against eager, timm and torch.compile"
    )
    ahead = Step("ahead", _work("ahead", "claims"), 80.0, 150.0, settles="compilation before the timed steps")
    if rehearse:
        return [blocks, network("train", 2, 30.0), network("infer", 2, 30.0)]
    return [
        ahead, network("train", 256, 40.0), blocks, network("infer", 256, 30.0), network("train", 64, 30.0),
        network("infer", 8, 25.0), network("infer", 1, 25.0),
    ]  # fmt: skip


def _drills() -> list[Step]:
    def drill(how: str, limit: float = 30.0, seconds: float = 1.0) -> Step:
        return Step(f"drill {how}", _work("drill", how), seconds, limit)

    return [drill("hang", 4.0), drill("fail"), drill("wrong"), drill("nonsense"), drill("too long", seconds=1e6)]


def steps(command: str, *, rehearse: bool, variants: Sequence[tuple[str, str]] = (("", ""),)) -> list[Step]:
    """The steps of a command.

    Args:
        command: one of :data:`COMMANDS`.
        rehearse: whether to run on the CPU with tiny sizes; this adds steps that fail on purpose.
        variants: (name, value of ``SE_FUSED_LIBRARIES``) of each build of the CUDA library to time.
    """
    if command == "right":
        found = _right(rehearse)
    elif command == "where":
        found = _where(rehearse, variants)
    else:
        found = _claims(rehearse)
    if not rehearse:
        return found
    drills = _drills() if command == "right" else []
    return [
        replace(step, environment={**step.environment, REHEARSAL: "1"}) for step in (*found[:2], *drills, *found[2:])
    ]
