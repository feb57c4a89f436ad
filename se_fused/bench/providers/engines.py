"""Networks in the inference engines OpenVINO, ONNX Runtime and TensorRT.

Each function takes a network in eval mode and an image tensor. It returns a function without arguments that computes
the result for the current values of the tensor, in the dtype of the engine.
"""

import copy
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ENGINES", "Run", "onnxruntime", "openvino", "tensorrt"]

Run = Callable[[], Tensor]


def openvino(model: nn.Module, x: Tensor) -> Run:
    """The network in OpenVINO's CPU plugin, tuned for latency, with PyTorch's number of threads.

    The plugin computes in x's dtype if the processor supports it. Its input and result are float32.

    Args:
        model: a network of any dtype.
        x: (N, C, H, W), on a CPU.
    """
    import openvino as ov

    precision = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[x.dtype]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns about branches on shapes, but the shapes are fixed here
        converted = ov.convert_model(copy.deepcopy(model).float(), example_input=x.float())
    converted.reshape(list(x.shape))
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = ov.Core().compile_model(converted, "CPU", settings).create_infer_request()
    images = x if x.dtype == torch.float32 else torch.empty_like(x, dtype=torch.float32)

    def run() -> Tensor:
        if images is not x:
            images.copy_(x)
        return torch.from_numpy(next(iter(request.infer([images.numpy()]).values())))

    return run


def onnxruntime(model: nn.Module, x: Tensor) -> Run:
    """The network in ONNX Runtime: on a CPU with PyTorch's number of threads, on a GPU with its CUDA provider.

    The CUDA provider reads x's memory without a copy.

    Args:
        model: a network of x's dtype.
        x: (N, C, H, W), contiguous.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    providers: list[Any] = ["CPUExecutionProvider"]
    if x.is_cuda:
        providers = [("CUDAExecutionProvider", {"device_id": x.device.index or 0})]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns that it is superseded
        path = str(Path(folder) / "model.onnx")
        torch.onnx.export(copy.deepcopy(model), (x,), path, dynamo=False)
        session = ort.InferenceSession(path, options, providers=providers)
    name, result = session.get_inputs()[0].name, session.get_outputs()[0]
    if not x.is_cuda:
        return lambda: torch.from_numpy(session.run(None, {name: x.numpy()})[0])
    y = torch.empty(result.shape, dtype=x.dtype, device=x.device)
    binding = session.io_binding()
    for bind, key, t in ((binding.bind_input, name, x), (binding.bind_output, result.name, y)):
        kind = torch.empty(0, dtype=t.dtype).numpy().dtype.type
        bind(key, "cuda", t.device.index or 0, kind, tuple(t.shape), t.data_ptr())

    def run() -> Tensor:
        torch.cuda.current_stream(x.device).synchronize()  # the provider uses another stream
        session.run_with_iobinding(binding)
        return y

    return run


def tensorrt(model: nn.Module, x: Tensor) -> Run:
    """The network in TensorRT by torch_tensorrt's Dynamo frontend, in the dtype of the model and x.

    ``use_explicit_typing`` keeps this dtype. It replaces ``enabled_precisions``, which cannot be given together with it
    (https://github.com/pytorch/TensorRT/issues/4070).

    Args:
        model: a network of x's dtype.
        x: (N, C, H, W), on a GPU.
    """
    import torch_tensorrt

    graph = torch_tensorrt.compile(copy.deepcopy(model), ir="dynamo", inputs=[x], use_explicit_typing=True)

    def run() -> Tensor:
        y: Tensor = graph(x)
        return y

    return run


ENGINES: dict[str, Callable[[nn.Module, Tensor], Run]] = {
    "openvino": openvino,
    "onnxruntime": onnxruntime,
    "tensorrt": tensorrt,
}
"""Engines by the name of the provider in :mod:`se_fused.bench.providers.registry`."""
