"""Base classes of benchmarks: a workload, and the candidates that compute it.

A workload holds its inputs and builds candidates that use them, with the same values and memory format. It also
computes the results in float64, with which every candidate is compared before it is timed. The candidates are listed in
:mod:`se_fused.bench.providers.registry`.
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
    """An implementation of a workload, with its inputs."""

    name: str  # mostly one of se_fused.bench.providers.registry.PROVIDERS
    layout: str
    run: Callable[[], Any]  # the function to time
    results: Callable[[], dict[str, Tensor]]  # runs once and returns all results by name
    forward: Callable[[], Any]  # the forward pass with gradients enabled, for counting the saved bytes
    kept: tuple[Tensor, ...]  # parameters and buffers, which do not count as saved
    reset: Callable[[], None] = lambda: None  # deletes the gradients of earlier runs
    rotate: Callable[[int], list[Callable[[], Any]]] | None = None  # n functions like run, on n copies of the inputs


class Workload:
    """Base class of the workloads: inputs, candidates that compute on them, and the results in float64.

    ``shape`` is the shape of the input, and ``images`` the batch size.
    """

    title: str
    mode: str
    layout: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    baseline: str
    """Code of the eager and compiled candidates, with its version."""
    layouts: tuple[str, ...]
    """Layouts in which se_fused and the eager baseline are measured."""
    truth_of = "eager"
    """Candidate in plain PyTorch. It computes the float64 results, and its errors define those allowed for others."""
    draws: int
    """Maximum number of inputs to draw until all results agree; see :func:`se_fused.bench.accuracy.agreement`."""
    seconds: float
    """Approximate seconds of measurement, if the number of rounds is not given."""

    @property
    def images(self) -> int:
        """Batch size N."""
        return self.shape[0]

    def draw(self, seed: int) -> None:
        """Fill the inputs with new random numbers, in place."""
        raise NotImplementedError

    def truth(self) -> dict[str, Tensor]:
        """Results of plain PyTorch in float64, by name."""
        raise NotImplementedError

    def candidate(self, name: str, layout: str) -> Candidate:
        """Build the candidate ``name`` on the current inputs. Candidates are independent of each other.

        Args:
            name: a candidate of the workload; see :mod:`se_fused.bench.providers.registry`.
            layout: "contiguous" or "channels_last"; a network uses the layout of the provider instead, if it has one.

        Raises:
            ValueError: the name is unknown, or the candidate cannot run here; the message is then the reason of
                :func:`se_fused.bench.providers.registry.why_not`.
        """
        raise NotImplementedError

    def bound(self, name: str) -> Tensor | None:
        """Bound for the error of each element of a result of se_fused; None if no bound was derived."""
        return None

    def counted(self) -> tuple[int, int] | None:
        """(bytes of the counted passes, bytes of the tensors in them); None if this workload counts no bytes."""
        return None

    def flops(self) -> int | None:
        """Number of floating-point operations, counted from the shapes; None if this workload counts none."""
        return None

    def _check(self, name: str, known: tuple[str, ...]) -> None:
        """Raise ValueError if the candidate is unknown or cannot run here."""
        if name not in known:
            raise ValueError(f"name must be one of {', '.join(known)}; got {name!r}")
        reason = why_not(name, self.device, self.dtype, self.mode)
        if reason is not None:
            raise ValueError(reason)

    @property
    def compiled_layout(self) -> str:
        """Layout of the compiled baseline."""
        return "channels_last" if len(self.layouts) > 1 else self.layouts[0]

    def describe(self) -> dict[str, Any]:
        """Description as a dict for JSON."""
        return {
            "title": self.title, "mode": self.mode, "layout": self.layout, "shape": list(self.shape),
            "dtype": str(self.dtype).removeprefix("torch."), "device": str(self.device), "baseline": self.baseline,
        }  # fmt: skip
