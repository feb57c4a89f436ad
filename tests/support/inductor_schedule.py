"""What torch.compile would run on an H100: Inductor's kernels for a training step, without a GPU.

Dynamo and AOTAutograd trace on fake CPU tensors. Then the inputs of each graph move to a fake CUDA device, and Inductor
schedules it and writes Triton's source as on a GPU. Nothing is compiled further, and nothing runs.

Fake CUDA tensors from the start would do without the move, but autograd's engine asks the driver about their device.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._dynamo.device_interface import CudaInterface
from torch._guards import detect_fake_mode
from torch._inductor import compile_fx, config, output_code
from torch._inductor.cudagraph_utils import check_for_mutation
from torch._inductor.fx_passes.post_grad import view_to_reshape
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.hints import DeviceProperties
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from se_fused import backends
from se_fused.backends.base import constant_in_graphs
from se_fused.bench.measure.traffic import counted_bytes, counted_passes

H100 = SimpleNamespace(
    name="H100", gcnArchName="", major=9, minor=0, multi_processor_count=132, regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, warp_size=32, total_memory=80 << 30,
)  # fmt: skip
CUDA = torch.device("cuda", 0)


@dataclass(frozen=True)
class Kernel:
    """A launch of Inductor's, or a call of an operator that has its own kernels."""

    name: str
    """A fallback's operator, or the ATen operators that a generated kernel computes."""
    generated: bool
    bytes: int
    """Counted by DESIGN section 4 for operators of se_fused, else each buffer that is read or written, once. Those of a
    convolution do not count, but a map that its product adds does."""

    @property
    def ours(self) -> bool:
        return "se_fused" in self.name and not self.generated


@dataclass(frozen=True)
class Schedule:
    """The kernels of one graph, Inductor's source, and whether it is captured as a CUDA graph."""

    backward: bool
    kernels: list[Kernel]
    source: str
    cuda_graph: str = "not asked for"
    """Empty if Inductor would capture it (``mode="reduce-overhead"``), else the reason why not."""

    @property
    def bytes(self) -> int:
        return sum(kernel.bytes for kernel in self.kernels)

    def generated(self, least: int = 0) -> list[Kernel]:
        """Inductor's kernels that move so many bytes."""
        return [kernel for kernel in self.kernels if kernel.generated and kernel.bytes >= least]


# ---- a GPU that is not there
def _memory_format(x: Tensor, weight: Tensor, _: Any) -> torch.memory_format:
    """The one of cuDNN's convolutions. The real function asks for a driver."""
    last = any(t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in (x, weight))
    return torch.channels_last if last else torch.contiguous_format


@contextmanager
def _h100() -> Iterator[None]:
    """Inductor finds an H100, and se_fused a backend for it."""

    def properties(_: Any = None) -> Any:
        return H100

    with ExitStack() as stack:

        def patch(target: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(target, name, value))

        patch(torch.cuda, "get_device_properties", properties)
        patch(torch.cuda, "get_device_capability", lambda _=None: (9, 0))
        patch(CudaInterface, "get_device_properties", staticmethod(properties))
        patch(CudaInterface.Worker, "get_device_properties", staticmethod(properties))
        patch(CudaInterface, "get_compute_capability", staticmethod(lambda _=None: 90))
        patch(CudaInterface, "is_bf16_supported", staticmethod(lambda including_emulation=False: True))
        patch(torch._C, "_conv_determine_backend_memory_format", _memory_format)
        patch(torch._inductor.scheduler, "has_triton", lambda *_: True)
        patch(torch.utils._triton, "triton_hash_with_backend", lambda *_: "none")
        patch(backends.BACKENDS["cpu"], "can_use", constant_in_graphs(lambda device, dtype: None))
        DeviceProperties.create.cache_clear()
        stack.callback(DeviceProperties.create.cache_clear)
        yield


# ---- the kernels of a graph
def _order(layout: Any) -> list[int]:
    """Dimensions by stride, without those of size 1."""
    sizes, strides = layout.size, layout.stride
    return sorted((d for d, size in enumerate(sizes) if size != 1), key=lambda d: int(strides[d]))


def _copied_bytes(call: Any) -> int:
    """Bytes of the copies that an operator of se_fused makes of maps that are not in x's order."""
    maps = [each.get_layout() for each in call.inputs if len(each.get_size()) > 3]
    x = max(maps, key=lambda layout: math.prod(layout.size))
    wrong = [m for m in maps if list(m.size) == list(x.size) and _order(m) != _order(x)]
    return sum(2 * math.prod(m.size) * m.dtype.itemsize for m in wrong)


def _own_bytes(node: torch.fx.Node) -> int:
    """Bytes that an operator of se_fused moves by its design."""
    given = dict(zip((a.name for a in node.target._schema.arguments), node.args, strict=False)) | node.kwargs
    if "dr" in given and "weight" in given:  # the product of a convolution, which reads dr beside what it has to
        dr = given["dr"].meta["val"]
        return dr.numel() * dr.itemsize
    x = given["x"].meta["val"]
    backward = "dy" in given
    residual = given["want_dr"] if backward else given["residual"] is not None
    passes = counted_passes(training=True, residual=residual, relu=given["out_act"] == "relu")
    forward = counted_bytes(x.shape, x.dtype, passes.forward_only())
    return counted_bytes(x.shape, x.dtype, passes) - forward if backward else forward


def _kernel(scheduled: Any) -> Kernel | None:
    """The kernel of a node of the schedule; None for one without work, such as a view of an operator's result."""
    kind = type(scheduled).__name__
    origins = sorted({o for node in scheduled.get_nodes() if node.node is not None for o in node.node.origins})
    if kind == "NopKernelSchedulerNode":
        return None
    if kind != "ExternKernelSchedulerNode":
        return Kernel(", ".join(str(o.target) for o in origins), True, scheduled.get_read_write_buffers_sizes())
    called = getattr(scheduled.node, "python_kernel_name", None)
    if called is None:
        return None
    for origin in origins:
        if isinstance(origin.target, torch._ops.OpOverload) and origin.target.namespace == "se_fused":
            return Kernel(called, False, _own_bytes(origin) + _copied_bytes(scheduled.node))
    return Kernel(called, False, 0)


def _schedules(step: Callable[[], None], **options: Any) -> list[Schedule]:
    found: list[Schedule] = []

    def to_module(lowering: GraphLowering) -> Any:
        code, _ = lowering.codegen()
        kernels = [kernel for kernel in map(_kernel, lowering.scheduler.nodes) if kernel is not None]
        found.append(Schedule(bool(lowering.is_backward), kernels, getattr(code, "value", code)))
        outputs = lowering.orig_gm.graph.output_node().args[0]
        values = [node.meta["val"] if isinstance(node, torch.fx.Node) else None for node in outputs]

        def call(arguments: list[Any]) -> list[Any]:
            arguments.clear()
            return [None if v is None else torch.empty_strided(v.size(), v.stride(), dtype=v.dtype) for v in values]

        return SimpleNamespace(call=call, __file__="none")

    def decided(reason: str) -> None:
        found[-1] = replace(found[-1], cuda_graph=reason)

    def cudagraphify(model: Any, static_input_idxs: Sequence[int] = (), **given: Any) -> Any:
        wrapped: Any = SimpleNamespace(static_input_idxs=static_input_idxs, **given)
        decided(check_for_mutation(wrapped, [None] * len(given["placeholders"]), lambda _: False) or "")
        return model

    def on_cuda(graph: torch.fx.GraphModule, inputs: Sequence[Any], **settings: Any) -> Any:
        mode = detect_fake_mode(inputs)
        with mode:
            given = [
                torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device=CUDA) if isinstance(t, Tensor) else t
                for t in inputs
            ]
        for node in graph.graph.nodes:
            if "device" in node.kwargs:
                node.kwargs = {**node.kwargs, "device": CUDA}
        view_to_reshape(graph)  # as Inductor does first: strides may differ from the traced ones
        FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*given)
        return compile_fx.compile_fx_inner(graph, given, **settings)

    def compiler(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Any:
        return compile_fx.compile_fx(graph, inputs, inner_compile=on_cuda)

    torch._dynamo.reset()
    with (
        _h100(),
        config.patch(force_disable_caches=True, compile_threads=1, **options),
        mock.patch.object(GraphLowering, "compile_to_module", to_module),
        mock.patch.object(compile_fx, "cudagraphify", cudagraphify),
        mock.patch.object(output_code, "log_cudagraph_skip_and_bump_counter", decided),
    ):
        step(compiler)
    return found


def training_step(
    module: nn.Module, shape: Sequence[int], dtype: torch.dtype, layout: str, **options: Any
) -> tuple[Schedule, Schedule]:
    """Forward and backward pass of a compiled training step, in which x and y belong to other modules.

    Args:
        module: in training mode. Its parameters become fake tensors.
        shape, dtype, layout: x's.
        options: Inductor's settings.
    """
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    module.to(memory_format=memory_format)

    def step(compiler: Any) -> None:
        with FakeTensorMode(allow_non_fake_inputs=True):
            for child in module.modules():
                for tensors in (child._parameters, child._buffers):
                    for name, t in tensors.items():
                        if t is not None:
                            fake = torch.empty_strided(t.size(), t.stride(), dtype=t.dtype)
                            tensors[name] = nn.Parameter(fake) if isinstance(t, nn.Parameter) else fake
            x = torch.empty(shape, dtype=dtype).contiguous(memory_format=memory_format).requires_grad_()
            y = torch.compile(module, fullgraph=True, backend=compiler)(x.relu())
            (2 * y.float()).sum().backward()

    forward, backward = _schedules(step, **options)
    assert backward.backward and not forward.backward
    return forward, backward
