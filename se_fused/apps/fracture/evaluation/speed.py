"""Speed and memory of trained models with the fused kernels and in plain PyTorch."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...._checks import check_int
from ....backends import use_backend
from ....bench.measure.memory import keep_freed_memory, peak_memory
from ....bench.measure.timing import Timing, first_line, in_turn, ratio, rounds_for, sampler
from ....testing.error_bounds import GRADIENT_FLOOR, relative_error
from ..classifier import Classifier

__all__ = ["BACKENDS", "SpeedOptions", "measure_speed"]

BACKENDS = {"fused": "auto", "plain": "reference"}
"""{variant: backend}: the fused kernels, if there are any for the device, and the same network in plain PyTorch."""
MODES = ("infer", "train")

# Allowed error relative to plain PyTorch's error: a coarse check. se-fused verify tests the accuracy of the kernels.
_FACTOR = 10.0
_SECONDS = 6.0

Step = Callable[[], Tensor]


@dataclass(frozen=True)
class SpeedOptions:
    """How :func:`measure_speed` measures.

    Args:
        device: device of the measurement.
        batch: batch size, >= 2.
        dtype: float32, or bfloat16 or float16 for autocast.
        rounds: number of rounds; None: as many as take about 6 s, at least 5.
    """

    device: torch.device | str = "cpu"
    batch: int = 32
    dtype: torch.dtype = torch.float32
    rounds: int | None = None


def _step(model: nn.Module, mode: str, x: Tensor, labels: Tensor, low: torch.dtype | None) -> Tensor:
    """One inference or training step: returns the logits, or the loss with the gradients in the parameters."""
    with torch.autocast(x.device.type, dtype=low, enabled=low is not None):
        if mode == "infer":
            with torch.no_grad():
                return model(x)
        model.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(x), labels)
    loss.backward()
    return loss.detach()


def _results(model: nn.Module, mode: str, x: Tensor, labels: Tensor, low: torch.dtype | None) -> dict[str, Tensor]:
    value = _step(model, mode, x, labels, low)
    if mode == "infer":
        return {"logits": value}
    # Gradients of the last layer only: those of earlier layers jump where a ReLU's input crosses zero.
    last: Any = model.get_classifier()  # type: ignore[operator]
    return {"loss": value, "gradient": last.weight.grad.clone()}


def _differences(mine: Mapping[str, nn.Module], mode: str, x: Tensor, labels: Tensor, low: torch.dtype | None) -> str:
    """Description of the differences between fused and plain results; "" if they agree."""
    truth_model = copy.deepcopy(mine["plain"]).double()
    with use_backend("reference"):
        truth = _results(truth_model, mode, x.double(), labels, None)
    errors: dict[str, dict[str, float]] = {}
    for name, model in mine.items():
        with use_backend(BACKENDS[name]):
            found = _results(model, mode, x, labels, low)
        errors[name] = {key: relative_error(value, truth[key]) for key, value in found.items()}
    wrong = [
        f"{key}: error {error:.1e}, plain PyTorch's {errors['plain'][key]:.1e}"
        for key, error in errors["fused"].items()
        if not error <= _FACTOR * errors["plain"][key] + GRADIENT_FLOOR
    ]
    return "; ".join(wrong)


def _pair(classifier: Classifier, mode: str, device: torch.device) -> dict[str, nn.Module]:
    """Two copies of the network, because training updates running statistics."""
    made = {}
    for name in BACKENDS:
        model = copy.deepcopy(classifier.model).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        made[name] = model.train(mode == "train")
    return made


def measure_speed(
    classifiers: Mapping[str, Classifier],
    options: SpeedOptions,
    progress: Callable[[str, float], None] = lambda *_: None,
) -> dict[str, Any]:
    """Measure time and memory of one batch for all models, with fused kernels and in plain PyTorch.

    In each round, every model is measured once with and once without the fused kernels. Both results are first compared
    with float64; models whose results differ are not timed.

    Args:
        classifiers: {model: classifier}.
        options: device, batch size, dtype and number of rounds.
        progress: called with a description of the current step and the completed share, 0 to 1.

    Returns:
        ``{"device", "threads", "batch", "dtype", "modes": {"infer"|"train": {model: {"fused"|"plain": {"seconds":
        {median, q1, q3, n}, "rounds": seconds of each, "images_per_second", "peak_bytes"}, "speedup": {median, q1, q3,
        n}, "differs": text}}}}``. "train" is a forward and a backward pass, without the optimizer step. "speedup" is
        the time of plain divided by the time of fused in the same rounds; above 1 the fused kernels are faster.
    """
    batch, device, dtype = options.batch, torch.device(options.device), options.dtype
    check_int(batch, "batch", 2)
    keep_freed_memory()
    low = None if dtype == torch.float32 else dtype
    modes: dict[str, Any] = {}
    for k, mode in enumerate(MODES):
        rows: dict[str, Any] = {}
        steps: dict[str, Step] = {}
        for i, (name, classifier) in enumerate(classifiers.items()):
            progress(f"checking {name}", (k + 0.3 * i / len(classifiers)) / 2)
            size, classes = classifier.preprocessing.size, len(classifier.classes)
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(batch, 1, size, size, generator=generator).to(device)
            x = x.contiguous(memory_format=torch.channels_last)
            labels = (torch.arange(batch) % classes).to(device)
            pair = _pair(classifier, mode, device)
            try:
                rows[name] = {"differs": _differences(pair, mode, x, labels, low)}
            except (RuntimeError, torch.OutOfMemoryError) as error:
                rows[name] = {"differs": first_line(error)}
            if not rows[name]["differs"]:
                for way, model in pair.items():
                    steps[f"{name} {way}"] = _called(model, way, mode, x, labels, low)
        progress(f"timing {mode}", (k + 0.4) / 2)
        times = _times(steps, device, options.rounds)
        for name, row in rows.items():
            if row["differs"]:
                continue
            progress(f"memory of {name}", (k + 0.9) / 2)
            for way in BACKENDS:
                taken = Timing.of(times[f"{name} {way}"])
                row[way] = {
                    "seconds": taken.as_dict(),
                    "images_per_second": batch / taken.median,
                    "peak_bytes": peak_memory(steps[f"{name} {way}"], device),
                    "rounds": times[f"{name} {way}"],
                }
            row["speedup"] = ratio(times[f"{name} plain"], times[f"{name} fused"]).as_dict()
        modes[mode] = rows
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "batch": batch,
        "dtype": str(dtype).removeprefix("torch."),
        "modes": modes,
    }


def _called(model: nn.Module, way: str, mode: str, x: Tensor, labels: Tensor, low: torch.dtype | None) -> Step:
    def call() -> Tensor:
        with use_backend(BACKENDS[way]):
            return _step(model, mode, x, labels, low)

    return call


def _times(steps: Mapping[str, Step], device: torch.device, rounds: int | None) -> dict[str, list[float]]:
    if not steps:
        return {}
    samplers = {name: sampler(step, device) for name, step in steps.items()}
    first = in_turn(samplers, 1, warmup=1)
    once = sum(seconds[0] for seconds in first.values())
    return in_turn(samplers, rounds or rounds_for(_SECONDS, once), warmup=0)
