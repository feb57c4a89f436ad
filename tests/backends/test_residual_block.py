"""A residual block in one call on every backend, against float64 and against the same block by its modules."""

import copy

import pytest
import timm
import torch
from support.lines import LINES, Line
from support.modules import assert_as_close, modules_only, randomise, spy_on_blocks
from support.residual_blocks import block, maps, step
from torch import nn

import se_fused

pytestmark = pytest.mark.quick

# kind, stride of the shortcut's projection, SE, stochastic depth
BLOCKS = {
    "bottleneck": ("bottleneck", None, True, 0.0),
    "bottleneck-stride": ("bottleneck", 2, True, 0.5),
    "bottleneck-projection": ("bottleneck", 1, False, 0.0),
    "basic": ("basic", None, False, 0.5),
    "basic-stride": ("basic", 2, True, 0.0),
}
WITH_KERNELS = {name: line for name, line in LINES.items() if name != "reference"}


@pytest.mark.grid(quick=1)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("line", WITH_KERNELS.values(), ids=WITH_KERNELS)
def test_one_call_is_the_modules(line: Line, name: str, channels_last: bool, training: bool, monkeypatch) -> None:
    """Result, gradients and running statistics have at most twice the error that the modules have, and the strides."""
    if (reason := line.why_not()) is not None:
        pytest.skip(reason)
    made = block(*BLOCKS[name]).train(training)
    x = maps(made, channels_last=channels_last)
    truth = step(copy.deepcopy(made).double(), x.double())
    made, x = made.to(line.device), x.to(line.device)
    calls = spy_on_blocks(monkeypatch)
    with line.using({axis: values[-1] for axis, values in line.axes.items()}):
        ours = step(made, x)
        assert len(calls) == 1
        modules_only(monkeypatch)
        theirs = step(made, x)
        assert len(calls) == 1
    for key, value in ours.items():
        if not value.is_floating_point():
            assert torch.equal(value, theirs[key]), key
            continue
        assert_as_close(value.cpu(), theirs[key].cpu(), truth[key])
        assert value.stride() == theirs[key].stride(), key


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("line", WITH_KERNELS.values(), ids=WITH_KERNELS)
def test_an_activation_that_reads_the_sum_again(line: Line, stride: int, monkeypatch) -> None:
    """SiLU, whose backward pass adds the residual again: x itself, or a projection of it."""
    if (reason := line.why_not()) is not None:
        pytest.skip(reason)
    projection = None if stride == 1 else nn.Sequential(nn.Conv2d(32, 32, 1, 2, bias=False), nn.BatchNorm2d(32))
    made = timm.models.resnet.Bottleneck(32, 8, stride, projection, act_layer=nn.SiLU, attn_layer="se")
    randomise(made)
    for part in made.modules():
        if isinstance(part, nn.SiLU):
            part.inplace = False
    x = maps(made)
    truth = step(copy.deepcopy(made).double(), x.double())
    theirs = step(made, x)
    made, x = se_fused.convert(made).to(line.device), x.to(line.device)
    calls = spy_on_blocks(monkeypatch)
    with line.using({axis: values[-1] for axis, values in line.axes.items()}):
        ours = step(made, x)
    assert len(calls) == 1
    for key, value in ours.items():
        if value.is_floating_point():
            assert_as_close(value.cpu(), theirs[key], truth[key])


@pytest.mark.parametrize("line", WITH_KERNELS.values(), ids=WITH_KERNELS)
def test_inference(line: Line, monkeypatch) -> None:
    """Without gradients the convolutions' results are overwritten, and the result is the modules'."""
    if (reason := line.why_not()) is not None:
        pytest.skip(reason)
    made = block("bottleneck", 2).eval()
    x = maps(made)
    exact = copy.deepcopy(made).double()(x.double())
    made, x = made.to(line.device), x.to(line.device)
    calls = spy_on_blocks(monkeypatch)
    with line.using({axis: values[-1] for axis, values in line.axes.items()}), torch.no_grad():
        y = made(x)
        modules_only(monkeypatch)
        assert_as_close(y.cpu(), made(x).cpu(), exact)
    assert len(calls) == 1
