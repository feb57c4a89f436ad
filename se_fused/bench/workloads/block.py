"""The end of a residual block as a workload: relu(SE(BN(x)) + residual)."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ... import functional, reference
from ..._formats import LAYOUTS
from ...testing.generators import generator_on
from ..measure.traffic import counted_bytes, counted_passes
from ..providers.modules import LIBRARIES, ModuleBlock
from ..providers.registry import ALL_MODES, BLOCK_PROVIDERS, compiles
from ..providers.torch_compile import between_graphs, compile_mode, compiled, kept_results
from .base import Candidate, Workload

__all__ = ["STAGES", "BlockWorkload", "block_flops"]

STAGES = ((8, 256, 56, 56), (8, 512, 28, 28), (8, 1024, 14, 14), (8, 2048, 7, 7))
"""Output maps (N, C, H, W) of the blocks in the four stages of ResNet-50, for batch 8 and 224 x 224 pixels."""

_BATCH_NORM = ("running_mean", "running_var", "bn_weight", "bn_bias")


def block_flops(shape: tuple[int, ...], hidden: int, mode: str, batch_norm: bool) -> int:
    """Floating-point operations of relu(SE(BN(x)) + residual), counted from the shapes.

    Forward, per element: 1 for the mean, 1 for the product with the gate, 1 for the addition, 1 for ReLU. Batch norm
    adds 2 (product, addition), and in training 4 for its statistics (1 for the mean; difference, product and addition
    for the variance). Backward, per element: 1 for ReLU, 2 for the gradient of the gate (product, addition), 2 for the
    gradient of x (product, and addition of the gradient through the mean). Batch norm adds 9: 2 for x-hat, 1 + 2 for
    the sums of dy and of dy x-hat, 4 for dx (two differences, two products). The two fully connected layers need
    2 N C R operations each in forward, and twice as many in backward. Operations once per channel or hidden unit
    (activations, the gate, biases) are not counted.

    Args:
        shape: (N, C, H, W).
        hidden: squeezed width R.
        mode: "infer", "forward" or "train".
        batch_norm: whether the block has a batch norm.
    """
    n, c = shape[:2]
    elements = torch.Size(shape).numel()
    forward = 4 + (0 if not batch_norm else 2 if mode == "infer" else 6)
    backward = 0 if mode != "train" else 5 + (9 if batch_norm else 0)
    layers = 4 * n * c * hidden
    return elements * (forward + backward) + layers * (3 if mode == "train" else 1)


def _grad(mode: str) -> AbstractContextManager[Any]:
    return torch.no_grad() if mode == "infer" else torch.enable_grad()


class BlockWorkload(Workload):
    """The end of a residual block: relu(SE(x) + residual) or relu(SE(BN(x)) + residual).

    The parameters of batch norm are float32, as under autocast; all other tensors have ``dtype``. Every candidate gets
    x and the residual in ``layout``.

    Args:
        shape: (N, C, H, W).
        dtype: dtype of x, the residual and the parameters of SE.
        layout: "contiguous" or "channels_last".
        mode: "infer"; "forward": the forward pass of training, with the statistics of the batch, which saves tensors
            for backward; "train": forward and backward.
        device: device of all tensors.
        batch_norm: whether a batch norm precedes SE, in inference with its running statistics; None: in all modes
            except inference.

    Raises:
        ValueError: ``mode`` is unknown.
    """

    baseline = "se_fused.reference (plain PyTorch)"
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
        if mode not in ALL_MODES:
            raise ValueError(f"mode must be one of {', '.join(ALL_MODES)}; got {mode!r}")
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
        self.hidden = r = max(c // 16 // 8 * 8, 8)  # timm's rounding
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
        # If the argument of ReLU is within rounding of zero, two correct results may have different derivatives. The
        # incoming gradient is zero there, so that the compared values are continuous.
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
        """Reset the running statistics to their initial values and return their names."""
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
        passes = counted_passes(training=self.mode != "infer", batch_norm=self.batch_norm)
        if self.mode == "forward":
            passes = passes.forward_only()
        tensors = 6 if self.mode == "train" else 3  # x, residual, y and dy, dr, dx
        return counted_bytes(self.shape, self.dtype, passes), tensors * self.given["x"].nbytes

    def flops(self) -> int:
        """Floating-point operations of the block, see :func:`block_flops`."""
        return block_flops(self.shape, self.hidden, self.mode, self.batch_norm)

    def _op(self, name: str) -> tuple[Callable[[dict[str, Tensor]], Tensor], dict[str, Tensor]]:
        """Function of a candidate and its arguments by name. Except running statistics, they are not copied."""
        given = {k: t.clone() if k.startswith("running") else t for k, t in self.given.items()}
        if name in LIBRARIES:
            module = ModuleBlock(name, self.given, self._training)
            given |= module.tensors
            return lambda given: module(given["x"], given["residual"]), given
        if not compiles(name):
            source = functional if name == "se_fused" else reference
            return lambda given: self._call(source, given), given
        function: Callable[..., Tensor] = getattr(reference, self.function)
        options = self._options

        def whole(**given: Tensor) -> Tensor:
            return function(**given, out_act="relu", **options)

        mode = compile_mode(name)
        if mode is not None:
            # CUDA graphs copy inputs whose address may change. In a network, inputs have fixed addresses, as here.
            given = {k: t.detach().requires_grad_(t.requires_grad) for k, t in given.items()}
            for t in given.values():
                torch._dynamo.mark_static_address(t)
        graph = compiled(whole, fullgraph=True, mode=mode)
        return lambda given: graph(**given), given

    def candidate(self, name: str, layout: str) -> Candidate:
        self._check(name, BLOCK_PROVIDERS)
        if layout != self.layout:
            raise ValueError(f"layout must be the workload's, {self.layout!r}; got {layout!r}")
        call, given = self._op(name)

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
