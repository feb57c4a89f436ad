"""What is compared through us, eager PyTorch and torch.compile: here the tail of a block; networks have their own file.

A workload holds its inputs and hands out candidates that work on them: the same numbers in the same memory order. It
knows the truth too, from float64, so that nothing is timed before its results were checked.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import functional, reference
from .measure import Counted, counted_bytes, counted_passes

__all__ = ["DTYPES", "LAYOUTS", "MODES", "STAGES", "Candidate", "TailWorkload", "Workload", "compiled"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
MODES = ("infer", "train")
STAGES = ((8, 256, 56, 56), (8, 512, 28, 28), (8, 1024, 14, 14), (8, 2048, 7, 7))
"""The maps (N, C, H, W) that the blocks of ResNet-50's four stages end in, at batch 8 and 224 x 224 pixels."""

_BATCH_NORM = ("running_mean", "running_var", "bn_weight", "bn_bias")


@dataclass(frozen=True)
class Candidate:
    """One way to compute a workload."""

    name: str  # "se_fused", "eager" or "compile"
    layout: str
    run: Callable[[], Any]  # what is timed
    results: Callable[[], dict[str, Tensor]]  # the same, once, with all results by name
    forward: Callable[[], Any]  # forward alone, with grad: for the bytes that it saves
    kept: tuple[Tensor, ...]  # parameters and buffers, which are there anyway
    reset: Callable[[], None] = lambda: None  # drops what a run leaves behind: gradients


class Workload:
    """What both workloads share. ``images`` is the batch size; ``shape`` that of the input."""

    title: str
    mode: str
    layout: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    peer: str
    layouts: tuple[str, ...]
    """Those that ours and the eager peer are measured in."""
    draws: int
    """Inputs that may be drawn until all results agree; see :func:`se_fused.compare.agreement`."""
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
        """The candidate of that name, on the inputs as they are; "compile" starts from a fresh compiler state."""
        raise NotImplementedError

    def bound(self, name: str) -> Tensor | None:
        """Largest error of each element of that result where one can be derived (ours only), else None."""
        return None

    def counted(self) -> tuple[int, int] | None:
        """(bytes of the design's counted passes, bytes of the tensors they go over), or None where none are counted."""
        return None

    @property
    def compiled_layout(self) -> str:
        """The layout that the compiled peer runs in."""
        return "channels_last" if len(self.layouts) > 1 else self.layouts[0]

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "title": self.title, "mode": self.mode, "layout": self.layout, "shape": list(self.shape),
            "dtype": str(self.dtype).removeprefix("torch."), "device": str(self.device), "peer": self.peer,
        }  # fmt: skip


def compiled(what: Any, **options: Any) -> Any:
    """torch.compile for one fixed shape, from a fresh state: nothing is shared with what was compiled before."""
    torch._dynamo.reset()
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "no CUDA runtime": it is known
    return torch.compile(what, dynamic=False, **options)


def _grad(mode: str) -> AbstractContextManager[Any]:
    return torch.enable_grad() if mode == "train" else torch.no_grad()


class TailWorkload(Workload):
    """The tail of a block: BN + SE + add + ReLU, forward and backward ("train"), or SE + add + ReLU ("infer").

    Batch norm's parameters are float32, as under autocast; the rest has ``dtype``.
    """

    peer = "se_fused.reference (plain PyTorch)"
    draws = 1
    seconds = 2.0

    def __init__(
        self, shape: tuple[int, int, int, int], dtype: torch.dtype, layout: str, mode: str, device: str | torch.device
    ) -> None:
        self.shape, self.dtype, self.layout, self.mode = shape, dtype, layout, mode
        self.device = torch.device(device)
        self.layouts = (layout,)
        self.title = "BN+SE+add+ReLU forward+backward" if mode == "train" else "SE+add+ReLU inference"
        self.function = "batch_norm_squeeze_excite" if mode == "train" else "squeeze_excite"
        c = shape[1]
        r = max(c // 16 // 8 * 8, 8)  # as timm rounds it
        self._scales: dict[str, tuple[tuple[int, ...], float, float]] = {  # shape, mean, standard deviation
            "x": (shape, 0.5, 1.0), "running_mean": ((c,), 0.0, 1.0), "running_var": ((c,), 1.0, 0.0),
            "bn_weight": ((c,), 1.0, 0.3), "bn_bias": ((c,), 0.0, 0.3),
            "fc1_weight": ((r, c), 0.0, c**-0.5), "fc1_bias": ((r,), 0.0, 0.3),
            "fc2_weight": ((c, r), 0.0, r**-0.5), "fc2_bias": ((c,), 0.0, 0.3), "residual": (shape, 0.0, 1.0),
        }  # fmt: skip
        if mode == "infer":
            for name in _BATCH_NORM:
                del self._scales[name]
        self.given: dict[str, Tensor] = {}
        for name, (size, _, _) in self._scales.items():
            t = torch.empty(size, dtype=torch.float32 if name in _BATCH_NORM else dtype, device=self.device)
            if len(size) == 4:
                t = t.to(memory_format=LAYOUTS[layout])
            self.given[name] = t.requires_grad_(mode == "train" and not name.startswith("running"))
        self.dy = torch.empty_like(self.given["x"], requires_grad=False)
        self.draw(0)

    @torch.no_grad()
    def draw(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name, (size, mean, deviation) in self._scales.items():
            self.given[name].copy_(torch.randn(size, generator=generator) * deviation + mean)
        # Where the ReLU's argument is within rounding of zero, two right answers may have different derivatives; no
        # gradient is sent there, so that what is compared is continuous.
        t = self._call(reference, self._double(), out_act=None)
        certain = t.abs() > 8 * torch.finfo(self.dtype).eps * t.abs().max()
        self.dy.copy_(torch.randn(self.shape, generator=generator)).mul_(certain)

    def _double(self) -> dict[str, Tensor]:
        return {name: t.detach().double().requires_grad_(t.requires_grad) for name, t in self.given.items()}

    def _call(self, module: ModuleType, given: dict[str, Tensor], out_act: str | None = "relu") -> Tensor:
        options = {"training": True} if self.mode == "train" else {}
        y: Tensor = getattr(module, self.function)(**given, out_act=out_act, **options)
        return y

    def _results(self, call: Callable[..., Tensor], given: dict[str, Tensor], dy: Tensor) -> dict[str, Tensor]:
        given = {k: t.clone() if k.startswith("running") else t for k, t in given.items()}
        with _grad(self.mode):
            y = call(given)
            results = {"y": y.detach()}
            if self.mode == "train":
                wanted = {f"d{k}": t for k, t in given.items() if t.requires_grad}
                results |= dict(zip(wanted, torch.autograd.grad(y, list(wanted.values()), dy), strict=True))
                results |= {k: t for k, t in given.items() if k.startswith("running")}
        return results

    def truth(self) -> dict[str, Tensor]:
        return self._results(lambda given: self._call(reference, given), self._double(), self.dy.double())

    def bound(self, name: str) -> Tensor | None:
        from .bounds import forward_bound

        if name != "y":
            return None
        given = self._double()
        options = {"training": self.mode == "train", "eps": 1e-5, "act": "relu", "gate": "sigmoid"}
        with torch.no_grad():
            return forward_bound({**given, **options}, self._call(reference, given), self.dtype)

    def counted(self) -> tuple[int, int]:
        passes: Counted = counted_passes(training=self.mode == "train")
        tensors = 6 if self.mode == "train" else 3  # x, residual, y and dy, dr, dx
        return counted_bytes(self.shape, self.dtype, passes), tensors * self.given["x"].nbytes

    def _callable(self, name: str) -> Callable[[dict[str, Tensor]], Tensor]:
        """The op as that candidate computes it, from its arguments by name."""
        if name != "compile":
            module = functional if name == "se_fused" else reference
            return lambda given: self._call(module, given)
        function: Callable[..., Tensor] = getattr(reference, self.function)
        options = {"training": True} if self.mode == "train" else {}

        def whole(**given: Tensor) -> Tensor:
            return function(**given, out_act="relu", **options)

        graph = compiled(whole, fullgraph=True)
        return lambda given: graph(**given)

    def candidate(self, name: str, layout: str) -> Candidate:
        call = self._callable(name)
        given = {k: t.clone() if k.startswith("running") else t for k, t in self.given.items()}
        wanted = [t for t in given.values() if t.requires_grad]

        def train() -> Any:
            y = call(given)
            return y, torch.autograd.grad(y, wanted, self.dy)

        def infer() -> Any:
            with torch.no_grad():
                return call(given)

        return Candidate(
            name, layout, train if self.mode == "train" else infer,
            lambda: self._results(call, self.given, self.dy), lambda: call(given),
            tuple(t for k, t in given.items() if k not in ("x", "residual")),
        )  # fmt: skip
