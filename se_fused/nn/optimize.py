"""optimize_for_inference: a model's graph with everything behind each convolution put into it.

torch.fx traces the model down to layers; then, from front to back, batch norm is folded into the convolution before it,
activation, squeeze-excite and residual become part of that convolution's call (:mod:`.inference`), and a residual that
nobody reads again is given away as memory for the result.
"""

import copy
import operator
from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from ..reference import OUT_ACTIVATIONS
from ._checks import is_plain
from .inference import (
    ConvAct,
    ConvSqueezeExcite,
    Enter,
    GatedConvAct,
    Leave,
    NormAct,
    Rescale,
    compute_dtype,
    is_product,
)
from .squeeze_excite import SqueezeExcite
from .surgery import convert
from .surgery.layers import arguments_of
from .surgery.parts import activation, brought_activation

__all__ = ["optimize_for_inference"]

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_ADDS = (operator.add, operator.iadd, torch.add)
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)  # in inference
_SPATIAL = {nn.Conv1d: (1024,), nn.Conv2d: (224, 224), nn.Conv3d: (64, 64, 64)}
_ACTS: dict[Any, str] = {
    torch.relu: "relu", torch.relu_: "relu", nn.functional.relu: "relu", nn.functional.relu_: "relu",
    nn.functional.silu: "silu", nn.functional.hardswish: "hard_swish", "relu": "relu", "relu_": "relu",
}  # fmt: skip
_OWNERS = (ConvAct, ConvSqueezeExcite, GatedConvAct, Rescale, NormAct, nn.MaxPool2d, nn.MaxPool1d, nn.MaxPool3d)
"""Modules whose result is a tensor of its own, and which keep no view of their input."""


def _gate_of(module: nn.Module) -> dict[str, Any] | None:
    """What :func:`squeeze_excite` takes from an SE layer, by name; None: it is no SE layer that the kernels know."""
    if is_plain(module, SqueezeExcite) and module.is_fusable():
        names = ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")
        return dict(zip(names, module.parameters_of_gate(), strict=True), act=module.act, gate=module.gate)
    return arguments_of(module)


class _Tracer(fx.Tracer):
    """Down to PyTorch's layers, SE layers, and what cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        try:
            from timm.models import get_notrace_modules
        except ImportError:
            self._opaque: tuple[type[nn.Module], ...] = ()
        else:
            self._opaque = tuple(get_notrace_modules())  # type: ignore[no-untyped-call]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = _gate_of(m) is not None or brought_activation(m) is not None
        return known or isinstance(m, self._opaque) or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module, example: Tensor) -> fx.GraphModule:
    """The model's graph, its nodes with the shapes that they have for the example."""
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:  # whatever the model's own forward raises on a proxy
        raise ValueError(
            f"model cannot be traced by torch.fx ({type(error).__name__}: {str(error).splitlines()[0]}): its forward "
            "decides by values; se_fused.convert(model) does without a trace"
        ) from error
    gm = fx.GraphModule(tracer.root, graph, f"Optimized{type(model).__name__}")
    with torch.no_grad():
        ShapeProp(gm).propagate(example)
    return gm


def _is_norm(module: nn.Module | None) -> bool:
    if module is None or not (is_plain(module, *_NORMS) or brought_activation(module) is not None):
        return False
    return module.running_mean is not None and module.running_var is not None


def _is_add(node: fx.Node) -> bool:
    """Whether it adds two maps of the graph, and they are two of one shape."""
    called = node.op == "call_function" and node.target in _ADDS
    if not (called or (node.op == "call_method" and node.target in ("add", "add_"))) or node.kwargs:
        return False
    if len(node.args) != 2 or not all(isinstance(a, fx.Node) for a in node.args) or node.args[0] is node.args[1]:
        return False
    first, second = (a.meta.get("tensor_meta") for a in node.args)  # type: ignore[union-attr]
    return first is not None and second is not None and first.shape == second.shape and first.dtype == second.dtype


class _Rewriter:
    """Walks the graph from front to back and puts what follows a layer into it."""

    def __init__(self, gm: fx.GraphModule, dtype: torch.dtype) -> None:
        self.gm, self.dtype = gm, dtype
        self.modules = dict(gm.named_modules())
        self.calls = Counter(n.target for n in gm.graph.nodes if n.op == "call_module")

    def module(self, node: Any) -> nn.Module | None:
        """The module that a node calls; None if it calls none."""
        called = isinstance(node, fx.Node) and node.op == "call_module"
        return self.modules[str(node.target)] if called else None

    def _act(self, node: fx.Node) -> str | None:
        """The name of an activation that may end a layer; None if the node is none."""
        module = self.module(node)
        if module is not None:
            name = activation(module)
            return name if name in OUT_ACTIVATIONS else None
        return _ACTS.get(node.target) if len(node.args) == 1 else None

    @staticmethod
    def _is_conv(module: nn.Module | None) -> bool:
        if module is None or not is_plain(module, *_CONVS):
            return False
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)

    @staticmethod
    def _only_user(node: fx.Node) -> fx.Node | None:
        users = list(node.users)
        return users[0] if len(users) == 1 else None

    def _replace(self, node: fx.Node, name: str, layer: nn.Module, *args: Any) -> fx.Node:
        """Put a call of ``layer`` where ``node`` stands."""
        graph = self.gm.graph
        name = name.replace(".", "_")
        while hasattr(self.gm, name):
            name += "_"
        self.gm.add_module(name, layer)
        self.modules[name] = layer
        with graph.inserting_before(node):
            new = graph.call_module(name, args)
        new.meta.update(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        return new

    def run(self) -> None:
        for step in (self._drop_nothing, self._conv, self._rest):
            for node in list(self.gm.graph.nodes):
                if node.op == "call_module":
                    step(node)
            self.gm.graph.eliminate_dead_code()
        self._give_away()
        self.gm.graph.lint()
        self.gm.delete_all_unused_submodules()
        self.gm.recompile()

    def _drop_nothing(self, node: fx.Node) -> None:
        if type(self.module(node)) in _NOTHING and len(node.args) == 1:
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            self.gm.graph.erase_node(node)

    def _conv(self, node: fx.Node) -> None:
        conv = self.module(node)
        if not self._is_conv(conv) or self.calls[node.target] > 1:
            return
        assert isinstance(conv, _ConvNd)
        name, bn, brought, end = str(node.target), None, "none", node
        norm = self._only_user(node)
        if norm is not None and _is_norm(self.module(norm)):
            bn, end = self.module(norm), norm
            brought = brought_activation(bn) or "none"  # type: ignore[arg-type]
        assert bn is None or isinstance(bn, _BatchNorm)
        residual, act = None, brought
        layer: nn.Module | None = None
        if brought == "none":
            se = self._only_user(end)
            gate = None if se is None else self._gate(se, end)
            if se is None or gate is None:
                end, residual, act = self._closing(end)
            elif is_product(conv):
                end, residual, act = self._closing(se)
                layer = ConvSqueezeExcite(conv, bn, gate, self.dtype, act)
        layer = layer or ConvAct(conv, bn, self.dtype, act)
        self._replace(end, name, layer, node.args[0], *([] if residual is None else [residual]))

    def _rest(self, node: fx.Node) -> None:
        """SE layers and batch norms that no convolution has taken in."""
        module, name = self.module(node), str(node.target)
        if _is_norm(module):
            assert isinstance(module, _BatchNorm)
            end, act = node, brought_activation(module) or "none"
            if act == "none":
                end, act = self._activated(node)
            self._replace(end, name, NormAct(module, act), node.args[0])
        elif (gate := self._gate(node, node.args[0])) is not None:
            end, residual, act = self._closing(node)
            rest = [] if residual is None else [residual]
            rescale, user = Rescale(gate, self.dtype, act), self._only_user(end)
            conv = None if user is None or residual is not None or act != "none" else self.module(user)
            if user is not None and isinstance(conv, ConvAct) and is_product(conv) and end not in user.args[1:]:
                self._replace(user, name, GatedConvAct(rescale, conv), node.args[0], *user.args[1:])
            else:
                self._replace(end, name, rescale, node.args[0], *rest)

    def _gate(self, node: fx.Node, x: Any) -> dict[str, Any] | None:
        """The gate's parameters if the node is an SE layer on x."""
        module = self.module(node)
        if module is None or not node.args or node.args[0] is not x:
            return None
        given = node.kwargs.get("drop_path_scale", node.args[3] if len(node.args) > 3 else None)
        return None if given is not None else _gate_of(module)

    def _closing(self, node: fx.Node) -> tuple[fx.Node, Any, str]:
        """What closes a block behind ``node``: the last node, the residual or None, the activation behind their sum."""
        if isinstance(self.module(node), SqueezeExcite):  # our own may have been given both
            given = dict(zip(("x", "residual", "out_act"), node.args, strict=False)) | node.kwargs
            residual, act = given.get("residual"), given.get("out_act")
            if residual is not None or act is not None:
                return node, residual, str(act or "none")
        end, residual = node, None
        add = self._only_user(node)
        if add is not None and _is_add(add):
            end, residual = add, add.args[1] if add.args[0] is node else add.args[0]
        end, act = self._activated(end)
        return end, residual, act

    def _activated(self, node: fx.Node) -> tuple[fx.Node, str]:
        """The activation behind ``node`` and its name; the node itself and "none" if there is none."""
        user = self._only_user(node)
        act = None if user is None else self._act(user)
        return (node, "none") if user is None or act is None else (user, act)

    # ---- memory
    def _give_away(self) -> None:
        """Say of every layer whether the tensor that it may write over is still wanted."""
        order = {node: i for i, node in enumerate(self.gm.graph.nodes)}
        for node in self.gm.graph.nodes:
            layer = self.module(node)
            if isinstance(layer, ConvAct | ConvSqueezeExcite) and len(node.args) == 2:
                layer.keeps_residual = not self._is_last_use(node.args[1], node, order)
            elif isinstance(layer, GatedConvAct):
                layer.rescale.keeps_input = not self._is_last_use(node.args[0], node, order)
                layer.conv.keeps_residual = len(node.args) < 2 or not self._is_last_use(node.args[1], node, order)
            elif isinstance(layer, Rescale | NormAct):
                layer.keeps_input = not self._is_last_use(node.args[0], node, order)

    def _is_last_use(self, value: Any, node: fx.Node, order: dict[fx.Node, int]) -> bool:
        if not isinstance(self.module(value), _OWNERS) or node.args.count(value) > 1:
            return False
        return all(u is node or (order[u] < order[node] and isinstance(self.module(u), _OWNERS)) for u in value.users)


def _example(model: nn.Module) -> Tensor:
    conv = next((m for m in model.modules() if isinstance(m, _CONVS)), None)
    if conv is None:
        raise ValueError("model has no convolution to tell its input from: give example_input")
    shape = (2, conv.in_channels, *_SPATIAL[next(t for t in _CONVS if isinstance(conv, t))])
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(conv.weight.device)


def _floats(outputs: Any) -> Tensor:
    """All floating-point results as one float64 vector."""
    kept = [y for y in tree_leaves(outputs) if isinstance(y, Tensor) and y.is_floating_point()]
    return torch.cat([y.detach().double().flatten() for y in kept])


def _check(model: nn.Module, optimized: nn.Module, example: Tensor, dtype: torch.dtype) -> None:
    """Refuse a result that is farther from the truth than twice the model's own distance (DESIGN, tolerances)."""
    with torch.no_grad():
        truth = _floats(copy.deepcopy(model).double()(example.double()))
        theirs = _floats(copy.deepcopy(model).to(dtype)(example.to(dtype)))
        ours = _floats(optimized(example.to(dtype)))
    if ours.shape != truth.shape:
        raise RuntimeError(f"the optimised model gives {ours.numel()} numbers where the model gives {truth.numel()}")
    size = truth.square().mean().sqrt().item()

    def distance(y: Tensor) -> float:
        return (y - truth).square().mean().sqrt().item() / max(size, torch.finfo(torch.float64).tiny)

    own, bound = distance(ours), 2 * distance(theirs) + 4 * torch.finfo(dtype).eps
    if not own <= bound:
        raise RuntimeError(
            f"the optimised model is {own:.2e} away from the float64 result, relative to its size; {bound:.2e} is "
            f"allowed (the model itself in {dtype} is {distance(theirs):.2e} away): please report the model"
        )


def optimize_for_inference(
    model: nn.Module, example_input: Tensor | None = None, *, dtype: torch.dtype | None = None
) -> fx.GraphModule:
    """A model for inference that computes what ``model.eval()`` computes, with fewer passes over memory.

    Batch norm is folded into convolutions; activation, residual and the rescaling of SE become part of the convolution
    before them; where that is a 1x1 convolution behind which only batch norm stands, the squeeze is taken from its
    input. Weights are channels_last, on the CPU in oneDNN's order. Before it is returned, the result is compared with
    the model's on ``example_input``.

    The result is a new ``torch.fx.GraphModule`` with weights of its own: ``model``, its mode and its hooks are left as
    they are, and hooks of its inner layers are not carried over. It takes any batch size, and any image size that the
    model takes. To change its dtype, optimise again. Put ``torch.compile`` before or instead, not behind: the layers
    are single calls already.

    Args:
        model: of se_fused, timm, torchvision, MONAI or your own, that torch.fx can trace.
        example_input: what the check is made on, (N, C, *spatial); None: two random images of 224 x 224 (volumes of
            64 x 64 x 64) with the channels of the first convolution.
        dtype: float32, bfloat16 or float16, of weights and results; None: that of the model's parameters. On a CPU
            whose convolutions are slower in 16 bits than in float32 (:func:`.inference.compute_dtype`), the layers
            between the first and the last compute in float32; the result's ``enter`` says so where it is printed.

    Returns:
        The optimised model, in eval mode. Inputs of any floating-point dtype are taken; results have ``dtype``.

    Raises:
        TypeError: ``model`` is no ``nn.Module``, or ``dtype`` another one.
        ValueError: torch.fx cannot trace the model, or there is no convolution and no ``example_input``.
        RuntimeError: the result is farther from the float64 truth than twice the error of the model itself.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"model must be a torch.nn.Module that is not scripted, got {type(model).__name__}")
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if parameter is None:
        raise ValueError("model has no parameters: there is nothing to optimise")
    wanted = parameter.dtype if dtype is None else dtype
    if wanted not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"dtype must be torch.float32, torch.bfloat16 or torch.float16, got {wanted}")
    inside = compute_dtype(wanted, parameter.device)
    plain = copy.deepcopy(model).eval()
    example = _example(plain) if example_input is None else example_input
    gm = _trace(convert(copy.deepcopy(plain)), example.to(parameter.dtype))
    _Rewriter(gm, inside).run()
    _cast(gm, inside)
    _add_ends(gm, inside, wanted)
    gm.eval()
    _check(plain, gm, example, wanted)
    return gm


def _cast(gm: fx.GraphModule, dtype: torch.dtype) -> None:
    """Layers that were left as they are, in the dtype of the maps between them; ours have it, and float32 besides."""
    for module in gm.modules():
        if not isinstance(module, ConvAct | ConvSqueezeExcite | NormAct | Rescale):
            for t in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if t.is_floating_point():
                    t.data = t.data.to(dtype)


def _add_ends(gm: fx.GraphModule, inside: torch.dtype, wanted: torch.dtype) -> None:
    """What casts and orders the inputs and casts the results."""
    gm.add_module("enter", Enter(inside))
    gm.add_module("leave", Leave(wanted))
    for node in list(gm.graph.nodes):
        if node.op == "placeholder" and node.users:
            with gm.graph.inserting_after(node):
                entered = gm.graph.call_module("enter", (node,))
            node.replace_all_uses_with(entered, delete_user_cb=lambda user, entered=entered: user is not entered)
        elif node.op == "output" and inside != wanted:
            with gm.graph.inserting_before(node):
                left = gm.graph.call_module("leave", (node.args[0],))
            node.args = (left,)
    gm.delete_all_unused_submodules()
    gm.recompile()
