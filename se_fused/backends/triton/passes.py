"""The passes in Triton, host code: launch shapes, allocation and launches, and the passes that se_fused/ops defines."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...activations import keeps_mask, recomputed
from .arguments import (
    NO_NORM,
    NO_RUNNING,
    BatchGradients,
    BatchStatistics,
    Coefficients,
    DxCoefficients,
    MomentsBackward,
    Norm,
    Running,
    Sums,
)
from .batch_statistics import GROUP
from .launch import launch, tracing
from .launch_configs import MEAN_REGISTERS, Map, PassConfig, cdiv, device_of, neighbours, pass_config
from .memory import counters as kept_counters
from .memory import empty, empty_like, floats
from .moments import moments_backward_kernel, moments_kernel
from .scale_shift_act import scale_shift_act_backward_kernel, scale_shift_act_kernel
from .scale_shift_act_mean import scale_shift_act_mean_kernel, scale_shift_act_mean_unaligned_kernel
from .tuning import autotunes, can_measure, fastest
from .unaligned import (
    moments_backward_unaligned_kernel,
    moments_unaligned_kernel,
    scale_shift_act_backward_unaligned_kernel,
    scale_shift_act_unaligned_kernel,
)

__all__ = [
    "moments",
    "moments_backward",
    "scale_shift_act",
    "scale_shift_act_backward",
    "scale_shift_act_mean",
    "scale_shift_act_mean_backward",
]

COUNTERS = 4
"""Number of int32 counters of the excitation's launch, zeroed by pass 1: one for tickets and one for the finished tiles
of each of two phases, rounded up to a power of two."""


def groups_of(n: int) -> int:
    """Groups of so many samples (batch_statistics.py)."""
    return cdiv(n, GROUP.value)


def map_of(x: Tensor) -> Map:
    """The :class:`Map` of x (N, C, *spatial), which must be dense in one of the two orders."""
    n, c = x.shape[:2]
    s = x[0, 0].numel()
    # With one position both orders are the same memory; channels_last has the longer rows, of C elements.
    return Map(n, c, s, s == 1 or not x.is_contiguous(), x.element_size())


def mask_like(x: Tensor, m: Map) -> Tensor:
    """An uninitialised mask for x."""
    rows = m.n * m.s if m.channels_last else m.channel_count
    return empty(x, (rows * cdiv(m.length, 8),), torch.uint8)


def precision(device: torch.device) -> str:
    """The input precision of tl.dot that keeps float32 accuracy (excitation.py)."""
    return "tf32x3" if device_of(device).is_nvidia else "ieee"


def _choose(
    kind: str, x: Tensor, m: Map, tensors: int, sums: bool, run: Callable[[PassConfig], Any], **more: int
) -> PassConfig:
    """The rule's launch shape or, with autotuning on, the fastest of it and its neighbours."""
    default = pass_config(m, device_of(x.device), tensors, sums, **more)
    if not (autotunes() and can_measure(x.device)):
        return default
    shapes = {str(config): config for config in (default, *neighbours(default, m))}
    calls = {name: (lambda config=config: run(config)) for name, config in shapes.items()}
    with tracing(None):
        return shapes[fastest(f"{kind} {m} {x.dtype} x{tensors}", calls, x.device)]


def _geometry(m: Map, config: PassConfig, sums: bool = False, chunks: bool = False) -> dict[str, Any]:
    """The arguments of a pass that describe its tiles, also its ``chunks`` if the kernel has them. The span of a
    summing pass depends on the batch, so it is passed as a number of steps; the compiler then knows that it is a
    multiple of a step."""
    chunk = {"CHUNK": config.chunk(m)} if chunks else {}
    if m.unaligned:
        return {
            "rows": m.channel_count, "length": m.s, "VECTOR": m.vector, "BLOCK_ROWS": config.channels,
            "WINDOW": config.positions, **chunk,
        }  # fmt: skip
    span = {"steps": config.span // config.positions} if sums else {"span": config.span}
    return {"splits": config.splits(m), **span, **m.arguments(), **config.blocks(), **chunk}


# ---- launches
def launch_moments(
    x: Tensor, m: Map, with_m2: bool, counters: Tensor | None
) -> tuple[Tensor, Tensor | None, PassConfig]:
    """Launches pass 1 forward. Returns mean and m2 (splits, N, C), and the launch shape, which defines the splits."""

    def run(config: PassConfig) -> tuple[Tensor, Tensor | None, PassConfig]:
        mean, m2, _found = _launch_moments(x, m, config, with_m2, counters)
        return mean, m2, config

    return run(_choose("moments" if with_m2 else "means", x, m, 1, True, run))


def launch_batch_statistics(
    x: Tensor, m: Map, batch_stats: bool, norm: Norm, running: Running
) -> tuple[Tensor, Tensor]:
    """Pass 1 forward of a norm without squeeze-excite. Returns the mean (N, C) of x and the statistics (2, C) that
    normalise: the batch's, which also update the running ones, or those of ``norm``."""

    def run(config: PassConfig, running: Running) -> tuple[Tensor, Tensor]:
        _parts, _m2, found = _launch_moments(x, m, config, batch_stats, None, floats(x, 2, m.c), norm, running)
        assert found.mean is not None and found.stats is not None
        return found.mean, found.stats

    # Timing updates no running statistics.
    kind = f"batch_statistics {batch_stats}"
    return run(_choose(kind, x, m, 1, True, lambda config: run(config, NO_RUNNING)), running)


def _counters(x: Tensor, m: Map, config: PassConfig) -> Tensor:
    """Counters of batch_statistics.py: one per block of channels, and one per group of samples in each."""
    return kept_counters(x, cdiv(m.c, config.channels) * (1 + groups_of(m.n)))


def _launch_moments(
    x: Tensor, m: Map, config: PassConfig, with_m2: bool, counters: Tensor | None, stats: Tensor | None = None,
    norm: Norm = NO_NORM, running: Running = NO_RUNNING,
) -> tuple[Tensor, Tensor | None, BatchStatistics]:  # fmt: skip
    """One launch of pass 1 forward; with ``stats``, its last programs compute these."""
    splits = config.splits(m)
    mean = floats(x, splits, m.n, m.c)
    m2 = floats(x, splits, m.n, m.c) if with_m2 else None
    found = BatchStatistics()
    if stats is not None:
        merged = mean[0] if splits == 1 else floats(x, m.n, m.c)
        found = BatchStatistics(stats, merged, floats(x, 2, groups_of(m.n), m.c))
        counters = _counters(x, m, config)
    samples = {} if m.unaligned else {"samples": m.samples}
    launch(
        moments_unaligned_kernel if m.unaligned else moments_kernel, config.programs(m), x.device, config.options(),
        x=x, mean=mean, m2=m2, counters=counters, results=found, norm=norm, running=running, channels=m.c,
        COUNTERS=COUNTERS, BLOCKS=config.whole_blocks(m), **samples, **_geometry(m, config, True, True),
    )  # fmt: skip
    return mean, m2, found


def launch_scale_shift_act(
    x: Tensor,
    residual: Tensor | None,
    y: Tensor,
    mask: Tensor | None,
    out_act: int,
    m: Map,
    given: Coefficients,
    norm: Norm = NO_NORM,
    stats: Tensor | None = None,
) -> None:
    """Launches pass 2 forward, which writes into y; y may be x. stats (2, C): batch norm's statistics, if ``norm`` has
    none."""

    def run(config: PassConfig, into: Tensor) -> None:
        launch(
            scale_shift_act_unaligned_kernel if m.unaligned else scale_shift_act_kernel, config.programs(m), x.device,
            config.options(), x=x, residual=residual, y=into, mask=mask, given=given, norm=norm, stats=stats,
            channels=m.c, OUT_ACT=out_act, **_geometry(m, config),
        )  # fmt: skip

    # Timing writes into other memory, because y may be x, which must not be scaled more than once.
    run(_choose("scale_shift_act", x, m, 2, False, lambda config: run(config, empty_like(y))), y)


def launch_moments_backward(
    read: MomentsBackward,
    out_act: int,
    want_dr: bool,
    counters: Tensor | None,
    given: Coefficients,
    norm: Norm = NO_NORM,
    stats: Tensor | None = None,
    added: Tensor | None = None,
    finish: Callable[[], BatchGradients] | None = None,
) -> tuple[Tensor | None, Sums, BatchGradients]:
    """Launches pass 1 backward. Returns dr (None unless wanted), and P and Q (splits, N, C).

    Args:
        read: what the kernel reads; it leaves out the residual or the mask where the activation does not need it.
        out_act: the activation's number.
        want_dr: whether dr is written.
        counters: to be zeroed for the launch that follows.
        given, norm, stats: of the forward pass's scale * x + shift. stats (2, C) are batch norm's statistics.
        added: (N, C), added to dy.
        finish: allocates what the last programs compute in a norm without squeeze-excite, which is returned too.
    """
    dy, x, residual, mask, mean = read
    m = map_of(x)
    from_sum = recomputed(out_act) or added is not None
    kept = mask if keeps_mask(out_act) and added is None else None
    read = MomentsBackward(dy, x, residual if from_sum else None, kept, mean)
    if finish is not None:
        given = Coefficients(factor=given.factor, drop=given.drop)
    elif not from_sum:
        given, norm, stats = Coefficients(), NO_NORM, None

    def run(config: PassConfig) -> tuple[Tensor | None, Sums, BatchGradients]:
        splits = config.splits(m)
        sums = Sums(floats(x, splits, m.n, m.c), floats(x, splits, m.n, m.c))
        dr = empty_like(x) if want_dr else None
        found = BatchGradients() if finish is None else finish()
        more = {} if m.unaligned else {"samples": m.samples, "WHOLE": config.positions >= m.s}
        launch(
            moments_backward_unaligned_kernel if m.unaligned else moments_backward_kernel, config.programs(m), x.device,
            config.options(), read=read, given=given, norm=norm, stats=stats, added=added, dr=dr, sums=sums,
            counters=counters if finish is None else _counters(x, m, config), results=found, channels=m.c,
            OUT_ACT=out_act, FROM_SUM=from_sum, COUNTERS=COUNTERS, BLOCKS=config.whole_blocks(m), **more,
            **_geometry(m, config, True, True),
        )  # fmt: skip
        return dr, sums, found

    tensors = 3 if from_sum else 2
    return run(
        _choose(f"moments_backward {out_act} {added is not None} {finish is not None}", x, m, tensors, True, run)
    )


def launch_scale_shift_act_backward(
    dr: Tensor,
    x: Tensor | None,
    mask: Tensor | None,
    mean: Tensor,
    to_dx: DxCoefficients,
    m: Map,
    drop: Tensor | None = None,
    per_channel: bool = False,
) -> Tensor:
    """Launches pass 2 backward. Returns dx. With ``per_channel`` the mean and the coefficients are (C,), and k1 is
    multiplied by drop (N,)."""

    def run(config: PassConfig) -> Tensor:
        dx = empty_like(dr)
        launch(
            scale_shift_act_backward_unaligned_kernel if m.unaligned else scale_shift_act_backward_kernel,
            config.programs(m), dr.device, config.options(), dr=dr, x=x, mask=mask, mean=mean, to_dx=to_dx,
            drop=drop, dx=dx, channels=m.c, PER_CHANNEL=per_channel, **_geometry(m, config),
        )  # fmt: skip
        return dx

    return run(_choose("scale_shift_act_backward", dr, m, 1 if x is None else 2, False, run))


# ---- the passes alone
def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Pass 1 forward: mean and m2, (N, C)."""
    m = map_of(x)
    parts, squares, config = launch_moments(x, m, True, None)
    assert squares is not None
    if len(parts) == 1:
        return parts[0], squares[0]
    counts = [min(config.span, m.s - k * config.span) for k in range(len(parts))]
    count = torch.tensor(counts, dtype=torch.float32, device=x.device)[:, None, None]
    shift = torch.where(parts[0].isfinite(), parts[0], 0)
    mean = shift + ((parts - shift) * (count / m.s)).sum(0)
    return mean, squares.sum(0) + (count * (parts - mean).square()).sum(0)


def scale_shift_act(
    x: Tensor, residual: Tensor | None, scale: Tensor, shift: Tensor | None, out_act: int, save_mask: bool
) -> tuple[Tensor, Tensor]:
    """Pass 2 forward: y, and the mask, which is empty unless ``save_mask``."""
    m = map_of(x)
    y = empty_like(x)
    mask = mask_like(x, m) if save_mask else None
    given = Coefficients(scale, torch.zeros_like(scale) if shift is None else shift)
    launch_scale_shift_act(x, residual, y, mask, out_act, m, given)
    return y, scale.new_empty(0) if mask is None else mask


def moments_backward(
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    mask: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    out_act: int,
    want_dr: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pass 1 backward: dr (empty unless ``want_dr``), P and Q (N, C)."""
    dr, sums, _ = launch_moments_backward(
        MomentsBackward(dy, x, residual, mask, mean), out_act, want_dr, None, Coefficients(scale, shift)
    )
    return mean.new_empty(0) if dr is None else dr, sums.p.sum(0), sums.q.sum(0)


def scale_shift_act_mean(x: Tensor, scale: Tensor, shift: Tensor, out_act: int) -> tuple[Tensor, Tensor]:
    """Pass 2 with the mean of its result: y, and the mean (N, C) of y before it is rounded. One launch, and a second
    one that adds up the splits if there are several."""
    m = map_of(x)

    def run(config: PassConfig) -> tuple[Tensor, Tensor]:
        y, parts = empty_like(x), floats(x, config.splits(m), m.n, m.c)
        samples = {} if m.unaligned else {"samples": m.samples}
        launch(
            scale_shift_act_mean_unaligned_kernel if m.unaligned else scale_shift_act_mean_kernel, config.programs(m),
            x.device, config.options(), x=x, scale=scale, shift=shift, y=y, mean_parts=parts, OUT_ACT=out_act,
            **samples, **_geometry(m, config, True),
        )  # fmt: skip
        return y, parts

    # The launch shape is that of three maps read, because the result takes registers beside the sums. With twice as
    # many elements the kernel needs 134 registers on sm_100.
    y, parts = run(_choose(f"scale_shift_act_mean {out_act}", x, m, 3, True, run, registers=MEAN_REGISTERS))
    return y, _joined(parts)


def scale_shift_act_mean_backward(
    dy: Tensor, added: Tensor, x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, out_act: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The backward pass of scale_shift_act_mean up to scale * x + shift: dr, P and Q (N, C)."""
    dr, sums, _ = launch_moments_backward(
        MomentsBackward(dy, x, None, None, mean), out_act, True, None, Coefficients(scale, shift), added=added
    )
    assert dr is not None
    return dr, _joined(sums.p), _joined(sums.q)


def _joined(parts: Tensor) -> Tensor:
    return parts[0] if len(parts) == 1 else parts.sum(0)


def scale_shift_act_backward(
    dr: Tensor, x: Tensor | None, mask: Tensor, mean: Tensor, k1: Tensor, k2: Tensor, k3: Tensor
) -> Tensor:
    """Pass 2 backward: dx."""
    to_dx = DxCoefficients(k1, k2, k3)
    return launch_scale_shift_act_backward(dr, x, mask if mask.numel() else None, mean, to_dx, map_of(dr))
