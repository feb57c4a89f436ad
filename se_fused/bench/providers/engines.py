"""Networks in inference engines that are not PyTorch: OpenVINO, ONNX Runtime, TensorRT.

Each function takes a network in inference and its images, and returns a call without arguments that computes the
result on those images as they are at the time, in the engine's own dtype.
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
    """OpenVINO's CPU plugin, for latency, on as many threads as PyTorch has. It computes in x's dtype where the
    processor has units for it; images and result are float32.

    Args:
        model: any dtype.
        x: (N, C, H, W), on a CPU.
    """
    import openvino as ov

    precision = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[x.dtype]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what tracing says of branches on shapes, which are fixed here
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
    """ONNX Runtime, on as many threads as PyTorch has, or its CUDA provider on x's memory.

    Args:
        model: of x's dtype.
        x: (N, C, H, W), contiguous.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    providers: list[Any] = ["CPUExecutionProvider"]
    if x.is_cuda:
        providers = [("CUDAExecutionProvider", {"device_id": x.device.index or 0})]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's advice to take its successor
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
        torch.cuda.current_stream(x.device).synchronize()  # the provider has a stream of its own
        session.run_with_iobinding(binding)
        return y

    return run


def tensorrt(model: nn.Module, x: Tensor) -> Run:
    """TensorRT through torch_tensorrt's Dynamo frontend, in the dtype of the model and x.

    ``use_explicit_typing`` keeps that dtype; ``enabled_precisions``, which it replaces, is refused beside it
    (https://github.com/pytorch/TensorRT/issues/4070).

    Args:
        model: of x's dtype.
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
"""By the name of the provider in :mod:`se_fused.bench.providers.registry`."""
