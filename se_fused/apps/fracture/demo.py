"""``se-fused fracture demo``: compares an SE-ResNet on radiographs with and without the library's kernels.

Inference and training run with se_fused and with plain PyTorch, from the same weights and images. Both results are
first compared with float64 and then timed.
"""

import copy
import math
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..._formats import DTYPES, LAYOUTS
from ...bench.accuracy import least_error
from ...bench.compare import Row, measure
from ...bench.report import plots
from ...bench.report.console import print_rows, print_table, table
from ...bench.report.format import times
from ...bench.report.style import style
from ...bench.workloads.network import ImageBatch, ModelWorkload, settle, shared_start
from ...testing.error_bounds import relative_error
from .images import load_folder
from .synth import CLASSES, phantoms

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Data", "Outcome", "Settings", "Step", "draw", "load", "run", "show"]

Progress = Callable[[str, float], None]

LEARNING_RATE, MOMENTUM = 0.01, 0.9
_SKIPPED_SHOWN = 8


@dataclass(frozen=True)
class Data:
    """Radiographs of the demo: images (N, 1, S, S) in [0, 1], labels (N,), and their source."""

    images: Tensor
    labels: Tensor
    classes: list[str]
    source: str
    skipped: list[tuple[Path, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Settings:
    """Settings of the demo."""

    model: str = "seresnet50"
    batch: int = 8
    steps: int = 6
    device: str = "cpu"
    dtype: str = "float32"
    compiled: bool = True
    compiled_training: bool = False


@dataclass(frozen=True)
class Step:
    """One training step of se_fused, eager PyTorch and float64 from the same weights.

    Errors are relative to float64, by the name of the result ("loss" and gradients).
    """

    losses: dict[str, float]  # "se_fused", "eager", "float64"
    errors: dict[str, float]  # of se_fused
    eager_errors: dict[str, float]  # of eager PyTorch, the larger of its two memory layouts


@dataclass
class Outcome:
    """Results and measurements of the demo."""

    inference: Row
    steps: list[Step]
    training: Row

    def loss_errors(self, dtype: torch.dtype) -> tuple[float, float]:
        """(error of se_fused, allowed error) of the loss relative to float64; medians over the steps."""
        mine = statistics.median(step.errors["loss"] for step in self.steps)
        eager = statistics.median(step.eager_errors["loss"] for step in self.steps)
        return mine, 2 * eager + least_error(torch.zeros(()), dtype)

    def agreement(self, dtype: torch.dtype) -> dict[str, tuple[float, float]]:
        """{result: (error of se_fused, allowed error)}, in the memory layout whose error is nearer to its limit."""
        found: dict[str, tuple[float, float]] = {}
        for row in (self.inference, self.training):
            ours = [r for r in row.results if r.name == "se_fused"]
            kind = row.workload["title"].partition(" ")[2]
            for name in ours[0].errors:
                pairs = [(r.errors.get(name, math.inf), r.allowed.get(name, 0.0)) for r in ours]
                found[f"{kind}: {name}"] = max(pairs, key=lambda pair: pair[0] / max(pair[1], 1e-300))
        return {**found, "training: loss of the steps above": self.loss_errors(dtype)}

    def ok(self, dtype: torch.dtype) -> bool:
        """Whether all results agree with float64; NaN never agrees.

        The comparison of the training step checks the gradients; it draws new data where a ReLU's input crosses zero
        (:func:`se_fused.bench.accuracy.agreement`). Of the training steps, only the losses are checked.
        """
        mine, allowed = self.loss_errors(dtype)
        return self.inference.ok and self.training.ok and mine <= allowed


def load(folder: str | os.PathLike[str] | None, size: int, count: int) -> Data:
    """Load the radiographs of a folder, or draw synthetic phantoms.

    Args:
        folder: a folder with one sub-folder of images for each class, or a folder of images; None: phantoms.
        size: height and width S in pixels.
        count: maximum number of images.

    Raises:
        OSError, ValueError, ImportError: from :func:`se_fused.apps.fracture.load_folder`.
    """
    if folder is None:
        images, labels = phantoms(count, size, seed=0)
        return Data(images, labels, list(CLASSES), "synthetic phantoms, no clinical meaning")
    images, labels, classes, skipped = load_folder(folder, size, count)
    return Data(images, labels, classes, str(folder), skipped)


def _batch(data: Data, images: Tensor, step: int, size: int) -> tuple[Tensor, Tensor]:
    """Images and labels of a step, from a fixed shuffled order that repeats, so that a batch has several classes."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    places = order[torch.arange(step * size, (step + 1) * size) % len(images)]
    return images[places], data.labels[places]


def _train(
    data: Data, images: Tensor, settings: Settings, start: nn.Module, num_classes: int, progress: Progress
) -> list[Step]:
    """Train se_fused with SGD; plain PyTorch and float64 repeat each step from the same weights.

    Independent float32 runs diverge within a few steps, even plain PyTorch in its two memory layouts, because the
    gradient jumps where a ReLU's input crosses zero. Therefore each step is compared separately.
    """
    ours = copy.deepcopy(start).to(settings.device).train()
    optimizer = torch.optim.SGD(ours.parameters(), LEARNING_RATE, momentum=MOMENTUM)
    steps = []
    for i in range(settings.steps):
        x, labels = _batch(data, images, i, settings.batch)
        workload = ModelWorkload(
            settings.model, "train", DTYPES[settings.dtype], settings.device,
            data=ImageBatch(images=x, targets=labels, num_classes=num_classes), start=ours,
        )  # fmt: skip
        progress(f"training step {i + 1} of {settings.steps}", i / settings.steps)
        truth = workload.truth()
        candidate = workload.candidate("se_fused", "channels_last")
        mine = candidate.results()
        eager = [workload.candidate("eager", layout).results() for layout in LAYOUTS]
        steps.append(
            Step(
                {"se_fused": mine["loss"].item(), "eager": eager[0]["loss"].item(), "float64": truth["loss"].item()},
                {k: relative_error(mine[k], t) for k, t in truth.items()},
                {k: max(relative_error(e[k], t) for e in eager) for k, t in truth.items()},
            )
        )
        # candidate.kept: the candidate's parameters, then its buffers, after this forward pass.
        theirs = dict(zip((*ours.parameters(), *ours.buffers()), candidate.kept, strict=True))
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter.grad = theirs[parameter].grad
            for buffer in ours.buffers():
                buffer.copy_(theirs[buffer])
        optimizer.step()
    return steps


def run(data: Data, settings: Settings, progress: Progress = lambda *_: None) -> Outcome:
    """Check the results and measure the speed. Takes minutes with a large model."""
    images = (data.images - data.images.mean()) / data.images.std().clamp_min(1e-6)
    num_classes = max(len(data.classes), 2)
    first, labels = _batch(data, images, 0, settings.batch)
    start = shared_start(settings.model, num_classes, 1)
    settle(start, first)
    pictures = ImageBatch(images=first, targets=labels, num_classes=num_classes)
    shared: dict[str, Any] = {"data": pictures, "start": start}
    dtype = DTYPES[settings.dtype]

    steps = _train(data, images, settings, start, num_classes, lambda w, s: progress(w, 0.25 * s))
    inference = measure(
        ModelWorkload(settings.model, "infer", dtype, settings.device, **shared),
        compiled=settings.compiled,
        progress=lambda w, s: progress(f"inference: {w}", 0.25 + 0.4 * s),
    )
    training = measure(
        ModelWorkload(settings.model, "train", dtype, settings.device, learning_rate=LEARNING_RATE, **shared),
        compiled=settings.compiled_training,
        progress=lambda w, s: progress(f"training: {w}", 0.65 + 0.35 * s),
    )
    return Outcome(inference, steps, training)


def _show_data(data: Data, settings: Settings, to: "Console") -> None:
    counts = torch.bincount(data.labels, minlength=len(data.classes)).tolist()
    classes = ", ".join(f"{name} {count}" for name, count in zip(data.classes, counts, strict=True))
    size = "×".join(map(str, data.images.shape[-2:]))
    to.print(f"{len(data.images)} radiographs, {size} pixels: {data.source} ({classes})", markup=False, soft_wrap=True)
    for path, reason in data.skipped[:_SKIPPED_SHOWN]:
        to.print(f"  skipped {path}: {reason}", markup=False, style="yellow", soft_wrap=True)
    if len(data.skipped) > _SKIPPED_SHOWN:
        to.print(f"  and {len(data.skipped) - _SKIPPED_SHOWN} more", style="yellow")
    where = f"{torch.get_num_threads()} threads" if settings.device == "cpu" else torch.cuda.get_device_name()
    to.print(
        f"{settings.model}, batch {settings.batch}, {settings.dtype}, on {settings.device} ({where}), torch "
        f"{torch.__version__}\n",
        markup=False,
    )


def show(data: Data, settings: Settings, outcome: Outcome, to: "Console") -> None:
    """Print the data, the agreement of the results and the speed comparison."""
    _show_data(data, settings, to)
    columns = ("se_fused", "PyTorch", "float64", "difference", "gradient error", "PyTorch's gradient error")
    steps = table(("step",), columns)
    for i, step in enumerate(outcome.steps):
        gradients = (max(v for k, v in e.items() if k != "loss") for e in (step.errors, step.eager_errors))
        steps.add_row(
            str(i + 1),
            *(f"{step.losses[k]:.6f}" for k in ("se_fused", "eager", "float64")),
            f"{step.losses['se_fused'] - step.losses['eager']:+.1e}",
            *(f"{error:.1e}" for error in gradients),
        )
    print_table("Loss at each training step, all from the same weights", steps, to)
    agreed = table(("result",), ("se_fused", "twice PyTorch's", ""))
    for name, (mine, allowed) in outcome.agreement(DTYPES[settings.dtype]).items():
        verdict = "agrees" if mine <= allowed else "[red]DIFFERS"
        agreed.add_row(name, f"{mine:.1e}", f"{allowed:.1e}", verdict)
    print_table("Agreement with float64: relative error and allowed error", agreed, to)
    print_rows([outcome.inference, outcome.training], {}, to)
    if not outcome.ok(DTYPES[settings.dtype]):
        to.print("The results do NOT agree: do not rely on the figures above.", style="bold red")
        return
    baseline = outcome.inference.workload["baseline"]
    said = []
    for name, row in (("inference", outcome.inference), ("training", outcome.training)):
        gains = [f"{times(v)} as fast as {style(k)[0]}" for k, v in row.speedups.items()]
        said.append(f"{name} {' and '.join(gains)}")
    to.print(
        f"The results agree. se_fused against {baseline}, each in its faster memory layout: {'; '.join(said)}.",
        markup=False,
        soft_wrap=True,
    )


def draw(data: Data, settings: Settings, outcome: Outcome, path: str | os.PathLike[str]) -> None:
    """Plot images, losses and speed-ups as one figure; see :func:`se_fused.bench.report.plots.draw_training`."""
    losses = {
        "se_fused": [step.losses["se_fused"] for step in outcome.steps],
        "plain PyTorch": [step.losses["eager"] for step in outcome.steps],
        "float64": [step.losses["float64"] for step in outcome.steps],
    }
    titles = [data.classes[label] for label in data.labels.tolist()]
    heading = f"{settings.model} on {data.source}, {settings.device}, {settings.dtype}, batch {settings.batch}"
    plots.draw_training(data.images, titles, losses, [outcome.inference, outcome.training], heading, path)
