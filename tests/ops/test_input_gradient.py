"""Tests of the pass over Inductor's graphs that adds the gradients of a block's input in a product."""

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import se_fused
from se_fused._formats import LAYOUTS
from se_fused.ops import input_gradient

X = (3, 16, 5, 4)


@pytest.mark.quick
@pytest.mark.parametrize("layout", [*LAYOUTS, "strided"])
@pytest.mark.parametrize("other", LAYOUTS)
@pytest.mark.parametrize("shape", [X, (2, 6, 7), (2, 4, 3, 2, 2), (3, 5, 1, 1)], ids=str)
def test_the_sum(shape: tuple[int, ...], layout: str, other: str) -> None:
    """The operator adds what autograd gives for the convolution, in any memory orders."""

    def ordered(t: Tensor, name: str) -> Tensor:
        if name == "strided":
            return torch.stack([t, t], -1)[..., 0]
        return t.contiguous() if name == "contiguous" else t.movedim(1, -1).contiguous().movedim(-1, 1)

    n, c, *spatial = shape
    dr, dy = torch.randn(shape), torch.randn(n, 3, *spatial)
    weight = torch.randn(3, c, *(1,) * len(spatial))
    x = torch.randn(shape, requires_grad=True)
    convolution = (torch.conv1d, torch.conv2d, torch.conv3d)[len(spatial) - 1]
    truth = dr + torch.autograd.grad(convolution(x, weight), x, dy)[0]
    found = ordered(dr, layout)
    torch.ops.se_fused.add_input_gradient(found, ordered(dy, other), weight)
    torch.testing.assert_close(found, truth)


class Counted:
    """The pass, and the number of its operators in the graphs that Inductor gets."""

    def __init__(self) -> None:
        self.found = 0

    def __call__(self, graph: Any) -> None:
        input_gradient.accumulate_in_products(graph)
        self.found += sum("add_input_gradient" in str(node.args[:1]) for node in graph.nodes)


def gradients(model: nn.Module, run: Any, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    run(x.tanh()).square().mean().backward()
    assert x.grad is not None
    return [x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("layout, dynamic", [("contiguous", True), ("channels_last", False)])
def test_a_step_of_a_bottleneck(layout: str, dynamic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block without a convolution in the shortcut: one sum, the gradients of eager mode."""
    monkeypatch.setattr(input_gradient, "DEVICES", ("cpu", "cuda"))
    torch._dynamo.reset()
    torch.manual_seed(0)
    plain = se_fused.SEResNet50().layer1[1].train().to(memory_format=LAYOUTS[layout])
    counted = Counted()
    x = torch.randn(2, 256, 4, 4).to(memory_format=LAYOUTS[layout])
    other = copy.deepcopy(plain)
    with torch._inductor.config.patch(post_grad_custom_post_pass=counted, force_disable_caches=True):
        compiled = torch.compile(other, fullgraph=True, dynamic=dynamic)
        found = gradients(other, compiled, x)
    assert counted.found == 1
    for a, b in zip(found, gradients(plain, plain, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


PROGRAM = """
import torch, torch._inductor.config as config
import se_fused
from torch._inductor.custom_graph_pass import CustomGraphPass

own = (lambda graph: None) if {own} else None
config.post_grad_custom_post_pass = own
run = torch.compile(se_fused.SEResNet18().layer1[0].train(), backend="aot_eager")
if {ours}:
    run(torch.randn(2, 64, 4, 4))
else:
    torch.compile(torch.nn.ReLU(), backend="aot_eager")(torch.randn(2))
now = config.post_grad_custom_post_pass
print(now is own, isinstance(now, CustomGraphPass) and isinstance(now.uuid(), bytes))
"""


@pytest.mark.parametrize(
    "own, ours, printed", [(True, True, "True False"), (False, True, "False True"), (False, False, "True False")]
)
def test_installation(own: bool, ours: bool, printed: str) -> None:
    """A graph with our operators brings the pass, with its key for Inductor's caches. A user's pass stays."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(own=own, ours=ours)], capture_output=True, text=True, check=True
    )
    assert run.stdout.split("\n")[-2] == printed
