"""Checks of candidates' results against float64."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._formats import LAYOUTS
from ..testing.error_bounds import GRADIENT_FLOOR, relative_error
from .measure.timing import Timing, first_line
from .providers.registry import compiles
from .workloads.base import Candidate, Workload
from .workloads.network import NetworkWorkload

__all__ = ["AccuracyCheck", "Result", "agreement", "least_error"]

Progress = Callable[[str, float], None]
"""Function called with a description of the current step and the finished share of the row."""

# Allowed error as a multiple of the eager baseline's error. Two for se_fused. The wide factor for the other providers
# only detects that one computes something else. None: only finite results are required.
_FACTORS: dict[str, float | None] = {"se_fused": 2.0, "converted": 2.0, "eager": None}
_OTHERS = 10.0


@dataclass
class Result:
    """Check and measurements of one candidate. Errors are relative to float64, by name of the result."""

    name: str
    layout: str
    status: str = "ok"  # "ok"; "differs": results differ, not timed; "failed": it raised an exception
    note: str = ""
    errors: dict[str, float] = field(default_factory=dict)
    allowed: dict[str, float] = field(default_factory=dict)
    timing: Timing | None = None
    images_per_second: float | None = None
    peak_bytes: int | None = None
    saved_bytes: int | None = None
    compile_seconds: float | None = None

    @property
    def milliseconds(self) -> float:
        """Median time in milliseconds; NaN if the candidate was not timed."""
        return math.nan if self.timing is None else self.timing.median * 1e3


def _errors(results: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    missing = truth.keys() ^ results.keys()
    if missing:
        return {name: math.inf for name in missing}
    return {name: relative_error(results[name], t) for name, t in truth.items()}


def least_error(truth: Tensor, dtype: torch.dtype) -> float:
    """Error that is always allowed, because eager's error may be small by chance, above all for a single number."""
    return GRADIENT_FLOOR + (torch.finfo(dtype).eps if truth.numel() == 1 else 0.0)


class AccuracyCheck:
    """Check of the candidates of one workload against float64.

    The error of se_fused may be twice the error of eager PyTorch (the larger one, if the workload has both layouts),
    plus a few eps. A network's gradients jump where the argument of a ReLU crosses zero, and one such crossing is
    larger than all other errors. A network that seems to differ is therefore tried on up to ``workload.draws`` inputs:
    a real fault shows on all of them. The float64 results and eager's errors are computed once per draw.

    Args:
        workload: the workload, whose inputs are drawn again if necessary.
        eager: eager candidates that were built before.
        progress: called with the current step.
    """

    def __init__(
        self, workload: Workload, eager: Sequence[Candidate] = (), progress: Progress = lambda *_: None
    ) -> None:
        self.workload, self._progress = workload, progress
        # Check a network's eager candidate in both layouts, even if one is timed, for two samples of its rounding.
        layouts = tuple(LAYOUTS) if isinstance(workload, NetworkWorkload) else workload.layouts
        self._eager = {candidate.layout: candidate for candidate in eager}
        for layout in layouts:
            if layout not in self._eager:
                self._eager[layout] = workload.candidate(workload.truth_of, layout)
        self._expectations: dict[int, _Expected] = {}
        self._drawn = 0

    def _expected(self, draw: int) -> "_Expected":
        if draw != self._drawn:
            self.workload.draw(draw)
            self._drawn = draw
        if draw not in self._expectations:
            self._progress("float64", 0.0)
            truth, bound = self.workload.truth(), self.workload.bound("y")
            eager: dict[str, float] = {}
            for candidate in self._eager.values():
                for name, error in _errors(candidate.results(), truth).items():
                    eager[name] = max(eager.get(name, 0.0), error)
            self._expectations[draw] = _Expected(truth, bound, eager)
        return self._expectations[draw]

    def check(self, candidate: Candidate, result: Result, allowance: float | None = None) -> int:
        """Store the errors, the allowed errors and the status of a candidate; return the number of inputs drawn.

        Args:
            candidate: the candidate to check.
            result: the result in which they are stored.
            allowance: additional relative error for an engine that rounds differently (:func:`.registry.allowance`).
        """
        for draw in range(self.workload.draws):
            expected = self._expected(draw)
            self._progress(f"checking {candidate.name}", 0.1)
            start = time.perf_counter()
            try:
                results = candidate.results()
            except Exception as error:  # an operator without this dtype, a missing compiler, no memory left
                result.status, result.note = "failed", first_line(error)
                return draw + 1
            if compiles(candidate.name) and result.compile_seconds is None:
                result.compile_seconds = time.perf_counter() - start
            self._compare(candidate, result, results, expected, allowance or 0.0)
            if result.status == "ok":
                break
        return draw + 1

    def _compare(
        self, candidate: Candidate, result: Result, results: dict[str, Tensor], expected: "_Expected", allowance: float
    ) -> None:
        truth, dtype = expected.truth, self.workload.dtype
        result.errors = _errors(results, truth)
        # The others are measured by eager's errors; eager itself must only be finite.
        factor = _FACTORS.get(candidate.name.partition(" ")[0], _OTHERS)  # "se_fused compile" counts as se_fused
        least = {k: max(least_error(t, dtype), allowance) for k, t in truth.items()}
        result.allowed = {k: 1.0 if factor is None else factor * e + least[k] for k, e in expected.eager.items()}
        if candidate.name == "se_fused" and expected.bound is not None:
            share = ((results["y"].double() - truth["y"]).abs() / expected.bound).max().item()
            result.errors["y, of its bound"] = share if share == share else math.inf
            result.allowed["y, of its bound"] = 1.0
        wrong = [k for k, e in result.errors.items() if not e <= result.allowed.get(k, 0.0)]
        result.status = "differs" if wrong else "ok"
        told = (f"{k}: error {result.errors[k]:.1e}, allowed {result.allowed.get(k, 0.0):.1e}" for k in wrong)
        result.note = "differs from float64 in " + "; ".join(told) if wrong else ""


@dataclass(frozen=True)
class _Expected:
    """Expected results for one draw of the inputs, with the bound of y's error and the errors of eager."""

    truth: dict[str, Tensor]
    bound: Tensor | None
    eager: dict[str, float]


def agreement(
    workload: Workload, pairs: Sequence[tuple[Candidate, Result]], progress: Progress = lambda *_: None
) -> int:
    """Check candidates with one :class:`AccuracyCheck`, store the results, and return the most inputs drawn for one."""
    check = AccuracyCheck(workload, [candidate for candidate, _ in pairs if candidate.name == "eager"], progress)
    return max((check.check(candidate, result) for candidate, result in pairs), default=0)
