"""Whether an optimised model computes what the model does, on an example and on images that are not finite."""

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .casts import ordered
from .tracing import Arguments

__all__ = ["check"]

_PERTURBED = 3  # models whose weights are moved by rounding errors, where the model itself is not reference enough


def _floats(outputs: Any) -> Tensor:
    """All floating-point results as one float64 vector."""
    kept = [y for y in tree_leaves(outputs) if isinstance(y, Tensor) and y.is_floating_point()]
    if not kept:
        raise ValueError(
            "model returns no floating-point tensor, by which its optimised form could be checked: optimise the model "
            "that returns the logits, and put what follows behind it"
        )
    return torch.cat([y.detach().double().flatten() for y in kept])


def _called(model: nn.Module, arguments: Arguments) -> Tensor:
    return _floats(arguments.call(model))


def _copy_in(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return copy.deepcopy(model).to(dtype).eval()  # a copy of torchvision's feature extractors is in training


def _in(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model with its floating-point tensors in ``dtype``: a copy, unless they have it already."""
    there = all(t.dtype == dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point())
    return model if there else _copy_in(model, dtype)


def _perturbed(model: nn.Module, dtype: torch.dtype, seed: int) -> nn.Module:
    """A copy in ``dtype`` each of whose weights is moved by one rounding error, up or down."""
    moved = _copy_in(model, dtype)
    generator = torch.Generator().manual_seed(seed)
    for weight in moved.parameters():
        if weight.is_floating_point():
            sign = torch.randint(2, weight.shape, generator=generator).to(weight.device) * 2 - 1
            weight.data.mul_((1 + sign * torch.finfo(dtype).eps).to(dtype))
    return moved


def _realisations(model: nn.Module, arguments: Arguments, dtype: torch.dtype) -> Iterator[Tensor]:
    """The model's results in ``dtype``, each with other rounding errors: as it is, in channels_last, perturbed."""
    cast = arguments.to(dtype)
    yield _called(_in(model, dtype), cast)
    plain = _copy_in(model, dtype)
    for parameter in plain.parameters():
        parameter.data = ordered(parameter.data)
    try:
        yield _called(plain, cast.map(ordered))
    except RuntimeError:  # a view that channels_last does not allow
        pass
    for seed in range(_PERTURBED):
        yield _called(_perturbed(model, dtype, seed), cast)


class _Distances:
    """How far results are from the float64 truth, by root mean square relative to the truth's."""

    def __init__(self, model: nn.Module, optimized: nn.Module, arguments: Arguments, dtype: torch.dtype) -> None:
        self.dtype = dtype
        try:
            self.truth = _called(_in(model, torch.float64), arguments.to(torch.float64))
        except RuntimeError:  # a cast to float32 in forward: the model as it is stands for the truth
            self.truth = _called(model, arguments)
        ours = _called(optimized, arguments.to(dtype))
        if ours.shape != self.truth.shape:
            raise RuntimeError(
                f"the optimised model gives {ours.numel()} numbers where the model gives {self.truth.numel()}: please "
                "report the model"
            )
        self.own, self.models = self._of(ours), 0.0
        # the largest of the model's own distances; no more of them than are needed
        for theirs in _realisations(model, arguments, dtype):
            self.models = max(self.models, self._of(theirs))
            if self.allowed():
                break

    def _of(self, y: Tensor) -> float:
        """Over what is finite in truth; infinite if y is not finite there."""
        finite = self.truth.isfinite()
        if not finite.any():
            return 0.0
        truth, y = self.truth[finite], y[finite]
        if not y.isfinite().all():
            return float("inf")
        size = max(truth.square().mean().sqrt().item(), torch.finfo(torch.float64).tiny)
        return (y - truth).square().mean().sqrt().item() / size

    @property
    def bound(self) -> float:
        """Twice the model's own distance (DESIGN section 3), and the rounding of weights and results."""
        return 2 * self.models + 4 * torch.finfo(self.dtype).eps

    def allowed(self) -> bool:
        return self.own <= self.bound


def _other(arguments: Arguments) -> Arguments:
    """Floating-point tensors with the size and spread of the given ones, and other values."""
    generator = torch.Generator().manual_seed(1)

    def change(t: Tensor) -> Tensor:
        if not t.is_floating_point() or t.numel() < 2:
            return t
        draw = torch.randn(t.shape, generator=generator).to(t.device)
        return (draw * t.double().std() + t.double().mean()).to(t.dtype)

    return arguments.map(change)


def _check_not_finite(
    model: nn.Module, optimized: nn.Module, arguments: Arguments, dtype: torch.dtype, inside: torch.dtype
) -> None:
    """A pixel that is not a finite number makes of the result what it makes of the model's."""
    plain = _in(model, inside)
    for value in (float("nan"), float("inf")):
        marked = arguments.map(partial(_marked, value=value))
        try:
            theirs = _called(plain, marked.to(inside))
        except Exception:  # a model may refuse such an image: then there is nothing to compare
            continue
        ours = _called(optimized, marked.to(dtype))
        # Which sums of infinities are NaN hangs on their order; libraries on a GPU may spread a NaN over a tile.
        exact = value != value and ours.device.type == "cpu"
        lost = (theirs.isnan() & ~ours.isnan()).sum().item() if exact else 0
        if lost or (theirs.isfinite().all() != ours.isfinite().all()):
            raise RuntimeError(
                f"the optimised model makes another result of an image with a pixel that is {value}: of "
                f"{theirs.numel()} numbers {int(ours.isfinite().sum())} are finite, with the model itself "
                f"{int(theirs.isfinite().sum())}: please report the model"
            )


def _marked(t: Tensor, value: float) -> Tensor:
    if not t.is_floating_point() or t.dim() < 3 or not t.numel():
        return t
    t = t.clone()
    t[(-1, 0, *(size // 2 for size in t.shape[2:]))] = value
    return t


def check(
    model: nn.Module, optimized: nn.Module, arguments: Arguments, dtype: torch.dtype, inside: torch.dtype
) -> None:
    """Refuse a result that is farther from the truth than twice the model's own distance, or that hides a NaN.

    The model's own distance is the largest of several, for in a model that magnifies rounding errors one alone may be
    small by luck. An error of the rewriting shows on every input: two have to fail.

    Args:
        model: the model, in eval mode, without hooks.
        optimized: what was made of it.
        arguments: of the call that both are compared on.
        dtype: of the results.
        inside: of the maps between the layers.

    Raises:
        RuntimeError: it is too far away, or finite where the model's result is not.
        ValueError: there is no floating-point result.
    """
    first = _Distances(model, optimized, arguments, dtype)
    if not first.allowed():
        second = _Distances(model, optimized, _other(arguments), dtype)
        if not second.allowed():
            magnified = first.models / torch.finfo(dtype).eps
            ill = (
                f"; the model is ill-conditioned: it magnifies rounding errors {magnified:.0f} times"
                if magnified > 1000
                else ""
            )
            raise RuntimeError(
                f"the optimised model is {first.own:.2e} away from the float64 result, relative to its size, and "
                f"{second.own:.2e} on a second input; {first.bound:.2e} and {second.bound:.2e} are allowed, from the "
                f"model's own distances in {dtype}{ill}: please report the model"
            )
    _check_not_finite(model, optimized, arguments, dtype, inside)
