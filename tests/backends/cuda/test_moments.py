"""Pass 1 of the CUDA backend: every length and offset of a row, data on which sums cancel, and how sums are cut.

test_contract.py tests the same kernels on a few shapes, with all activations, NaN and infinity.
"""

import math
import subprocess
from pathlib import Path

import pytest
import torch
from support import compiled, shim_library
from support.cuda_backend import (  # noqa: F401 (fixtures)
    DEVICE,
    cuda_alone,
    given_backend,
    on_shim,
    order_of_threads,
)
from support.kernels import check_moments, check_moments_backward
from support.paths import ROOT, SUPPORT
from torch import Tensor

from se_fused._formats import DTYPES, LAYOUTS
from se_fused.activations import OUT_ACT_CODES
from se_fused.backends.cuda import CudaBackend
from se_fused.testing.error_bounds import EPS
from se_fused.testing.verify import to_layout

# All lengths up to several vectors, and those around one, two and more rounds of loads of a full warp
LENGTHS = [*range(1, 71), *(s + d for s in (196, 256, 512, 784, 1024, 2048, 3136) for d in (-1, 0, 1))]
each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


@pytest.mark.quick
@pytest.mark.usefixtures("order")
@each_dtype
def test_every_length_of_a_row(backend: CudaBackend, dtype: torch.dtype) -> None:
    """Nine rows: each starts at another offset in a vector, and the tensor may end within one."""
    for length in LENGTHS:
        check_moments(backend, (1, 9, length), dtype, "contiguous", DEVICE)
        check_moments_backward(backend, (1, 9, length), dtype, "contiguous", OUT_ACT_CODES["relu"], True, DEVICE)


@pytest.mark.usefixtures("order")
@each_dtype
@pytest.mark.parametrize("channels", [3, 8, 40, 264])
def test_every_number_of_positions(backend: CudaBackend, channels: int, dtype: torch.dtype) -> None:
    for length in (*range(1, 40), 63, 64, 65, 196, 257):
        shape = (1, channels, length, 1)
        check_moments(backend, shape, dtype, "channels_last", DEVICE)
        check_moments_backward(backend, shape, dtype, "channels_last", OUT_ACT_CODES["relu"], True, DEVICE)


def hard_rows(length: int) -> Tensor:
    """Rows in which the first elements say nothing about the mean, or the mean is far from zero."""
    noise = torch.randn(7, length)
    rows = 1e-3 * noise
    rows[0, 0] += 1000.0  # the first element of all is an outlier
    rows[1, ::8] += 1000.0  # the first of each vector
    rows[2, : max(length // 16, 1)] += 1000.0  # a bright edge
    rows[3, length // 2 :] += 1000.0
    rows[4] = noise[4] + 1e4
    rows[5] = noise[5] - 1e4
    rows[6] = 7.0  # constant
    return rows


@pytest.mark.quick
@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sums_do_not_cancel(backend: CudaBackend, dtype: torch.dtype, layout: str) -> None:
    """m2's error is relative to m2, however far the mean is from zero and from the first elements: no more than 8
    roundings of each term, and those of the terms' differences from a mean that is itself rounded to float32."""
    for length in (8, 31, 49, 196, 784, 3136):
        x = to_layout(hard_rows(length).repeat(8, 1)[None, :, :, None].to(DEVICE, dtype), layout)
        mean, m2 = backend.moments(x)
        wide = x.double().flatten(2)
        truth = wide.mean(2)
        true_m2 = (wide - truth[..., None]).square().sum(2)
        assert ((mean.double() - truth).abs() <= 2 * EPS * truth.abs() + 8 * EPS * true_m2.sqrt()).all()
        # Splits are joined by means that are rounded to float32: m2 has an error of eps |mean| sqrt(m2) from each.
        steps = 1 if layout == "contiguous" else 32
        bound = 8 * EPS * math.sqrt(length) * true_m2 + 4 * EPS * (steps > 1) * truth.abs() * true_m2.sqrt()
        excess = ((m2.double() - true_m2).abs() / bound.clamp_min(1e-30)).max()
        assert excess <= 1, f"m2's error is {excess:.2f} times its bound at length {length}"
        assert (m2 >= 0).all() and (m2[0, 6::7] == 0).all()


@pytest.mark.quick
@pytest.mark.parametrize("layout", LAYOUTS)
def test_infinity_stays_infinity(backend: CudaBackend, layout: str) -> None:
    """The mean is infinite, not NaN, wherever in a row the infinite element is; no other row is changed."""
    for length in (9, 49, 196, 300):
        clean = torch.randn(1, 8, length, 1)
        expected, _ = backend.moments(to_layout(clean.to(DEVICE), layout))
        for at in (0, 1, 7, 8, length // 2, length - 1):
            x = clean.clone()
            x[0, 3, at] = float("inf")
            mean, _ = backend.moments(to_layout(x.to(DEVICE), layout))
            assert mean[0, 3] == float("inf")
            mean[0, 3] = expected[0, 3]
            torch.testing.assert_close(mean, expected, rtol=0, atol=0)


# ---- how sums are cut
@pytest.fixture(scope="module")
def cut_program() -> Path:
    if (reason := shim_library.why_not()) is not None:
        pytest.skip(reason)
    flags = ["-std=c++20", "-O1", "-g1", "-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers"]
    return compiled.build([SUPPORT / "cuda_cut.cpp", ROOT / "csrc/cuda/plan.cpp"], [*flags, "-Icsrc/cuda"], [])


def cut(program: Path, sums: int, n: int, c: int, s: int, channels_last: bool, item_bytes: int = 2) -> list[int]:
    """[lanes, splits, span, blocks, blocks at a time] on an H100."""
    given = [str(int(v)) for v in (sums, 132, n, c, s, channels_last, item_bytes)]
    said = subprocess.run([program, *given], capture_output=True, text=True, check=True).stdout
    return [int(v) for v in said.split()]


STAGES = ((256, 3136), (512, 784), (1024, 196), (2048, 49))
MOMENTS, BACKWARD, FROM_SUM, MEAN = range(4)


@on_shim
def test_waves_are_whole(cut_program: Path) -> None:
    """With 64 samples or more, ResNet-50's stages fill the blocks that can run, in few splits.

    Moments do to 90 %. Kernels with more registers cannot always: a stage of 49 positions has no second split.
    """
    least = {MOMENTS: 0.9, BACKWARD: 0.75, FROM_SUM: 0.75, MEAN: 0.64}
    for sums in (MOMENTS, BACKWARD, FROM_SUM, MEAN):
        for n in (64, 128, 256):
            for c, s in STAGES:
                for channels_last in (True, False):
                    lanes, splits, span, blocks, wave = cut(cut_program, sums, n, c, s, channels_last)
                    share = blocks / (math.ceil(blocks / wave) * wave)
                    assert share >= least[sums], (sums, n, c, s, channels_last, blocks, wave)
                    assert splits <= 8 and (splits - 1) * span < s <= splits * span and (span % 8 == 0 or splits == 1)
                    assert lanes in (1, 2, 4, 8, 16, 32)


@on_shim
def test_cuts_of_resnet50(cut_program: Path) -> None:
    """The fewest splits that fill a wave, lanes as few as full load slots allow, and more of both for few samples."""
    assert [cut(cut_program, MOMENTS, 128, c, s, True)[1] for c, s in STAGES] == [4, 2, 1, 1]
    assert [cut(cut_program, MOMENTS, 128, c, s, False)[:2] for c, s in STAGES] == [[32, 1], [16, 1], [4, 1], [1, 1]]
    assert [cut(cut_program, BACKWARD, 128, c, s, False)[0] for c, s in STAGES] == [32, 32, 8, 2]
    assert [cut(cut_program, MOMENTS, 1, c, s, False)[0] for c, s in STAGES] == [32, 32, 32, 8]
    assert cut(cut_program, MOMENTS, 8, 256, 3136, True)[1] == 49  # two rounds of loads each, and no more
    assert cut(cut_program, MOMENTS, 1, 8, 1 << 20, True)[1] <= 256
