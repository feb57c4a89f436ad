"""Bytes and kernels of a compiled training step, counted in Inductor's schedule for an H100, without a GPU.

The step is one identity bottleneck of SE-ResNet50's first stage, in bfloat16 with batch norms in float32. U is one pass
over the block's output. Convolutions have the same bytes everywhere and do not count.
"""

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from support.inductor_schedule import Schedule, training_step
from torch import Tensor, nn

import se_fused
from se_fused._formats import LAYOUTS

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Inductor writes no GPU code without Triton")

U = 2 * 128 * 256 * 56 * 56
Step = tuple[Schedule, Schedule]


def step(block: nn.Module, layout: str, channels: int = 256, **options: Any) -> Step:
    block.train().bfloat16()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    return training_step(block, (128, channels, 56, 56), torch.bfloat16, layout, **options)


@pytest.fixture(scope="module")
def ours() -> Step:
    return step(se_fused.SEResNet50().layer1[1], "channels_last")


@pytest.fixture(scope="module")
def theirs() -> Step:
    timm = pytest.importorskip("timm")
    return step(timm.create_model("seresnet50").layer1[1], "channels_last")


class Between(nn.Module):
    """A block between convolutions of few channels: its input and its output are no arguments of the graph, whose
    strides would be fixed."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.before, self.block, self.after = nn.Conv2d(4, 256, 1, bias=False), block, nn.Conv2d(256, 4, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.block(self.before(x)))


def passes(schedule: Schedule) -> float:
    return schedule.bytes / U


def test_passes_of_timm(theirs: Step) -> None:
    """As counted in GPU_REVIEW's section G, so that the counts here are those of the documents."""
    forward, backward = theirs
    assert passes(forward) == pytest.approx(8.0, abs=0.05) and len(forward.generated()) == 18
    assert passes(backward) == pytest.approx(15.5, abs=0.05) and len(backward.generated()) == 15


def test_passes_of_ours(ours: Step, theirs: Step) -> None:
    forward, backward = ours
    assert passes(forward) == pytest.approx(5.6, abs=0.05)
    assert passes(backward) == pytest.approx(9.6, abs=0.05)
    assert sum(map(passes, ours)) < 15.5 < 23 < sum(map(passes, theirs))


def test_the_shortcuts_gradient_is_added_by_a_product(ours: Step) -> None:
    """Neither a kernel of three passes nor a copy of dr, which would be two."""
    backward = ours[1]
    assert [k.bytes for k in backward.kernels if "add_input_gradient" in k.name] == [U]
    assert not backward.generated(U // 100)


def test_generated_kernels_of_the_forward_pass(ours: Step) -> None:
    """None but the counts of batches, one for each norm: the operators do the rest, running statistics included."""
    generated = ours[0].generated()
    assert len(generated) == 3
    assert all("add.Tensor" in kernel.name and kernel.bytes < 100 for kernel in generated)


def test_contiguous_models_have_no_copies() -> None:
    """Inductor makes convolutions channels_last. The operators take that order, and then all maps are in it."""
    contiguous, last = (step(Between(se_fused.SEResNet50().layer1[1]), layout, 4) for layout in LAYOUTS)
    for mine, theirs in zip(contiguous, last, strict=True):
        assert passes(mine) == pytest.approx(passes(theirs), abs=0.1)
        assert [k.name for k in mine.kernels if k.bytes > 0.1 * U] == [
            k.name for k in theirs.kernels if k.bytes > 0.1 * U
        ]


def test_a_step_is_captured_as_cuda_graphs() -> None:
    """``mode="reduce-overhead"`` in training: Inductor finds no reason against it. It writes to the statistics, whose
    addresses do not change."""
    options = {"triton.cudagraphs": True, "graph_partition": False}
    block = se_fused.SEResNet50().layer1[1]
    assert [schedule.cuda_graph for schedule in step(block, "channels_last", **options)] == ["", ""]
