"""Launching a kernel that Triton has compiled, without Triton's search for it.

``JITFunction.run`` binds and examines the arguments of every launch in order to find the compiled kernel, which takes
most of a launch's time on the host. This module does what ``run`` does once the kernel is found. It is the only one
that depends on how Triton calls a compiled kernel, which is the same in Triton 3.6 and 3.8.
"""

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import triton
from triton import knobs
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

__all__ = ["Compiled", "compiled_of", "current_stream", "tools_are_on", "why_not"]

_CALL = (
    "kernel.run(grid_0, grid_1, grid_2, stream, kernel.function, kernel.packed_metadata, launch_metadata, "
    "knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook, *bound_args.values())"
)
"""The call of a compiled kernel in ``JITFunction.run``, which this module repeats."""


@triton.jit
def _probe():
    """A kernel that tells whether kernels are compiled or interpreted in this process."""


class Compiled(NamedTuple):
    """A compiled kernel as its launcher takes it: ``run(*grid, stream, function, metadata, launch_metadata,
    enter_hook, exit_hook, *arguments)``. Arguments are in the order of the kernel's parameters, constants included;
    a pointer is an address or None, a group a tuple."""

    run: Callable[..., Any]
    function: Any
    metadata: Any


@lru_cache(maxsize=1)
def why_not() -> str | None:
    """None if compiled kernels can be launched in this way, else the reason why not."""
    if not isinstance(_probe, JITFunction):
        return "kernels are interpreted"
    try:
        source = " ".join(inspect.getsource(JITFunction.run).split())
    except (OSError, TypeError):
        return "Triton's source is not installed"
    if _CALL not in source:
        return f"Triton {triton.__version__} calls compiled kernels in another way"
    return None


def compiled_of(returned: Any) -> Compiled | None:
    """The compiled kernel that a launch returned; None if there is none."""
    kernel = returned.result() if hasattr(returned, "result") else returned  # compiled in another thread
    if kernel is None:
        return None
    return Compiled(kernel.run, kernel.function, kernel.packed_metadata)


def current_stream(device: int) -> int:
    """The handle of the device's current stream."""
    return int(driver.active.get_current_stream(device))


def _has_calls(hook: Any) -> bool:
    """Whether a hook does anything: it is a function, or a chain of functions."""
    return hook is not None and bool(getattr(hook, "calls", True))


def tools_are_on() -> bool:
    """Whether a tool such as a profiler or a debug mode needs launches to go through Triton."""
    runtime = knobs.runtime
    return (
        _has_calls(runtime.launch_enter_hook)
        or _has_calls(runtime.launch_exit_hook)
        or bool(runtime.debug or knobs.compilation.instrumentation_mode)
        or runtime.add_stages_inspection_hook is not None
    )
