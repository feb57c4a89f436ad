"""The block's tail, from its parameters as tensors: three functions, and the checks and choices that they share."""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _checks as check
from .. import reference
from ..backends import Backend, find, forced
from ..ops.batch_norm_squeeze_excite import batch_norm_squeeze_excite as operator
from ..ops.layout import dense, dense_like, positions
from ..ops.running import running_statistics

__all__ = ["batch_norm_act", "batch_norm_squeeze_excite", "squeeze_excite"]

_warned: set[tuple[str, torch.dtype]] = set()


def is_transformed() -> bool:
    """Whether tensors may be wrapped by torch.func (grad, vmap, jvp ...) or carry forward-mode tangents."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _is_for_onnx() -> bool:
    """Whether an ONNX exporter is looking: a file has standard operators alone.

    Raises:
        RuntimeError: torch.jit.trace is.
    """
    if torch.onnx.is_in_onnx_export():
        return True
    if not torch.compiler.is_compiling():
        raise RuntimeError(
            "torch.jit.trace cannot record se_fused's kernels: use torch.export.export(model, ...), or trace plain "
            "PyTorch, with se_fused.use_backend('reference'): torch.jit.trace(model, ...)"
        )
    return False


def backend_for(x: Tensor) -> Backend | None:
    """Whose kernels take this call; None: plain PyTorch, which says so once where that is not what was asked for."""
    backend, reason = find(x.device.type, x.dtype)
    if backend is not None:
        if (torch.compiler.is_compiling() or torch._C._is_tracing()) and _is_for_onnx():
            return None
        if is_transformed():
            backend, reason = None, "kernels know neither torch.func's transforms nor forward-mode derivatives"
    if backend is not None:
        # An empty map has nothing to stream, and its means (0/0) are PyTorch's business.
        return backend if x.numel() else None
    # float64 is documented to go this way, and on the meta device nothing runs
    expected = reason == "asked for" or x.dtype == torch.float64 or x.device.type == "meta"
    if not expected and not torch.compiler.is_compiling() and (x.device.type, x.dtype) not in _warned:
        _warned.add((x.device.type, x.dtype))
        warnings.warn(
            f"se_fused has no kernel for {x.dtype} on {x.device.type} here and runs plain PyTorch ({reason}); "
            "se_fused.use_backend('reference') asks for that without this warning",
            stacklevel=3,
        )
    return None


def check_residual(residual: Any, x: Tensor, shape: torch.Size | None = None) -> None:
    """A residual may be None; else it is a tensor of the result's shape, which is x's unless ``shape`` is given."""
    if residual is None:
        return
    check.check_tensor(residual, "residual")
    if shape is not None and residual.shape != shape:
        raise ValueError(f"residual must have the result's shape {tuple(shape)}, got {tuple(residual.shape)}")
    if shape is None and residual.shape != x.shape:
        raise ValueError(f"residual must have x's shape {tuple(x.shape)}, got {tuple(residual.shape)}")
    if residual.device != x.device:
        raise ValueError(f"residual is on {residual.device}, x on {x.device}: move one, residual.to(x.device)")


def _check_drop_path(drop_path_scale: Any, x: Tensor) -> None:
    check.check_parameter(drop_path_scale, "drop_path_scale", (x.shape[0],), "(N,)", x)
    if drop_path_scale is not None and drop_path_scale.requires_grad:
        raise ValueError("drop_path_scale must not require a gradient: use drop_path_scale.detach()")


def check_gate(x: Tensor, c: int, w1: Any, b1: Any, w2: Any, b2: Any, act: Any, gate: Any) -> None:
    """The gate's parameters for C channels on x's device, and its names."""
    for weight, name in ((w1, "fc1_weight"), (w2, "fc2_weight")):
        check.check_tensor(weight, name)
        if weight.dim() < 2:
            raise ValueError(f"{name} must be 2-D or that of a 1x1 convolution, got shape {tuple(weight.shape)}")
    r = w1.shape[0]
    if r < 1:
        raise ValueError(f"fc1_weight must have at least one output, got shape {tuple(w1.shape)}")
    check.check_parameter(w1, "fc1_weight", (r, c), "(R, C)", x)
    check.check_parameter(b1, "fc1_bias", (r,), "(R,)", x)
    check.check_parameter(w2, "fc2_weight", (c, r), "(C, R)", x)
    check.check_parameter(b2, "fc2_bias", (c,), "(C,)", x)
    check.check_choice(act, "act", reference.ACTIVATIONS)
    check.check_choice(gate, "gate", reference.GATES)


def _check_batch_norm(
    x: Tensor, running_mean: Any, running_var: Any, weight: Any, bias: Any, training: Any, momentum: Any, eps: Any
) -> None:
    c = x.shape[1]
    named = (running_mean, "running_mean"), (running_var, "running_var"), (weight, "bn_weight"), (bias, "bn_bias")
    for t, name in named:
        check.check_parameter(t, name, (c,), "(C,)", x)
    if not isinstance(training, bool):
        raise TypeError(f"training must be a bool, got {type(training).__name__}")
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must both be tensors or both be None")
    if not training and running_mean is None:
        raise ValueError("running_mean and running_var are needed with training=False; pass training=True to normalise "
                         "by the batch")  # fmt: skip
    if momentum is None:
        raise TypeError("momentum must be a number; for a cumulative average pass 1 / num_batches_tracked")
    check.check_number(momentum, "momentum", 0.0, 1.0)
    check.check_number(eps, "eps", 0.0, float("inf"))
    if training and x.shape[0] * positions(x) == 1:
        raise ValueError(f"training needs more than one value per channel, got x of shape {tuple(x.shape)}")


def _fused(
    backend: Backend,
    x: Tensor,
    residual: Tensor | None,
    bn: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    fc: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    drop_path_scale: Tensor | None,
    training: bool,
    eps: float,
    act: str,
    gate: str,
    out_act: str | None,
    inplace: bool,
    momentum: float = 0.0,
) -> Tensor:
    """Bring the tensors into the form that kernels take, and run the operator."""
    x = dense(x)
    if residual is not None:
        residual = dense_like(residual, x)
    if drop_path_scale is not None:
        drop_path_scale = drop_path_scale.reshape(-1)
    bn_tensors = (None, None, *bn[2:]) if training else bn
    fc1_weight, fc1_bias, fc2_weight, fc2_bias = fc
    if fc1_weight is not None and fc2_weight is not None:
        # (R, C, 1, 1) of a 1x1 convolution goes on as it is: in both memory formats it is the matrix (R, C)
        fc1_weight, fc2_weight = fc1_weight.contiguous(), fc2_weight.contiguous()
        if fc1_weight.dtype != fc2_weight.dtype:
            fc1_weight, fc2_weight = fc1_weight.float(), fc2_weight.float()
    tensors = [
        t if t is None or t.dtype != torch.float64 else t.float()
        for t in (*bn_tensors, fc1_weight, fc1_bias, fc2_weight, fc2_bias, drop_path_scale)
    ]  # fmt: skip
    running = running_statistics(*bn[:2], x.shape[0] * positions(x), momentum) if training else None
    return operator(
        backend, inplace, running, x, residual, *tensors, training, float(eps), act, gate, out_act or "none"
    )


def _common_dtype(x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Under autocast x and residual may differ, and eager mode promotes; otherwise they must agree."""
    if residual is None or residual.dtype == x.dtype:
        return x, residual
    if not check.autocasts(x):
        raise TypeError(f"residual must have x's dtype {x.dtype}, got {residual.dtype}: cast one, residual.to(x.dtype)")
    common = torch.promote_types(x.dtype, residual.dtype)
    return x.to(common), residual.to(common)


def squeeze_excite(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    residual: Tensor | None = None,
    *,
    act: str = "relu",
    gate: str = "sigmoid",
    out_act: str | None = None,
    drop_path_scale: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """Squeeze-and-excitation (Hu et al. 2018, arXiv:1709.01507), residual and activation, in two reads of x.

    Equivalent to::

        s = gate(fc2(act(fc1(x.mean(spatial)))))          # (N, C)
        y = out_act(x * s * drop_path_scale + residual)

    Args:
        x: (N, C, *spatial) with 1 to 3 spatial sizes; float32, bfloat16, float16 (float64 in plain PyTorch). Taken as
            it is in the contiguous and the channels_last order; other strides are made contiguous once.
        fc1_weight: (R, C), or (R, C, 1, 1) of a 1x1 convolution; any floating dtype.
        fc1_bias: (R,) or None.
        fc2_weight: (C, R), or (C, R, 1, 1).
        fc2_bias: (C,) or None.
        residual: what is added, of x's shape and dtype, or None.
        act: between the layers: identity, relu, relu6, leaky_relu (slope 0.01), silu, gelu, gelu_tanh, hard_swish, mish
            or tanh.
        gate: sigmoid or hard_sigmoid.
        out_act: after the sum: None, relu, silu or hard_swish.
        drop_path_scale: (N,) factor of each sample's branch (stochastic depth: 0 or 1/keep), without gradient.
        inplace: permits y to be written over x in inference (no gradient asked for, statistics given), where that
            saves an allocation and keeps the lines in the caches. What x then holds is undefined.

    Returns:
        y of x's shape, dtype and memory format. Sums run in float32, and y is rounded once.

    Raises:
        TypeError: not a tensor, or a dtype that is not taken. ValueError: a wrong shape, device or name.
        BackendUnavailable: the backend asked for by :func:`se_fused.use_backend` cannot take the call.
    """
    check.check_x(x)
    check_residual(residual, x)
    check_gate(x, x.shape[1], fc1_weight, fc1_bias, fc2_weight, fc2_bias, act, gate)
    check.check_choice(out_act or "none", "out_act", reference.OUT_ACTIVATIONS)
    _check_drop_path(drop_path_scale, x)
    x, residual = _common_dtype(x, residual)
    fc = (fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    backend = backend_for(x)
    if backend is None or _plain_is_faster(backend, fc1_weight, x, residual, fc1_bias, fc2_weight, fc2_bias):
        return reference.squeeze_excite(
            x, *fc, residual, act=act, gate=gate, out_act=out_act, drop_path_scale=drop_path_scale
        )
    none = (None, None, None, None)
    return _fused(backend, x, residual, none, fc, drop_path_scale, False, 0.0, act, gate, out_act, inplace)


def batch_norm_squeeze_excite(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    residual: Tensor | None = None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    act: str = "relu",
    gate: str = "sigmoid",
    out_act: str | None = None,
    drop_path_scale: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """Batch norm and then :func:`squeeze_excite`: the tail of an SE-ResNet block, still in two reads of x.

    Equivalent to ``squeeze_excite(F.batch_norm(x, ...), ...)``. The normalised map never exists, and for the backward
    pass only x, one bit per element and (N, C) vectors are kept.

    Args:
        x: (N, C, *spatial), as in :func:`squeeze_excite`.
        running_mean, running_var: (C,), or None. With ``training`` they are moved, without it they are used.
        bn_weight, bn_bias: gamma and beta (C,), or None for 1 and 0.
        fc1_weight, fc1_bias, fc2_weight, fc2_bias, residual, act, gate, out_act, drop_path_scale, inplace: as in
            :func:`squeeze_excite`.
        training: normalise by the batch's statistics.
        momentum: share of the batch in the running statistics, in [0, 1]. For a cumulative average pass
            1 / num_batches_tracked, as ``torch.nn.BatchNorm2d(momentum=None)`` does.
        eps: added to the variance.

    Returns, Raises: as :func:`squeeze_excite`.
    """
    check.check_x(x)
    check_residual(residual, x)
    _check_batch_norm(x, running_mean, running_var, bn_weight, bn_bias, training, momentum, eps)
    check_gate(x, x.shape[1], fc1_weight, fc1_bias, fc2_weight, fc2_bias, act, gate)
    check.check_choice(out_act or "none", "out_act", reference.OUT_ACTIVATIONS)
    _check_drop_path(drop_path_scale, x)
    x, residual = _common_dtype(x, residual)
    bn = (running_mean, running_var, bn_weight, bn_bias)
    fc = (fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    backend = backend_for(x)
    if backend is None or _plain_is_faster(backend, fc1_weight, x, residual, bn_weight, bn_bias, *fc[1:]):
        return reference.batch_norm_squeeze_excite(
            x, *bn, *fc, residual, training=training, momentum=momentum, eps=eps, act=act, gate=gate, out_act=out_act,
            drop_path_scale=drop_path_scale,
        )  # fmt: skip
    return _fused(backend, x, residual, bn, fc, drop_path_scale, training, eps, act, gate, out_act, inplace, momentum)


def _plain_is_faster(backend: Backend, fc1_weight: Tensor, *tensors: Tensor | None) -> bool:
    """Whether ``auto`` had better run plain PyTorch: see :attr:`Backend.plain_from`. ``tensors``: x first, then the
    others that a gradient may be asked for."""
    x = tensors[0]
    assert x is not None
    # A graph keeps its kernels: asking for sizes would compile it for them alone.
    if torch.compiler.is_compiling() or x.numel() != x.shape[0] * x.shape[1] or forced() != "auto":
        return False
    gradient = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*tensors, fc1_weight))
    least = backend.plain_from.get((gradient, x.dtype))
    return least is not None and x.numel() * fc1_weight.shape[0] >= least


def _is_the_compilers(training: bool) -> bool:
    """Whether batch norm and activation are better left to torch.compile: in inference it needs one pass as well, and
    fuses them with what stands around them (SE-ResNet50, 2 cores: 144 ms instead of 151)."""
    return torch.compiler.is_compiling() and not training and not torch.is_grad_enabled() and forced() == "auto"


def batch_norm_act(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    residual: Tensor | None = None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    out_act: str | None = "relu",
    drop_path_scale: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """Batch norm, residual and activation: the same kernels without the gate.

    Equivalent to ``out_act(F.batch_norm(x, ...) * drop_path_scale + residual)``, and just that under ``torch.compile``
    in inference, unless a backend is asked for: the compiler fuses it as well. Arguments, result and errors are those
    of :func:`batch_norm_squeeze_excite`.
    """
    check.check_x(x)
    check_residual(residual, x)
    _check_batch_norm(x, running_mean, running_var, bn_weight, bn_bias, training, momentum, eps)
    check.check_choice(out_act or "none", "out_act", reference.OUT_ACTIVATIONS)
    _check_drop_path(drop_path_scale, x)
    x, residual = _common_dtype(x, residual)
    bn = (running_mean, running_var, bn_weight, bn_bias)
    backend = None if _is_the_compilers(training) else backend_for(x)
    if backend is None:
        return reference.batch_norm_act(
            x, *bn, residual, training=training, momentum=momentum, eps=eps, out_act=out_act,
            drop_path_scale=drop_path_scale,
        )  # fmt: skip
    none = (None, None, None, None)
    return _fused(
        backend, x, residual, bn, none, drop_path_scale, training, eps, "relu", "sigmoid", out_act, inplace, momentum
    )
