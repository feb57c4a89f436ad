"""Registry of the implementations that a benchmark compares: what each is, what it needs, which error it may have.

The workloads (:mod:`se_fused.bench.workloads`) build candidates of these names. A peer that cannot run is never
replaced by another: :func:`why_not` says why it is left out.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec

import torch

from ..._version import __version__

__all__ = ["NETWORKS", "PEERS", "TAILS", "Peer", "allowance", "compiles", "missing", "version", "why_not"]

_BENCH = 'pip install "se_fused[bench]"'
_INSTALL = {"torch_tensorrt": "pip install torch-tensorrt", "triton": "pip install triton"}
_MODES = ("infer", "forward", "train")


@dataclass(frozen=True)
class Peer:
    """One way to compute a workload."""

    name: str
    title: str
    """For people: the same, spelled out."""
    tails: bool = False
    """Whether it computes :class:`~se_fused.bench.workloads.block.TailWorkload`."""
    networks: bool = False
    """Whether it computes :class:`~se_fused.bench.workloads.network.ModelWorkload`."""
    module: str | None = None
    """The Python module that it needs; None: nothing beside PyTorch."""
    distribution: str = "torch"
    """Whose version is this peer's."""
    layout: str | None = None
    """The layout in which a network is compared; None: both. Tails are compared in both by everybody."""
    modes: tuple[str, ...] = _MODES
    devices: tuple[str, ...] = ("cpu", "cuda")
    only: str = ""
    """Why it has not every mode and device, for :func:`why_not`."""


_GRAPHS = "reduce-overhead is CUDA graphs: it needs a GPU"
_TUNED = "max-autotune is compared on GPUs only: it needs a GPU"
PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("se_fused", "se_fused", tails=True, networks=True, distribution="se_fused"),
        Peer(
            "se_fused optimized", "se_fused.optimize_for_inference", networks=True, distribution="se_fused",
            layout="channels_last", modes=("infer",), only="se_fused optimized computes inference only",
        ),
        Peer(
            "se_fused compile", "se_fused under torch.compile", networks=True, distribution="se_fused",
            layout="channels_last",
        ),
        Peer(
            "se_fused compile reduce-overhead", "se_fused under torch.compile, reduce-overhead", networks=True,
            distribution="se_fused", layout="channels_last", devices=("cuda",), only=_GRAPHS,
        ),
        Peer("eager", "PyTorch, eager", tails=True, networks=True),
        Peer("timm", "timm.layers.SEModule", tails=True, module="timm", distribution="timm"),
        Peer(
            "torchvision", "torchvision.ops.SqueezeExcitation", tails=True, module="torchvision",
            distribution="torchvision",
        ),
        Peer("monai", "monai.networks.blocks.ChannelSELayer", tails=True, module="monai", distribution="monai"),
        Peer("compile", "torch.compile", tails=True, networks=True, layout="channels_last"),
        Peer(
            "compile freezing", "torch.compile, weights frozen", networks=True, layout="channels_last",
            modes=("infer",), devices=("cpu",), only="compile freezing is compared in inference on CPUs only",
        ),
        Peer(
            "compile max-autotune", "torch.compile, max-autotune", tails=True, networks=True, layout="channels_last",
            devices=("cuda",), only=_TUNED,
        ),
        Peer(
            "compile reduce-overhead", "torch.compile, reduce-overhead", tails=True, networks=True,
            layout="channels_last", devices=("cuda",), only=_GRAPHS,
        ),
        Peer(
            "openvino", "OpenVINO", networks=True, module="openvino", distribution="openvino", layout="contiguous",
            modes=("infer",), devices=("cpu",), only="openvino is compared in inference on CPUs only",
        ),
        Peer(
            "onnxruntime", "ONNX Runtime", networks=True, module="onnxruntime", distribution="onnxruntime",
            layout="contiguous", modes=("infer",), only="onnxruntime computes inference only",
        ),
        Peer(
            "tensorrt", "TensorRT (torch_tensorrt)", networks=True, module="torch_tensorrt",
            distribution="torch-tensorrt", layout="contiguous", modes=("infer",), devices=("cuda",),
            only="tensorrt computes inference on GPUs only",
        ),
    )
}  # fmt: skip
"""All of them."""

TAILS = tuple(name for name, peer in PEERS.items() if peer.tails)
"""The names that :class:`~se_fused.bench.workloads.block.TailWorkload` knows."""

NETWORKS = tuple(name for name, peer in PEERS.items() if peer.networks)
"""The names that :class:`~se_fused.bench.workloads.network.ModelWorkload` knows."""


def missing(module: str) -> str | None:
    """None if that module can be imported, else one line that says how to install it."""
    if find_spec(module) is not None:
        return None
    return f"{module} is not installed: {_INSTALL.get(module, _BENCH)}"


def compiles(name: str) -> bool:
    """Whether that peer goes through ``torch.compile``."""
    return "compile" in name.split()


def _compiler(device: torch.device) -> str | None:
    if device.type == "cuda":
        return missing("triton")
    cxx = os.environ.get("CXX", "g++")  # as torch._inductor.config.cpp.cxx has it
    return None if shutil.which(cxx) else f"torch.compile needs a C++ compiler and {cxx} is not there: set CXX"


def _onnxruntime(device: torch.device, dtype: torch.dtype) -> str | None:
    kind = str(dtype).removeprefix("torch.")
    if device.type == "cpu":
        return None if dtype == torch.float32 else f"onnxruntime's CPU provider has no {kind} convolution"
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "onnxruntime has no CUDA provider here: pip install onnxruntime-gpu"
    return None if dtype != torch.bfloat16 else "onnxruntime's CUDA provider has no bfloat16 convolution"


_FURTHER: dict[str, Callable[[torch.device, torch.dtype], str | None]] = {
    **{name: lambda device, _: _compiler(device) for name in PEERS if compiles(name)},
    "onnxruntime": lambda device, dtype: missing("onnx") or _onnxruntime(device, dtype),
}


def why_not(name: str, device: str | torch.device, dtype: torch.dtype, mode: str) -> str | None:
    """None if that peer can run here, else one line that says why it cannot; nothing heavy is imported.

    Args:
        name: one of :data:`PEERS`.
        device: the workload's.
        dtype: the workload's.
        mode: "infer", "forward" or "train".

    Raises:
        ValueError: another name or mode.
    """
    if name not in PEERS:
        raise ValueError(f"name must be one of {', '.join(PEERS)}; got {name!r}")
    if mode not in _MODES:
        raise ValueError(f"mode must be one of {', '.join(_MODES)}; got {mode!r}")
    peer, device = PEERS[name], torch.device(device)
    if name == "tensorrt" and (device.type != "cuda" or missing("torch_tensorrt")):
        return "tensorrt needs torch_tensorrt and a GPU: pip install torch-tensorrt"
    if device.type not in peer.devices or mode not in peer.modes:
        return peer.only or f"{name} is compared on {' and '.join(peer.devices)} only, not on {device.type}"
    if peer.module is not None and (reason := missing(peer.module)):
        return reason
    further = _FURTHER.get(name)
    return None if further is None else further(device, dtype)


def version(name: str) -> str:
    """What computes, with its version, such as "timm 1.0.31"; without one where it is not installed.

    Raises:
        ValueError: ``name`` is none of :data:`PEERS`.
    """
    if name not in PEERS:
        raise ValueError(f"name must be one of {', '.join(PEERS)}; got {name!r}")
    distribution = PEERS[name].distribution
    if distribution == "se_fused":
        return f"se_fused {__version__}"  # the code that runs, not the distribution that may lie beside it
    if distribution == "torch":
        return f"torch {torch.__version__}"
    for installed in (distribution, f"{distribution}-gpu"):
        try:
            return f"{distribution} {metadata.version(installed)}"
        except metadata.PackageNotFoundError:
            continue
    return distribution


def allowance(name: str, dtype: torch.dtype, device: str | torch.device) -> float | None:
    """Relative error to float64 that an engine of its own rounding may have, whatever eager PyTorch's is; else None.

    OpenVINO, ONNX Runtime and TensorRT fold and reorder as they like. In 16 bits they round where PyTorch does not:
    OpenVINO's logits of SE-ResNet-50 in bfloat16 were 0.11 off, and 0.3 still tells that from another function. In
    float32 on CPUs they were below 1e-5; 1e-4. On GPUs TF32, which has 11 bits, may take part: 1e-2. What runs in
    PyTorch is held against eager PyTorch.
    """
    if name not in ("openvino", "onnxruntime", "tensorrt"):
        return None
    if dtype != torch.float32:
        return 0.3
    return 1e-2 if torch.device(device).type == "cuda" else 1e-4
