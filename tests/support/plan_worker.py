"""Compare remembered calls of the Triton backend with ordinary ones, and print the result as JSON (test_plans.py).

It is a separate process, because the tests' process interprets kernels. There is no GPU: a driver and a compiler stand
in for Triton's, and a "compiled" kernel records how it is called. Everything between the backend's functions and the
compiled kernel is Triton's own: specialisation, cache and order of arguments.
"""

import ctypes
import itertools
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from se_fused import backends, functional
from se_fused._params import NO_BATCH_NORM, NO_EXCITATION, BatchNormParams, BlockOptions
from se_fused.backends.triton import batch_norm_squeeze_excite, compiled_launch, plan
from se_fused.reference import OUT_ACTIVATIONS
from se_fused.testing.case import OPS, VIEWS, Case, to_view
from support.contract import AXES
from support.triton_groups import l2_grouped_config_of

CALLS: list[tuple["Kernel", tuple[Any, ...]]] = []
TARGET = GPUTarget("cuda", 90, 32)


class Kernel:
    """A compiled kernel: what it was compiled for, and a launcher that records its arguments."""

    packed_metadata = "metadata"

    def __init__(self, src: Any, options: dict[str, Any]) -> None:
        self.types = tuple(src.signature.values())
        chosen = {name: options.get(name) for name in ("num_warps", "num_stages", "maxnreg")}
        self.function = repr(
            (
                src.fn.fn.__name__,
                src.signature,
                *(sorted(d.items(), key=repr) for d in (src.constants, src.attrs)),
                chosen,
            )
        )

    def launch_metadata(self, *_: Any) -> None:
        return None

    def run(self, *given: Any) -> None:
        CALLS.append((self, given))
        if "l2_grouped" in self.function:  # its first argument is a counter
            counters = given[9]
            address = counters.data_ptr() if isinstance(counters, Tensor) else counters
            assert ctypes.c_int32.from_address(address).value == 0


def stand_in(**more: Any) -> None:
    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 7,
            get_current_target=lambda: TARGET,
            **more,
        )
    )
    backend = backends.BACKENDS["triton"]
    backend.can_use = lambda device, dtype: None  # type: ignore[method-assign]


# ---- comparison
def flat(types: Any, values: Any) -> list[tuple[str, Any]]:
    """(type, value) of each argument and of each field of a group."""
    found = []
    for kind, value in zip(types, values, strict=True):
        found += flat(kind, value) if isinstance(kind, tuple) else [(kind, value)]
    return found


def has_tensors(values: tuple) -> bool:
    """Whether arguments contain tensors, as those of JITFunction.run do; a remembered call has addresses."""
    return any(has_tensors(v) if isinstance(v, tuple) else isinstance(v, Tensor) for v in values)


def described(
    launches: list, given: tuple, results: Any, number: float | None
) -> tuple[list, dict[int, tuple[int, int]]]:
    """Each launch with names in place of addresses, and (address, bytes) of each scratch memory, 0 if unknown."""
    names: dict[int, Any] = {}
    for kind, tensors in (("result", results or ()), ("given", given)):
        for i, t in enumerate(tensors):
            if t is not None and t.numel():
                names[t.data_ptr()] = (kind, i)
    scratch: dict[int, tuple[int, int]] = {}
    told = []
    for kernel, (*start, _metadata, enter_hook, exit_hook) in [(k, v[:9]) for k, v in launches]:
        assert start[1:4] == [1, 1, 7] and start[5] == "metadata", start
        assert not any(getattr(h, "calls", h) for h in (enter_hook, exit_hook))
        told.append([kernel.function, start[0], start[4] == kernel.function])
    for (kernel, values), row in zip(launches, told, strict=True):
        for kind, value in flat(kernel.types, values[9:]):
            if not kind.startswith("*"):
                row.append("the number" if value is number else (kind, repr(value)))
                continue
            size = value.untyped_storage().nbytes() if isinstance(value, Tensor) else 0
            address = value.data_ptr() if isinstance(value, Tensor) else value
            if address and address not in names:
                names[address] = ("scratch", len(scratch))
                scratch[len(scratch)] = (address, size)
            row.append(names.get(address, "null"))
    return told, scratch


def overlap(scratch: dict[int, tuple[int, int]], sizes: dict[int, tuple[int, int]]) -> bool:
    places = sorted((address, sizes[i][1]) for i, (address, _) in scratch.items())
    return any(a + n > b for (a, n), (b, _) in itertools.pairwise(places)) or any(a % 16 for a, _ in places)


def moved(t: Tensor | None, by: int = 0) -> Tensor | None:
    """A tensor like t in other memory, at an address with the same remainder by 16, or one that is ``by`` more."""
    if t is None or t.numel() == 0:
        return t
    span = (1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))) * t.element_size()
    raw = torch.zeros(span + 48, dtype=torch.uint8)
    start = -raw.data_ptr() % 16 + (t.data_ptr() + by) % 16
    return raw[start : start + span].view(t.dtype).as_strided(t.shape, t.stride())


class Checked:
    """In place of an operation: runs it, and the same call remembered, and compares."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.repeated = 0
        self.every_alignment = False

    def compare(self, operation: plan.Remembered, given: tuple, settings: tuple, number: float) -> Any:
        number = number * 1.0  # an object that no other argument is
        count = len(operation.plans)
        CALLS.clear()
        results = CALL(operation, given, settings, number)
        repeated, CALLS[:] = list(CALLS), []
        first = len(operation.plans) > count
        wanted_results = operation.run(given, settings, number)
        # The first call passes another object for the number.
        found, scratch = described(repeated, given, results, None if first else number)
        wanted, sizes = described(CALLS, given, wanted_results, None if first else number)
        where = f"{operation.run.__name__} {settings} {[None if t is None else tuple(t.shape) for t in given]}"
        if not first:
            self.repeated += 1
            if any(has_tensors(values) for _, values in repeated):
                self.faults.append(f"{where}: was not repeated")
        if found != wanted:
            rows = [(a, b) for a, b in zip(found, wanted, strict=False) if a != b]
            self.faults.append(f"{where} first={first}: {rows[:1]}")
        if not first and overlap(scratch, sizes):
            self.faults.append(f"{where}: scratch memory overlaps or is not aligned")
        for a, b in zip(results or (), wanted_results or (), strict=True):
            if (a.shape, a.stride(), a.dtype) != (b.shape, b.stride(), b.dtype):
                self.faults.append(f"{where}: results {a.shape} {a.stride()} {a.dtype} for {b.shape} {b.stride()}")
        places = [t.untyped_storage().data_ptr() for t in results or () if t.numel()]
        if len(set(places)) < len(places):
            self.faults.append(f"{where}: results share memory")
        return results

    def __call__(self, operation: plan.Remembered, given: tuple, settings: tuple, number: float = 0.0) -> Any:
        results = self.compare(operation, given, settings, number)
        # Distinct memory for tensors that are one, other numbers.
        self.compare(operation, tuple(map(moved, given)), settings, number + 0.25)
        for i, t in enumerate(given if self.every_alignment else ()):
            if t is not None:
                other = tuple(moved(u, 8 if i == k else 0) for k, u in enumerate(given))
                for _ in range(2):
                    self.compare(operation, other, settings, number)
        return results


CALL = plan.Remembered.__call__


def run(case: Case, twice: bool = False) -> None:
    """A call with its backward pass. With ``twice``, x is the residual too."""
    given = case.draw(0)
    if twice:
        given["residual"] = given["x"]
    tensors = [t for t in given.values() if isinstance(t, Tensor) and t.requires_grad]
    with torch.set_grad_enabled(bool(tensors)):
        y = getattr(functional, case.op)(**given)
    if tensors:
        torch.autograd.grad(y, tensors, to_view(torch.ones_like(y), case.layout, case.dy_view), allow_unused=True)


BASE = Case("", (4, 24, 7, 5))
SIZES = (
    (5, 24, 7, 5),
    (4, 25, 7, 5),
    (4, 24, 8, 5),
    (4, 32, 8, 8),
    (20, 24, 7, 5),
    (4, 24, 1, 1),
    (4, 24, 7),
    (2, 3, 40, 50),
)
PARAMETERS = ("bn_weight", "bn_bias", "fc1_bias", "fc2_bias")


def neighbours(op: str, training: bool, gradients: str) -> Iterator[Case]:
    """A call, and calls that differ from it in one thing each."""
    base = replace(BASE, op=op, training=training, gradients=gradients)
    names = {field.name for field in fields(Case)}
    yield base
    for name, values in AXES.items():
        if name in names - {"op", "training", "residual", "gradients", "dy_view"}:
            yield from (replace(base, **{name: value}) for value in values if name != "absent")
    yield from (replace(base, shape=shape) for shape in SIZES)
    yield from (replace(base, absent=(name,)) for name in PARAMETERS if name in base.draw(0))
    if training and op != "squeeze_excite":
        yield replace(base, absent=("running_mean", "running_var"))
    yield replace(base, residual=False)
    yield replace(base, drop_path=False)
    if gradients != "none":
        yield replace(base, gradients="not residual")
        yield from (replace(base, dy_view=view) for view in VIEWS)
        yield from (
            replace(base, residual=residual, out_act=act) for residual in (True, False) for act in OUT_ACTIVATIONS
        )


def comparisons() -> dict[str, Any]:
    """Each call, ordinary and repeated, is compared after calls that differ from it in one thing."""
    check = Checked()
    plan.Remembered.__call__ = lambda *a: check(*a)  # type: ignore[method-assign]
    count = 0
    for op, training, gradients in itertools.product(OPS, (True, False), ("all", "none")):
        if training and op == "squeeze_excite":
            continue
        run(replace(BASE, op=op, training=training, gradients=gradients), twice=True)
        for case in neighbours(op, training, gradients):
            check.every_alignment = case.shape == SIZES[3]
            run(case)
            count += 1
    module = batch_norm_squeeze_excite
    before, module.l2_grouped_config = module.l2_grouped_config, l2_grouped_config_of(256, 64, 2, 3)
    plan.forget()
    for case in neighbours("batch_norm_squeeze_excite", False, "none"):
        run(case)
    module.l2_grouped_config = before
    plan.forget()
    plan.Remembered.__call__ = CALL  # type: ignore[method-assign]
    return {"calls": count, "repeated": check.repeated, "faults": check.faults[:5]}


# ---- what is beside the launches
CASE = Case("batch_norm_squeeze_excite", (2, 16, 3, 2))


def through_triton() -> list[bool]:
    """Whether the launches since the last call went through JITFunction.run, which passes tensors."""
    found = [has_tensors(values) for _, values in CALLS]
    CALLS.clear()
    return found


def switches() -> dict[str, Any]:
    """Who launches: in the second call; with a hook, a debug mode; afterwards."""
    plan.forget()
    CALLS.clear()
    found: dict[str, Any] = {}

    def told(name: str) -> None:
        run(CASE)
        found[name] = through_triton()

    told("first")
    told("second")
    runtime = triton.knobs.runtime

    def hook(metadata: Any) -> None:
        pass

    runtime.launch_enter_hook.add(hook)
    told("hook")
    runtime.launch_enter_hook.remove(hook)
    runtime.debug = True
    told("debug")
    runtime.debug = False
    compiled_launch.why_not.cache_clear()
    before, compiled_launch._CALL = compiled_launch._CALL, "kernel.run(another order)"
    told("another Triton")
    found["info"] = backends.BACKENDS["triton"].describe()["launches"]
    compiled_launch._CALL = before
    compiled_launch.why_not.cache_clear()
    told("afterwards")
    found["info afterwards"] = backends.BACKENDS["triton"].describe()["launches"]
    return found


def copies() -> list[bool]:
    """Who launches the second call with a strided parameter, of which each call makes a contiguous copy."""
    plan.forget()
    x, apart = torch.zeros(2, 16, 3, 2), torch.ones(16, 2)[:, 0]
    bn = BatchNormParams(torch.zeros(16), torch.ones(16), apart, None, False, 0.1, 1e-5)
    for _ in range(2):
        CALLS.clear()
        batch_norm_squeeze_excite.batch_norm_squeeze_excite_inference(
            x, bn, NO_EXCITATION, BlockOptions(), torch.empty_like(x)
        )
    return through_triton()


def many(limit: int = 4, threads: int = 4) -> list[int]:
    """Plans of each operation after calls of many sizes in several threads."""
    plan.forget()
    plan.LIMIT = limit
    faults: list[BaseException] = []

    def work(start: int) -> None:
        try:
            for n in range(2, 12):
                for _ in range(3):
                    run(Case("batch_norm_squeeze_excite", (n + start % 2, 16, 3, 2)))
        except BaseException as error:
            faults.append(error)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if faults:
        raise faults[0]
    return [len(operation.plans) for operation in plan._all]


# ---- a real compiled kernel
def compiled() -> list[list[str]]:
    """The arguments of a launch, ordinary and remembered; only the driver stands in."""
    launched: list[list[str]] = []
    x = torch.zeros(2, 16, 3, 2)
    y = torch.empty_like(x)
    names = {x.data_ptr(): "x", y.data_ptr(): "y"}

    def name(value: Any) -> Any:
        if isinstance(value, tuple):
            return [name(field) for field in value]
        address = value.data_ptr() if isinstance(value, Tensor) else value
        return names.get(address, repr(address))

    class Launcher:
        def __init__(self, src: Any, metadata: Any) -> None:
            pass

        def __call__(self, *given: Any) -> None:
            launched.append([name(value) for value in (*given[:6], *given[9:])])

    stand_in(
        launcher_cls=Launcher,
        utils=SimpleNamespace(
            load_binary=lambda name, kernel, shared, device: ("module", "function", 32, 0, 1024),
            get_device_properties=lambda device: {"max_shared_mem": 232448},
            unload_module=lambda module: None,
        ),
    )
    for _ in range(2):
        batch_norm_squeeze_excite.batch_norm_squeeze_excite_inference(
            x, NO_BATCH_NORM, NO_EXCITATION, BlockOptions(x, None, "relu"), y
        )
    return launched


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:] == ["compile"]:
        print(json.dumps(compiled()))
        raise SystemExit
    triton.compiler.compile = lambda src, target, options, **_: Kernel(src, options)  # what JITFunction imports
    stand_in()
    torch.use_deterministic_algorithms(True)  # memory that is not initialised holds large numbers
    with backends.use_backend("triton"):
        answer = {
            "comparisons": comparisons(), "switches": switches(), "copies": copies(), "plans": many()
        }  # fmt: skip
    print(json.dumps(answer))
