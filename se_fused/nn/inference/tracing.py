"""Tracing of a model with torch.fx, and records of the tensors that each node returns, shares and overwrites."""

import inspect
import operator
from collections.abc import Callable, Collection, Mapping
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map

from .matching import CONVS, is_norm, pads_same, squeeze_excite_arguments

__all__ = [
    "Arguments",
    "Kind",
    "add_layer",
    "arguments_of_call",
    "contiguous_argument",
    "first_line",
    "kind",
    "storages",
    "trace",
    "writes",
]


class Kind(NamedTuple):
    """Shape, dtype, strides and offset of a tensor: two tensors with equal kinds and the same storage are the same."""

    shape: torch.Size
    dtype: torch.dtype
    stride: tuple[int, ...]
    offset: int


def kind(node: Any) -> Kind | None:
    """Kind of the tensor that a node returns; None if it returns no tensor or several."""
    found = node.meta.get("kind") if isinstance(node, fx.Node) else None
    return found if isinstance(found, Kind) else None


def storages(value: Any) -> frozenset[int]:
    """Numbers of the storages of a node's tensors; empty for values that are not nodes."""
    return value.meta.get("storages", frozenset()) if isinstance(value, fx.Node) else frozenset()


def writes(node: fx.Node) -> frozenset[int]:
    """Numbers of the storages that a node writes to."""
    written: frozenset[int] = node.meta.get("writes", frozenset())
    return written


def first_line(error: BaseException) -> str:
    """Type and first sentence of an exception, in one line for error messages."""
    sentence = (str(error).splitlines() or [""])[0].split(". ")[0]
    return f"{type(error).__name__}: {sentence[:200]}"


def _is_constant(value: Any) -> bool:
    """Whether an argument contains no tensor. The model may branch on such an argument, so its value is fixed."""
    return not any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))


class Arguments(NamedTuple):
    """Arguments of a call: positional ones, keyword ones, and the names of all of them in this order."""

    by_place: tuple[Any, ...]
    by_name: dict[str, Any]
    names: tuple[str, ...]

    @property
    def values(self) -> tuple[Any, ...]:
        """The values of all arguments, in the order of ``names``."""
        return (*self.by_place, *self.by_name.values())

    def map(self, change: Callable[[Tensor], Tensor]) -> "Arguments":
        """The same arguments with ``change`` applied to each tensor, also inside lists, tuples and dictionaries."""
        by_place, by_name = tree_map(lambda t: change(t) if isinstance(t, Tensor) else t, (self.by_place, self.by_name))
        return Arguments(by_place, by_name, self.names)

    def to(self, dtype: torch.dtype) -> "Arguments":
        """The same arguments with their floating-point tensors in ``dtype``."""
        return self.map(lambda t: t.to(dtype) if t.is_floating_point() else t)

    def clone(self) -> "Arguments":
        """Copies of the tensors, for a model that writes to its input."""
        return self.map(Tensor.clone)

    def call(self, model: nn.Module) -> Any:
        """Result of the model without gradients; the arguments are copied first, as the model may write to them."""
        given = self.clone()
        with torch.no_grad():
            return model(*given.by_place, **given.by_name)

    @property
    def constants(self) -> dict[str, Any]:
        """The arguments that contain no tensor, by name."""
        return {name: value for name, value in zip(self.names, self.values, strict=True) if _is_constant(value)}


def arguments_of_call(
    model: nn.Module, example: Tensor | tuple[Any, ...] | Mapping[str, Any], name: str = "example_input"
) -> Arguments:
    """Arguments of a call of the model, from an example that the user gives.

    Args:
        model: the model whose ``forward`` takes the arguments.
        example: the single argument as a tensor, a tuple of positional arguments, or a dictionary of arguments by name.
        name: the user's name for the example, for messages.

    Raises:
        TypeError: ``example`` has another type.
        ValueError: ``example`` contains no tensor, or the signature of ``forward`` does not accept the arguments.
    """
    if isinstance(example, Tensor):
        example = (example,)
    if isinstance(example, Mapping):
        by_place, by_name = (), dict(example)
    elif isinstance(example, tuple):
        by_place, by_name = example, {}
    else:
        raise TypeError(
            f"{name} must be a tensor, a tuple of arguments or a dictionary of arguments by name, got "
            f"{type(example).__name__}; for a model whose argument is a list or a dictionary, use a tuple: (value,)"
        )
    if _is_constant((by_place, by_name)):
        raise ValueError(f"{name} must hold at least one tensor, got none")
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*by_place, **by_name)
    except TypeError as error:
        raise ValueError(
            f"model.forward{signature} cannot be called with {len(by_place) + len(by_name)} of its arguments "
            f"({error}): give {name}=(first, second, ...) or {name}={{'name': value, ...}}"
        ) from error
    places = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = [p.name for p in places[: len(by_place)]]
    names += [f"arg{i}" for i in range(len(names), len(by_place))]  # values of *args have no names
    return Arguments(by_place, by_name, (*names, *by_name))


# fx records ``x += y`` as ``x + y``, which does not write to x, and cannot record ``x[...] = y``.
_IN_PLACE = {
    f"__{name}__": (getattr(operator, name), getattr(operator, plain))
    for name, plain in (
        ("iadd", "add"), ("isub", "sub"), ("imul", "mul"), ("itruediv", "truediv"), ("ifloordiv", "floordiv"),
        ("imod", "mod"), ("ipow", "pow"), ("iand", "and_"), ("ior", "or_"), ("ixor", "xor"),
    )
}  # fmt: skip


class _Proxy(fx.Proxy):
    """Proxy that records in-place operators and item assignment."""

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


def _writing(target: Any) -> Any:
    def method(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return method


for _name, (_target, _) in _IN_PLACE.items():
    setattr(_Proxy, _name, _writing(_target))


class _Tracer(fx.Tracer):
    """Tracer with PyTorch's layers, SE layers and untraceable modules as leaves, for the arguments of one call.

    Without ``arguments``, placeholders are created as by ``fx.Tracer``: unpickling a GraphModule creates a tracer
    without arguments to trace the stored code.
    """

    def __init__(self, arguments: Arguments | None = None, called: Collection[nn.Module] = ()) -> None:
        super().__init__()
        self.arguments, self.called = arguments, called
        self.entered: list[str] = []
        try:
            from timm.models import get_notrace_modules
        except ImportError:
            self._opaque: tuple[type[nn.Module], ...] = ()
        else:
            self._opaque = tuple(get_notrace_modules())  # type: ignore[no-untyped-call]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = squeeze_excite_arguments(m) is not None or is_norm(m) or pads_same(m)
        return (
            known or m in self.called or isinstance(m, self._opaque) or super().is_leaf_module(m, module_qualified_name)
        )

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Create placeholders for the given arguments; all other arguments keep their defaults, outside the graph.

        Arguments without a tensor are constants with the value of the example.
        """
        if self.arguments is None:
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        by_name, count = self.arguments.by_name, len(self.arguments.by_place)
        constants = self.arguments.constants
        proxies = [self.create_proxy("placeholder", name, (), {}) for name in self.arguments.names]
        proxies = [constants.get(name, proxy) for name, proxy in zip(self.arguments.names, proxies, strict=True)]

        def forward(root: nn.Module, places: list[Any], names: dict[str, Any]) -> Any:
            return root.forward(*places, **names)

        return forward, [self.root, proxies[:count], dict(zip(by_name, proxies[count:], strict=True))]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        self.entered.append(self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        self.entered.pop()  # not reached after an exception: the name then identifies the layer for the message
        return result


def _version(tensor: Tensor) -> int:
    """Number of in-place writes to a tensor; 0 for tensors created in inference mode, which have no counter."""
    return 0 if tensor.is_inference() else tensor._version


class _Recorder(fx.Interpreter):
    """Run a graph and record for each node its :func:`kind`, :func:`storages` and :func:`writes`.

    Writes are detected by PyTorch's version counters, so all forms are found: ``relu_``, ``+=``, ``inplace=True``,
    ``out=``. A storage has the same number only while it is alive, because its address may be reused later.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self._kept: dict[int, int] = {}  # address -> number of parameters and buffers, which stay alive
        self._live: dict[fx.Node, dict[int, tuple[int, Tensor]]] = {}  # node -> address -> (number, tensor)
        self._count = 0

    def _tensors(self, value: Any) -> dict[int, Tensor]:
        """Tensors inside ``value`` by the address of their storage, without empty and sparse ones."""
        found = [t for t in tree_leaves(value) if isinstance(t, Tensor) and t.layout == torch.strided and t.numel()]
        return {t.untyped_storage().data_ptr(): t for t in found}

    def run_node(self, n: fx.Node) -> Any:
        live = {at: entry for node, held in self._live.items() if node in self.env for at, entry in held.items()}
        versions = {at: _version(tensor) for at, (_, tensor) in live.items()}
        result = super().run_node(n)
        n.meta["writes"] = frozenset(live[at][0] for at, seen in versions.items() if _version(live[at][1]) != seen)
        held: dict[int, tuple[int, Tensor]] = {}
        for at, tensor in self._tensors(result).items():
            number = live[at][0] if at in live else self._kept.get(at)
            if number is None:
                number = self._count = self._count + 1
            if n.op == "get_attr":
                self._kept[at] = number
            held[at] = (number, tensor)
        self._live[n] = held
        self._live = {node: entries for node, entries in self._live.items() if node is n or node in self.env}
        n.meta["storages"] = frozenset(number for number, _ in held.values())
        if isinstance(result, Tensor):
            stride, offset = ((), 0) if result.layout != torch.strided else (result.stride(), result.storage_offset())
            n.meta["kind"] = Kind(result.shape, result.dtype, tuple(stride), int(offset))
        return result


def _free_names(graph: fx.Graph, root: nn.Module) -> dict[str, Any]:
    """Modules and tensors of the model by the names in the graph, renamed where a GraphModule uses the name itself.

    For example, a layer of the model may be called ``meta``.
    """
    taken = {*dir(fx.GraphModule), *nn.Module().__dict__, "meta"}
    found: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            value = operator.attrgetter(node.target)(root)
            first, dot, rest = node.target.partition(".")
            while first in taken:
                first += "_"
            node.target = f"{first}{dot}{rest}"
            found[node.target] = value
    return found


def _graph(model: nn.Module, arguments: Arguments) -> tuple[fx.Graph, list[nn.Module]]:
    """The model's graph, and the layers that torch.fx cannot trace and that the graph calls as modules.

    Only layers without convolutions and batch norms are called in this way, such as an activation with a custom
    autograd function. A block with convolutions raises an error instead: calling it would be correct, but silently
    no faster than the original.
    """
    called: list[nn.Module] = []
    while True:
        tracer = _Tracer(arguments, called)
        try:
            return tracer.trace(model), called
        except Exception as error:  # whatever the model's own forward raises on a proxy
            name = tracer.entered[-1] if tracer.entered else ""
            module = model.get_submodule(name)
            if name and module not in called and not any(isinstance(m, (*CONVS, _BatchNorm)) for m in module.modules()):
                called.append(module)
                continue
            where = f" in {name} ({type(module).__name__})" if name else ""
            why = (
                "its forward branches on values or sizes"
                if isinstance(error, fx.proxy.TraceError)
                else "its forward uses an operation that torch.fx cannot record"
            )
            raise ValueError(
                f"model cannot be traced by torch.fx{where}: {why} ({first_line(error)}); se_fused.convert(model) "
                "needs no trace"
            ) from error


def add_layer(gm: fx.GraphModule, name: str, layer: nn.Module) -> str:
    """Add a layer to the graph's module, as ``name`` with dots replaced, or a similar name if that is in use.

    Returns:
        The name that was used.
    """
    name = name.replace(".", "_")
    while hasattr(gm, name):
        name += "_"
    gm.add_module(name, layer)
    return name


def contiguous_argument(graph: fx.Graph, node: fx.Node, argument: fx.Node) -> None:
    """Make an argument of ``node`` contiguous, because the node may depend on the strides of the original model."""
    with graph.inserting_before(node):
        ordered = graph.call_method("contiguous", (argument,))
    ordered.meta.update(argument.meta, writes=frozenset())
    node.replace_input_with(argument, ordered)


def _run(gm: fx.GraphModule, arguments: Arguments) -> Any:
    try:
        with torch.no_grad():
            return _Recorder(gm).run(*arguments.clone().values)
    except Exception as error:  # any error of a layer whose input differs from that in the model
        raise ValueError(_other_way(first_line(error))) from error


def _other_way(why: str) -> str:
    return (
        f"model computes something else when torch.fx traces it ({why}): its forward checks the type of a value, uses "
        "a number that the trace does not record, or draws random numbers; se_fused.convert(model) needs no trace"
    )


def _same_computation(result: Any, wanted: Any) -> bool:
    """Whether two results differ only by rounding, with a wide tolerance for models that magnify rounding errors."""
    for mine, own in zip_longest(tree_leaves(result), tree_leaves(wanted)):
        if isinstance(own, Tensor) and own.is_floating_point():
            if not isinstance(mine, Tensor) or mine.shape != own.shape:
                return False
            tolerance = torch.finfo(own.dtype).eps ** 0.25
            size = float(own.abs().max()) if own.numel() else 0.0
            if not torch.allclose(mine, own, tolerance, tolerance * size, equal_nan=True):
                return False
    return True


def trace(model: nn.Module, arguments: Arguments, wanted: Any) -> fx.GraphModule:
    """Trace a model for a call with these arguments, and record the tensors of each node.

    Args:
        model: a copy of the model that no other code uses.
        arguments: arguments of the call.
        wanted: the model's result for these arguments.

    Raises:
        ValueError: torch.fx cannot trace the model, or the graph computes another result than the model.
    """
    graph, called = _graph(model, arguments)
    gm = fx.GraphModule(_free_names(graph, model), graph, f"Optimized{type(model).__name__}")
    if not _same_computation(_run(gm, arguments), wanted):
        raise ValueError(_other_way("another result"))
    plain = dict(_IN_PLACE.values())
    for node in list(graph.nodes):
        if node.op == "call_module" and gm.get_submodule(node.target) in called:
            for argument in node.all_input_nodes:
                if kind(argument) is not None:
                    contiguous_argument(graph, node, argument)
        elif node.op == "call_function" and node.target in plain and kind(node) is None:
            node.target = plain[node.target]  # an operation on numbers, such as sizes, is not in place
    return gm
