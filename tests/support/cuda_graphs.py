"""A stand-in for CUDA graphs on the CPU: a capture records PyTorch's operators, and a replay runs them on the same
tensors again.

As on a GPU, a capture computes nothing: what it writes to existing tensors is undone at its end, its own results are
NaN until the first replay, and reading a result on the host raises an error.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import se_fused
from support.modules import randomise

__all__ = ["Detector", "GraphsOnCpu", "Stream", "cuda_stand_in", "same", "small_model"]


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _address(t: Tensor) -> int:
    """The address of a tensor's memory; a number of its own for one in oneDNN's layout, which has no address."""
    return t.untyped_storage().data_ptr() if t.layout == torch.strided else id(t)


class Stream:
    """A stream, which on the CPU only has a name and the streams that it waited for."""

    def __init__(self, device: Any = None, name: str = "side") -> None:
        self.name = name
        self.waited: list[str] = []

    def wait_stream(self, other: "Stream") -> None:
        self.waited.append(other.name)

    def __reduce__(self) -> Any:
        raise TypeError("a stream cannot be copied or stored")


class Graph:
    """A CUDA graph: the recorded operators, with their arguments and results."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[..., Any], tuple, dict, Any]] = []
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        with torch.no_grad():
            for function, args, kwargs, results in self.calls:
                for old, new in zip(_tensors(results), _tensors(function(*args, **kwargs)), strict=True):
                    if _address(old) != _address(new):  # not a view, and not written in place
                        old.copy_(new)


class _Recorder(TorchDispatchMode):
    def __init__(self, calls: list[Any]) -> None:
        super().__init__()
        self.calls = calls
        self.written: list[tuple[Tensor, Tensor]] = []  # tensors before the capture wrote to them, and their values
        self.random = torch.get_rng_state()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing. Details follow.")
        given = _tensors((args, kwargs))
        if any(a.alias_info is not None and a.alias_info.is_write for a in function._schema.arguments):
            self.written += [(t, t.clone()) for t in given]
        results = function(*args, **kwargs)
        self.calls.append((function, args, kwargs, results))
        return results

    def undo(self) -> None:
        """Leave all memory as it was before the capture, and NaN in what the capture allocated."""
        torch.set_rng_state(self.random)
        with torch.no_grad():
            for t, value in reversed(self.written):
                t.copy_(value)
            existing: set[int] = set()
            own: dict[int, Tensor] = {}
            for _, args, kwargs, results in self.calls:
                existing.update(_address(t) for t in _tensors((args, kwargs)) if _address(t) not in own)
                own |= {_address(t): t for t in _tensors(results) if _address(t) not in existing | own.keys()}
            for t in own.values():
                if t.is_floating_point() and t.numel():
                    torch.as_strided(t, (t.untyped_storage().nbytes() // t.itemsize,), (1,), 0).fill_(float("nan"))


class GraphsOnCpu:
    """Replaces what ``se_fused.graphed`` and PyTorch's documentation use of torch.cuda, until the end of a test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.graphs: list[Graph] = []
        self.pools: list[Any] = []
        self.options: list[dict[str, Any]] = []
        self.current = Stream(name="default")
        self.capturing = False
        self.empty = False  # whether captures record nothing, as of a model that runs on another stream
        replaced = {
            "CUDAGraph": self._graph, "graph": self._capture, "Stream": Stream, "stream": self._on,
            "current_stream": lambda device=None: self.current, "device": lambda device: nullcontext(),
            "graph_pool_handle": object, "is_current_stream_capturing": lambda: self.capturing,
            "synchronize": lambda device=None: None,
        }  # fmt: skip
        for name, value in replaced.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr("se_fused.nn.inference.captures.DEVICE", "cpu")

    @property
    def replays(self) -> list[int]:
        """The number of replays of each graph, in the order of their captures."""
        return [graph.replays for graph in self.graphs]

    def _graph(self) -> Graph:
        self.graphs.append(Graph())
        return self.graphs[-1]

    @contextmanager
    def _on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def _capture(self, graph: Graph, pool: Any = None, stream: Stream | None = None, **options: Any) -> Iterator[None]:
        self.pools.append(pool)
        self.options.append(options)
        before, self.current, self.capturing = self.current, stream or Stream(), True
        try:
            with _Recorder([] if self.empty else graph.calls) as recorder:
                yield
        except Exception as error:  # as the end of a failed capture does, which leaves its stream as the current one
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture") from error
        finally:
            self.capturing = False
            recorder.undo()
        if not graph.calls:
            warnings.warn("The CUDA Graph is empty. This usually means ...", UserWarning, stacklevel=1)
        self.current = before


@pytest.fixture(name="cuda")
def cuda_stand_in(monkeypatch: pytest.MonkeyPatch) -> GraphsOnCpu:
    return GraphsOnCpu(monkeypatch)


# ---- models for the tests of se_fused.graphed
def small_model() -> nn.Sequential:
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), se_fused.SqueezeExcite(8, rd_channels=2))
    randomise(layers, 0)
    return layers.eval()


class Detector(nn.Module):
    """Several arguments and results, nested."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, image: Tensor, boxes: dict[str, Tensor], wide: bool = False, *, shift: float = 0.0) -> Any:
        y = image * self.scale[:, None, None] + shift
        first = y.sum((1, 2, 3)) if wide else y.mean((1, 2, 3))
        return {"scores": (first, boxes["a"] * 2), "count": 3, "maps": [y], "none": None}


def same(graphed: Any, plain: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Check that both give the same bits."""
    with torch.no_grad():
        torch.testing.assert_close(graphed(*args, **kwargs), plain(*args, **kwargs), rtol=0, atol=0)
