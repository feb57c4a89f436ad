"""Networks as workloads: models of se_fused, and baselines with the same weights.

The baseline is timm's model or else se_fused's model in plain PyTorch, eager, compiled or in an inference engine.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..._formats import LAYOUTS
from ...backends import use_backend
from ...models import create_model
from ...models.se_resnet import BasicBlock, Bottleneck
from ...nn import optimize_for_inference
from ...testing.generators import generator_on
from ..providers.engines import ENGINES
from ..providers.registry import NETWORK_PROVIDERS, PROVIDERS, compiles
from ..providers.torch_compile import between_graphs, compile_mode, compiled, frozen, kept_results
from .base import MODES, Candidate, Workload

__all__ = [
    "ImageBatch",
    "ModelWorkload",
    "NetworkWorkload",
    "network_bytes",
    "network_flops",
    "plain_baseline",
    "settle",
    "shared_start",
]


def kinds_of_gradients(parameters: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """All gradients as three vectors, so that small tensors of SE and norms are not hidden by the convolutions."""
    kinds: dict[str, list[Tensor]] = {"d(convolutions)": [], "d(SE)": [], "d(norms)": []}
    for name, p in parameters:
        kind = "d(SE)" if ".se." in name else "d(convolutions)" if p.dim() > 1 else "d(norms)"
        if p.grad is not None:
            kinds[kind].append(p.grad.detach().flatten())
    return {kind: torch.cat(parts) for kind, parts in kinds.items() if parts}


def shared_start(name: str, num_classes: int, in_chans: int, seed: int = 0) -> nn.Module:
    """A model of se_fused with the initial weights for all candidates.

    The weight of each block's last batch norm is 0.5. timm's initial value 0 would remove the effect of SE.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create_model(name, num_classes=num_classes, in_chans=in_chans, zero_init_last=False)
    for module in model.modules():
        if isinstance(module, BasicBlock | Bottleneck):
            nn.init.constant_(module.last_norm().weight, 0.5)
    return model


def plain_baseline(name: str, ours: nn.Module, num_classes: int, in_chans: int) -> tuple[nn.Module, str, bool]:
    """The baseline with our weights: timm's model, or a copy of ours to be run in plain PyTorch.

    Returns:
        The model, its description, and whether it is a copy of ours.
    """
    try:
        import timm

        model: nn.Module = timm.create_model(name, num_classes=num_classes, in_chans=in_chans)
        model.load_state_dict(ours.state_dict())
    except ImportError:
        return copy.deepcopy(ours), "our model in plain PyTorch (timm is not installed)", True
    except RuntimeError as error:  # timm has no such model, or another model of this name
        reason = str(error).splitlines()[0]
        return copy.deepcopy(ours), f"our model in plain PyTorch (timm {timm.__version__}: {reason})", True
    return model, f"timm {metadata.version('timm')}", False


@torch.no_grad()
def settle(model: nn.Module, images: Tensor) -> None:
    """Set the running statistics of all batch norms to those of the images, as in a trained network."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.momentum = 1.0
    model.train()
    model(images)
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum


def _on_meta(model: nn.Module, mode: str) -> nn.Module:
    return copy.deepcopy(model).to("meta").train(mode == "train")


def _run_once(model: nn.Module, shape: Sequence[int], mode: str) -> None:
    """Run a model on the meta device once: forward, and in training also backward."""
    dtype = next(model.parameters()).dtype
    with torch.set_grad_enabled(mode == "train"), use_backend("reference"):
        y = model(torch.empty(tuple(shape), dtype=dtype, device="meta"))
        if mode == "train":
            y.sum().backward()


def network_flops(model: nn.Module, shape: Sequence[int], mode: str) -> int:
    """Floating-point operations for one batch, counted by PyTorch's FlopCounterMode.

    Each multiply-add in convolutions and matrix products counts as 2, forward ("infer") or forward and backward
    ("train"). Other operations are not counted.

    Args:
        model: a model that runs on the meta device.
        shape: shape of the images, (N, C, H, W).
        mode: "infer" or "train".
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        _run_once(_on_meta(model, mode), shape, mode)
    return int(counter.get_total_flops())


def network_bytes(model: nn.Module, shape: Sequence[int], dtype: torch.dtype, mode: str) -> tuple[int, int]:
    """Least number of bytes that a network must move, and its working set in bytes.

    This is a lower bound: each convolution and linear layer reads its input and weight and writes its output, each
    residual block reads its shortcut, and all other operations (batch norm, activations, squeeze-excite, pooling) work
    on data that is on the chip. In training, backward also reads the output gradient, input and weight of each layer,
    writes the gradients of the weight and of the input (except for the images), and reads the gradient of the shortcut.
    Activations have ``dtype``, weights their own dtype.

    The working set contains each weight, the images and the output of each layer once; in training also the gradients
    of weights and outputs. Shortcuts are counted only in blocks named ``BasicBlock`` or ``Bottleneck``, as in se_fused
    and timm.

    Args:
        model: a model that runs on the meta device.
        shape: shape of the images, (N, C, H, W).
        dtype: dtype of the activations.
        mode: "infer" or "train".
    """
    model, train, size = _on_meta(model, mode), mode == "train", dtype.itemsize
    moved, working_set, first = 0, size * torch.Size(tuple(shape)).numel(), True

    def layer(module: nn.Module, inputs: tuple[Any, ...], y: Tensor) -> None:
        nonlocal moved, working_set, first
        parameters = sum(p.nbytes for p in module.parameters(recurse=False))
        x_bytes, y_bytes = inputs[0].numel() * size, y.numel() * size
        moved += x_bytes + parameters + y_bytes
        working_set += (parameters + y_bytes) * (2 if train else 1)
        if train:
            moved += y_bytes + x_bytes + parameters + (0 if first else x_bytes) + parameters
        first = False

    def block(module: nn.Module, inputs: tuple[Any, ...], y: Tensor) -> None:
        nonlocal moved
        moved += y.numel() * size * (2 if train else 1)

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(layer)
        elif type(module).__name__ in ("BasicBlock", "Bottleneck"):  # blocks of se_fused and timm
            module.register_forward_hook(block)
    _run_once(model, shape, mode)
    return moved, working_set


@dataclass(frozen=True)
class ImageBatch:
    """The images and classes of a network's workload.

    Args:
        batch, size, in_chans: shape (batch, in_chans, size, size) of random images.
        num_classes: number of classes.
        images: (N, C, H, W) float32 images to use instead of random ones.
        targets: (N,) int64 classes; None uses the numbers 0 to N - 1 modulo ``num_classes``.
    """

    batch: int = 8
    size: int = 224
    in_chans: int = 3
    num_classes: int = 1000
    images: Tensor | None = None
    targets: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return (self.batch, self.in_chans, self.size, self.size) if self.images is None else tuple(self.images.shape)

    def classes(self) -> Tensor:
        """The class of each image."""
        return torch.arange(self.shape[0]) % self.num_classes if self.targets is None else self.targets


class NetworkWorkload(Workload):
    """Base class of network workloads; subclasses set ``_models``.

    The results are the logits in inference, and the loss and all gradients in training. In bfloat16 and float16,
    inference uses weights of that dtype, and training uses autocast.

    Args:
        title: name of the network and the mode, for reports.
        mode: "infer" or "train".
        dtype, device: dtype, as described above, and device.
        layouts: layouts in which se_fused and the eager baseline are measured.
        data: the images and their classes.
        learning_rate: if above zero, the timed training step includes a step of SGD with momentum.
    """

    layout = "both"
    draws = 5
    seconds = 15.0
    truth_of = "eager"
    """Name of the model that computes the float64 results."""
    _models: dict[str, nn.Module]

    def __init__(
        self,
        title: str,
        mode: str,
        dtype: torch.dtype,
        device: str | torch.device,
        layouts: Sequence[str],
        data: ImageBatch,
        learning_rate: float = 0.0,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode must be infer or train for a network; got {mode!r}")
        self.title, self.learning_rate = title, learning_rate
        self.mode, self.dtype, self.device, self.layouts = mode, dtype, torch.device(device), tuple(layouts)
        self._given = data.images
        self.shape = data.shape
        input_dtype = dtype if mode == "infer" else torch.float32
        self.inputs = {
            layout: torch.empty(self.shape, dtype=input_dtype, device=self.device).to(memory_format=LAYOUTS[layout])
            for layout in LAYOUTS
        }
        self.targets = data.classes().to(self.device)
        self.draw(0)

    @torch.no_grad()
    def draw(self, seed: int) -> None:
        generator = generator_on(self.device, seed)
        noise = torch.randn(self.shape, generator=generator, device=generator.device)
        # From the second draw on, small noise is added to given images, enough for different rounding errors.
        images = noise if self._given is None else self._given.to(noise.device) + noise * (0.01 if seed else 0.0)
        for tensor in self.inputs.values():
            tensor.copy_(images)

    def _plain(self, name: str) -> AbstractContextManager[Any]:
        """Context in which a candidate runs."""
        return nullcontext()

    def _loss(self, model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        low = self.dtype if self.dtype != torch.float32 and x.dtype != torch.float64 else None
        with torch.autocast(self.device.type, dtype=low, enabled=low is not None):
            return F.cross_entropy(model(x), self.targets)

    def _step(self, raw: nn.Module, model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.mode == "infer":
            with torch.no_grad():
                return model(x)
        raw.zero_grad(set_to_none=True)
        loss = self._loss(model, x)
        loss.backward()
        return loss.detach()

    def _results(self, raw: nn.Module, model: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, Tensor]:
        value = self._step(raw, model, x)
        if self.mode == "infer":
            return {"logits": value}
        return {"loss": value, **kinds_of_gradients(raw.named_parameters())}

    def truth(self) -> dict[str, Tensor]:
        model = copy.deepcopy(self._models[self.truth_of]).double().train(self.mode == "train")
        with self._plain(self.truth_of):
            return self._results(model, model, self.inputs["contiguous"].double())

    def counted(self) -> tuple[int, int]:
        """Counted bytes and working set, see :func:`network_bytes`."""
        return network_bytes(self._models[self.truth_of], self.shape, self.dtype, self.mode)

    def flops(self) -> int:
        """Floating-point operations, see :func:`network_flops`."""
        return network_flops(self._models[self.truth_of], self.shape, self.mode)

    def _candidate(
        self, name: str, layout: str, raw: nn.Module, model: Callable[[Tensor], Tensor] | None = None
    ) -> Candidate:
        """Candidate with the network ``raw``; ``model``, if given, computes its forward passes."""
        raw = raw.to(memory_format=LAYOUTS[layout]).train(self.mode == "train")
        call: Callable[[Tensor], Tensor] = raw if model is None else model
        x = self.inputs[layout]
        optimizer = None
        if self.mode == "train" and self.learning_rate:
            optimizer = torch.optim.SGD(raw.parameters(), self.learning_rate, momentum=0.9)

        def run() -> Tensor:
            with self._plain(name):
                result = self._step(raw, call, x)
                if optimizer is not None:
                    optimizer.step()
                return result

        def results() -> dict[str, Tensor]:
            with self._plain(name):
                return self._results(raw, call, x)

        def forward() -> Tensor:
            with self._plain(name):
                return self._loss(call, x)

        kept = (*raw.parameters(), *raw.buffers())
        return Candidate(
            name, layout, between_graphs(name, run), kept_results(name, results), forward, kept,
            lambda: raw.zero_grad(set_to_none=True),
        )  # fmt: skip


class ModelWorkload(NetworkWorkload):
    """A network of se_fused, and timm's network with the same weights.

    The results are the logits in inference, and the loss and all gradients in training. In bfloat16 and float16,
    inference uses weights of that dtype, and training uses autocast.

    Args:
        name: one of :func:`se_fused.list_models`.
        mode: "infer" or "train".
        dtype, device: dtype, as described above, and device.
        layouts: layouts in which se_fused and the eager baseline are measured.
        data: the images and their classes.
        start: model of se_fused with the initial weights of all candidates; None: :func:`shared_start`.
        learning_rate: if above zero, the timed training step includes a step of SGD with momentum.

    Raises:
        ValueError: ``mode`` or ``name`` is unknown.
    """

    def __init__(
        self,
        name: str,
        mode: str,
        dtype: torch.dtype,
        device: str | torch.device,
        *,
        layouts: Sequence[str] = tuple(LAYOUTS),
        data: ImageBatch,
        start: nn.Module | None = None,
        learning_rate: float = 0.0,
    ) -> None:
        step = "training step" if learning_rate else "forward+backward"
        title = f"{name} {'inference' if mode == 'infer' else step}"
        super().__init__(title, mode, dtype, device, layouts, data, learning_rate)
        num_classes = data.num_classes
        ours = shared_start(name, num_classes, self.shape[1]) if start is None else copy.deepcopy(start)
        ours = ours.to(self.device)
        if start is None:
            settle(ours, self.inputs["contiguous"].float())
        theirs, self.baseline, self.baseline_is_ours = plain_baseline(name, ours, num_classes, self.shape[1])
        if mode == "infer":
            ours, theirs = ours.to(dtype), theirs.to(dtype)
        self._models = {"se_fused": ours, "eager": theirs.to(self.device)}

    def _plain(self, name: str) -> AbstractContextManager[Any]:
        ours = name.startswith("se_fused")
        return use_backend("reference") if self.baseline_is_ours and not ours else nullcontext()

    def candidate(self, name: str, layout: str) -> Candidate:
        self._check(name, NETWORK_PROVIDERS)
        if not compiles(name):  # compiled candidates support both layouts; some other providers only one
            layout = PROVIDERS[name].layout or layout
        raw = copy.deepcopy(self._models["se_fused" if name.startswith("se_fused") else "eager"])
        raw = raw.to(memory_format=LAYOUTS[layout]).train(self.mode == "train")
        x = self.inputs[layout]
        model: Callable[[Tensor], Tensor] | None = None
        if name == "se_fused optimized":
            model = optimize_for_inference(raw, dtype=self.dtype)
        elif name == "se_fused graphed":
            model = optimize_for_inference(raw, x, dtype=self.dtype, cuda_graph=True)
        elif name == "compile freezing":
            model = frozen(raw)
        elif compiles(name):
            model = compiled(raw, mode=compile_mode(name))
        elif name in ENGINES:
            with self._plain(name), torch.no_grad():
                engine = ENGINES[name](raw, x)

            def model(_: Tensor) -> Tensor:
                return engine()

        return self._candidate(name, layout, raw, model)
