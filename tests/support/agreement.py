"""Comparison of a workload's candidate with float64."""

import pytest
import torch

from se_fused._formats import LAYOUTS
from se_fused.bench.accuracy import least_error
from se_fused.bench.providers.registry import allowance
from se_fused.bench.workloads.base import Workload
from se_fused.testing.error_bounds import relative_error


def errors(workload: Workload, name: str, layout: str, truth: dict[str, torch.Tensor]) -> dict[str, float]:
    results = workload.candidate(name, layout).results()
    assert results.keys() == truth.keys()
    assert all(results[k].shape == t.shape for k, t in truth.items())
    return {k: relative_error(results[k], t) for k, t in truth.items()}


def assert_agrees(workload: Workload, name: str, layouts: tuple[str, ...] = tuple(LAYOUTS), baseline="eager") -> None:
    """Check a candidate by the rule of se_fused.bench.accuracy, on at least one of the inputs.

    The rule allows twice the baseline's error or the provider's allowance.
    """
    for seed in range(workload.draws):
        workload.draw(seed)
        truth = workload.truth()
        eager = [errors(workload, baseline, layout, truth) for layout in workload.layouts]
        least = {k: least_error(t, workload.dtype) for k, t in truth.items()}
        extra = allowance(name, workload.dtype, workload.device) or 0.0
        allowed = {k: max(2 * max(e[k] for e in eager) + least[k], extra) for k in truth}
        wrong = {k: (e, allowed[k]) for at in layouts for k, e in errors(workload, name, at, truth).items()
                 if not e <= allowed[k]}  # fmt: skip
        if not wrong:
            return
    pytest.fail(f"{name}: {wrong}")
