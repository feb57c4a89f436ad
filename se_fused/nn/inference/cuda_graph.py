"""graphed: the forward pass of a model in eval mode as CUDA graphs, one for each example of its arguments.

A graph is the list of launches of one call. A replay is a single call of the driver, so that small batches do not wait
for the host. The launches read and write the memory of the call that was captured: a call copies its tensors into the
*static* inputs of a graph, replays the graph, and copies the static results.
"""

import inspect
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..._checks import check_bool
from ...functional.dispatch import is_transformed
from ..known import refuse_torchscript
from . import captures
from .captures import CONSTANTS, Key, State, check_example, check_model, flat, key_of, refuse_training
from .tracing import arguments_of_call, first_line

__all__ = ["Graphed", "graphed"]

_WARMUP = 3  # calls before a capture, as PyTorch advises: compilation and measured choices cannot be captured


class _Graph:
    """One captured call: the CUDA graph and its static inputs and results."""

    def __init__(self, graph: torch.cuda.CUDAGraph, inputs: Sequence[Any], results: Any) -> None:
        self._graph = graph
        self._inputs = [leaf for leaf in inputs if isinstance(leaf, Tensor)]
        self._results, self._structure = tree_flatten(results)
        for leaf in self._results:
            if not isinstance(leaf, (Tensor, *CONSTANTS)):
                raise TypeError(
                    f"model returns a {type(leaf).__name__}: a graphed model returns tensors, and lists, tuples and "
                    "dictionaries of tensors"
                )

    def replay(self, leaves: Sequence[Any]) -> None:
        """Run the graph for these inputs."""
        given = (leaf for leaf in leaves if isinstance(leaf, Tensor))
        for static, leaf in zip(self._inputs, given, strict=True):
            static.copy_(leaf)
        self._graph.replay()

    def results(self, clone: bool) -> Any:
        """The results of the last replay: copies, or the static tensors."""
        found = [leaf.clone() if clone and isinstance(leaf, Tensor) else leaf for leaf in self._results]
        return tree_unflatten(found, self._structure)


class Graphed(nn.Module):
    """A model whose forward pass runs as CUDA graphs. :func:`graphed` creates it.

    Attributes:
        module: the model. Call it for gradients, and for calls that should not use the graphs.
    """

    __prepare_scriptable__ = refuse_torchscript

    def __init__(self, module: nn.Module, clone: bool = True) -> None:
        super().__init__()
        self.module, self.clone = module, clone
        self._graphs: dict[Key, _Graph | None] = {}  # None: captured at the first call
        self._forget()
        self._lock = threading.Lock()
        self.training = module.training

    def _forget(self) -> None:
        """Drop all graphs; the next call of each key captures it again."""
        # Graphs of one model share a pool of memory. A pool whose graphs have all been deleted cannot be used again.
        self._graphs = dict.fromkeys(self._graphs)
        self._state: State | None = None
        self._pool: Any = None
        self._side: Any = None  # the stream of the captures
        self._last: Any = None  # the stream of the last replay

    def _leaves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], Any]:
        """Leaves and structure of the arguments, with keyword arguments in their places."""
        if kwargs:
            bound = inspect.signature(self.module.forward).bind(*args, **kwargs)
            args, kwargs = bound.args, bound.kwargs
        return flat(args, kwargs)

    def add(self, example: Tensor | tuple[Any, ...] | Mapping[str, Any], name: str = "example") -> None:
        """Capture a graph for one more example; arguments and errors as for :func:`graphed`."""
        given = arguments_of_call(self.module, example, name)
        leaves, structure = self._leaves(given.by_place, given.by_name)
        check_example(name, leaves)
        key = key_of(leaves, structure)
        with self._lock, torch.no_grad(), torch.cuda.device(key.device):
            self._graphs[key] = self._graphs.get(key) or self._capture(key, leaves)

    def why_not(self, *args: Any, **kwargs: Any) -> str | None:
        """None if a call with these arguments would replay a graph now, else the reason why it would call the model."""
        if torch.cuda.is_current_stream_capturing():
            return "the current stream is capturing another CUDA graph"
        if torch._C._len_torch_dispatch_stack() > 0 or is_transformed():
            return "a TorchDispatchMode or a transform of torch.func is active"
        key = key_of(*self._leaves(args, kwargs))
        return None if self._knows(key) else f"no graph for {key}; there are graphs for {self._keys()}"

    def _keys(self) -> str:
        return "; ".join(map(str, list(self._graphs)))  # other threads may add graphs

    def _knows(self, key: Key) -> bool:
        try:
            return key in self._graphs
        except TypeError:  # it has a value that cannot be hashed, and no example has one
            return False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The results of the model for these arguments, without gradients; see :func:`graphed`.

        Raises:
            ValueError: a module is in training mode, or gradients are recorded and an argument requires grad.
            RuntimeError: the call is compiled with ``fullgraph=True``, exported or traced; or the model was changed and
                cannot be captured.
        """
        if torch.compiler.is_compiling() or torch._C._is_tracing():
            raise RuntimeError(
                "a graphed model cannot be compiled, exported or traced: do this with its .module, "
                "torch.compile(model.module, mode='reduce-overhead') makes CUDA graphs of its own"
            )
        refuse_training(self._state or State(self.module))
        try:
            leaves, structure = self._leaves(args, kwargs)
        except TypeError:  # the signature does not accept the arguments, and the model's own error says why
            return self.module(*args, **kwargs)
        if torch.is_grad_enabled():
            for index, leaf in enumerate(leaves):
                if isinstance(leaf, Tensor) and leaf.requires_grad:
                    raise ValueError(
                        f"argument {index} requires grad, and the graphs have no backward pass: call the model under "
                        "torch.no_grad(), detach the argument, or call .module for gradients"
                    )
        with torch.no_grad():
            key = key_of(leaves, structure)
            # Under a dispatch mode or a transform, and inside another capture, the model's own operators have to run.
            if not self._knows(key) or is_transformed() or torch._C._len_torch_dispatch_stack() > 0:
                return self.module(*args, **kwargs)
            with torch.cuda.device(key.device):
                if torch.cuda.is_current_stream_capturing():
                    return self.module(*args, **kwargs)
                with self._lock:
                    return self._run(key, leaves)

    def _run(self, key: Key, leaves: Sequence[Any]) -> Any:
        current = torch.cuda.current_stream(key.device)
        if self._last is not None and self._last != current:  # the previous call uses the static tensors on its stream
            current.wait_stream(self._last)
        graph = self._graphs[key] or self._capture(key, leaves)
        graph.replay(leaves)
        # The check takes longer on the host than the replay, so it runs while the GPU works. A replay of stale graphs
        # does no harm: the tensors that they read are still in memory.
        if self._state is None or self._state.is_stale():
            torch.cuda.synchronize(key.device)
            self._forget()
            graph = self._capture(key, leaves)
            graph.replay(leaves)
        self._graphs[key], self._last = graph, current
        return graph.results(self.clone)

    def _capture(self, key: Key, leaves: Sequence[Any]) -> _Graph:
        """Capture a call with these leaves, on a stream of its own."""
        state = State(self.module)
        check_model(state, key.device)
        if self._state is not None and self._state.is_stale():
            torch.cuda.synchronize(key.device)
            self._forget()
        if self._state is None:
            self._state, self._pool = state, torch.cuda.graph_pool_handle()
            self._side = torch.cuda.Stream(key.device)
        current, side = torch.cuda.current_stream(key.device), self._side
        with (
            torch.inference_mode(False),  # an inference tensor could not be written outside of inference mode
            torch.no_grad(),
            # Cached casts of weights would be from before the capture, and freed when the caller's autocast ends.
            torch.autocast(captures.DEVICE, key.autocast, enabled=key.autocast is not None, cache_enabled=False),
        ):
            static = [
                torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device).copy_(t)
                if isinstance(t, Tensor)
                else t
                for t in leaves
            ]
            args, kwargs = tree_unflatten(static, key.structure)
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(_WARMUP):
                    self.module(*args, **kwargs)
            current.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            try:
                # If the end of a capture raises an error, torch.cuda.graph leaves its own stream as the current one;
                # stream(current) restores it. "thread_local" lets other threads allocate memory meanwhile.
                with (
                    warnings.catch_warnings(),
                    torch.cuda.stream(current),
                    torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"),
                ):
                    warnings.filterwarnings("error", "The CUDA Graph is empty")
                    results = self.module(*args, **kwargs)
            except Exception as error:  # the model ran before, so the capture causes the error
                self._forget()
                raise RuntimeError(_not_captured(error)) from error
        return _Graph(graph, static, results)

    def _apply(self, *args: Any, **kwargs: Any) -> "Graphed":
        with self._lock:
            if self._state is not None:
                torch.cuda.synchronize(next(iter(self._graphs)).device)
            self._forget()
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The state_dict of the model, with the model's keys."""
        return self.module.state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        for key in [key for key in state_dict if key.startswith(prefix)]:
            state_dict[f"{prefix}module.{key.removeprefix(prefix)}"] = state_dict.pop(key)

    def __getstate__(self) -> dict[str, Any]:
        nothing = dict.fromkeys(("_lock", "_state", "_pool", "_side", "_last"))
        return self.__dict__ | nothing | {"_graphs": dict.fromkeys(self._graphs)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()

    def extra_repr(self) -> str:
        return self._keys() + ("" if self.clone else ", clone=False")


def _not_captured(error: BaseException) -> str:
    first = error
    while first.__context__ is not None:  # the end of a capture that failed raises another error
        first = first.__context__
    return (
        f"model cannot be captured in a CUDA graph ({first_line(first)}): its forward must not read results on the "
        "host (.item(), .cpu(), a branch on a value), nor use streams of its own that it does not join"
    )


def graphed(model: nn.Module, *examples: Tensor | tuple[Any, ...] | Mapping[str, Any], clone: bool = True) -> Graphed:
    """Capture the forward pass of a model on a GPU as CUDA graphs, which later calls replay.

    A call of the result replays a graph if its arguments have the structure, shapes, strides, dtypes and device of an
    example, the same values that are no tensors, and if autocast and :func:`se_fused.use_backend` are set as they were
    at the capture. Every other call runs the model itself: it is right, but not faster, and :meth:`Graphed.why_not`
    gives the reason. Results never require grad.

    The result is a module that shares the model's parameters, and keeps their memory as long as its graphs. Values that
    are written into them, by ``load_state_dict`` or an optimiser, hold for the next call. If parameters, buffers or
    submodules are replaced, moved or cast, the next call captures its graph again. Its ``state_dict`` has the model's
    keys. ``copy.deepcopy`` and ``torch.save`` leave the graphs out, and the first call captures them again. Several
    threads and streams may call it; they wait for each other.

    Fixed at the capture, so that changing them later has no effect, are: attributes that are neither parameters nor
    buffers, values that the forward computes on the host, and settings of PyTorch such as ``allow_tf32``. Hooks that
    are added later are not run. Inputs that the model writes to are not changed.

    Args:
        model: a model in eval mode, all on one GPU, such as the result of :func:`se_fused.optimize_for_inference`. Its
            forward must not read results on the host. The model in a DataParallel or DistributedDataParallel is taken
            out of it.
        examples: one for each graph: a tensor (such as images (N, C, H, W)), a tuple of arguments, or a dictionary of
            arguments by name, on the model's GPU, dense, of any dtype that the model accepts. Each is run four times.
            The graphs share their memory, except that of inputs and results.
        clone: copy the results, which takes one launch for each. False: return the static results. The next call of
            the returned module, with arguments of any shape and in any thread, may overwrite them.

    Returns:
        A :class:`se_fused.nn.Graphed`, to be called as ``model``.

    Raises:
        TypeError: ``model`` is not an ``nn.Module`` or is scripted, an example or a result of the model has a type that
            is not one of the above.
        ValueError: no example is given; an example does not fit the model's signature, is not on a GPU, requires grad,
            has gaps or no elements; the model is in training mode, is not on the examples' GPU, or has forward hooks.
        RuntimeError: the model cannot be captured, or ``graphed`` is called while torch.compile traces.
    """
    if torch.compiler.is_compiling():
        raise RuntimeError("se_fused.graphed cannot be compiled: call it outside of the function that is compiled")
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"model must be a torch.nn.Module that is not scripted, got {type(model).__name__}")
    if isinstance(model, Graphed):
        raise TypeError("model is graphed already: model.add(example) captures one more example")
    if not examples:
        raise ValueError("examples: give at least one, such as images of the size of later calls")
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    found = Graphed(model, check_bool(clone, "clone"))
    for index, example in enumerate(examples):
        found.add(example, f"examples[{index}]")
    return found
