"""Comparison of batch_norm_act_squeeze with float64, for the tests of each backend."""

import statistics
from typing import Any

import torch
from torch import Tensor

from se_fused import backends, functional, reference
from se_fused.testing.error_bounds import GRADIENT_FLOOR, relative_error, squeeze_bound
from se_fused.testing.verify import Case, to_layout

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Given = dict[str, Any]


def draw(case: Case, seed: int) -> Given:
    given = case.draw(seed)
    del given["residual"], given["drop_path_scale"]
    return given


def double(given: Given) -> Given:
    wide = {k: v.detach().double() if isinstance(v, Tensor) else v for k, v in given.items()}
    return {k: v.requires_grad_(given[k].requires_grad) if isinstance(v, Tensor) else v for k, v in wide.items()}


def run(module: Any, given: Given, case: Case, seed: int, uses: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(y, squeezed, gradients of a sum over the outputs in ``uses`` and, in training, the updated statistics)."""
    given = {k: v.clone() if k.startswith("running") and v is not None else v for k, v in given.items()}
    y, squeezed = module.batch_norm_act_squeeze(**given)
    generator = torch.Generator().manual_seed(seed + 1)
    dy = to_layout(torch.randn(case.shape, generator=generator).to(DEVICE, case.dtype), case.layout).to(y.dtype)
    dsqueezed = torch.randn(squeezed.shape, generator=generator).to(DEVICE, squeezed.dtype) * y[0, 0].numel() ** 0.5
    wanted = {k: v for k, v in given.items() if isinstance(v, Tensor) and v.requires_grad}
    outputs = {"both": ((y, squeezed), (dy, dsqueezed)), "y": ((y,), (dy,)), "squeezed": ((squeezed,), (dsqueezed,))}
    found = dict(
        zip(wanted, torch.autograd.grad(outputs[uses][0], list(wanted.values()), outputs[uses][1]), strict=True)
    )
    if case.training:
        found |= {k: v for k, v in given.items() if k.startswith("running") and v is not None}
    return y.detach(), squeezed.detach(), found


def passes(case: Case, backend: str, uses: str = "both", seeds: int = 3) -> None:
    """Check y and squeezed against their bounds, and gradients against twice the error of eager PyTorch."""
    errors: dict[str, list[tuple[float, float]]] = {}
    for seed in range(seeds):
        given = draw(case, seed)
        wide = double(given)
        truth, true_squeezed, true_gradients = run(reference, wide, case, seed, uses)
        with backends.use_backend(backend):
            y, squeezed, gradients = run(functional, given, case, seed, uses)
        _, _, eager = run(reference, given, case, seed, uses)
        assert y.dtype == case.dtype and y.stride() == given["x"].stride() and squeezed.dtype == torch.float32
        of_y, of_squeezed = squeeze_bound(wide, truth, case.dtype)
        assert ((y.double() - truth).abs() <= of_y).all()
        assert ((squeezed.double() - true_squeezed).abs() <= of_squeezed).all()
        for name, gradient in gradients.items():
            pair = (relative_error(t, true_gradients[name]) for t in (gradient, eager[name]))
            errors.setdefault(name, []).append(tuple(pair))
    for name, pairs in errors.items():
        mine, theirs = (statistics.median(e) for e in zip(*pairs, strict=True))
        assert mine <= 2 * theirs + GRADIENT_FLOOR, f"gradient of {name}: {mine:.2e}, eager {theirs:.2e}"
