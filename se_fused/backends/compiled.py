"""Calls of the operators of a C++ library. They take the fields of the records one by one, and numbers for names
(csrc/operators.h)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .._params import (
    RESIDUALS,
    BatchNormParams,
    BlockOptions,
    BlockSettings,
    Conv1x1Params,
    ExcitationParams,
    Gradients,
    ResidualBlockParams,
    Results,
    SavedTensors,
)
from ..activations import ACT_CODES, GATE_CODES, OUT_ACT_CODES

__all__ = ["number_of", "with_records"]

Operator = Callable[..., Any]

# An operator's results as a NamedTuple, in half of the instructions of its constructor.
_record: Any = tuple.__new__


def _flat(bn: BatchNormParams, fc: ExcitationParams, options: BlockOptions) -> tuple[Any, ...]:
    """The fields of the records in the order of the schemas."""
    return (
        bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.batch_stats, bn.momentum, bn.eps, fc.fc1_weight,
        fc.fc1_bias, fc.fc2_weight, fc.fc2_bias, ACT_CODES[fc.act], GATE_CODES[fc.gate], options.residual,
        options.drop_path_scale, OUT_ACT_CODES[options.out_act],
    )  # fmt: skip


def _forward(operator: Operator) -> Callable[..., Results]:
    def batch_norm_squeeze_excite_forward(
        x: Tensor, bn: BatchNormParams, fc: ExcitationParams, options: BlockOptions, save: bool
    ) -> Results:
        return _record(Results, operator(x, *_flat(bn, fc, options), save))

    return batch_norm_squeeze_excite_forward


def _inference(operator: Operator) -> Callable[..., None]:
    def batch_norm_squeeze_excite_inference(
        x: Tensor, bn: BatchNormParams, fc: ExcitationParams, options: BlockOptions, y: Tensor
    ) -> None:
        operator(
            x, bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.eps, fc.fc1_weight, fc.fc1_bias, fc.fc2_weight,
            fc.fc2_bias, ACT_CODES[fc.act], GATE_CODES[fc.gate], options.residual, options.drop_path_scale,
            OUT_ACT_CODES[options.out_act], y,
        )  # fmt: skip

    return batch_norm_squeeze_excite_inference


def _backward(operator: Operator) -> Callable[..., Gradients]:
    def batch_norm_squeeze_excite_backward(
        dy: Tensor,
        saved: SavedTensors,
        bn: BatchNormParams,
        fc: ExcitationParams,
        options: BlockOptions,
        want_dr: bool,
    ) -> Gradients:
        return _record(Gradients, operator(dy, *saved, *_flat(bn, fc, options), want_dr))

    return batch_norm_squeeze_excite_backward


def _packed(operator: Operator) -> Callable[..., None]:
    def packed_conv1x1_squeeze_excite(
        h: Tensor, conv: Conv1x1Params, folded: ExcitationParams, options: BlockOptions, y: Tensor
    ) -> None:
        operator(
            h, conv.packed, conv.bias, folded.fc1_weight, folded.fc1_bias, folded.fc2_weight, folded.fc2_bias,
            ACT_CODES[folded.act], GATE_CODES[folded.gate], options.residual, options.drop_path_scale,
            OUT_ACT_CODES[options.out_act], y,
        )  # fmt: skip

    return packed_conv1x1_squeeze_excite


def _squeeze(operator: Operator) -> Callable[..., tuple[Tensor, ...]]:
    def batch_norm_act_squeeze(x: Tensor, bn: BatchNormParams, out_act: str, save: bool) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = operator(
            x, bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.batch_stats, bn.momentum, bn.eps,
            OUT_ACT_CODES[out_act], save,
        )  # fmt: skip
        return results

    return batch_norm_act_squeeze


def _squeeze_backward(operator: Operator) -> Callable[..., tuple[Tensor, ...]]:
    def batch_norm_act_squeeze_backward(
        dy: Tensor, dsqueezed: Tensor, x: Tensor, mean: Tensor, stats: Tensor, bn: BatchNormParams, out_act: str
    ) -> tuple[Tensor, ...]:
        gradients: tuple[Tensor, ...] = operator(
            dy, dsqueezed, x, mean, stats, None, None, bn.weight, bn.bias, bn.batch_stats, bn.momentum, bn.eps,
            OUT_ACT_CODES[out_act],
        )  # fmt: skip
        return gradients

    return batch_norm_act_squeeze_backward


def number_of(namespace: Any, settings: BlockSettings) -> int:
    """The number of the settings in a library, which it gets once."""
    number = settings.plans.get(namespace)
    if number is None:
        layers = settings.layers
        numbers = [len(layers[0].stride), len(layers), RESIDUALS.index(settings.residual)]
        numbers += ACT_CODES[settings.act], GATE_CODES[settings.gate]
        norms: list[float] = []
        for layer in layers:
            numbers += *layer.stride, *layer.padding, *layer.dilation, layer.groups, OUT_ACT_CODES[layer.out_act]
            norms += float(layer.batch_stats), layer.momentum, layer.eps
        key = (namespace, tuple(numbers), tuple(norms))
        number = _numbers.get(key)
        if number is None:
            number = _numbers[key] = int(namespace.residual_block_plan(numbers, norms))
        settings.plans[namespace] = number
    return number


_numbers: dict[Any, int] = {}


def _block_forward(operator: Operator, namespace: Any) -> Callable[..., list[Tensor]]:
    def residual_block_forward(x: Tensor, block: ResidualBlockParams, save: bool) -> list[Tensor]:
        number = number_of(namespace, block.settings)
        results: list[Tensor] = operator(x, block.tensors, block.residual, block.drop_path_scale, number, save)
        return results

    return residual_block_forward


def _block_backward(operator: Operator, namespace: Any) -> Callable[..., list[Tensor | None]]:
    def residual_block_backward(
        dy: Tensor, x: Tensor, block: ResidualBlockParams, kept: list[Tensor], wanted: int
    ) -> list[Tensor | None]:
        number = number_of(namespace, block.settings)
        found: list[Tensor | None] = operator(dy, x, block.tensors, block.drop_path_scale, kept, number, wanted)
        return found

    return residual_block_backward


_WITH_PLANS: dict[str, Callable[[Operator, Any], Callable[..., Any]]] = {
    "residual_block_forward": _block_forward,
    "residual_block_backward": _block_backward,
}

_WITH_RECORDS: dict[str, Callable[[Operator], Callable[..., Any]]] = {
    "batch_norm_squeeze_excite_forward": _forward,
    "batch_norm_squeeze_excite_inference": _inference,
    "batch_norm_squeeze_excite_backward": _backward,
    "packed_conv1x1_squeeze_excite": _packed,
    "batch_norm_act_squeeze": _squeeze,
    "batch_norm_act_squeeze_backward": _squeeze_backward,
}


def with_records(namespace: Any, name: str) -> Callable[..., Any]:
    """The operator ``name`` of a library's namespace as the function that a backend has: with records for those of the
    whole block; the passes take plain arguments."""
    # OpOverload.__call__ only passes its arguments on to _op, in 1,800 instructions.
    operator = getattr(namespace, name).default._op
    if name in _WITH_PLANS:
        return _WITH_PLANS[name](operator, namespace)
    wrap = _WITH_RECORDS.get(name)
    function: Callable[..., Any] = operator if wrap is None else wrap(operator)
    return function
