"""Small models for the tests of optimize_for_inference, and the comparison of results before and after."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import se_fused
from support.modules import randomise

CLOSE = dict(rtol=1e-5, atol=5e-5)  # float32 values of about 1 after tens of layers; optimize's own check uses float64
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def ready(model: nn.Module, seed: int = 0) -> nn.Module:
    randomise(model, seed)
    return model.eval()


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def optimized_and_same(model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """The optimised model, after checks that it gives the model's results and does not change its arguments."""
    example = args[0] if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) else kwargs or args
    kept = copy.deepcopy((args, kwargs))
    fast = se_fused.optimize_for_inference(model, example)
    with torch.no_grad():
        torch.testing.assert_close(fast(*args, **kwargs), model(*copy.deepcopy(args), **copy.deepcopy(kwargs)), **CLOSE)
    torch.testing.assert_close((args, kwargs), kept, rtol=0, atol=0)
    return fast


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, NORMS) or type(m).__name__ == "NormAct" for m in model.modules())


def block(*, act: nn.Module | None = None, dims: int = 2) -> nn.Sequential:
    conv, norm = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))[dims - 1]
    return nn.Sequential(conv(3, 8, 3, padding=1), norm(8), act or nn.ReLU(inplace=True), conv(8, 8, 1))


def timm_model(name: str) -> nn.Module:
    return pytest.importorskip("timm").create_model(name, num_classes=5)
