"""Calls of the operators of the C++ library for the CPU, ``torch.ops.se_fused_cpu``, with all of their arguments."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from se_fused.activations import ACT_CODES, GATE_CODES, OUT_ACT_CODES, keeps_mask
from se_fused.backends.compiled import number_of
from se_fused.functional import pack_conv1x1
from se_fused.nn.block_plan import plan_of
from se_fused.ops.layout import pack_mask
from support.residual_blocks import block, maps

Arguments = tuple[Any, ...]

N, C, K, R = 3, 20, 6, 4
SHAPE = (N, C, 5, 4)


def _map() -> Tensor:
    return torch.randn(SHAPE)


def _per_sample(count: int) -> list[Tensor]:
    return [torch.randn(N, C) for _ in range(count)]


def _mask() -> Tensor:
    return pack_mask(torch.rand(SHAPE) > 0.4)


def _norm(batch_stats: bool) -> Arguments:
    """Batch norm's arguments, whose running statistics change with ``batch_stats``."""
    return torch.zeros(C), torch.ones(C), torch.rand(C) + 1, torch.randn(C), batch_stats, 0.3, 1e-5


def _excitation(channels: int = C) -> Arguments:
    w1, b1, w2, b2 = torch.randn(R, channels), torch.randn(R), torch.randn(C, R), torch.randn(C)
    return w1, b1, w2, b2, ACT_CODES["silu"], GATE_CODES["sigmoid"]


def _moments() -> Iterator[Arguments]:
    yield (_map(),)


def _scale_shift_act() -> Iterator[Arguments]:
    for code in OUT_ACT_CODES.values():
        yield _map(), _map(), *_per_sample(2), code, keeps_mask(code)


def _moments_backward() -> Iterator[Arguments]:
    for code in OUT_ACT_CODES.values():
        yield _map(), _map(), _map(), _mask(), *_per_sample(3), code, True


def _scale_shift_act_backward() -> Iterator[Arguments]:
    yield _map(), _map(), _mask(), *_per_sample(4)


def _scale_shift_act_mean() -> Iterator[Arguments]:
    for code in OUT_ACT_CODES.values():
        yield _map(), *_per_sample(2), code


def _scale_shift_act_mean_backward() -> Iterator[Arguments]:
    for code in OUT_ACT_CODES.values():
        added, *others = _per_sample(4)
        yield _map(), added, _map(), *others, code


def _forward() -> Iterator[Arguments]:
    for code in OUT_ACT_CODES.values():
        for batch_stats in (True, False):
            for save in (True, False):
                yield _map(), *_norm(batch_stats), *_excitation(), _map(), torch.rand(N), code, save


def _inference() -> Iterator[Arguments]:
    for code in OUT_ACT_CODES.values():
        *statistics_and_affine, _, _, eps = _norm(False)
        yield _map(), *statistics_and_affine, eps, *_excitation(), _map(), torch.rand(N), code, torch.zeros(SHAPE)


def _backward() -> Iterator[Arguments]:
    for code in OUT_ACT_CODES.values():
        for batch_stats in (True, False):
            mean, factor = _per_sample(2)
            saved = mean, factor.sigmoid(), torch.randn(N, R), torch.rand(2, C) + 1
            norm = (None, None, *_norm(batch_stats)[2:])
            w1, _, w2, _, *names = _excitation()
            yield _map(), _map(), _mask(), *saved, *norm, w1, None, w2, None, *names, _map(), torch.rand(N), code, True


def _packed() -> Iterator[Arguments]:
    h, residual, y = (torch.randn(N, channels, 5, 4).to(memory_format=torch.channels_last) for channels in (K, C, C))
    for code in OUT_ACT_CODES.values():
        yield h, pack_conv1x1(torch.randn(C, K)), torch.randn(C), *_excitation(K), residual, None, code, y


def _squeeze() -> Iterator[Arguments]:
    for code in OUT_ACT_CODES.values():
        for batch_stats in (True, False):
            for save in (True, False):
                yield _map(), *_norm(batch_stats), code, save


def _squeeze_backward() -> Iterator[Arguments]:
    for code in OUT_ACT_CODES.values():
        for batch_stats in (True, False):
            dsqueezed, mean = _per_sample(2)
            norm = (None, None, *_norm(batch_stats)[2:])
            yield _map(), dsqueezed, _map(), mean, torch.rand(2, C) + 1, *norm, code


def _block(training: bool) -> tuple[Tensor, list[Tensor | None], int]:
    """x, the tensors and the plan of a residual block with a projection."""
    made = block(shortcut=2).train(training)
    plan = plan_of(made, type(made).modules_of_block)
    tensors = [values[name] for values, name in plan.tensors]
    detached = [t if t is None else t.detach().clone() for t in tensors]
    return maps(made), detached, number_of(torch.ops.se_fused_cpu, plan.settings)


def _block_plan() -> Iterator[Arguments]:
    # dimensions, layers, residual, act, gate; stride, padding, dilation, groups, out_act of a layer
    yield [1, 1, 0, ACT_CODES["relu"], GATE_CODES["sigmoid"], 1, 0, 1, 1, OUT_ACT_CODES["relu"]], [1.0, 0.1, 1e-5]


def _block_forward() -> Iterator[Arguments]:
    for training in (True, False):
        for save in (True, False):
            x, tensors, plan = _block(training)
            yield x, tensors, None, torch.rand(len(x)), plan, save


def _block_backward() -> Iterator[Arguments]:
    for wanted in (-1, 0b1011, 1 << 3):  # all; x and the first weight with a product; the first weight
        x, tensors, plan = _block(training=True)
        y, *kept = torch.ops.se_fused_cpu.residual_block_forward(x, tensors, None, None, plan, True)
        for i in range(2, len(tensors) - 4, 6):
            tensors[i] = tensors[i + 1] = None
        yield torch.randn_like(y), x, tensors, None, kept, plan, wanted & (2**19 - 1)


def _capability() -> Iterator[Arguments]:
    yield (None,)


CPU_CALLS: dict[str, Callable[[], Iterator[Arguments]]] = {
    "moments": _moments,
    "scale_shift_act": _scale_shift_act,
    "moments_backward": _moments_backward,
    "scale_shift_act_backward": _scale_shift_act_backward,
    "scale_shift_act_mean": _scale_shift_act_mean,
    "scale_shift_act_mean_backward": _scale_shift_act_mean_backward,
    "batch_norm_squeeze_excite_forward": _forward,
    "batch_norm_squeeze_excite_inference": _inference,
    "batch_norm_squeeze_excite_backward": _backward,
    "packed_conv1x1_squeeze_excite": _packed,
    "batch_norm_act_squeeze": _squeeze,
    "batch_norm_act_squeeze_backward": _squeeze_backward,
    "residual_block_plan": _block_plan,
    "residual_block_forward": _block_forward,
    "residual_block_backward": _block_backward,
    "capability": _capability,
}
"""By operator: generates the arguments of calls, among which each argument that the operator writes to changes."""
