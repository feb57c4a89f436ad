"""Check of one family of kernels: each result is compared with float64 on the device, with its error bound.

    python3 -m benchmarks.gpu.work.kernels BACKEND FAMILY

The shapes are a small one, an odd one and ResNet-50's four stages. Kernels that the plan would not choose for a shape
are forced.
"""

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import torch

from se_fused import backends
from se_fused._formats import DTYPES, LAYOUTS
from se_fused.activations import OUT_ACT_CODES
from se_fused.backends.cuda import CudaBackend
from se_fused.bench.accuracy import AccuracyCheck, Result
from se_fused.bench.workloads.block import BlockWorkload
from se_fused.testing.verify import Case, check

from ..target import Shape, Target, target, use_tests
from . import at, emit

use_tests()
from support import contract  # noqa: E402
from support import kernels as kernel_support  # noqa: E402
from support.triton_groups import l2_grouped_config_of  # noqa: E402

__all__ = ["main"]

REFUSED = "is forced but cannot be used for this map: "  # from the error message of CudaBackend.forced_plan


def _single(family: str, backend: Any, shape: Shape, dtype: torch.dtype, layout: str, device: str) -> float:
    """Check a single kernel; return its largest error as a share of the bound."""
    kernel_support.shares.clear()
    given = (backend, shape, dtype, layout)
    if family == "moments":
        kernel_support.check_moments(*given, device)
    elif family == "scale_shift_act":
        for code, with_residual in itertools.product(OUT_ACT_CODES.values(), (True, False)):
            kernel_support.check_scale_shift_act(*given, code, with_residual, device)
    elif family == "moments_backward":
        for code, want_dr in itertools.product(OUT_ACT_CODES.values(), (True, False)):
            kernel_support.check_moments_backward(*given, code, want_dr, device)
    elif family == "scale_shift_act_backward":
        for masked, with_x in itertools.product((True, False), repeat=2):
            kernel_support.check_scale_shift_act_backward(*given, masked, with_x, device)
    else:
        for code in OUT_ACT_CODES.values():
            kernel_support.check_scale_shift_act_mean(*given, code, device)
            kernel_support.check_scale_shift_act_mean_backward(*given, code, device)
    return max(kernel_support.shares)


def _judged(shape: Shape, dtype: torch.dtype, layout: str, device: str, mode: str) -> float:
    """Check a training step, forward or with backward; return its largest error as a share of the allowed one.

    The incoming gradient is zero where the argument of the last ReLU is within rounding of zero, because two correct
    results may differ there.
    """
    workload = BlockWorkload(cast(Any, shape), dtype, layout, mode, device)
    result = Result("se_fused", layout)
    AccuracyCheck(workload).check(workload.candidate("se_fused", layout), result)
    if result.status != "ok":
        raise AssertionError(result.note)
    return max(error / result.allowed[name] for name, error in result.errors.items())


def _drawn(shape: Shape, dtype: torch.dtype, layout: str, device: str, mode: str) -> float:
    """Like :func:`_judged`, as the median of several draws, for small shapes with a large variance of the errors."""
    result = check(Case("batch_norm_squeeze_excite", shape, dtype, layout, device))
    if not result.ok:
        name, error, bound = result.worst_gradient
        raise AssertionError(f"forward {result.forward:.2f} of its bound, d{name} {error:.1e} of {bound:.1e}")
    _, error, bound = result.worst_gradient
    return result.forward if mode == "forward" else max(result.forward, error / bound)


def _inferred(shape: Shape, dtype: torch.dtype, layout: str, device: str) -> float:
    worst = 0.0
    for op in ("squeeze_excite", "batch_norm_squeeze_excite"):
        case = Case(op, shape, dtype, layout, device, training=False, hidden=max(shape[1] // 16, 4))
        for inplace in (False, True):
            share = contract.infer(case, inplace)[0]
            if not share <= 1:
                raise AssertionError(f"{op}: {share:.2f} of its bound")
            worst = max(worst, share)
    return worst


@contextmanager
def _l2_grouped_by_triton(there: Target) -> Iterator[None]:
    """Use Triton's l2_grouped kernel for every map, with many programs, and groups that do and do not divide N."""
    from se_fused.backends.triton import batch_norm_squeeze_excite, plan

    before = batch_norm_squeeze_excite.l2_grouped_config
    batch_norm_squeeze_excite.l2_grouped_config = l2_grouped_config_of(512, 32, 3, 2 if there.rehearsal else None)
    plan.forget()
    try:
        yield
    finally:
        batch_norm_squeeze_excite.l2_grouped_config = before
        plan.forget()


def _forced(backend: str, path: str, there: Target) -> AbstractContextManager[Any]:
    if backend == "triton":
        return _l2_grouped_by_triton(there)
    return cast(CudaBackend, backends.BACKENDS["cuda"]).forced_plan(path)


def _shapes(there: Target, family: str) -> list[Shape]:
    if family == "l2_grouped":  # each sample must start at an aligned vector
        return [there.small, (*there.small[:1], 72, *there.odd[2:]), there.larger_than_l2, *there.stages]
    if family == "cluster_fused":
        return [there.small, (*there.small[:1], 72, *there.odd[2:]), *there.stages]
    return [there.small, there.odd, *there.stages]


def checks(backend: str, family: str, there: Target) -> Iterator[tuple[str, Callable[[], float]]]:
    """Names and functions of the checks. A function returns the largest share of a bound or raises AssertionError."""
    for shape in _shapes(there, family):
        large = shape in there.stages or shape == there.larger_than_l2
        for (name, dtype), layout in itertools.product(DTYPES.items(), LAYOUTS):
            if name == "float16" and large:
                continue  # the same instructions as for bfloat16 except the conversions
            given = (shape, dtype, layout, there.device)

            def one(shape: Shape = shape, given: Any = given, large: bool = large) -> float:
                if family in ("excitation", "excitation_backward"):
                    run = _judged if large else _drawn
                    return run(*given, "forward" if family == "excitation" else "train")
                if family in ("l2_grouped", "cluster_fused"):
                    with _forced(backend, family, there):
                        return _inferred(*given)
                return _single(family, backends.BACKENDS[backend], *given)

            yield f"{'x'.join(map(str, shape))} {name} {layout}", one


def _with_memory(one: Callable[[], float], there: Target) -> float:
    """Result of ``one``. If the GPU has no free memory, wait once, because other steps use it at the same time."""
    for last in (False, True):
        try:
            return one()
        except torch.OutOfMemoryError:
            if last:
                raise
            time.sleep(5)
        finally:
            if there.device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
    raise AssertionError("unreachable: the second attempt returns or raises")


def main(backend: str, family: str) -> int:
    there = target()
    torch.manual_seed(0)
    reason = backends.BACKENDS[backend].can_use(there.device, torch.float32)
    if reason is not None:
        emit(family, backend=backend, ok=False, note=reason)
        return 1
    worst, count, wrong = (0.0, ""), 0, 0
    with backends.use_backend(backend):
        for name, one in checks(backend, family, there):
            at(name)
            count += 1
            try:
                share = _with_memory(one, there)
            except (AssertionError, RuntimeError) as error:
                note = str(error).strip().partition("\n")[0]
                if REFUSED in note:
                    emit(family, backend=backend, case=name, skipped=note.partition(REFUSED)[2])
                    continue
                emit(family, backend=backend, case=name, ok=False, note=note)
                wrong += 1
                if "CUDA error" in note:  # after such an error, this process cannot use the device any more
                    break
                continue
            emit(family, backend=backend, case=name, ok=True, share=round(share, 3))
            worst = max(worst, (share, name))
    emit(family, backend=backend, figure=f"{count} cases, at most {worst[0]:.2f} of a bound ({worst[1]})")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
