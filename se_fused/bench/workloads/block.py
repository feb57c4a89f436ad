"""What is compared through us and our peers: here the tail of a block; networks have their own file.

A workload holds its inputs and hands out candidates that work on them: the same numbers in the same memory order. It
knows the truth too, from float64, so that nothing is timed before its results were checked. Who the candidates are is
in :mod:`se_fused.bench.providers.registry`.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor

from ... import functional, reference
from ..._random import generator_on
from ..measure.memory import Counted, counted_bytes, counted_passes
from ..providers import modules as tails
from ..providers import registry as peers

__all__ = [
    "DTYPES",
    "LAYOUTS",
    "MODES",
    "STAGES",
    "TAIL_MODES",
    "Candidate",
    "TailWorkload",
    "Workload",
    "compiled",
    "fresh_compiler",
]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
MODES = ("infer", "train")
TAIL_MODES = ("infer", "forward", "train")
"""The modes of a tail; "forward" is training's forward pass, with what backward needs kept."""
STAGES = ((8, 256, 56, 56), (8, 512, 28, 28), (8, 1024, 14, 14), (8, 2048, 7, 7))
"""The maps (N, C, H, W) that the blocks of ResNet-50's four stages end in, at batch 8 and 224 x 224 pixels."""

_BATCH_NORM = ("running_mean", "running_var", "bn_weight", "bn_bias")


@dataclass(frozen=True)
class Candidate:
    """One way to compute a workload."""

    name: str  # one of se_fused.bench.providers.registry.PEERS
    layout: str
    run: Callable[[], Any]  # what is timed
    results: Callable[[], dict[str, Tensor]]  # the same, once, with all results by name
    forward: Callable[[], Any]  # forward alone, with grad: for the bytes that it saves
    kept: tuple[Tensor, ...]  # parameters and buffers, which are there anyway
    reset: Callable[[], None] = lambda: None  # drops what a run leaves behind: gradients
    rotate: Callable[[int], list[Callable[[], Any]]] | None = None  # run, on so many copies of the inputs


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
    truth_of = "eager"
    """The candidate that is plain PyTorch: in float64 the truth, and as it is the measure of the others' errors."""
    draws: int
    """Inputs that may be drawn until all results agree; see :func:`se_fused.bench.compare.agreement`."""
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
            layout: "contiguous" or "channels_last"; for networks the peer's own where it has one.

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
        if name not in known:
            raise ValueError(f"name must be one of {', '.join(known)}; got {name!r}")
        reason = peers.why_not(name, self.device, self.dtype, self.mode)
        if reason is not None:
            raise ValueError(reason)

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


def compiled(what: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """torch.compile of a function or module for one fixed shape, independent of everything compiled before.

    Dynamo keeps what it compiled per code object, and stops compiling after eight graphs of one. All networks of a
    class have one ``forward``; so each call here compiles a code object of its own, into which that is inlined.

    Args:
        what: a function or module.
        **options: of ``torch.compile``.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "no CUDA runtime": it is known

    def call(*args: Any, **kwargs: Any) -> Any:
        return what(*args, **kwargs)

    code: CodeType = call.__code__.replace()  # a new object, though nothing is replaced
    own = FunctionType(code, call.__globals__, call.__name__, None, call.__closure__)
    graph: Callable[..., Any] = torch.compile(own, dynamic=False, **options)
    return graph


def fresh_compiler() -> None:
    """Drop everything that was compiled in this process, and the memory of its CUDA graphs.

    Compiled candidates that are still in use compile once more when they are called next, "compile freezing" without
    freezing: drop candidates before. None needs this to be independent of others.
    """
    torch._dynamo.reset()


_GRAPHED = ("max-autotune", "reduce-overhead")
"""torch.compile's modes that run in CUDA graphs."""


def compile_mode(name: str) -> str | None:
    """torch.compile's ``mode`` of a candidate's name: "se_fused compile reduce-overhead"."""
    mode = name.rpartition(" ")[2]
    return mode if peers.compiles(name) and mode in _GRAPHED else None


def between_graphs(name: str, run: Callable[[], Any]) -> Callable[[], Any]:
    """What a candidate is to run: those in CUDA graphs are told that the last call's results are no longer needed."""
    if compile_mode(name) is None:
        return run

    def marked() -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return run()

    return marked


def kept_results(name: str, results: Callable[[], dict[str, Tensor]]) -> Callable[[], dict[str, Tensor]]:
    """A candidate's results: those in CUDA graphs are copied, for the next call overwrites them."""
    if compile_mode(name) is None:
        return results
    return lambda: {k: t.clone() for k, t in between_graphs(name, results)().items()}


def _grad(mode: str) -> AbstractContextManager[Any]:
    return torch.no_grad() if mode == "infer" else torch.enable_grad()


class TailWorkload(Workload):
    """The tail of a block: relu(SE(x) + residual) or relu(SE(BN(x)) + residual).

    Batch norm's parameters are float32, as under autocast; the rest has ``dtype``. Every candidate takes x and the
    residual in ``layout``.

    Args:
        shape: (N, C, H, W).
        dtype: of x, residual and SE's parameters.
        layout: "contiguous" or "channels_last".
        mode: "infer"; "forward": the forward pass of training, batch norm with the batch's statistics, and what
            backward needs is kept; "train": forward and backward.
        device: of all tensors.
        batch_norm: whether there is one before SE, in inference with the running statistics; None: all but inference.

    Raises:
        ValueError: another mode.
    """

    peer = "se_fused.reference (plain PyTorch)"
    draws = 1
    seconds = 2.0

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        layout: str,
        mode: str,
        device: str | torch.device,
        batch_norm: bool | None = None,
    ) -> None:
        if mode not in TAIL_MODES:
            raise ValueError(f"mode must be one of {', '.join(TAIL_MODES)}; got {mode!r}")
        self.shape, self.dtype, self.layout, self.mode = shape, dtype, layout, mode
        self.device = torch.device(device)
        self.layouts = (layout,)
        self.batch_norm = mode != "infer" if batch_norm is None else batch_norm
        what = {"infer": "inference", "forward": "forward", "train": "forward+backward"}[mode]
        self.title = f"{'BN+' if self.batch_norm else ''}SE+add+ReLU {what}"
        self.function = "batch_norm_squeeze_excite" if self.batch_norm else "squeeze_excite"
        self._training = self.batch_norm and mode != "infer"
        self._options = {"training": self._training} if self.batch_norm else {}
        c = shape[1]
        self.hidden = r = max(c // 16 // 8 * 8, 8)  # as timm rounds it
        self._scales: dict[str, tuple[tuple[int, ...], float, float]] = {  # shape, mean, standard deviation
            "x": (shape, 0.5, 1.0), "running_mean": ((c,), 0.0, 1.0), "running_var": ((c,), 1.0, 0.0),
            "bn_weight": ((c,), 1.0, 0.3), "bn_bias": ((c,), 0.0, 0.3),
            "fc1_weight": ((r, c), 0.0, c**-0.5), "fc1_bias": ((r,), 0.0, 0.3),
            "fc2_weight": ((c, r), 0.0, r**-0.5), "fc2_bias": ((c,), 0.0, 0.3), "residual": (shape, 0.0, 1.0),
        }  # fmt: skip
        if not self.batch_norm:
            for name in _BATCH_NORM:
                del self._scales[name]
        self.given: dict[str, Tensor] = {}
        for name, (size, _, _) in self._scales.items():
            t = torch.empty(size, dtype=torch.float32 if name in _BATCH_NORM else dtype, device=self.device)
            if len(size) == 4:
                t = t.to(memory_format=LAYOUTS[layout])
            self.given[name] = t.requires_grad_(mode != "infer" and not name.startswith("running"))
        self.dy = torch.empty_like(self.given["x"], requires_grad=False)
        self.draw(0)

    @torch.no_grad()
    def draw(self, seed: int) -> None:
        generator = generator_on(self.device, seed)
        where = generator.device
        for name, (size, mean, deviation) in self._scales.items():
            self.given[name].copy_(torch.randn(size, generator=generator, device=where) * deviation + mean)
        # Where the ReLU's argument is within rounding of zero, two right answers may have different derivatives; no
        # gradient is sent there, so that what is compared is continuous.
        t = self._call(reference, self._double(), out_act=None)
        certain = t.abs() > 8 * torch.finfo(self.dtype).eps * t.abs().max()
        self.dy.copy_(torch.randn(self.shape, generator=generator, device=where)).mul_(certain)

    def _double(self) -> dict[str, Tensor]:
        return {name: t.detach().double().requires_grad_(t.requires_grad) for name, t in self.given.items()}

    def _call(self, module: ModuleType, given: dict[str, Tensor], out_act: str | None = "relu") -> Tensor:
        y: Tensor = getattr(module, self.function)(**given, out_act=out_act, **self._options)
        return y

    @torch.no_grad()
    def _restart(self, given: dict[str, Tensor]) -> list[str]:
        """Put the running statistics back to where they begin; returns their names."""
        names = [name for name in given if name.startswith("running")]
        for name in names:
            given[name].copy_(self.given[name])
        return names

    def _results(self, call: Callable[..., Tensor], given: dict[str, Tensor], dy: Tensor) -> dict[str, Tensor]:
        statistics = self._restart(given)
        with _grad(self.mode):
            y = call(given)
            results = {"y": y.detach()}
            if self.mode == "train":
                wanted = {k: t for k, t in given.items() if t.requires_grad}
                gradients = torch.autograd.grad(y, list(wanted.values()), dy)
                for k, gradient in zip(wanted, gradients, strict=True):  # a module may have (R, C, 1, 1) for (R, C)
                    results[f"d{k}"] = gradient.reshape(self.given[k].shape)
        if self._training:
            results |= {k: given[k].detach().clone() for k in statistics}
        return results

    def truth(self) -> dict[str, Tensor]:
        return self._results(lambda given: self._call(reference, given), self._double(), self.dy.double())

    def bound(self, name: str) -> Tensor | None:
        from ...testing.error_bounds import forward_bound

        if name != "y":
            return None
        given = self._double()
        options = {"training": self._training, "eps": 1e-5, "act": "relu", "gate": "sigmoid"}
        with torch.no_grad():
            return forward_bound({**given, **options}, self._call(reference, given), self.dtype)

    def counted(self) -> tuple[int, int]:
        passes: Counted = counted_passes(training=self.mode != "infer", batch_norm=self.batch_norm)
        if self.mode == "forward":
            passes = Counted(passes.forward, 0, passes.forward_masks, 0)
        tensors = 6 if self.mode == "train" else 3  # x, residual, y and dy, dr, dx
        return counted_bytes(self.shape, self.dtype, passes), tensors * self.given["x"].nbytes

    def flops(self) -> int:
        """See :func:`se_fused.bench.providers.modules.flops`."""
        return tails.flops(self.shape, self.hidden, self.mode, self.batch_norm)

    def _own(self, name: str) -> tuple[Callable[[dict[str, Tensor]], Tensor], dict[str, Tensor]]:
        """That candidate's op and the arguments for it by name: the workload's memory, but for running statistics."""
        given = {k: t.clone() if k.startswith("running") else t for k, t in self.given.items()}
        if name in tails.MODULES:
            module = tails.ModuleTail(name, self.given, self._training)
            given |= module.tensors
            return lambda given: module(given["x"], given["residual"]), given
        if not peers.compiles(name):
            source = functional if name == "se_fused" else reference
            return lambda given: self._call(source, given), given
        function: Callable[..., Tensor] = getattr(reference, self.function)
        options = self._options

        def whole(**given: Tensor) -> Tensor:
            return function(**given, out_act="relu", **options)

        mode = compile_mode(name)
        if mode is not None:
            # CUDA graphs copy what may lie elsewhere at the next call; in a network the layer before writes in place.
            given = {k: t.detach().requires_grad_(t.requires_grad) for k, t in given.items()}
            for t in given.values():
                torch._dynamo.mark_static_address(t)
        graph = compiled(whole, fullgraph=True, mode=mode)
        return lambda given: graph(**given), given

    def candidate(self, name: str, layout: str) -> Candidate:
        self._check(name, peers.TAILS)
        if layout != self.layout:
            raise ValueError(f"layout must be the workload's, {self.layout!r}; got {layout!r}")
        call, given = self._own(name)

        def on(given: dict[str, Tensor], dy: Tensor) -> Callable[[], Any]:
            wanted = [t for t in given.values() if t.requires_grad]

            def train() -> Any:
                y = call(given)
                return y, torch.autograd.grad(y, wanted, dy)

            def forward() -> Any:
                with _grad(self.mode):
                    return call(given)

            return between_graphs(name, train if self.mode == "train" else forward)

        run = on(given, self.dy)

        def rotate(sets: int) -> list[Callable[[], Any]]:
            def copied(t: Tensor) -> Tensor:
                return t.detach().clone().requires_grad_(t.requires_grad)

            maps = ("x", "residual")
            others = [({**given, **{k: copied(given[k]) for k in maps}}, self.dy.clone()) for _ in range(sets - 1)]
            return [run, *(on(*other) for other in others)]

        return Candidate(
            name, layout, run,
            kept_results(name, lambda: self._results(call, given, self.dy)), lambda: call(given),
            tuple(t for k, t in given.items() if k not in ("x", "residual")), rotate=rotate,
        )  # fmt: skip
