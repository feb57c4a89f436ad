"""What the tests of gradient checkpointing share: its kinds, and one step of a module under each of them."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from se_fused import functional
from support.modules import assert_as_close, randomise

KINDS = ("reentrant", "early-stop", "no-early-stop")
"""What recomputes: the whole forward pass in a backward pass of its own; the forward pass up to the last tensor that
the backward pass needs, stopped by an exception out of the hook that is given it; the same to its end."""

FUNCTIONS = ("batch_norm_squeeze_excite", "batch_norm_act", "batch_norm_act_squeeze")
"""Those of :mod:`se_fused.functional` that move running statistics."""


@contextlib.contextmanager
def stopping(kind: str) -> Iterator[None]:
    with set_checkpoint_early_stop(kind == "early-stop"):
        yield


def checkpointed(kind: str, function: Callable[..., Any], *args: Any) -> Any:
    with stopping(kind):
        return checkpoint(function, *args, use_reentrant=kind == "reentrant")


class Block(nn.Module):
    """A convolution, and batch norm with what follows it by one function, counted as PyTorch's module counts.

    Nothing comes after the function: the last tensors that the backward pass needs are its own.
    """

    def __init__(self, name: str, momentum: float | None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1, bias=False)
        self.bn = nn.BatchNorm2d(8, momentum=momentum)
        self.fc1, self.fc2 = nn.Linear(8, 4), nn.Linear(4, 8)
        self.name = name

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x, bn = self.conv(x), self.bn
        bn.num_batches_tracked.add_(1)
        momentum = 1.0 / float(bn.num_batches_tracked) if bn.momentum is None else bn.momentum
        parameters = [bn.running_mean, bn.running_var, bn.weight, bn.bias]
        if self.name == "batch_norm_squeeze_excite":
            parameters += [self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias]
        y = getattr(functional, self.name)(x, *parameters, training=True, momentum=momentum, out_act="silu")
        return y if isinstance(y, tuple) else (y,)


class Plain(Block):
    """The same with ``nn.BatchNorm2d`` called as a module and plain PyTorch behind it."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = nn.functional.silu(self.bn(self.conv(x)))
        return (y, y.mean((2, 3))) if self.name == "batch_norm_act_squeeze" else (y,)


def trio(name: str, momentum: float | None) -> tuple[Block, Block, Block]:
    """Ours, theirs, and theirs in float64, of the same numbers."""
    ours, theirs = Block(name, momentum), Plain(name, momentum)
    randomise(ours)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, copy.deepcopy(theirs).double()


def take_steps(modules: tuple[nn.Module, ...], run: Callable[[nn.Module, Tensor], Any], shape: tuple[int, ...]) -> None:
    """Two steps of each module on the same numbers."""
    for seed in range(2):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + seed
        for module in modules:
            given = x.to(next(module.parameters())).requires_grad_()  # its dtype and device
            outputs = run(module, given)
            sum(y.square().mean() for y in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()


def assert_same_statistics(ours: nn.Module, theirs: nn.Module, truth: nn.Module) -> None:
    """Counts are equal, means and variances as close to the float64 truth as PyTorch's own."""
    buffers = [dict(m.named_buffers()) for m in (ours, theirs, truth)]
    assert buffers[0].keys() == buffers[1].keys() and buffers[0]
    for name, found in buffers[0].items():
        if found.is_floating_point():
            assert_as_close(found, buffers[1][name], buffers[2][name])
        else:
            assert found == buffers[1][name] == buffers[2][name], name
