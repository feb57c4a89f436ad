"""Kinds of gradient checkpointing for the tests, and steps of a module under each of them."""

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
"""Kinds of recomputation.

reentrant: the whole forward pass, in a nested backward pass. early-stop: the forward pass up to the last tensor that
the backward pass needs, stopped by an exception in the hook that saves it. no-early-stop: the same, but to the end of
the forward pass.
"""

FUNCTIONS = ("batch_norm_squeeze_excite", "batch_norm_act", "batch_norm_act_squeeze")
"""Functions of :mod:`se_fused.functional` that update running statistics."""


@contextlib.contextmanager
def stopping(kind: str) -> Iterator[None]:
    with set_checkpoint_early_stop(kind == "early-stop"):
        yield


def checkpointed(kind: str, function: Callable[..., Any], *args: Any) -> Any:
    with stopping(kind):
        return checkpoint(function, *args, use_reentrant=kind == "reentrant")


class Block(nn.Module):
    """A convolution, then batch norm and what follows it in one function; it counts batches as PyTorch's module does.

    Nothing follows the function, so the last tensors that the backward pass needs are those of the function.
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
    """The same with the module ``nn.BatchNorm2d``, followed by plain PyTorch."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = nn.functional.silu(self.bn(self.conv(x)))
        return (y, y.mean((2, 3))) if self.name == "batch_norm_act_squeeze" else (y,)


def trio(name: str, momentum: float | None) -> tuple[Block, Block, Block]:
    """Our block, PyTorch's, and PyTorch's in float64, with the same weights."""
    ours, theirs = Block(name, momentum), Plain(name, momentum)
    randomise(ours)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, copy.deepcopy(theirs).double()


def take_steps(modules: tuple[nn.Module, ...], run: Callable[[nn.Module, Tensor], Any], shape: tuple[int, ...]) -> None:
    """Run two steps of each module on the same numbers."""
    for seed in range(2):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + seed
        for module in modules:
            given = x.to(next(module.parameters())).requires_grad_()  # the module's dtype and device
            outputs = run(module, given)
            sum(y.square().mean() for y in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()


def assert_same_statistics(ours: nn.Module, theirs: nn.Module, truth: nn.Module) -> None:
    """Check that counts are equal, and means and variances as close to the float64 truth as PyTorch's."""
    buffers = [dict(m.named_buffers()) for m in (ours, theirs, truth)]
    assert buffers[0].keys() == buffers[1].keys() and buffers[0]
    for name, found in buffers[0].items():
        if found.is_floating_point():
            assert_as_close(found, buffers[1][name], buffers[2][name])
        else:
            assert found == buffers[1][name] == buffers[2][name], name
