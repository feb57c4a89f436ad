"""Remembered calls: what an operation allocates and launches, repeated without its host code and without Triton's.

The first call of a kind runs the operation and traces it. Its plan holds the compiled kernels, their grids and the
arguments that do not change, and for the others where they come from: a given tensor, a result, or a place in one
allocation that replaces all scratch memory. Later calls of the kind allocate, fill in addresses and launch.

A kind is everything that an operation's host code and Triton's compiler look at: shape, memory order, dtypes, device,
which tensors are present, settings, and whether addresses are multiples of 16. A call that cannot be repeated, such as
one that copies a strided parameter, runs as it is.
"""

import math
import threading
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from .compiled_launch import Compiled, compiled_of, current_stream, tools_are_on, why_not
from .launch import Trace, current_trace, is_recording, tracing
from .memory import kept_counters
from .tuning import autotunes, can_measure

__all__ = ["LIMIT", "Remembered", "forget"]

LIMIT = 1024
"""Most plans that an operation keeps. The oldest goes first."""

_APART = 128
"""Parts of the scratch memory start at multiples of this number of bytes, a cache line."""

Given = tuple[Any, ...]  # Tensor or None
Operation = Callable[[Given, tuple[Any, ...], float], Any]


class _Unrepeatable(Exception):
    """A call is not its allocations and launches alone."""


def _prototype(shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor without memory for ``torch.empty_like``, which takes half of the time of ``torch.empty``."""
    with torch.inference_mode(False):
        prototype = torch.empty_strided(shape, stride, dtype=dtype, device=device)
        prototype.untyped_storage().resize_(0)
    return prototype


def _picker(indices: Sequence[int]) -> Callable[[list[Any]], tuple[Any, ...]]:
    """A function that returns these elements of a list as a tuple."""
    if len(indices) > 1:
        return itemgetter(*indices)
    return lambda values: tuple(values[i] for i in indices)


class _Plan:
    """The allocations and launches of one kind of call.

    The arguments of all launches are drawn from one list of values: the addresses of the given tensors, the number, the
    addresses of results, of zeroed memory and of scratch memory, then constants and groups of values.
    """

    def __init__(self, trace: Trace, given: Given, number: float, results: tuple[Tensor, ...] | None) -> None:
        x = given[0]
        self._device = x.get_device()
        self._known: dict[int, int] = {id(t): i for i, t in enumerate(given) if t is not None}
        self._known[id(number)] = len(given)
        self._storages: dict[int, int] = {}  # the index of an allocation's address in the list, by address
        self._first = len(given) + 1
        self._keep_results(x, results)
        self._place_memory(x, trace, {t.data_ptr() for t in results or () if t.numel()})
        self._constants: list[Any] = []
        self._groups: list[tuple[int, Callable[[list[Any]], tuple[Any, ...]]]] = []
        self._steps = [
            (*self._launcher(returned), launch.grid[0], self._arguments(launch.kernel, launch.arguments))
            for launch, returned in trace.launches
        ]
        del self._known, self._storages

    # ---- building
    def _keep_results(self, x: Tensor, results: tuple[Tensor, ...] | None) -> None:
        self._type: Any = None if results is None else getattr(results, "_make", tuple)
        self._prototypes: list[Tensor | None] = []  # None: like x
        with torch.inference_mode(False):
            self._nothing = x.new_empty(0, dtype=torch.float32)
        which = []
        for t in results or ():
            if t.numel() == 0 and t.dim() == 1:
                which.append(-1)
                continue
            storage = t.untyped_storage()
            if t.data_ptr() != storage.data_ptr() or t.nbytes != storage.nbytes() or t.data_ptr() in self._storages:
                raise _Unrepeatable
            like_x = (t.shape, t.stride(), t.dtype) == (x.shape, x.stride(), x.dtype)
            self._storages[t.data_ptr()] = self._first + len(self._prototypes)
            which.append(len(self._prototypes))
            self._prototypes.append(None if like_x else _prototype(t.shape, t.stride(), t.dtype, t.device))
        self._pick_results = _picker(which)
        self._first += len(self._prototypes)

    def _place_memory(self, x: Tensor, trace: Trace, results: set[int]) -> None:
        """Results must be allocations too. All others are scratch memory."""
        self._zeroed: list[Tensor] = []
        self._counters = 0  # of ``kept_counters``, zero if there are none
        kept = None
        scratch: list[tuple[int, int]] = []
        for allocation in trace.allocations:
            t = allocation.tensor
            address = t.data_ptr()
            if address in results:
                results.discard(address)
                if allocation.zeroed:
                    raise _Unrepeatable
            elif allocation.kept:
                if kept not in (None, address):
                    raise _Unrepeatable
                self._counters, kept = t.numel(), address
            elif allocation.zeroed:
                self._storages[address] = self._first
                self._first += 1
                self._zeroed.append(_prototype(t.shape, t.stride(), t.dtype, t.device))
            elif address:
                scratch.append((address, t.nbytes))
        if results:
            raise _Unrepeatable
        if kept is not None:
            self._storages[kept] = self._first
            self._first += 1
        self._offsets: list[int] = []
        size = 0
        for address, nbytes in scratch:
            self._storages[address] = self._first
            self._first += 1
            self._offsets.append(size)
            size += math.ceil(nbytes / _APART) * _APART
        self._scratch = _prototype((size,), (1,), torch.uint8, x.device) if size else None

    def _launcher(self, returned: Any) -> Compiled:
        compiled = compiled_of(returned)
        if compiled is None:
            raise _Unrepeatable
        return compiled

    def _arguments(self, kernel: Any, arguments: dict[str, Any]) -> Callable[[list[Any]], tuple[Any, ...]]:
        return _picker([self._index(arguments[parameter.name]) for parameter in kernel.params])

    def _index(self, value: Any) -> int:
        """The place of an argument in the list of values."""
        if id(value) in self._known:
            return self._known[id(value)]
        if isinstance(value, Tensor):
            address = value.data_ptr()
            if address:
                if address not in self._storages:  # a copy of a given tensor, or a part of an allocation
                    raise _Unrepeatable
                return self._storages[address]
            value = 0
        if isinstance(value, tuple):
            fields = [self._index(field) for field in value]
            self._groups.append((self._first + len(self._constants), _picker(fields)))
            value = None  # filled in by each call
        self._constants.append(value)
        return self._first + len(self._constants) - 1

    # ---- a call
    def __call__(self, given: Given, addresses: list[int | None], number: float) -> Any:
        """Repeats the call."""
        if self._device >= 0 and self._device != torch.cuda.current_device():
            with torch.cuda.device(self._device):
                return self._run(given, addresses, number)
        return self._run(given, addresses, number)

    def _run(self, given: Given, addresses: list[int | None], number: float) -> Any:
        x = given[0]
        results = [torch.empty_like(x if like is None else like) for like in self._prototypes]
        zeroed = [torch.zeros_like(like) for like in self._zeroed]
        values: list[Any] = [*addresses, number]
        values += [t.data_ptr() for t in results]
        values += [t.data_ptr() for t in zeroed]
        if self._counters:
            values.append(kept_counters(x.device, self._counters).data_ptr())
        if self._scratch is not None:
            scratch = torch.empty_like(self._scratch)  # lives until all is launched
            start = scratch.data_ptr()
            values += [start + offset for offset in self._offsets]
        values += self._constants
        for index, pick in self._groups:
            values[index] = pick(values)
        stream = current_stream(self._device)
        for run, function, metadata, grid, pick in self._steps:
            run(grid, 1, 1, stream, function, metadata, None, None, None, *pick(values))
        if self._type is None:
            return None
        results.append(self._nothing)
        return self._type(self._pick_results(results))


_all: list["Remembered"] = []
_changing = threading.Lock()
_UNKNOWN: Any = object()


class Remembered:
    """An operation whose calls are remembered.

    Args:
        run: the operation, a function of (given, settings, number). ``given`` are its tensors, a map first; None is an
            absent one. ``settings`` are hashable. ``number`` is a float that may differ in every call. Its result is
            None or a named tuple of tensors.
    """

    def __init__(self, run: Operation) -> None:
        self.run = run
        self.plans: dict[Any, _Plan | None] = {}  # None: of a kind that cannot be repeated
        _all.append(self)

    def __call__(self, given: Given, settings: tuple[Any, ...], number: float = 0.0) -> Any:
        if why_not() is not None or is_recording() or current_trace() is not None or tools_are_on():
            return self.run(given, settings, number)
        addresses: list[int | None] = []
        facts: list[Any] = []
        bits = 0
        for t in given:
            if t is None:
                addresses.append(None)
                facts.append(None)
            else:
                address = t.data_ptr()
                bits |= address
                addresses.append(address)
                facts += (t.dtype, t.is_contiguous())
        if bits & 15:
            facts.append(tuple(address is not None and address % 16 == 0 for address in addresses))
        x = given[0]
        key = (x.shape, x.get_device(), tuple(facts), settings, autotunes())
        plan = self.plans.get(key, _UNKNOWN)
        if plan is _UNKNOWN:
            return self._first_call(key, given, settings, number)
        if plan is None:
            return self.run(given, settings, number)
        return plan(given, addresses, number)

    def _first_call(self, key: Any, given: Given, settings: tuple[Any, ...], number: float) -> Any:
        """Runs the operation and remembers it."""
        # Arguments are found by identity, so a tensor that is given twice needs to be two objects, and so does a
        # number.
        given = tuple(None if t is None else t.detach() for t in given)
        number = number * 1.0
        trace = Trace()
        with tracing(trace):
            results = self.run(given, settings, number)
        x = given[0]
        if autotunes() and not can_measure(x.device):  # a later call may choose other launch shapes
            return results
        try:
            plan = _Plan(trace, given, number, results)
        except _Unrepeatable:
            plan = None
        with _changing:
            if key not in self.plans and len(self.plans) >= LIMIT:
                del self.plans[next(iter(self.plans))]
            self.plans[key] = plan
        return results


def forget() -> None:
    """Forgets all plans, after a function that chooses launch shapes has been replaced."""
    with _changing:
        for remembered in _all:
            remembered.plans.clear()
