"""Choice between a backend's kernels and plain PyTorch for a call. An unrequested use of plain PyTorch warns once per
device type and dtype."""

import warnings

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._params import BatchNormParams, BlockOptions, ExcitationParams
from ..backends import Backend, find, forced

__all__ = ["backend_for", "is_transformed", "left_to_the_compiler", "plain_is_faster", "wants_gradient"]

_warned: set[tuple[str, torch.dtype]] = set()


def is_transformed() -> bool:
    """Whether tensors may be wrapped by torch.func (grad, vmap, jvp ...) or carry forward-mode tangents."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd records a gradient for one of the tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _is_for_onnx() -> bool:
    """Whether an ONNX exporter records the call; its file can contain only standard operators.

    Raises:
        RuntimeError: torch.jit.trace records the call.
    """
    if torch.onnx.is_in_onnx_export():
        return True
    if not torch.compiler.is_compiling():
        raise RuntimeError(
            "torch.jit.trace cannot record se_fused's kernels: use torch.export.export(model, ...), or trace plain "
            "PyTorch, with se_fused.use_backend('reference'): torch.jit.trace(model, ...)"
        )
    return False


def backend_for(x: Tensor, compiling: bool | None = None) -> Backend | None:
    """The backend whose kernels run this call, or None for plain PyTorch, with a warning if that was not requested.

    Args:
        x: (N, C, *spatial).
        compiling: whether a graph is traced, if the caller has tested it.
    """
    if compiling is None:
        compiling = torch.compiler.is_compiling()
    # is_cpu takes a tenth of the instructions of device.type.
    backend, reason = find("cpu" if x.is_cpu else x.device.type, x.dtype)
    if backend is not None:
        if compiling or torch._C._is_tracing():
            if _is_for_onnx():
                return None
        elif torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            backend, reason = None, "the kernels support neither torch.func's transforms nor forward-mode derivatives"
    if backend is not None:
        # An empty map has no elements to read. PyTorch defines its means (0/0).
        return backend if x.numel() else None
    # No warning for float64, which is documented to run in plain PyTorch, nor on the meta device, where nothing runs.
    expected = reason == "requested" or x.dtype == torch.float64 or x.device.type == "meta"
    if not expected and not torch.compiler.is_compiling() and (x.device.type, x.dtype) not in _warned:
        _warned.add((x.device.type, x.dtype))
        warnings.warn(
            f"se_fused has no kernel for {x.dtype} on {x.device.type} here and runs plain PyTorch ({reason}); "
            "se_fused.use_backend('reference') selects plain PyTorch without this warning",
            stacklevel=3,
        )
    return None


def plain_is_faster(
    backend: Backend, x: Tensor, bn: BatchNormParams, fc: ExcitationParams, options: BlockOptions
) -> bool:
    """Whether ``auto`` runs plain PyTorch for an x with one position because it is faster: see
    :attr:`Backend.plain_from`."""
    if forced() != "auto":
        return False
    tensors = (
        x, fc.fc1_weight, fc.fc1_bias, fc.fc2_weight, fc.fc2_bias, bn.weight, bn.bias, options.residual
    )  # fmt: skip
    least = backend.plain_from.get((wants_gradient(*tensors), x.dtype))
    return least is not None and x.numel() * fc.squeezed >= least


def left_to_the_compiler(training: bool) -> bool:
    """Whether batch norm and activation of a graph are left to torch.compile as plain PyTorch. In inference its code
    needs one pass as well, and is fused with the operations around it (SE-ResNet50, 2 cores: 144 ms instead of 151)."""
    return not training and not torch.is_grad_enabled() and forced() == "auto"
