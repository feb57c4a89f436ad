"""Small residual blocks of se_fused.models, and a training step of one."""

import copy

import torch
from torch import Tensor, nn

from se_fused.models._blocks import BasicBlock, Bottleneck, Downsample
from se_fused.nn import SqueezeExcite
from support.modules import randomise

KINDS = {"basic": BasicBlock, "bottleneck": Bottleneck}
WIDTH = 8


def block(kind: str = "bottleneck", shortcut: int | None = None, se: bool = True, drop_path: float = 0.0) -> nn.Module:
    """A block in training mode. ``shortcut``: stride of the block and of its projection; None adds x itself."""
    cls = KINDS[kind]
    out = WIDTH * cls.expansion
    channels = out if shortcut is None else 16
    made = cls(
        channels, WIDTH, shortcut or 1, None if shortcut is None else Downsample(channels, out, 1, shortcut),
        se_layer=(lambda c: SqueezeExcite(c, rd_channels=4)) if se else None, drop_path=drop_path,
    )  # fmt: skip
    randomise(made)
    return made


def maps(
    made: nn.Module, n: int = 3, size: int = 6, channels_last: bool = True, dtype: torch.dtype = torch.float32
) -> Tensor:
    """An input of a block, with the same values in every dtype."""
    x = torch.randn(n, made.conv1.in_channels, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def step(made: nn.Module, x: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """The result of a copy of the block, all gradients, and its buffers after the step."""
    made = copy.deepcopy(made)
    torch.manual_seed(seed)  # of stochastic depth
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = made(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)).sum().backward()
    found = {"y": y.detach(), "x": x.grad} | {name: p.grad for name, p in made.named_parameters()}
    return found | {name: b.clone() for name, b in made.named_buffers()}
