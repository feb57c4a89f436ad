"""Helpers for the tests of modules and models: inputs, non-neutral weights, a measure of closeness, a spy on calls."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from se_fused import functional as F_se
from se_fused.nn import whole_block

SPACES = {1: (10,), 2: (5, 4), 3: (2, 3, 4)}

EPS = torch.finfo(torch.float32).eps
FLIPS = 0.05
"""Share of a gradient's size by which it may differ because one unit is on the other side of its ReLU.

The smallest map of the tests' networks has 4 * 512 * 2 * 2 elements, and ReLU leaves a gradient for half of them. One
of them, three times as large as most, is 3 / sqrt(4096) of the norm, here and in all earlier layers. In seresnet18's
steps from one state (30 of timm's, 30 of ours, float32 on AVX2 against float64), two of each had such a flip, which was
0.007 to 0.020 of a gradient; the others differed by at most 6e-5.
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Run on one thread: two that wait for each other on a shared CPU take fifty times as long for maps this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rms(x: Tensor) -> float:
    """Root of the mean square, in float64."""
    return x.detach().double().square().mean().sqrt().item()


def assert_as_close(
    ours: Tensor, theirs: Tensor, truth: Tensor, flips: float = 0.0, terms: int = 100, size: float = 0.0
) -> None:
    """Check that ``ours`` has at most twice the error of ``theirs`` against ``truth``, plus a floor and ``flips``.

    The floor is 4 ulp plus the expected error of a sum of ``terms`` rounded numbers; without it, a tensor of four
    elements would fail whenever ``theirs`` happens to be exact. ``flips`` is for gradients of a whole network: rounding
    may move an activation next to zero to the other side of a ReLU in only one of the two float32 models, and then that
    element's gradient is wrong by its full size. ``size`` is the size of the summed numbers where they cancel: only
    their rounding errors remain, and theirs are a single sample of such errors.
    """
    assert ours.shape == truth.shape
    floor = EPS * (4 + terms**0.5) * max(rms(truth), size)
    bound = 2 * rms(theirs.double() - truth) + floor + flips * rms(truth)
    assert rms(ours.double() - truth) <= bound, (rms(ours.double() - truth), bound)


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Set weights as after some training: no bias, statistic or weight is neutral, and signals keep their size."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and tensor.dim() > 1:
            nn.init.kaiming_normal_(tensor, mode="fan_out", nonlinearity="relu", generator=generator)
        elif tensor.is_floating_point():
            draw = torch.rand(tensor.shape, generator=generator)
            if name.endswith(("running_var", "bn.weight", "bn1.weight", "bn2.weight")):
                draw += 0.5
            elif name.endswith("weight"):  # small, because branches are added and deep networks would overflow
                draw = draw / 2 + 0.25
            else:
                draw -= 0.5
            tensor.data.copy_(draw)


def batch(n: int, c: int, dims: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """A random tensor of shape (n, c, *SPACES[dims]), with the same values in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, *SPACES[dims], generator=generator, dtype=torch.float64).to(dtype)


PROJECTION = ("batch_norm_act_squeeze", "gated_conv1x1")
FUNCTIONS = ("squeeze_excite", "batch_norm_squeeze_excite", "batch_norm_act", "channel_gate", *PROJECTION)


def modules_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make blocks call their modules, as for a traced graph."""
    monkeypatch.setattr(whole_block, "through_dispatcher", lambda: True)


def spy_on_blocks(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """A list that receives the result of each block that is computed in one call."""
    results: list[Tensor] = []
    residual_block = whole_block.residual_block

    def run(*arguments: Any) -> Tensor:
        results.append(residual_block(*arguments))
        return results[-1]

    monkeypatch.setattr(whole_block, "residual_block", run)
    return results


def spy_on_functional(monkeypatch: pytest.MonkeyPatch, functions: Sequence[str] = FUNCTIONS) -> list[str]:
    """A list that receives the names of called functions of se_fused.functional, in the order of the calls.

    Blocks call the functions from now on, not :func:`whole_block`, which computes them in one call.
    """
    modules_only(monkeypatch)
    names: list[str] = []
    for name in functions:
        function: Callable[..., Any] = getattr(F_se, name)
        monkeypatch.setattr(F_se, name, lambda *a, _n=name, _f=function, **k: (names.append(_n), _f(*a, **k))[1])
    return names
