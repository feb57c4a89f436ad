"""What a benchmark measures: a workload, and the candidates that compute it.

A workload holds its inputs and builds candidates that work on them: the same numbers in the same memory order. It also
computes the results in float64, against which every candidate is checked before it is timed. Which candidates there
are is in :mod:`se_fused.bench.providers.registry`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..providers.registry import why_not

__all__ = ["MODES", "Candidate", "Workload"]

MODES = ("infer", "train")
"""The modes of every workload: inference; forward and backward."""


@dataclass(frozen=True)
class Candidate:
    """One way to compute a workload."""

    name: str  # mostly one of se_fused.bench.providers.registry.PROVIDERS
    layout: str
    run: Callable[[], Any]  # what is timed
    results: Callable[[], dict[str, Tensor]]  # the same, once, with all results by name
    forward: Callable[[], Any]  # forward alone, with grad: for the bytes that it saves
    kept: tuple[Tensor, ...]  # parameters and buffers, which are there anyway
    reset: Callable[[], None] = lambda: None  # drops what a run leaves behind: gradients
    rotate: Callable[[int], list[Callable[[], Any]]] | None = None  # run, on so many copies of the inputs


class Workload:
    """Base class of the workloads: inputs, candidates that compute on them, and the results in float64.

    ``images`` is the batch size; ``shape`` that of the input.
    """

    title: str
    mode: str
    layout: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    baseline: str
    """What eager and compiled candidates run, with its version."""
    layouts: tuple[str, ...]
    """Those that ours and the eager baseline are measured in."""
    truth_of = "eager"
    """The candidate that is plain PyTorch: float64's results come from it, and its own errors limit the others'."""
    draws: int
    """Inputs that may be drawn until all results agree; see :func:`se_fused.bench.accuracy.agreement`."""
    seconds: float
    """About how long to measure, where nobody says how often."""

    @property
    def images(self) -> int:
        """N."""
        return self.shape[0]

    def draw(self, seed: int) -> None:
        """Put new numbers into the inputs, in place."""
        raise NotImplementedError

    def truth(self) -> dict[str, Tensor]:
        """The results by name, in float64, of plain PyTorch."""
        raise NotImplementedError

    def candidate(self, name: str, layout: str) -> Candidate:
        """The candidate of that name, on the inputs as they are. Candidates are independent of each other.

        Args:
            name: one that the workload knows; see :mod:`se_fused.bench.providers.registry`.
            layout: "contiguous" or "channels_last"; for networks the provider's own where it has one.

        Raises:
            ValueError: another name, or the reason of :func:`se_fused.bench.providers.registry.why_not`.
        """
        raise NotImplementedError

    def bound(self, name: str) -> Tensor | None:
        """Largest error of each element of that result where one can be derived (ours only), else None."""
        return None

    def counted(self) -> tuple[int, int] | None:
        """(bytes of the design's counted passes, bytes of the tensors they go over), or None where none are counted."""
        return None

    def flops(self) -> int | None:
        """Floating-point operations, counted from the shapes, or None where none are counted."""
        return None

    def _check(self, name: str, known: tuple[str, ...]) -> None:
        """Refuses a candidate that is not known, or cannot run here."""
        """Refuses a candidate that is not known, or cannot run here."""
        if name not in known:
            raise ValueError(f"name must be one of {', '.join(known)}; got {name!r}")
        reason = why_not(name, self.device, self.dtype, self.mode)
        if reason is not None:
            raise ValueError(reason)

    @property
    def compiled_layout(self) -> str:
        """The layout that the compiled baseline runs in."""
        return "channels_last" if len(self.layouts) > 1 else self.layouts[0]

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "title": self.title, "mode": self.mode, "layout": self.layout, "shape": list(self.shape),
            "dtype": str(self.dtype).removeprefix("torch."), "device": str(self.device), "baseline": self.baseline,
        }  # fmt: skip
