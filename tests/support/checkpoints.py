"""Small models of every supported library, their checkpoint files, and a check of refusals."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from se_fused import create_model, load_pretrained
from se_fused.models import SEResNet
from se_fused.models.se_resnet import BasicBlock, Bottleneck
from support.modules import one_thread, randomise  # noqa: F401 (a fixture)

ONE = (1, 1, 1, 1)


def images(chans: int = 3, size: int = 64) -> Tensor:
    return torch.randn(2, chans, size, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def write(path: Path, model: nn.Module, **entries: Any) -> Path:
    torch.save({**entries, "state_dict": model.state_dict()} if entries else model.state_dict(), path)
    return path


def made(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A model of another library in float64, with random weights and statistics."""
    model = build().double().eval()
    randomise(model, seed)
    return model


def refused(model: nn.Module, path: Path, message: str, **arguments: Any) -> str:
    """Check that loading is refused and the model unchanged, and return the error message."""
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message) as info:
        load_pretrained(model, path, **arguments)
    assert "\n" not in str(info.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    return str(info.value)


def monai_net(name: str, *arguments: Any, **options: Any) -> nn.Module:
    return getattr(pytest.importorskip("monai.networks.nets"), name)(*arguments, **options)


def monai_densenet() -> nn.Module:
    return monai_net("DenseNet121", spatial_dims=2, in_channels=3, out_channels=5)


def legacy(block: str, depths: tuple[int, ...], **arguments: Any) -> nn.Module:
    return timm.models.senet.SENet(getattr(timm.models.senet, block), depths, reduction=16, num_classes=5, **arguments)


SENET = dict(groups=64, inplanes=128, input_3x3=True, downsample_kernel_size=3, downsample_padding=1)
OUR_SENET = dict(cardinality=64, base_width=4, reduce_first=2, deep_stem=True, down_kernel_size=3)


def ours(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: create_model(name, num_classes=5, **options)


def short(block: type[BasicBlock] | type[Bottleneck], **options: Any) -> Callable[[], nn.Module]:
    return lambda: SEResNet(block, ONE, 5, **options)
