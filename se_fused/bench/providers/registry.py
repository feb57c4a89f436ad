"""Registry of providers: se_fused and the baseline implementations, their requirements and allowed errors.

The workloads (:mod:`se_fused.bench.workloads`) build candidates by these names. A provider that cannot run is skipped
and never replaced by another; :func:`why_not` gives the reason.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec

import torch

from ..._version import __version__

__all__ = [
    "ALL_MODES",
    "BASELINES",
    "BLOCK_PROVIDERS",
    "NETWORK_PROVIDERS",
    "OURS",
    "PROVIDERS",
    "Provider",
    "allowance",
    "compiles",
    "missing",
    "version",
    "why_not",
]

_BENCH = 'pip install "se_fused[bench]"'
_INSTALL = {"torch_tensorrt": "pip install torch-tensorrt", "triton": "pip install triton"}
OURS = "se_fused"
BASELINES = ("eager", "compile")
"""Baselines of every block and network workload: plain PyTorch, and the same under ``torch.compile``."""
ALL_MODES = ("infer", "forward", "train")
"""Inference; the forward pass of training, which saves tensors for backward; forward and backward."""


@dataclass(frozen=True)
class Provider:
    """An implementation that computes workloads."""

    name: str
    title: str
    """Full name for reports."""
    blocks: bool = False
    """Whether it computes :class:`~se_fused.bench.workloads.block.BlockWorkload`."""
    networks: bool = False
    """Whether it computes :class:`~se_fused.bench.workloads.network.ModelWorkload`."""
    module: str | None = None
    """Python module that it needs; None: only PyTorch."""
    distribution: str = "torch"
    """Distribution whose version is reported."""
    layout: str | None = None
    """Layout in which networks are compared; None: both layouts. Blocks are always compared in both."""
    modes: tuple[str, ...] = ALL_MODES
    devices: tuple[str, ...] = ("cpu", "cuda")
    only: str = ""
    """Reason of :func:`why_not` for other modes and devices."""


_GRAPHS = "reduce-overhead uses CUDA graphs: it needs a GPU"
_TUNED = "max-autotune is compared on GPUs only: it needs a GPU"
PROVIDERS: dict[str, Provider] = {
    provider.name: provider
    for provider in (
        Provider("se_fused", "se_fused", blocks=True, networks=True, distribution="se_fused"),
        Provider(
            "se_fused optimized", "se_fused.optimize_for_inference", networks=True, distribution="se_fused",
            layout="channels_last", modes=("infer",), only="se_fused optimized computes inference only",
        ),
        Provider(
            "se_fused graphed", "se_fused.optimize_for_inference as a CUDA graph", networks=True,
            distribution="se_fused", layout="channels_last", modes=("infer",), devices=("cuda",),
            only="se_fused graphed computes inference on GPUs only",
        ),
        Provider(
            "se_fused compile", "se_fused under torch.compile", networks=True, distribution="se_fused",
            layout="channels_last",
        ),
        Provider(
            "se_fused compile reduce-overhead", "se_fused under torch.compile, reduce-overhead", networks=True,
            distribution="se_fused", layout="channels_last", devices=("cuda",), only=_GRAPHS,
        ),
        Provider("eager", "PyTorch, eager", blocks=True, networks=True),
        Provider("timm", "timm.layers.SEModule", blocks=True, module="timm", distribution="timm"),
        Provider(
            "torchvision", "torchvision.ops.SqueezeExcitation", blocks=True, module="torchvision",
            distribution="torchvision",
        ),
        Provider("monai", "monai.networks.blocks.ChannelSELayer", blocks=True, module="monai", distribution="monai"),
        Provider("compile", "torch.compile", blocks=True, networks=True, layout="channels_last"),
        Provider(
            "compile freezing", "torch.compile, weights frozen", networks=True, layout="channels_last",
            modes=("infer",), devices=("cpu",), only="compile freezing is compared in inference on CPUs only",
        ),
        Provider(
            "compile max-autotune", "torch.compile, max-autotune", blocks=True, networks=True, layout="channels_last",
            devices=("cuda",), only=_TUNED,
        ),
        Provider(
            "compile reduce-overhead", "torch.compile, reduce-overhead", blocks=True, networks=True,
            layout="channels_last", devices=("cuda",), only=_GRAPHS,
        ),
        Provider(
            "openvino", "OpenVINO", networks=True, module="openvino", distribution="openvino", layout="contiguous",
            modes=("infer",), devices=("cpu",), only="openvino is compared in inference on CPUs only",
        ),
        Provider(
            "onnxruntime", "ONNX Runtime", networks=True, module="onnxruntime", distribution="onnxruntime",
            layout="contiguous", modes=("infer",), only="onnxruntime computes inference only",
        ),
        Provider(
            "tensorrt", "TensorRT (torch_tensorrt)", networks=True, module="torch_tensorrt",
            distribution="torch-tensorrt", layout="contiguous", modes=("infer",), devices=("cuda",),
            only="tensorrt computes inference on GPUs only",
        ),
    )
}  # fmt: skip
"""All providers by name."""

BLOCK_PROVIDERS = tuple(name for name, provider in PROVIDERS.items() if provider.blocks)
"""Candidate names of :class:`~se_fused.bench.workloads.block.BlockWorkload`."""

NETWORK_PROVIDERS = tuple(name for name, provider in PROVIDERS.items() if provider.networks)
"""Candidate names of :class:`~se_fused.bench.workloads.network.ModelWorkload`."""


def missing(module: str) -> str | None:
    """None if a Python module can be imported, else one line with the command that installs it."""
    if find_spec(module) is not None:
        return None
    return f"{module} is not installed: {_INSTALL.get(module, _BENCH)}"


def compiles(name: str) -> bool:
    """Whether a provider uses ``torch.compile``."""
    return "compile" in name.split()


def _compiler(device: torch.device) -> str | None:
    if device.type == "cuda":
        return missing("triton")
    cxx = os.environ.get("CXX", "g++")  # as in torch._inductor.config.cpp.cxx
    return None if shutil.which(cxx) else f"torch.compile needs a C++ compiler, but {cxx} was not found: set CXX"


def _onnxruntime(device: torch.device, dtype: torch.dtype) -> str | None:
    kind = str(dtype).removeprefix("torch.")
    if device.type == "cpu":
        return None if dtype == torch.float32 else f"onnxruntime's CPU provider has no {kind} convolution"
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "onnxruntime has no CUDA provider here: pip install onnxruntime-gpu"
    return None if dtype != torch.bfloat16 else "onnxruntime's CUDA provider has no bfloat16 convolution"


_FURTHER: dict[str, Callable[[torch.device, torch.dtype], str | None]] = {
    **{name: lambda device, _: _compiler(device) for name in PROVIDERS if compiles(name)},
    "onnxruntime": lambda device, dtype: missing("onnx") or _onnxruntime(device, dtype),
}


def why_not(name: str, device: str | torch.device, dtype: torch.dtype, mode: str) -> str | None:
    """Reason why a provider cannot run here, in one line; None if it can. Imports no large library.

    Args:
        name: one of :data:`PROVIDERS`.
        device: device of the workload.
        dtype: dtype of the workload.
        mode: "infer", "forward" or "train".

    Raises:
        ValueError: ``name`` or ``mode`` is unknown.
    """
    if name not in PROVIDERS:
        raise ValueError(f"name must be one of {', '.join(PROVIDERS)}; got {name!r}")
    if mode not in ALL_MODES:
        raise ValueError(f"mode must be one of {', '.join(ALL_MODES)}; got {mode!r}")
    provider, device = PROVIDERS[name], torch.device(device)
    if name == "tensorrt" and (device.type != "cuda" or missing("torch_tensorrt")):
        return "tensorrt needs torch_tensorrt and a GPU: pip install torch-tensorrt"
    if device.type not in provider.devices or mode not in provider.modes:
        return provider.only or f"{name} is compared on {' and '.join(provider.devices)} only, not on {device.type}"
    if provider.module is not None and (reason := missing(provider.module)):
        return reason
    further = _FURTHER.get(name)
    return None if further is None else further(device, dtype)


def version(name: str) -> str:
    """Distribution and version of a provider, such as "timm 1.0.31"; without the version if it is not installed.

    Raises:
        ValueError: ``name`` is not in :data:`PROVIDERS`.
    """
    if name not in PROVIDERS:
        raise ValueError(f"name must be one of {', '.join(PROVIDERS)}; got {name!r}")
    distribution = PROVIDERS[name].distribution
    if distribution == "se_fused":
        return f"se_fused {__version__}"  # of the running code; an installed distribution may have another version
    if distribution == "torch":
        return f"torch {torch.__version__}"
    for installed in (distribution, f"{distribution}-gpu"):
        try:
            return f"{distribution} {metadata.version(installed)}"
        except metadata.PackageNotFoundError:
            continue
    return distribution


def allowance(name: str, dtype: torch.dtype, device: str | torch.device) -> float | None:
    """Relative error to float64 that is always allowed for an inference engine; None for providers in PyTorch.

    OpenVINO, ONNX Runtime and TensorRT fold and reorder operations, and in 16 bits they round where PyTorch does not.
    The limit is 0.3 in 16 bits: OpenVINO's logits of SE-ResNet-50 in bfloat16 had an error of 0.11, and 0.3 still
    detects another function. It is 1e-4 in float32 on CPUs, where the errors were below 1e-5, and 1e-2 in float32 on
    GPUs, where TF32 with its 11 bits may be used. Providers in PyTorch are compared with the error of eager PyTorch.
    """
    if name not in ("openvino", "onnxruntime", "tensorrt"):
        return None
    if dtype != torch.float32:
        return 0.3
    return 1e-2 if torch.device(device).type == "cuda" else 1e-4
