"""Comparison of an optimised model with the original, on an example and on images with NaN or infinity."""

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

_PERTURBED = 3  # number of copies with perturbed weights, from which a model's own rounding error is estimated


def _floats(outputs: Any) -> Tensor:
    """All floating-point outputs as one float64 vector."""
    kept = [y for y in tree_leaves(outputs) if isinstance(y, Tensor) and y.is_floating_point()]
    if not kept:
        raise ValueError(
            "model returns no floating-point tensor, so its optimised form cannot be checked: optimise the part of the "
            "model that returns the logits, and run the rest after it"
        )
    return torch.cat([y.detach().double().flatten() for y in kept])


def _called(model: nn.Module, arguments: Arguments) -> Tensor:
    return _floats(arguments.call(model))


def _copy_in(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return copy.deepcopy(model).to(dtype).eval()  # deepcopy puts torchvision's feature extractors in training mode


def _in(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model with its floating-point tensors in ``dtype``; a copy, unless all have this dtype already."""
    there = all(t.dtype == dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point())
    return model if there else _copy_in(model, dtype)


def _perturbed(model: nn.Module, dtype: torch.dtype, seed: int) -> nn.Module:
    """A copy in ``dtype`` with each weight changed by one rounding error, randomly up or down."""
    moved = _copy_in(model, dtype)
    generator = torch.Generator().manual_seed(seed)
    for weight in moved.parameters():
        if weight.is_floating_point():
            sign = torch.randint(2, weight.shape, generator=generator).to(weight.device) * 2 - 1
            weight.data.mul_((1 + sign * torch.finfo(dtype).eps).to(dtype))
    return moved


def _realisations(model: nn.Module, arguments: Arguments, dtype: torch.dtype) -> Iterator[Tensor]:
    """Results of the model in ``dtype`` with different rounding errors: unchanged, in channels_last, perturbed."""
    cast = arguments.to(dtype)
    yield _called(_in(model, dtype), cast)
    plain = _copy_in(model, dtype)
    for parameter in plain.parameters():
        parameter.data = ordered(parameter.data)
    try:
        yield _called(plain, cast.map(ordered))
    except RuntimeError:  # the model makes a view that is impossible in channels_last
        pass
    for seed in range(_PERTURBED):
        yield _called(_perturbed(model, dtype, seed), cast)


class _Distances:
    """Distances from the float64 result: root mean square of the difference, over that of the float64 result."""

    def __init__(self, model: nn.Module, optimized: nn.Module, arguments: Arguments, dtype: torch.dtype) -> None:
        self.dtype = dtype
        try:
            self.truth = _called(_in(model, torch.float64), arguments.to(torch.float64))
        except RuntimeError:  # a forward that casts to float32 fails in float64: use the unchanged model as the truth
            self.truth = _called(model, arguments)
        ours = _called(optimized, arguments.to(dtype))
        if ours.shape != self.truth.shape:
            raise RuntimeError(
                f"the optimised model returns {ours.numel()} numbers, the model {self.truth.numel()}: please report "
                "the model"
            )
        self.own, self.models = self._of(ours), 0.0
        # the model's own distance is the largest of several; stop once it is large enough to accept the optimised model
        for theirs in _realisations(model, arguments, dtype):
            self.models = max(self.models, self._of(theirs))
            if self.allowed():
                break

    def _of(self, y: Tensor) -> float:
        """Distance of y over the elements with a finite truth; infinite if y is not finite in one of them."""
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
        """Allowed distance: twice the model's own (DESIGN section 3), plus the rounding of weights and results."""
        return 2 * self.models + 4 * torch.finfo(self.dtype).eps

    def allowed(self) -> bool:
        return self.own <= self.bound


def _other(arguments: Arguments) -> Arguments:
    """Arguments of the same shapes with random floating-point values of the same mean and standard deviation."""
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
    """Raise RuntimeError if a NaN or infinite pixel affects the optimised result differently from the model's."""
    plain = _in(model, inside)
    for value in (float("nan"), float("inf")):
        marked = arguments.map(partial(_marked, value=value))
        try:
            theirs = _called(plain, marked.to(inside))
        except Exception:  # the model raises an error for such an image: nothing to compare
            continue
        ours = _called(optimized, marked.to(dtype))
        # Which sums of infinities become NaN depends on their order, and GPU libraries may spread a NaN over a tile:
        # only NaN on the CPU is compared element by element.
        exact = value != value and ours.device.type == "cpu"
        lost = (theirs.isnan() & ~ours.isnan()).sum().item() if exact else 0
        if lost or (theirs.isfinite().all() != ours.isfinite().all()):
            raise RuntimeError(
                f"the optimised model returns another result than the model for an image with a pixel that is {value}: "
                f"of {theirs.numel()} numbers, {int(ours.isfinite().sum())} are finite, and "
                f"{int(theirs.isfinite().sum())} for the model: please report the model"
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
    """Raise an error if an optimised model is less accurate than allowed, or if it hides a NaN.

    The distance of the optimised result from the float64 result may be twice the distance of the model's own result,
    which is the largest of several: in a model that magnifies rounding errors, a single distance may be small by
    chance. A fault of the rewriting shows on every input, so the check fails only if two inputs fail.

    Args:
        model: the original model, in eval mode, without hooks.
        optimized: the optimised model.
        arguments: arguments with which both models are called.
        dtype: dtype of the results.
        inside: dtype of the maps between the layers.

    Raises:
        RuntimeError: the result is too far from the float64 result, or finite where the model's result is not.
        ValueError: the model returns no floating-point tensor.
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
