"""Tests of the Triton backend around its kernels: number of launches, refusals, and waiting between programs."""

import dataclasses
import multiprocessing
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from support.launches import Operators
from support.one_program import one_program
from support.paths import ROOT

import se_fused
from se_fused import backends, functional
from se_fused._params import BatchNormParams, BlockOptions, ExcitationParams, SavedTensors
from se_fused.activations import OUT_ACT_CODES
from se_fused.backends import BackendUnavailable
from se_fused.backends import triton as backend_module
from se_fused.backends.triton import TritonBackend
from se_fused.testing.verify import OPS, Case

pytestmark = pytest.mark.quick

TRITON = backends.BACKENDS["triton"]
HAS_TRITON = not isinstance(TRITON.describe().get("reason"), str)
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")

FORWARD = ["moments_kernel", "excitation_kernel", "scale_shift_act_kernel"]
BACKWARD = ["moments_backward_kernel", "excitation_backward_kernel", "scale_shift_act_backward_kernel"]


def flat(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a launch and, instead of a group, its fields under "group.field"."""
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, tuple):
            found |= {f"{name}.{field}": v for field, v in zip(value._fields, value, strict=True)}
        else:
            found[name] = value
    return found


# ---- launches, counted with tensors without memory
@needs_triton
@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("out_act", OUT_ACT_CODES)
@pytest.mark.parametrize("hidden", [16, None], ids=["se", "no-se"])
@pytest.mark.parametrize("shape", [(128, 256, 56, 56), (128, 2048, 7, 7), (1, 64, 1024, 1024), (5, 33, 7, 5)], ids=str)
def test_launches_of_training(shape: tuple, hidden: int | None, out_act: str, channels_last: bool) -> None:
    """Training launches three kernels forward and three backward, also for split sums (at most 3 + 4 are allowed). A
    norm without squeeze-excite launches the two passes each way."""
    from se_fused.backends.triton.compiled_code import launches_of_block

    launches = launches_of_block(shape, torch.bfloat16, channels_last, True, hidden, out_act)
    expected = FORWARD + BACKWARD if hidden else FORWARD[::2] + BACKWARD[::2]
    assert [launch.name.replace("_unaligned", "") for launch in launches] == expected


@needs_triton
@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
def test_launches_of_inference(channels_last: bool) -> None:
    """Inference takes one launch without squeeze-excite and three where x stays in L2.

    Otherwise it takes one launch and the zeroing of counters.
    """
    from se_fused.backends.triton.compiled_code import launches_of_block

    def names(shape: tuple, hidden: int | None) -> list[str]:
        return [
            x.name.replace("_unaligned", "")
            for x in launches_of_block(shape, torch.bfloat16, channels_last, False, hidden)
        ]

    assert names((128, 256, 56, 56), None) == ["scale_shift_act_kernel"]
    assert names((128, 256, 56, 56), 16) == ["l2_grouped_kernel"]
    assert names((128, 2048, 7, 7), 128) == FORWARD
    assert names((1, 256, 56, 56), 16) == FORWARD


@needs_triton
def test_bytes_of_a_training_step() -> None:
    """The bytes in the launches' arguments are those of DESIGN section 4: 4 + 1/16 maps forward, 6 + 1/16 backward."""
    from se_fused.backends.triton.compiled_code import launches_of_block

    shape = (128, 256, 56, 56)
    launches = launches_of_block(shape, torch.bfloat16, True, True, 16)
    one = 2 * 128 * 256 * 56 * 56
    moved = {}
    for launch in launches:
        values = flat(launch.arguments).values()
        big = [t.nbytes for t in values if isinstance(t, torch.Tensor) and t.nbytes * 64 > one]
        moved[launch.name] = sum(big) / one
    mask = 1 / 16
    assert moved["moments_kernel"] == 1 and moved["scale_shift_act_kernel"] == 3 + mask
    assert moved["moments_backward_kernel"] == 3 + mask and moved["scale_shift_act_backward_kernel"] == 3
    assert moved["excitation_kernel"] == moved["excitation_backward_kernel"] == 0


@pytest.mark.skipif(TRITON.can_use("cpu", torch.float32) is not None, reason=str(TRITON.can_use("cpu", torch.float32)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_nothing_is_launched_beside_our_kernels(op: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the kernels of this library are launched.

    The kernels update running statistics, gradients are written in their parameters' dtypes, and nothing is
    copied. The kernels do not run here, because the interpreter would use PyTorch operators for them.
    """
    from se_fused.backends.triton import memory
    from se_fused.backends.triton.launch import recording

    memory.kept_counters(torch.device("cpu"), 1)  # a stream's first norm allocates them
    # A call without a mode does this. Under the mode below, the call would go through our operators and record them.
    for module in ("se_fused.functional.batch_norm_squeeze_excite", "se_fused.ops.batch_norm_squeeze_excite"):
        monkeypatch.setattr(sys.modules[module], "through_dispatcher", lambda: False)
    training = "batch_norm" in op
    for options in ({"training": training}, {"training": False}, {"training": training, "out_act": "silu"}):
        given = Case(op, (3, 16, 4, 3), dtype, **options).draw(0)
        tensors = [v for v in given.values() if isinstance(v, torch.Tensor) and v.requires_grad]
        dy = torch.randn_like(given["x"])
        with backends.use_backend("triton"), recording(dry=True) as launches, Operators() as forward:
            y = getattr(functional, op)(**given)
        assert not forward.names and len(launches) == (2 if op == "batch_norm_act" else 3)
        with backends.use_backend("triton"), recording(dry=True) as launches, Operators() as backward:
            torch.autograd.grad(y, tensors, dy)
        assert not backward.names and len(launches) == (2 if op == "batch_norm_act" else 3)
        with backends.use_backend("triton"), torch.no_grad(), recording(dry=True) as launches, Operators() as inference:
            getattr(functional, op)(**given)
        assert not inference.names and len(launches) <= 3


@pytest.mark.skipif(TRITON.can_use("cpu", torch.float32) is not None, reason=str(TRITON.can_use("cpu", torch.float32)))
@pytest.mark.parametrize("momentum", [0.1, 0.0, 0.7, 1.0])
def test_running_statistics(momentum: float) -> None:
    """Running statistics equal PyTorch's over several steps, in the buffers' dtype, also at momentum 0 and 1.

    Autograd notices the update.
    """
    for dtype in (torch.float32, torch.bfloat16):
        ours = [torch.zeros(6, dtype=dtype), torch.ones(6, dtype=dtype)]
        theirs = [t.clone() for t in ours]
        for _ in range(3):
            x = torch.randn(5, 6, 4, 3) * 3 + 2
            before = [t._version for t in ours]
            with backends.use_backend("triton"):
                functional.batch_norm_act(x, *ours, None, None, training=True, momentum=momentum)
            assert [t._version for t in ours] == [v + 1 for v in before]
            var, mean = torch.var_mean(x, (0, 2, 3))
            for buffer, to in zip(theirs, (mean, var), strict=True):
                buffer.lerp_(to.to(dtype), momentum)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)
    apart = torch.zeros(6, 2)[:, 0]  # a strided buffer, which PyTorch updates
    with backends.use_backend("triton"):
        functional.batch_norm_act(x, apart, torch.ones(6), None, None, training=True, momentum=1.0)
    torch.testing.assert_close(apart, x.mean((0, 2, 3)))


# ---- refusal
def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module, "find_spec", lambda name: None)
    absent = TritonBackend()
    reason = "Triton is not installed: pip install triton"
    assert absent.can_use("cuda", torch.float32) == absent.can_use("cpu", torch.float32) == reason
    assert absent.describe() == {"built": False, "reason": reason}
    monkeypatch.setitem(backends.BACKENDS, "triton", absent)
    with (
        backends.use_backend("triton"),
        pytest.raises(BackendUnavailable, match=r"'triton' was requested.*pip install"),
    ):
        se_fused.SqueezeExcite(8)(torch.zeros(1, 8, 2, 2))
    assert any(row["why_not"].get("triton") == reason for row in se_fused.info()["choices"])


def test_a_triton_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(backend_module, "find_spec", lambda name: object())
    monkeypatch.setattr(backend_module, "import_module", broken)
    backend = TritonBackend()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    reason = "Triton does not load: OSError: libcuda.so.1: cannot open shared object file"
    assert backend.can_use("cpu", torch.float32) == backend.can_use("cuda", torch.float32) == reason
    with pytest.raises(RuntimeError, match="Triton does not load"):
        _ = backend.moments


@needs_triton
def test_what_it_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = TritonBackend()
    assert "not float64" in str(fresh.can_use("cuda", torch.float64))
    assert "not on mps" in str(fresh.can_use("mps", torch.float32))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "TRITON_INTERPRET=1" in str(fresh.can_use("cpu", torch.float32))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla T4")
    backend_module._gpu_reason.cache_clear()
    assert backend_module._gpu_reason(0) == "it needs compute capability 8.0 or later; Tesla T4 has 7.5"
    backend_module._gpu_reason.cache_clear()


@needs_triton
def test_float64_is_refused_by_name() -> None:
    x = torch.zeros(1, 8, 2, 2, dtype=torch.float64)
    with backends.use_backend("triton"), pytest.raises(BackendUnavailable, match="float32, bfloat16 and float16"):
        se_fused.SqueezeExcite(8, dtype=torch.float64)(x)


def test_auto_never_takes_the_interpreter() -> None:
    """TRITON_INTERPRET=1 may be set for other Triton kernels of a program, so "auto" never selects the interpreter."""
    backend, _ = backends.find("cpu", torch.float32)
    assert backend is not None and backend.name == "cpu"
    refusal = backends.why_not(TRITON, "cpu", torch.float32)
    assert refusal is not None
    if TRITON.can_use("cpu", torch.float32) is None:
        assert "requested by name" in refusal


def test_importing_se_fused_does_not_import_triton_kernels() -> None:
    code = (
        "import sys, torch; before = 'triton' in sys.modules; import se_fused; se_fused.info();"
        "se_fused.SqueezeExcite(8)(torch.zeros(1, 8, 2, 2));"
        "assert ('triton' in sys.modules) == before; assert 'se_fused.backends.triton.passes' not in sys.modules"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment)


# ---- programs that run at the same time
@pytest.mark.grid(quick=0)
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU programs always run at the same time")
@pytest.mark.skipif(TRITON.can_use("cpu", torch.float32) is not None, reason=str(TRITON.can_use("cpu", torch.float32)))
@pytest.mark.parametrize("kernel", ["excitation", "backward", "l2_grouped"])
def test_programs_wait_for_each_other(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs on the same memory wait for each other, and give the result of a single one.

    The interpreter runs programs one after another, and the first does everything. Here each of three programs is its
    own process, so that tickets, counters and waiting are exercised.
    """
    from se_fused.backends.triton import batch_norm_squeeze_excite, launch_configs
    from se_fused.backends.triton.launch import Launch, recording

    n, c, r = 18, 40, 17

    def plan(m: launch_configs.Map, device: launch_configs.Device) -> launch_configs.L2GroupedConfig:
        return launch_configs.L2GroupedConfig(launch_configs.PassConfig(8, 4, 4, 4), 3, 3)

    monkeypatch.setattr(
        batch_norm_squeeze_excite, "l2_grouped_config", plan if kernel == "l2_grouped" else lambda m, device: None
    )
    torch.manual_seed(1)
    x = torch.randn(n, c, 3, 2).contiguous(memory_format=torch.channels_last)
    bn = BatchNormParams(torch.rand(c), torch.rand(c) + 0.5, torch.rand(c), torch.randn(c), False, 0.1, 1e-5)
    fc = ExcitationParams(torch.randn(r, c), torch.randn(r), torch.randn(c, r), torch.randn(c))
    options = BlockOptions(x, None, "relu")

    def run() -> tuple[list[Launch], list[torch.Tensor]]:
        with recording() as launches:
            if kernel == "l2_grouped":
                y = torch.empty_like(x)
                batch_norm_squeeze_excite.batch_norm_squeeze_excite_inference(x, bn, fc, options, y)
                return launches, [y]
            training = dataclasses.replace(bn.without_running(), batch_stats=True)
            y, *saved = batch_norm_squeeze_excite.batch_norm_squeeze_excite_forward(x, training, fc, options, True)
            gradients = batch_norm_squeeze_excite.batch_norm_squeeze_excite_backward(
                x, SavedTensors(x, *saved), training, fc, options, True
            )
        return launches, [y, *gradients]

    launches, _ = run()
    wanted = {
        "excitation": "excitation_kernel",
        "backward": "excitation_backward_kernel",
        "l2_grouped": "l2_grouped_kernel",
    }[kernel]
    (launch,) = (found for found in launches if found.name == wanted)
    # What the launch writes, and the same arguments in shared memory with that set to NaN.
    arguments = flat(launch.arguments)
    groups = {
        "excitation": ("results.",),
        "backward": ("scratch.", "to_dx.", "gradients."),
        "l2_grouped": ("results.", "mean_parts", "y"),
    }[kernel]
    alone = {name: t.clone() for name, t in arguments.items() if name.startswith(groups) and t is not None}
    assert len(alone) == {"excitation": 6, "backward": 11, "l2_grouped": 6}[kernel]
    shared = dict(arguments)
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            copy = value.clone() if name not in alone else torch.full_like(value, float("nan"))
            shared[name] = copy.share_memory_()
    if kernel == "excitation":
        assert arguments["results.mean"].data_ptr() == arguments["parts.mean"].data_ptr()
        shared["results.mean"] = shared["parts.mean"][0]  # the mean of one split is the mean
    shared["counters"].zero_()
    given = {
        name: type(value)(*(shared[f"{name}.{field}"] for field in value._fields))
        if isinstance(value, tuple)
        else shared[name]
        for name, value in launch.arguments.items()
    }
    context = multiprocessing.get_context("spawn")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    start = context.Barrier(3)
    programs = [context.Process(target=one_program, args=(kernel, given, start)) for _ in range(3)]
    for program in programs:
        program.start()
    for program in programs:
        program.join(120)
    assert [program.exitcode for program in programs] == [0, 0, 0]
    for name, value in alone.items():
        assert torch.equal(shared[name], value), name
    assert shared["counters"][0] > 3  # all programs took tickets from one counter
