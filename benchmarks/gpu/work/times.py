"""Device time of every kernel of one backend, with the share of a copy's speed and the prediction.

    python3 -m benchmarks.gpu.work.times BACKEND [--variant NAME] [--share I/N]

Measured are inference and a training step of the block, and the kernel for the activated map of an EfficientNet block,
for four stages, two layouts and three batch sizes; and a training step of a norm without SE at the largest batch. With
the largest batch, the inputs rotate through more memory than L2 has. With the small ones, they are in L2, as after the
previous layer of a network. ``--share`` runs a part of the calls once and times nothing, to fill the caches of the
compilers.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor

from se_fused import backends, functional
from se_fused._formats import LAYOUTS
from se_fused.activations import OUT_ACT_CODES
from se_fused.backends.cuda import CudaBackend
from se_fused.bench.measure.device_limits import copy_bandwidth, rotation
from se_fused.bench.measure.traffic import counted_bytes, counted_passes
from se_fused.ops.layout import mask_numel

from ...cases import PASSES
from .. import pack
from ..predicted import Predictions
from ..target import Shape, Target, kernel_times, target
from . import at, emit

__all__ = ["call", "counted_bytes_of", "inputs", "main"]

ROUNDS = {"largest": 10, "small": 30}
MODES = ("infer", "train", "squeeze", "norm")
"""Inference and a training step of the block; the kernel of an EfficientNet block; a training step of a norm alone."""
PATHS = ("separate", "l2_grouped")
"""Inference paths of the CUDA backend that its rule does not choose on an H100; forced with the largest batch."""


def counted_bytes_of(kernel: str, mode: str, x: Tensor) -> int | None:
    """Bytes that a launch must move: each of its maps once, and the mask; None if they are not counted."""
    if kernel in ("cluster_fused", "l2_grouped"):
        return 3 * x.nbytes
    if kernel not in PASSES:
        return None
    reads, writes, masks, _ = PASSES[kernel]
    if mode == "infer":
        masks = 0
    return (reads + writes) * x.nbytes + masks * mask_numel(x)


def inputs(shape: Shape, layout: str, there: Target) -> dict[str, Any]:
    c = shape[1]
    r = max(c // 16, 4)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, device=there.device, dtype=there.dtype)

    maps = {k: draw(*shape).to(memory_format=LAYOUTS[layout]) for k in ("x", "residual", "dy")}
    fc = [draw(r, c) * c**-0.5, draw(r), draw(c, r) * r**-0.5, draw(c)]
    bn = [torch.ones(c, device=there.device), torch.zeros(c, device=there.device)]
    return maps | {"fc": fc, "bn": bn, "vector": torch.randn(shape[:2], device=there.device)}


def call(mode: str, backend: str, given: dict[str, Any]) -> Callable[[], Any]:
    x, residual = given["x"], given["residual"]
    if mode == "infer":

        def infer() -> Tensor:
            with torch.no_grad():
                return functional.squeeze_excite(x, *given["fc"], residual, out_act="relu")

        return infer
    if mode == "squeeze":
        kernels, vector = backends.BACKENDS[backend], given["vector"]
        return lambda: kernels.scale_shift_act_mean(x, vector, vector, OUT_ACT_CODES["silu"])
    parameters = given["bn"] if mode == "norm" else [*given["bn"], *given["fc"]]
    wanted = [t.detach().requires_grad_() for t in (x, residual, *parameters)]

    def norm() -> Any:
        y = functional.batch_norm_act(wanted[0], None, None, *wanted[2:], wanted[1], training=True)
        return torch.autograd.grad(y, wanted, given["dy"])

    def train() -> Any:
        y = functional.batch_norm_squeeze_excite(
            wanted[0], None, None, *wanted[2:], wanted[1], training=True, out_act="relu"
        )
        return torch.autograd.grad(y, wanted, given["dy"])

    return norm if mode == "norm" else train


def _counted(mode: str, shape: Shape, dtype: torch.dtype) -> int:
    if mode == "squeeze":
        return 2 * torch.Size(shape).numel() * dtype.itemsize
    return counted_bytes(shape, dtype, counted_passes(training=mode != "infer", batch_norm=mode != "infer"))


def _plans(backend: str, mode: str, batch: int, there: Target) -> Iterator[tuple[str, AbstractContextManager[Any]]]:
    """(name, context) of the path that the rule chooses, and of forced ones."""
    yield "", nullcontext()
    if backend == "cuda" and mode == "infer" and batch == there.batches[0]:
        for path in PATHS:
            yield path, cast(CudaBackend, backends.BACKENDS["cuda"]).forced_plan(path)


def _measure(
    backend: str,
    mode: str,
    shape: Shape,
    layout: str,
    there: Target,
    copy: float | None,
    about: dict[str, Any],
    plan: AbstractContextManager[Any],
    predicted: Predictions,
) -> dict[str, str]:
    """Measure one workload and emit a row for each kernel and one for all; if ``copy`` is None, only run it once.

    Returns:
        For each kernel "80%" of a copy's speed, or "38 us" if its bytes are not counted.
    """
    largest = shape[0] == there.batches[0]
    given = [inputs(shape, layout, there)]
    with plan:
        if copy is None:
            call(mode, backend, given[0])()
            return {}
        x = given[0]["x"]
        if largest and not there.rehearsal:
            given += [inputs(shape, layout, there) for _ in range(rotation(3 * x.nbytes, there.device) - 1)]
        calls = [call(mode, backend, one) for one in given]
        found = kernel_times(calls, max(ROUNDS["largest" if largest else "small"] // len(calls), 2), there.device)
    told = {}
    for kernel, us in found.items():
        moved = counted_bytes_of(kernel, mode, x)
        row: dict[str, Any] = {**about, "us": round(us, 2)}
        if moved is not None:
            row |= {"bytes": moved, "share": round(moved / (us * 1e-6) / copy, 3)}
        if not about["plan"] and (estimate := predicted.find(backend, kernel, mode, layout, shape)):
            row["expected"] = list(estimate)
        emit(kernel, **row)
        told[kernel] = f"{row['share']:.0%}" if "share" in row else f"{us:.0f} us"
    total, moved = sum(found.values()), _counted(mode, shape, there.dtype)
    emit("all", **about, us=round(total, 2), bytes=moved, share=round(moved / (total * 1e-6) / copy, 3))
    return told


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="times")
    parser.add_argument("backend")
    parser.add_argument("--variant", default="")
    parser.add_argument("--share", default="")
    options = parser.parse_args(arguments)
    there, backend = target(), options.backend
    if (reason := backends.BACKENDS[backend].can_use(there.device, there.dtype)) is not None:
        emit("all", ok=False, backend=backend, note=reason)
        return 1
    predicted = Predictions(pack.FOLDER / "variants" / options.variant if options.variant else pack.FOLDER)
    copy = None
    if not options.share:
        copy = copy_bandwidth(there.device)
        emit("copy", gb_s=round(copy / 1e9, 1))
    work = list(itertools.product(there.batches, range(len(there.stages)), LAYOUTS, MODES))
    if options.share:
        part, parts = (int(number) for number in options.share.split("/"))
        work = work[part::parts]
    told: dict[str, list[str]] = {}
    with backends.use_backend(backend):
        for batch, stage, layout, mode in work:
            if mode == "norm" and batch != there.batches[0]:
                continue
            shape = there.at_batch(batch)[stage]
            for name, plan in _plans(backend, mode, batch, there):
                about = {"backend": backend, "variant": options.variant, "mode": mode, "layout": layout,
                         "shape": list(shape), "plan": name}  # fmt: skip
                at(f"{mode} {shape} {layout} {name}")
                try:
                    found = _measure(backend, mode, shape, layout, there, copy, about, plan, predicted)
                except (AttributeError, RuntimeError) as error:
                    # only a forced plan may fail, if this map or this build of the library does not support it
                    if not name or "CUDA error" in str(error):
                        raise
                    emit("all", **about, skipped=str(error).strip().partition("\n")[0])
                    continue
                if batch == there.batches[0] and layout == "channels_last" and not name:
                    for kernel, text in found.items():
                        told.setdefault(kernel if mode != "infer" else f"{kernel} in inference", []).append(text)
    speeds = [f"{kernel} {'/'.join(texts)}" for kernel, texts in told.items() if kernel != "other"]
    emit(
        "all", figure="; ".join([*speeds, *([] if copy is None else [f"a copy {copy / 1e12:.2f} TB/s"])]) or "compiled"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
