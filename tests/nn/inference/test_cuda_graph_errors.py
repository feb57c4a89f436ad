"""Tests of what se_fused.graphed refuses, with a stand-in for CUDA graphs."""

from typing import Any

import pytest
import torch
from support.cuda_graphs import Detector, GraphsOnCpu, cuda_stand_in, same, small_model  # noqa: F401 (fixture)
from support.optimize import images
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

import se_fused

pytestmark = pytest.mark.quick


def test_a_model_in_training_mode_is_refused(cuda: GraphsOnCpu) -> None:
    plain, x = small_model(), images(1, 3, 8, 8)
    plain[1].train()
    with pytest.raises(ValueError, match=r"model\.1 is in training mode.*model\.eval\(\)"):
        se_fused.graphed(plain, x)
    fast = se_fused.graphed(plain.eval(), x)
    for change in (plain.train, fast.train, plain[1].train):
        change()
        for images_ in (x, images(2, 3, 8, 8)):
            with pytest.raises(ValueError, match="in training mode"):
                fast(images_)
        fast.eval()
        same(fast, plain, x)


def test_models_that_cannot_be_captured(cuda: GraphsOnCpu) -> None:
    x = images(1, 3, 8, 8)

    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    class Returns(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return Detector, x + 1

    with pytest.raises(RuntimeError, match=r"cannot be captured.*not permitted when stream is capturing\).*\.item\(\)"):
        se_fused.graphed(Reads().eval(), x)
    assert cuda.current.name == "default"
    with pytest.raises(TypeError, match="model returns a type: a graphed model returns tensors"):
        se_fused.graphed(Returns().eval(), x)
    cuda.empty = True
    with pytest.raises(RuntimeError, match=r"cannot be captured.*The CUDA Graph is empty.*streams of its own"):
        se_fused.graphed(small_model(), x)


def test_hooks_are_refused_unless_they_compute_a_weight(cuda: GraphsOnCpu) -> None:
    plain, x = small_model(), images(1, 3, 8, 8)
    hook = plain[2].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"model\.2 has forward hooks.*remove them"):
        se_fused.graphed(plain, x)
    hook.remove()
    spectral_norm(plain[0])
    same(se_fused.graphed(plain, x), plain, x)


@pytest.mark.parametrize(
    ("example", "error", "message"),
    [
        ([images(1, 3, 8, 8)], TypeError, r"examples\[1\] must be a tensor, a tuple"),
        ((), ValueError, r"examples\[1\] must hold at least one tensor"),
        ((images(1, 3, 8, 8), 3), ValueError, r"give examples\[1\]=\(first, second"),
        (images(1, 3, 8, 8).requires_grad_(), ValueError, r"examples\[1\] requires grad.*examples\[1\]\.detach\(\)"),
        (images(1, 3, 8, 16)[..., ::2], ValueError, r"examples\[1\] has gaps.*examples\[1\]\.contiguous\(\)"),
        (images(1, 3, 8, 1).expand(1, 3, 8, 8), ValueError, r"examples\[1\] has gaps between its elements or shares"),
        (images(0, 3, 8, 8), ValueError, r"examples\[1\] has a tensor without elements"),
        (images(1, 3, 8, 8).to("meta"), ValueError, r"examples\[1\] has a tensor on meta.*\.cuda\(\)"),
    ],
)
def test_examples_that_are_refused(cuda: GraphsOnCpu, example: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        se_fused.graphed(small_model(), images(1, 3, 8, 8), example)


def test_values_that_cannot_be_compared_are_refused(cuda: GraphsOnCpu) -> None:
    with pytest.raises(TypeError, match=r"examples\[0\] holds a set: give tensors, numbers"):
        se_fused.graphed(Detector().eval(), (images(2, 3, 4, 4), {"a": torch.arange(3)}, {1}))


def test_without_a_gpu() -> None:
    with pytest.raises(ValueError, match=r"examples\[0\] has a tensor on cpu, and a CUDA graph needs a GPU"):
        se_fused.graphed(small_model(), images(1, 3, 8, 8))


def test_other_refusals(cuda: GraphsOnCpu) -> None:
    x = images(1, 3, 8, 8)
    fast = se_fused.graphed(small_model(), x)
    with pytest.raises(TypeError, match="not scripted, got function"):
        se_fused.graphed(lambda x: x, x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"graphed already.*model\.add"):
        se_fused.graphed(fast, x)
    with pytest.raises(ValueError, match="examples: give at least one"):
        se_fused.graphed(small_model())
    with pytest.raises(TypeError, match="clone"):
        se_fused.graphed(small_model(), x, clone=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"model\.0\.weight is on meta.*model\.to\('cpu'\)"):
        se_fused.graphed(small_model().to("meta"), x)
    with pytest.raises(ValueError, match=r"argument 0 requires grad.*torch\.no_grad\(\)"):
        fast(x.clone().requires_grad_())
    with torch.no_grad():
        same(fast, fast.module, x.clone().requires_grad_())
    assert se_fused.graphed(nn.DataParallel(fast.module), x).module is fast.module


class Plus(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        return x + self.number


def test_compilers_are_refused(cuda: GraphsOnCpu) -> None:
    x = images(1, 3, 8, 8)
    fast = se_fused.graphed(small_model(), x)
    with pytest.raises(Exception, match=r"graphed model cannot be compiled.*\.module"):
        torch.compile(fast, fullgraph=True, backend="eager")(x)
    for export in (torch.jit.trace, torch.export.export):
        with pytest.raises(RuntimeError, match="graphed model cannot be compiled, exported or traced"):
            export(fast, (x,))
    same(torch.compile(lambda x: fast(x) + 1, backend="eager"), nn.Sequential(fast.module, Plus(1)), x)
    assert cuda.replays == [1]
    with pytest.raises(RuntimeError, match=r"torch\.jit\.script cannot compile"):
        torch.jit.script(fast)

    @torch.compile(fullgraph=True, backend="eager")
    def both(x: Tensor) -> Tensor:
        return se_fused.graphed(fast.module, x)(x)

    with pytest.raises(Exception, match="graphed cannot be compiled"):
        both(x)
