"""A small model of each family for the tests of convert and revert, and the results that must not change."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from support.modules import randomise, rms

Build = Callable[[], nn.Module]


def _monai(name: str, **arguments: Any) -> nn.Module:
    return getattr(pytest.importorskip("monai.networks.nets"), name)(num_classes=5, **arguments)


def _timm(name: str, **arguments: Any) -> nn.Module:
    return timm.create_model(name, num_classes=5, **arguments)


MODELS: dict[str, Build] = {
    **{
        f"timm-{name}": partial(_timm, name)
        for name in (
            "seresnet18", "seresnext26d_32x4d", "legacy_seresnet18", "legacy_seresnext26_32x4d", "efficientnet_b0",
            "mobilenetv3_small_050", "ghostnet_050", "regnety_002", "ese_vovnet19b_slim_dw", "ecaresnet26t",
            "resnet18", "rexnetr_200",
        )
    },
    "timm-seresnet18-drop-path": partial(_timm, "seresnet18", drop_path_rate=0.5),
    "timm-resnet18-silu": partial(_timm, "resnet18", act_layer="silu", block_args=dict(attn_layer="ese")),
    "timm-tresnet_m": partial(_timm, "tresnet_m", drop_path_rate=0.2),
    "torchvision-efficientnet_b0": partial(torchvision.models.efficientnet_b0, num_classes=5),
    "torchvision-mobilenet_v3_small": partial(torchvision.models.mobilenet_v3_small, num_classes=5),
    "torchvision-regnet_y_400mf": partial(torchvision.models.regnet_y_400mf, num_classes=5),
    "torchvision-resnet18": partial(torchvision.models.resnet18, num_classes=5),
    "monai-SEResNet50": partial(_monai, "SEResNet50", spatial_dims=2, in_channels=3),
    "monai-SEResNext50-3d": partial(_monai, "SEResNext50", spatial_dims=3, in_channels=1),
}  # fmt: skip


def build(name: str, seed: int = 0) -> nn.Module:
    """A model without neutral values: no bias, statistic or weight is 0 or 1."""
    model = MODELS[name]()
    randomise(model, seed)
    return model


def images(name: str, n: int = 2, seed: int = 0) -> Tensor:
    shape = (1, 32, 32, 32) if name.endswith("3d") else (3, 64, 64)
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def classes(model: nn.Module) -> list[type]:
    return [type(m) for m in model.modules()]


def step(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """(output, by name: gradients of the input and of all parameters, and the buffers afterwards)."""
    x = x.clone().requires_grad_()
    torch.manual_seed(7)  # for dropout and stochastic depth
    y = model(x)
    y.logsumexp(1).mean().backward()
    results = {"input": x.grad} | {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    return y.detach(), results | {k: b.clone() for k, b in model.named_buffers()}


def trio(model: nn.Module) -> Iterator[nn.Module]:
    """The model, an untouched copy, and a copy in float64."""
    return iter((model, copy.deepcopy(model), copy.deepcopy(model).double()))


def cancelled_sizes(model: nn.Module) -> dict[str, float]:
    """By name, the size of the cancelling terms in the gradient of each bias before a batch norm.

    The next backward pass fills the returned dictionary. Their sum is zero: a batch norm subtracts the mean, so no
    constant before it changes anything. Each term is gradient * weight / sigma, rounded. The norm subtracts a part in
    proportion to its result, and the sum of these parts is not zero, by eps * mean / sigma, because the mean is
    rounded.
    """
    sizes: dict[str, float] = {}

    def record(key: str, norm: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        z = given[0].detach()
        variance, mean = torch.var_mean(z, (0, 2, 3), correction=0, keepdim=True)
        rstd = (variance + norm.eps).rsqrt()
        scale = norm.weight.detach().reshape(rstd.shape) * rstd * (1 + mean.abs() * rstd)
        out.register_hook(lambda gradient: sizes.__setitem__(key, rms(gradient * scale)))

    for name, module in model.named_modules():
        if isinstance(getattr(module, "bn", None), nn.BatchNorm2d) and isinstance(
            getattr(module, "fc1", None), nn.Conv2d
        ):
            module.bn.register_forward_hook(partial(record, f"{name}.fc1.bias"))
    return sizes
