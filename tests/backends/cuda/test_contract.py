"""Tests of the CUDA backend beside the op contract (tests/backends/test_contract.py): its passes, the paths of
inference, split sums, and what it refuses. They run on a GPU if there is one, otherwise on the CPU.

The shim (cuda_shim/cuda_shim.h) runs the kernels' own source with every thread as a fiber, in both orders; it cannot
show races between blocks. test_compiled_code.py checks the compiled code of the same kernels.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import contract, shim_library
from support.contract import Shape
from support.cuda_backend import (  # noqa: F401 (fixtures)
    A100,
    DEVICE,
    H200,
    SEPARATE,
    cuda_alone,
    given_backend,
    infer,
    launched,
    on_cpu,
    on_shim,
    order_of_threads,
    stand_in,
)
from support.kernels import (
    ACTIVATED,
    DERIVED,
    check_moments,
    check_moments_backward,
    check_nan_and_infinity,
    check_scale_shift_act,
    check_scale_shift_act_backward,
    check_scale_shift_act_mean,
    check_scale_shift_act_mean_backward,
)
from support.squeeze import passes as squeeze_passes

from se_fused import functional, reference
from se_fused._formats import DTYPES, LAYOUTS
from se_fused.activations import OUT_ACT_CODES
from se_fused.backends.cuda import CudaBackend
from se_fused.testing.verify import OPS, Case, to_layout

# ---- the passes. S: 1, 13, 16, 35, 36, 70 (rows that share vectors), 4270 (several rounds); C: less than a vector, not
# a multiple of one, a multiple; 264 are more channels than a block processes side by side
PASS_SHAPES = [(2, 5, 1, 1), (1, 3, 13), (2, 8, 4, 4), (2, 33, 7, 5), (2, 20, 7, 5), (1, 20, 6, 6), (2, 12, 10, 7)]
PASS_SHAPES += [(1, 5, 3, 3, 4), (1, 3, 70, 61), (2, 264, 5, 5)]


def everywhere(test: Any) -> Any:
    for mark in (
        pytest.mark.quick,
        pytest.mark.parametrize("layout", LAYOUTS),
        pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES),
        pytest.mark.parametrize("shape", PASS_SHAPES, ids=["x".join(map(str, s)) for s in PASS_SHAPES]),
        pytest.mark.usefixtures("order"),
    ):
        test = mark(test)
    return test


@everywhere
def test_moments(backend: CudaBackend, shape: Shape, dtype: torch.dtype, layout: str) -> None:
    check_moments(backend, shape, dtype, layout, DEVICE)


@everywhere
def test_scale_shift_act(backend: CudaBackend, shape: Shape, dtype: torch.dtype, layout: str) -> None:
    for out_act, with_residual in ACTIVATED:
        check_scale_shift_act(backend, shape, dtype, layout, out_act, with_residual, DEVICE)
    for out_act in OUT_ACT_CODES.values():
        check_scale_shift_act_mean(backend, shape, dtype, layout, out_act, DEVICE)


@everywhere
def test_moments_backward(backend: CudaBackend, shape: Shape, dtype: torch.dtype, layout: str) -> None:
    for out_act, want_dr in DERIVED:
        check_moments_backward(backend, shape, dtype, layout, out_act, want_dr, DEVICE)
    for out_act in OUT_ACT_CODES.values():
        check_scale_shift_act_mean_backward(backend, shape, dtype, layout, out_act, DEVICE)


@pytest.mark.quick
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("out_act", reference.OUT_ACTIVATIONS)
def test_squeeze_behind_an_activation(out_act: str, dtype: torch.dtype, layout: str) -> None:
    for shape, training in (((4, 24, 7, 5), True), ((1, 3, 70, 61), True), ((3, 16, 4, 4), False)):  # 2nd is split
        squeeze_passes(Case("batch_norm_act", shape, dtype, layout, DEVICE, training, out_act=out_act), "cuda")


@everywhere
def test_scale_shift_act_backward(backend: CudaBackend, shape: Shape, dtype: torch.dtype, layout: str) -> None:
    for masked, with_x in itertools.product([True, False], repeat=2):
        check_scale_shift_act_backward(backend, shape, dtype, layout, masked, with_x, DEVICE)


@everywhere
def test_nan_and_infinity_flow_as_in_pytorch(
    backend: CudaBackend, shape: Shape, dtype: torch.dtype, layout: str
) -> None:
    check_nan_and_infinity(backend, shape, dtype, layout, DEVICE)


@pytest.mark.quick
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_memory_off_16_bytes(backend: CudaBackend, dtype: torch.dtype, layout: str) -> None:
    """A view at an unaligned address gives the same numbers as aligned memory, through other kernels."""
    shape = (2, 16, 5, 8)
    memory = torch.randn(1 + 2 * 16 * 40).to(DEVICE, dtype)
    x = memory[1:].view(2, 16, 5, 8) if layout == "contiguous" else memory[1:].view(2, 5, 8, 16).movedim(3, 1)
    assert x.data_ptr() % 16 and x.stride() == to_layout(torch.empty(shape), layout).stride()
    options = (None, *[torch.ones(2, 16, device=DEVICE)] * 2, OUT_ACT_CODES["relu"], True)
    mine = [*backend.moments(x), backend.scale_shift_act(x, *options)]
    whole = to_layout(x.clone(), layout)
    other = [*backend.moments(whole), backend.scale_shift_act(whole, *options)]
    torch.testing.assert_close(mine, other)
    scale = torch.randn(1 + 2 * 16, device=DEVICE)[1:].view(2, 16)  # coefficients need no alignment
    options = (None, scale, scale, OUT_ACT_CODES["relu"], True)
    assert scale.data_ptr() % 16
    y, mask = backend.scale_shift_act(whole, *options)
    true_y, true_mask = backend.scale_shift_act(whole, None, scale.clone(), scale.clone(), *options[3:])
    assert torch.equal(y, true_y) and torch.equal(mask, true_mask)


# ---- the whole op
def passes(case: Case) -> None:
    contract.passes(case, "cuda", DEVICE)


@pytest.mark.quick
@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_several_tiles(layout: str) -> None:
    """The excitation's sums have several tiles of samples, channels and hidden units."""
    for hidden in (75, 150):
        passes(Case("batch_norm_squeeze_excite", (18, 70, 2, 2), layout=layout, hidden=hidden))


@pytest.mark.quick
@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("mean", [0.0, 100.0])
@pytest.mark.parametrize("shape", [(150, 16, 2, 2), (300, 5, 1, 3), (150, 272, 1, 2)], ids=str)
def test_many_samples(shape: Shape, mean: float) -> None:
    """More samples than the excitation's kernels hold in registers, with channels in whole vectors and not."""
    for op in ("batch_norm_squeeze_excite", "batch_norm_act"):
        passes(Case(op, shape, mean=mean, hidden=16))


@pytest.mark.quick
@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"training": False}, {"mean": 100.0}, {"out_act": "silu"}], ids=str)
def test_split_sums(options: dict[str, Any], layout: str) -> None:
    """Sums of one row or channel are computed by several blocks, and the excitation kernels merge them."""
    shape = (1, 16, 70, 61) if layout == "contiguous" else (1, 72, 26, 26)
    for op in ("batch_norm_squeeze_excite", "batch_norm_act"):
        passes(Case(op, shape, layout=layout, **options))


# One level of merging, and two: with one group of samples that is smaller, with splits, and with channels that fill no
# block.
MERGED = {
    "contiguous": [(5, 40, 6, 6), (45, 264, 2, 4), (270, 36, 9, 1)],
    "channels_last": [(5, 40, 6, 6), (45, 264, 2, 4), (19, 261, 16, 9)],
}


@pytest.mark.quick
@pytest.mark.usefixtures("order")
@pytest.mark.parametrize(("layout", "shape"), [(layout, shape) for layout in LAYOUTS for shape in MERGED[layout]])
def test_batch_norm_finishes_in_pass_1(layout: str, shape: Shape) -> None:
    """The blocks of pass 1 that finish last merge all samples, in either order of blocks."""
    for options in ({"mean": 100.0}, {"out_act": "silu", "dtype": torch.bfloat16}):
        passes(Case("batch_norm_act", shape, layout=layout, drop_path=False, **options))


def test_splits_count_with_their_positions() -> None:
    """Three splits, of which the last is smaller, for 16 rows of threads, and means that differ between them."""
    x = torch.arange(1600.0).view(40, 40).expand(7, 16, 40, 40) * torch.linspace(1, 2, 7)[:, None, None, None]
    x = x.to(DEVICE, memory_format=torch.channels_last)
    mean, var = torch.zeros(16, device=DEVICE), torch.zeros(16, device=DEVICE)
    functional.batch_norm_act(x, mean, var, None, None, training=True, momentum=1.0)
    wide = x.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, wide.mean(1).float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(var, wide.var(1).float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("op", "layout", "shape"),
    [("batch_norm_squeeze_excite", layout, (5, 40, 6, 6)) for layout in LAYOUTS]
    + [("batch_norm_act", layout, shape) for layout in LAYOUTS for shape in MERGED[layout]],
)
def test_same_bits_in_every_run(op: str, layout: str, shape: Shape) -> None:
    case = Case(op, shape, layout=layout, device=DEVICE, hidden=18, drop_path=op != "batch_norm_act")
    results = []
    for reverse in (False, True):
        if DEVICE == "cpu":
            torch.ops.se_fused_cuda_shim.reverse(reverse)
        results.append(contract.results(case))
    if DEVICE == "cpu":
        torch.ops.se_fused_cuda_shim.reverse(False)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# ---- inference: the choice of the path, and the result of each
INFERENCE_SHAPES = [(3, 24, 7, 5), (4, 24, 6, 8), (9, 16, 7, 7), (1, 64, 4, 4)]


@pytest.mark.quick
@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", ["squeeze_excite", "batch_norm_squeeze_excite"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", INFERENCE_SHAPES, ids=str)
def test_inference(shape: Shape, dtype: torch.dtype, op: str, layout: str) -> None:
    for out_act, parameter_dtype in (("relu", None), ("silu", torch.float32)):
        options: dict[str, Any] = {"training": False, "out_act": out_act, "parameter_dtype": parameter_dtype}
        case = Case(op, shape, dtype, layout, DEVICE, **options)
        for inplace in (False, True):
            stand_in(H200)
            infer(case, ["cluster_fused"], inplace)
            stand_in(A100)
            infer(case, SEPARATE, inplace)


@pytest.mark.quick
@on_shim
@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_clusters_of_several_samples(backend: CudaBackend, layout: str) -> None:
    """Samples share a cluster where the weights are larger than the maps; the last cluster has idle blocks."""
    for shape, hidden in (((13, 64, 3, 3), 64), ((11, 40, 4, 4), 40), ((9, 8, 3, 4), 100)):
        stand_in((90, 2, 60 << 20, 232448))
        said = backend.plan(shape[0], shape[1], shape[2] * shape[3], layout == "channels_last", 4, hidden)
        assert int(said.partition("; ")[2].split()[0]) > 1, said
        infer(Case("batch_norm_squeeze_excite", shape, layout=layout, training=False, hidden=hidden), ["cluster_fused"])


@on_shim
@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 24, 40, 41), (1, 40, 16, 16), (2, 264, 4, 5)], ids=str)
def test_samples_over_several_blocks(backend: CudaBackend, shape: Shape, layout: str) -> None:
    """Several blocks process one sample: because it needs their shared memory, or because it is the only one. The last
    shape has more channels than a block's threads process side by side."""
    stand_in((90, 8, 60 << 20, 40000))
    said = backend.plan(shape[0], shape[1], shape[2] * shape[3], layout == "channels_last", 2, 6)
    assert int(said.split("sample(s) in ")[1].split()[0]) > 2, said
    for dtype in (torch.bfloat16, torch.float32):
        path = ["cluster_fused"] if dtype == torch.bfloat16 or shape[0] == 1 else None
        case = Case("squeeze_excite", shape, dtype, layout, training=False)
        error, _, _ = contract.infer(case)
        assert error <= 1
        assert path is None or launched() == path


@on_shim
@pytest.mark.quick
@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(12, 48, 21, 23), (11, 72, 24, 24), (9, 264, 13, 11)], ids=str)
def test_l2_grouped(shape: Shape, dtype: torch.dtype, layout: str) -> None:
    """The result is right if groups do not divide N, samples have several tiles, and blocks wait for each other."""
    n, c, h, w = shape
    stand_in((80, 1, 2 * n * c * h * w * dtype.itemsize - 2, 166912))
    for parameter_dtype in (None, torch.float32):
        options: dict[str, Any] = {"training": False, "parameter_dtype": parameter_dtype, "hidden": 18}
        for inplace in (False, True):
            infer(Case("batch_norm_squeeze_excite", shape, dtype, layout, **options), ["l2_grouped"], inplace)


@pytest.mark.quick
@on_shim
def test_paths_of_resnet50(backend: CudaBackend) -> None:
    """On an H200 all four stages read x once, and weights (from L2) are at most half the bytes of x, residual and y."""
    for c, s in ((256, 56), (512, 28), (1024, 14), (2048, 7)):
        for channels_last in (True, False):
            for n in (1, 64, 128):
                said = backend.plan(n, c, s * s, channels_last, 2, c // 16)
                assert said.startswith("cluster_fused"), said
                weights, x = said.split("weights ")[1].split(" bytes in all, x ")
                assert n == 1 or int(weights) <= int(x) * 1.5, said
    stand_in(A100)
    for c, s in ((256, 56), (512, 28), (1024, 14)):
        assert backend.plan(128, c, s * s, True, 2, c // 16).startswith("l2_grouped")
    assert backend.plan(64, 2048, 49, True, 2, 128).startswith("separate: x stays in L2")


@pytest.mark.quick
@on_shim
def test_launches() -> None:
    """Three kernels are launched forward and three backward, two each for batch norm and activation without drop
    path; their inference is one launch."""
    for op, out_act in itertools.product(OPS, ("relu", "silu", None)):
        training = "batch_norm" in op
        drop_path = op != "batch_norm_act"
        given = Case(op, (3, 16, 4, 3), training=training, out_act=out_act, drop_path=drop_path).draw(0)
        y = getattr(functional, op)(**given)
        expected = [name for name in SEPARATE if name != "excitation" or op != "batch_norm_act"]
        assert launched() == expected
        tensors = [v for v in given.values() if isinstance(v, torch.Tensor) and v.requires_grad]
        torch.autograd.grad(y, tensors, torch.ones_like(y))
        assert launched() == [f"{name}_backward" for name in expected]
    infer(Case("batch_norm_act", (3, 16, 4, 3), training=False), ["scale_shift_act"])


def test_compiles_without_a_break() -> None:
    given = Case("batch_norm_squeeze_excite", (3, 8, 4, 3), device=DEVICE).draw(0)
    call = torch.compile(functional.batch_norm_squeeze_excite, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(call(**given), functional.batch_norm_squeeze_excite(**given))


@on_shim
def test_convolutions_take_the_product_of_another_backend(backend: CudaBackend) -> None:
    """A backend with its own product is used for convolutions; the CUDA backend's block is its alternative."""
    calls: list[dict[str, Any]] = []

    class Product:
        name = "product"

        def can_use(self, device: str, dtype: torch.dtype) -> str | None:
            return None

        def conv1x1_squeeze_excite(self, *args: Any, **more: Any) -> torch.Tensor:
            calls.append(more)
            return torch.zeros(())

    both = on_cpu(backend.library, Product())
    assert both.load() is None
    both.conv1x1_squeeze_excite(None)
    assert calls == [{"block": both.batch_norm_squeeze_excite_inference, "block_name": "cuda"}]
    assert backend.conv1x1_squeeze_excite is None


# ---- refusals
def test_says_why_it_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("se_fused.backends.cuda.recorded", lambda: {"note": "no GPU was in sight"})
    missing = CudaBackend(tmp_path / "_C_cuda.abi3.so")
    reason = str(missing.can_use("cuda", torch.float32))
    assert "is not built (no GPU was in sight); SE_FUSED_BUILD=cuda pip" in reason
    assert missing.describe()["built"] is False
    broken = tmp_path / "_C_broken.abi3.so"
    broken.write_bytes(b"no library")
    reason = str(CudaBackend(broken, "cpu").can_use("cpu", torch.float32))
    assert "_C_broken.abi3.so does not load" in reason
    assert "not on cpu" in str(missing.can_use("cpu", torch.float32))


@on_shim
def test_a_gpu_that_cannot_be_used_is_one_line() -> None:
    """Without a driver, CUDA's error becomes a reason of one line."""
    built = CudaBackend().library
    if not built.exists() or not torch.version.cuda:
        pytest.skip(str(CudaBackend().load()))
    torch.ops.load_library(str(built))
    assert torch.ops.se_fused_cuda.problem(0) == (
        "the GPU's driver is older than the CUDA runtime that the library was built for; update the driver"
    )


def test_says_which_dtypes(backend: CudaBackend) -> None:
    assert "not float64" in str(backend.can_use(DEVICE, torch.float64))


# ---- memory
@on_shim
@pytest.mark.nightly
def test_no_access_outside_of_memory() -> None:
    """Part of this file, and the contract's calls, run again with AddressSanitizer and alignment checks in the
    kernels."""
    runtime = shim_library.sanitizer_runtime()
    if runtime is None:
        pytest.skip("the compiler has no AddressSanitizer")
    built = shim_library.library(sanitized=True)
    half = "bfloat16 and (test_l2_grouped or (test_scale_shift_act and contiguous))"
    rows = "test_every_length and bfloat16"
    chosen = f"(forwards and (test_clusters or test_samples or ({half}) or ({rows}))) or test_calls[cuda"
    here = Path(__file__)
    files = [__file__, str(here.with_name("test_moments.py")), str(here.parents[1] / "test_contract.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:xdist", *files, "-k", chosen, "--tier", "test"]
    env = {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "SE_FUSED_SHIM": str(built)}
    said = subprocess.run(command, env=os.environ | env, text=True, capture_output=True, check=False)
    assert said.returncode == 0, said.stdout[-3000:] + said.stderr[-3000:]
