"""SE-ResNet-50 and ResNet-50 as optimize_for_inference makes them, and what else makes inference fast.

Every candidate is a function of one batch of images, with the same weights (timm's, statistics of a trained network).
``python benchmarks/optimized.py --batch 8 --dtype bfloat16`` times all of them in turn, in one run, and prints ratios;
benchmarks/test_optimize.py is the same for pytest-benchmark. OpenVINO and ONNX Runtime take part where installed.
"""

import argparse
import copy
import json
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch._inductor.config as inductor
from torch import Tensor, nn

from se_fused import optimize_for_inference
from se_fused.measure import keep_freed_memory
from se_fused.networks import settle
from se_fused.workloads import DTYPES

__all__ = ["CANDIDATES", "allowed", "candidate", "error", "trained"]

CANDIDATES = {
    "se_fused": "seresnet50",
    "se_fused plain": "resnet50",  # the equally optimised network without SE
    "compile": "seresnet50",  # torch.compile with freezing, channels_last
    "compile plain": "resnet50",
    "openvino": "seresnet50",
    "openvino plain": "resnet50",
    "onnxruntime": "seresnet50",
    "eager": "seresnet50",
}
Run = Callable[[], Tensor]


def trained(name: str, size: int = 224) -> nn.Module:
    """timm's network with the batch statistics of noise, so that the gates and the ReLUs have something to decide."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, zero_init_last=False)
    settle(model, torch.randn(4, 3, size, size))
    return model.eval()


def error(y: Tensor, truth: Tensor) -> float:
    """Root mean square distance, relative to the truth's size."""
    return ((y.double() - truth).norm() / truth.norm()).item()


def allowed(name: str, x: Tensor) -> float:
    """The largest :func:`error` that is timed; in 16 bits peers round every layer, and OpenVINO was 0.11 away."""
    if x.dtype == torch.float32:  # TF32, which PyTorch's convolutions use by default on GPUs, keeps 11 bits
        return 1e-2 if x.is_cuda else 1e-4
    return 5e-2 if name.startswith("se_fused") else 0.3


def _openvino(model: nn.Module, x: Tensor) -> Run:
    import openvino

    precision = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[x.dtype]
    converted = openvino.convert_model(model, example_input=x.float())
    converted.reshape(list(x.shape))
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
    }  # fmt: skip
    request = openvino.Core().compile_model(converted, "CPU", settings).create_infer_request()
    images = x.float().numpy()
    return lambda: torch.from_numpy(next(iter(request.infer([images]).values())))


def _onnxruntime(model: nn.Module, x: Tensor) -> Run:
    import onnxruntime

    if x.dtype != torch.float32:
        raise ImportError(f"onnxruntime's CPU provider has no {x.dtype} convolutions")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        torch.onnx.export(model, (x,), path, dynamo=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def candidate(name: str, model: nn.Module, x: Tensor) -> Run:
    """The candidate of that name; ImportError where its library is not installed."""
    how = name.split()[0]
    if how == "se_fused":
        optimized = optimize_for_inference(model, dtype=x.dtype)
        return lambda: optimized(x)
    if how == "openvino":
        return _openvino(model, x)
    if how == "onnxruntime":
        return _onnxruntime(model, x)
    plain = copy.deepcopy(model).to(x.dtype).to(memory_format=torch.channels_last)
    images = x.contiguous(memory_format=torch.channels_last)
    if how == "eager":
        return lambda: plain(images)
    inductor.freezing = True
    compiled = torch.compile(plain)
    return lambda: compiled(images)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--candidates", nargs="*", choices=CANDIDATES, default=list(CANDIDATES), metavar="NAME")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    keep_freed_memory()
    x = torch.randn(given.batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(DTYPES[given.dtype])
    models = {name: trained(name) for name in ("seresnet50", "resnet50")}
    truths = {name: copy.deepcopy(m).double()(x.double()) for name, m in models.items()}
    runs: dict[str, Run] = {}
    errors: dict[str, float] = {}
    for name in given.candidates:
        print(f"preparing {name}", file=sys.stderr, flush=True)
        try:
            run = candidate(name, models[CANDIDATES[name]], x)
        except ImportError as missing:
            print(f"{name} is left out: {missing}", file=sys.stderr)
            continue
        wrong = error(run(), truths[CANDIDATES[name]])
        if wrong > allowed(name, x):
            sys.exit(f"{name} is {wrong:.1e} away from the truth: nothing is timed")
        runs[name], errors[name] = run, wrong
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(given.rounds):
        names = list(runs)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            time.sleep(0.05)  # the last one's threads still spin, on the processors that this one needs
            start = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - start)
    ours = seconds.get("se_fused") or next(iter(seconds.values()))
    for name, taken in seconds.items():
        times = {"median_ms": round(statistics.median(taken) * 1e3, 1), "min_ms": round(min(taken) * 1e3, 1)}
        ratio = statistics.median(b / a for a, b in zip(ours, taken, strict=True))
        print(
            json.dumps(
                {"candidate": name, "batch": given.batch, "dtype": given.dtype, "ratio": round(ratio, 3), **times}
            )
        )


if __name__ == "__main__":
    main()
