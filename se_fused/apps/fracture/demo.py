"""``se-fused fracture demo``: an SE-ResNet on radiographs, inference and training, ours and plain PyTorch.

Both sides have the same weights and images. What they compute is held against float64 first; then they are timed.
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
from ...bench.workloads.network import ModelWorkload, settle, shared_start
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
    """Radiographs: images (N, 1, S, S) in [0, 1], labels (N,), and where they are from."""

    images: Tensor
    labels: Tensor
    classes: list[str]
    source: str
    skipped: list[tuple[Path, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Settings:
    """What to run."""

    model: str = "seresnet50"
    batch: int = 8
    steps: int = 6
    device: str = "cpu"
    dtype: str = "float32"
    compiled: bool = True
    compiled_training: bool = False


@dataclass(frozen=True)
class Step:
    """One training step from the same weights: losses, and errors relative to float64 by result."""

    losses: dict[str, float]  # "se_fused", "eager", "float64"
    errors: dict[str, float]
    eager_errors: dict[str, float]  # the larger one of its two layouts


@dataclass
class Outcome:
    """What was computed and measured."""

    inference: Row
    steps: list[Step]
    training: Row

    def loss_errors(self, dtype: torch.dtype) -> tuple[float, float]:
        """(ours, what ours may be) relative to float64, medians of the steps."""
        mine = statistics.median(step.errors["loss"] for step in self.steps)
        eager = statistics.median(step.eager_errors["loss"] for step in self.steps)
        return mine, 2 * eager + least_error(torch.zeros(()), dtype)

    def agreement(self, dtype: torch.dtype) -> dict[str, tuple[float, float]]:
        """(error, what it may be) of ours by what was computed, in the layout that is nearer to its limit."""
        found: dict[str, tuple[float, float]] = {}
        for row in (self.inference, self.training):
            ours = [r for r in row.results if r.name == "se_fused"]
            kind = row.workload["title"].partition(" ")[2]
            for name in ours[0].errors:
                pairs = [(r.errors.get(name, math.inf), r.allowed.get(name, 0.0)) for r in ours]
                found[f"{kind}: {name}"] = max(pairs, key=lambda pair: pair[0] / max(pair[1], 1e-300))
        return {**found, "training: loss of the steps above": self.loss_errors(dtype)}

    def ok(self, dtype: torch.dtype) -> bool:
        """Whether all agreed; NaN never does.

        Gradients are judged where the training step is compared, which draws again where a ReLU's argument happens to
        cross zero (:func:`se_fused.bench.accuracy.agreement`); the steps are judged by their losses.
        """
        mine, allowed = self.loss_errors(dtype)
        return self.inference.ok and self.training.ok and mine <= allowed


def load(folder: str | os.PathLike[str] | None, size: int, count: int) -> Data:
    """Radiographs of a folder, or drawn phantoms.

    Args:
        folder: one sub-folder of images for each class, or images only; None: phantoms.
        size: height and width S in pixels.
        count: at most so many.

    Raises:
        OSError, ValueError, ImportError: from :func:`se_fused.apps.fracture.load_folder`.
    """
    if folder is None:
        images, labels = phantoms(count, size, seed=0)
        return Data(images, labels, list(CLASSES), "synthetic phantoms, no clinical meaning")
    images, labels, classes, skipped = load_folder(folder, size, count)
    return Data(images, labels, classes, str(folder), skipped)


def _batch(data: Data, images: Tensor, step: int, size: int) -> tuple[Tensor, Tensor]:
    """The step's images and labels; they go round in a fixed mixed order, so that a batch holds several classes."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    places = order[torch.arange(step * size, (step + 1) * size) % len(images)]
    return images[places], data.labels[places]


def _train(
    data: Data, images: Tensor, settings: Settings, start: nn.Module, num_classes: int, progress: Progress
) -> list[Step]:
    """Train ours with SGD; at each step plain PyTorch takes the same step from the same weights, and float64 too.

    Left alone, any two float32 runs part within a few steps, PyTorch's own two memory layouts as well: where a ReLU's
    argument crosses zero, the gradient jumps. So each step is compared by itself.
    """
    ours = copy.deepcopy(start).to(settings.device).train()
    optimizer = torch.optim.SGD(ours.parameters(), LEARNING_RATE, momentum=MOMENTUM)
    steps = []
    for i in range(settings.steps):
        x, labels = _batch(data, images, i, settings.batch)
        workload = ModelWorkload(
            settings.model, "train", DTYPES[settings.dtype], settings.device, images=x, targets=labels,
            num_classes=num_classes, start=ours,
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
        # kept holds the candidate's parameters and then its buffers, after this forward pass.
        theirs = dict(zip((*ours.parameters(), *ours.buffers()), candidate.kept, strict=True))
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter.grad = theirs[parameter].grad
            for buffer in ours.buffers():
                buffer.copy_(theirs[buffer])
        optimizer.step()
    return steps


def run(data: Data, settings: Settings, progress: Progress = lambda *_: None) -> Outcome:
    """Check and measure; takes minutes with a large model."""
    images = (data.images - data.images.mean()) / data.images.std().clamp_min(1e-6)
    num_classes = max(len(data.classes), 2)
    first, labels = _batch(data, images, 0, settings.batch)
    start = shared_start(settings.model, num_classes, 1)
    settle(start, first)
    shared: dict[str, Any] = {"images": first, "targets": labels, "num_classes": num_classes, "start": start}
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
    """Print what data, what agreed, and the comparison."""
    _show_data(data, settings, to)
    columns = ("se_fused", "PyTorch", "float64", "difference", "error of gradients", "PyTorch's")
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
    print_table("Agreement with float64: relative error, and what it may be", agreed, to)
    print_rows([outcome.inference, outcome.training], {}, to)
    if not outcome.ok(DTYPES[settings.dtype]):
        to.print("The results do NOT agree: nothing above may be relied on.", style="bold red")
        return
    baseline = outcome.inference.workload["baseline"]
    said = []
    for name, row in (("inference", outcome.inference), ("training", outcome.training)):
        gains = [f"{times(v)} as fast as {style(k)[0]}" for k, v in row.speedups.items()]
        said.append(f"{name} {' and '.join(gains)}")
    to.print(
        f"The results agree. With se_fused, against {baseline}, each in its better layout: {'; '.join(said)}.",
        markup=False,
        soft_wrap=True,
    )


def draw(data: Data, settings: Settings, outcome: Outcome, path: str | os.PathLike[str]) -> None:
    """Images, losses and speed-ups as one picture; see :func:`se_fused.bench.report.plots.draw_training`."""
    losses = {
        "se_fused": [step.losses["se_fused"] for step in outcome.steps],
        "plain PyTorch": [step.losses["eager"] for step in outcome.steps],
        "float64": [step.losses["float64"] for step in outcome.steps],
    }
    titles = [data.classes[label] for label in data.labels.tolist()]
    heading = f"{settings.model} on {data.source}, {settings.device}, {settings.dtype}, batch {settings.batch}"
    plots.draw_training(data.images, titles, losses, [outcome.inference, outcome.training], heading, path)
