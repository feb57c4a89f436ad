"""Whole networks as workloads: ours against timm's with the same weights, or against ours in plain PyTorch."""

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backends import use_backend
from .models import create_model
from .models.se_resnet import BasicBlock, Bottleneck
from .workloads import LAYOUTS, Candidate, Workload, compiled

__all__ = ["ModelWorkload", "plain_peer", "settle", "shared_start"]


def kinds_of_gradients(parameters: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """All gradients as three vectors, so that those of a few small tensors do not drown in the convolutions'."""
    kinds: dict[str, list[Tensor]] = {"d(convolutions)": [], "d(SE)": [], "d(norms)": []}
    for name, p in parameters:
        kind = "d(SE)" if ".se." in name else "d(convolutions)" if p.dim() > 1 else "d(norms)"
        if p.grad is not None:
            kinds[kind].append(p.grad.detach().flatten())
    return {kind: torch.cat(parts) for kind, parts in kinds.items() if parts}


def shared_start(name: str, num_classes: int, in_chans: int, seed: int = 0) -> nn.Module:
    """Our model with weights for both sides. timm's start has every block's last batch norm at zero, where SE would be
    computed and multiplied by nothing; here it is 0.5."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create_model(name, num_classes=num_classes, in_chans=in_chans, zero_init_last=False)
    for module in model.modules():
        if isinstance(module, BasicBlock | Bottleneck):
            nn.init.constant_(module.last_norm().weight, 0.5)
    return model


def plain_peer(name: str, ours: nn.Module, num_classes: int, in_chans: int) -> tuple[nn.Module, str, bool]:
    """timm's model with ours's weights, or ours again to be run in plain PyTorch: (model, what it is, whether ours)."""
    try:
        import timm

        peer: nn.Module = timm.create_model(name, num_classes=num_classes, in_chans=in_chans)
        peer.load_state_dict(ours.state_dict())
    except ImportError:
        return copy.deepcopy(ours), "our model in plain PyTorch (timm is not installed)", True
    except RuntimeError as error:  # a timm without this model, or with another one of that name
        reason = str(error).splitlines()[0]
        return copy.deepcopy(ours), f"our model in plain PyTorch (timm {timm.__version__}: {reason})", True
    return peer, f"timm {metadata.version('timm')}", False


@torch.no_grad()
def settle(model: nn.Module, images: Tensor) -> None:
    """Set every batch norm's running statistics to those of the images, as in a trained network."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.momentum = 1.0
    model.train()
    model(images)
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum


class ModelWorkload(Workload):
    """A network of ours against timm's with the same weights: logits ("infer"), or loss and all gradients ("train").

    In bfloat16 and float16, inference runs with weights of that dtype and training under autocast.

    Args:
        name: one of :func:`se_fused.list_models`.
        mode: "infer" or "train".
        images: (N, C, H, W) float32; None draws normal numbers, (batch, in_chans, size, size).
        targets: (N,) int64 classes; None counts through them.
        layouts: those that ours and the eager peer are measured in.
        batch, size, in_chans, num_classes: see above.
        start: our model whose weights both sides take; None: :func:`shared_start`.
        learning_rate: where it is above zero, what is timed in training holds a step of SGD with momentum too.
    """

    layout = "both"
    draws = 5
    seconds = 15.0

    def __init__(
        self,
        name: str,
        mode: str,
        dtype: torch.dtype,
        device: str | torch.device,
        *,
        layouts: Sequence[str] = tuple(LAYOUTS),
        images: Tensor | None = None,
        targets: Tensor | None = None,
        batch: int = 8,
        size: int = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        start: nn.Module | None = None,
        learning_rate: float = 0.0,
    ) -> None:
        self.learning_rate = learning_rate
        self.mode, self.dtype, self.device, self.layouts = mode, dtype, torch.device(device), tuple(layouts)
        step = "training step" if learning_rate else "forward+backward"
        self.title = f"{name} {'inference' if mode == 'infer' else step}"
        self._given = images
        if images is None:
            images = torch.empty(batch, in_chans, size, size)
        self.shape = tuple(images.shape)
        input_dtype = dtype if mode == "infer" else torch.float32
        self.inputs = {
            layout: torch.empty(self.shape, dtype=input_dtype, device=self.device).to(memory_format=LAYOUTS[layout])
            for layout in LAYOUTS
        }
        counted = torch.arange(self.images) % num_classes if targets is None else targets
        self.targets = counted.to(self.device)
        self.draw(0)
        ours = shared_start(name, num_classes, self.shape[1]) if start is None else copy.deepcopy(start)
        ours = ours.to(self.device)
        if start is None:
            settle(ours, self.inputs["contiguous"].float())
        theirs, self.peer, self.peer_is_ours = plain_peer(name, ours, num_classes, self.shape[1])
        if mode == "infer":
            ours, theirs = ours.to(dtype), theirs.to(dtype)
        self._models = {"se_fused": ours, "eager": theirs.to(self.device)}

    @torch.no_grad()
    def draw(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(self.shape, generator=generator)
        # Given images are moved by a hundredth from the second draw on: enough for other roundings.
        images = noise if self._given is None else self._given + noise * (0.01 if seed else 0.0)
        for tensor in self.inputs.values():
            tensor.copy_(images)

    def _plain(self, name: str) -> AbstractContextManager[Any]:
        return use_backend("reference") if self.peer_is_ours and name != "se_fused" else nullcontext()

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
        model = copy.deepcopy(self._models["eager"]).double().train(self.mode == "train")
        with self._plain("eager"):
            return self._results(model, model, self.inputs["contiguous"].double())

    def candidate(self, name: str, layout: str) -> Candidate:
        raw = copy.deepcopy(self._models["se_fused" if name == "se_fused" else "eager"])
        raw = raw.to(memory_format=LAYOUTS[layout]).train(self.mode == "train")
        model: Callable[[Tensor], Tensor] = compiled(raw) if name == "compile" else raw
        x = self.inputs[layout]
        optimizer = None
        if self.mode == "train" and self.learning_rate:
            optimizer = torch.optim.SGD(raw.parameters(), self.learning_rate, momentum=0.9)

        def run() -> Tensor:
            with self._plain(name):
                result = self._step(raw, model, x)
                if optimizer is not None:
                    optimizer.step()
                return result

        def results() -> dict[str, Tensor]:
            with self._plain(name):
                return self._results(raw, model, x)

        def forward() -> Tensor:
            with self._plain(name):
                return self._loss(model, x)

        kept = (*raw.parameters(), *raw.buffers())
        return Candidate(name, layout, run, results, forward, kept, lambda: raw.zero_grad(set_to_none=True))
