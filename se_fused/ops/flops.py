"""FLOP formulas of the operators for ``torch.utils.flop_counter``.

As in PyTorch's formulas, each multiplication of a matrix product or a convolution counts two, and elementwise
operations count zero. An operator counts the operations that it replaces: a convolution, and the excitation's two
layers, 2 N R C each. A model thus has the same total before and after ``convert`` and ``optimize_for_inference``.
Products that a kernel saves (the folded layer of :mod:`.conv1x1_squeeze_excite` has fewer) are not subtracted.
"""

import sys
from collections.abc import Callable, MutableMapping
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from math import prod
from typing import Any

import torch

from . import batch_norm_squeeze_excite, conv1x1_squeeze_excite, gated_conv1x1

__all__ = ["FORMULAS", "register"]

Shape = torch.Size


def _layer(n: int, weight: Shape | None) -> int:
    return 0 if weight is None else 2 * n * prod(weight)


def _batch_norm_squeeze_excite_forward(*shapes: Any, **_: Any) -> int:
    a: Any = batch_norm_squeeze_excite.ForwardArguments(*shapes)
    return _layer(a.x[0], a.fc1_weight) + _layer(a.x[0], a.fc2_weight)


def _batch_norm_squeeze_excite_train(*shapes: Any, **_: Any) -> int:
    a: Any = batch_norm_squeeze_excite.TrainArguments(*shapes)
    return _layer(a.x[0], a.fc1_weight) + _layer(a.x[0], a.fc2_weight)


def _batch_norm_squeeze_excite_backward(*shapes: Any, **_: Any) -> int:
    a: Any = batch_norm_squeeze_excite.BackwardArguments(*shapes)
    # Two products per layer: one for the weight's gradient and one for the input's.
    return 2 * (_layer(a.x[0], a.fc1_weight) + _layer(a.x[0], a.fc2_weight))


def _conv1x1_squeeze_excite(*shapes: Any, **_: Any) -> int:
    a: Any = conv1x1_squeeze_excite.Arguments(*shapes)
    layers = _layer(a.h[0], a.fc1_weight) + _layer(a.h[0], a.fc2_weight)
    return _layer(a.h[0] * prod(a.h[2:]), a.conv_weight) + layers


def _gated_conv1x1(*shapes: Any, **_: Any) -> int:
    a: Any = gated_conv1x1.Arguments(*shapes)
    return _layer(a.y[0] * prod(a.y[2:]), a.weight)


def _convolution_pointwise(x: Shape, second: Any, third: Any, *_: Any, out_shape: Shape, **__: Any) -> int:
    """oneDNN's convolution with a fused elementwise operation. The weight keeps its shape (C, K / groups, *kernel) in
    oneDNN's memory order. It comes after x or, in the binary overload, after another map, so it is the last of the two
    with x's number of dimensions."""
    weight = [t for t in (second, third) if t is not None and len(t) == len(x)][-1]
    return _layer(out_shape[0] * prod(out_shape[2:]), weight)


FORMULAS: dict[tuple[str, str], Callable[..., int]] = {
    ("se_fused", "batch_norm_squeeze_excite_forward"): _batch_norm_squeeze_excite_forward,
    ("se_fused", "batch_norm_squeeze_excite_train"): _batch_norm_squeeze_excite_train,
    ("se_fused", "batch_norm_squeeze_excite_backward"): _batch_norm_squeeze_excite_backward,
    ("se_fused", "conv1x1_squeeze_excite"): _conv1x1_squeeze_excite,
    ("se_fused", "gated_conv1x1"): _gated_conv1x1,
    # PyTorch's operators that optimised models call and that have no formula in PyTorch 2.11 to 2.14
    ("mkldnn", "_convolution_pointwise"): _convolution_pointwise,
    ("mkldnn", "_convolution_pointwise_"): _convolution_pointwise,
}
"""FLOP formulas by namespace and name of the operator. Tensor arguments are passed as shapes, as in
``register_flop_formula``."""

_COUNTER = "torch.utils.flop_counter"


def _register(registry: MutableMapping[Any, Any], decorate: Callable[..., Any]) -> None:
    for (namespace, name), formula in FORMULAS.items():
        packet = getattr(getattr(torch.ops, namespace), name, None)
        if packet is not None and packet not in registry:
            decorate(packet)(formula)


class _WhenImported(MetaPathFinder):
    """An import hook that registers the formulas when the counter is imported. Importing the counter here would also
    import Triton, which takes 80 ms."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: Any) -> None:
                execute(module)
                _register(module.flop_registry, module.register_flop_formula)

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Register the formulas with PyTorch's FLOP counter: now if it is imported, else when it is imported."""
    counter = sys.modules.get(_COUNTER)
    if counter is not None:
        _register(counter.flop_registry, counter.register_flop_formula)
    elif not any(isinstance(finder, _WhenImported) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenImported())
