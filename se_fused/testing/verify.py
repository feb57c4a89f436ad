"""Checks of every op × dtype × layout against float64, for ``se-fused verify`` and the tests.

The arguments of a case are drawn from a seed. The case runs through :mod:`se_fused.functional`, through plain PyTorch
in the same dtype, and through plain PyTorch in float64, which is the truth. The forward error must be within a derived
bound, element by element. Each gradient may have twice the error of eager PyTorch. Gradients are compared by the median
over several draws, because errors of a single draw are random where a sum cancels. Dtypes, memory orders, and which
tensors were written are compared too.
"""

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import backends, functional, reference
from .._formats import DTYPES, LAYOUTS
from ..ops.layout import is_channels_last
from ..ops.moments import per_channel
from .case import ALL_OPS, OPS, Case, to_layout, to_usual, to_view
from .error_bounds import EPS, GRADIENT_FLOOR, forward_bound, mean_error, relative_error, squeeze_bound
from .generators import generator_on

__all__ = ["OPS", "Case", "Result", "cases", "check", "condition", "run", "to_layout"]


def _plain(given: dict[str, Any], layout: str, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """The arguments for plain PyTorch, in ``dtype`` if it is given, with maps of the usual strides.

    PyTorch 2.14.1's batch norm returns a wrong gradient for maps with other strides of a dimension of size 1: x of
    shape (1, 2, 1, 2) and strides (4, 1, 2, 2), and a contiguous gradient, on the CPU.
    """

    def one(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        t = value.detach().to(dtype or value.dtype)
        return (to_usual(t, layout) if t.dim() > 2 else t).requires_grad_(value.requires_grad)

    return {name: one(value) for name, value in given.items()}


def _copy(given: dict[str, Any]) -> dict[str, Any]:
    """The same arguments with copies of the running statistics, because a run writes to them."""
    return {k: v.clone() if k.startswith("running") and v is not None else v for k, v in given.items()}


@dataclass
class Result:
    """Errors of one case. Forward: the largest ratio of error and bound. Gradients and statistics: (error, bound)."""

    case: Case
    backend: str
    forward: float = 0.0  # error / bound, maximum over elements and draws
    forward_error: float = 0.0  # relative, median of draws
    eager_error: float = 0.0
    gradients: dict[str, tuple[float, float]] = field(default_factory=dict)  # name -> (error, bound)
    faults: list[str] = field(default_factory=list)  # of shapes, dtypes, memory orders and written tensors, in words

    @property
    def ok(self) -> bool:
        """Whether nothing is at fault and every error is within its bound; a NaN is not."""
        within = self.forward <= 1 and all(error <= bound for error, bound in self.gradients.values())
        return within and not self.faults

    @property
    def worst_gradient(self) -> tuple[str, float, float]:
        """(name, error, bound) of the gradient with the largest ratio of error and bound."""
        name = max(self.gradients, key=lambda k: self.gradients[k][0] / self.gradients[k][1])
        return (name, *self.gradients[name])


@dataclass
class _Ran:
    outputs: tuple[Tensor, ...]
    gradients: dict[str, Tensor]
    statistics: dict[str, Tensor]  # the running statistics after a training step


def _run(case: Case, module: ModuleType, given: dict[str, Any], seed: int) -> _Ran:
    given = _copy(given)
    y = case.call(module, given)
    outputs = y if isinstance(y, tuple) else (y,)
    wanted = {k: v for k, v in given.items() if isinstance(v, Tensor) and v.requires_grad}
    gradients: dict[str, Tensor] = {}
    if wanted:
        generator = generator_on(case.device, seed + 1)
        dy = torch.randn(case.shape, generator=generator, device=generator.device).to(case.device, case.dtype)
        dy = to_view(dy, case.layout, case.dy_view)
        dy = dy if module is functional else to_usual(dy, case.layout)
        incoming = [dy.to(outputs[0].dtype)]
        for mean in outputs[1:]:  # each of S positions has a part of a mean's gradient
            dm = torch.randn(mean.shape, generator=generator, device=generator.device).to(mean.device, mean.dtype)
            incoming.append(dm * outputs[0].shape[2:].numel() ** 0.5)
        gradients = dict(zip(wanted, torch.autograd.grad(outputs, list(wanted.values()), incoming), strict=True))
    statistics = {k: v for k, v in given.items() if k.startswith("running") and v is not None and case.training}
    return _Ran(outputs, gradients, statistics)


def _bounds(case: Case, wide: dict[str, Any], y: Tensor, plain: bool) -> tuple[Tensor, ...]:
    """The largest errors of the outputs. ``plain`` PyTorch rounds each of its steps to the dtype, not the result alone:
    the bound for float32, with the dtype's unit in place of float32's."""
    dtype, unit = (torch.float32, torch.finfo(case.dtype).eps / EPS) if plain else (case.dtype, 1.0)
    squeezes = case.op == "batch_norm_act_squeeze"
    bounds = squeeze_bound(wide, y, dtype) if squeezes else (forward_bound(wide, y, dtype),)
    return tuple(bound * unit for bound in bounds)


def _order(t: Tensor) -> tuple[int, ...]:
    """The strides of the dimensions that have more than one index; the others' are arbitrary."""
    return tuple(stride for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1)


def _faults(case: Case, given: dict[str, Any], wide: dict[str, Any], ran: _Ran, plain: bool) -> Iterator[str]:
    """What is wrong apart from the numbers, in words. Memory orders of ``plain`` PyTorch are its own."""
    x, y = given["x"], ran.outputs[0]
    wanted = [k for k, v in given.items() if isinstance(v, Tensor) and v.requires_grad]
    if (y.shape, y.dtype) != (x.shape, x.dtype):
        yield f"the result is {y.dtype} of shape {tuple(y.shape)}"
    if y.requires_grad != bool(wanted):
        yield f"the result {'requires a' if y.requires_grad else 'has no'} gradient"
    for name, gradient in ran.gradients.items():
        if (gradient.shape, gradient.dtype) != (given[name].shape, given[name].dtype):
            yield f"the gradient of {name} is {gradient.dtype} of shape {tuple(gradient.shape)}"
    if (x.is_contiguous() or is_channels_last(x)) and x.numel() and not plain:
        if _order(y) != _order(x):
            yield f"the result has strides {y.stride()}, x {x.stride()}"
        if "x" in ran.gradients and _order(ran.gradients["x"]) != _order(x):
            yield f"the gradient of x has strides {ran.gradients['x'].stride()}, x {x.stride()}"
        if case.overwrites_x and y is not x:
            yield "the result is not written over x"
    for name, value in given.items():
        written = isinstance(value, Tensor) and not torch.equal(value.double(), wide[name])
        if written and not (name == "x" and case.overwrites_x):
            yield f"{name} is written to"


def check(case: Case, seeds: Sequence[int] = (0, 1, 2)) -> Result:
    """Run one case on the current backend, with one draw per seed. Of empty maps, only shapes and the like are
    compared."""
    backend, _ = backends.find(case.device, case.dtype)
    result = Result(case, "reference" if backend is None else backend.name)
    plain = backend is None
    errors: dict[str, list[tuple[float, float]]] = {}
    forward: list[tuple[float, float]] = []
    for seed in seeds:
        given = case.draw(seed)
        wide = _plain(given, case.layout, torch.float64)
        truth = _run(case, reference, wide, seed)
        eager = _run(case, reference, _plain(given, case.layout), seed)
        mine = _run(case, functional, given, seed)  # may write over x
        result.faults += [fault for fault in _faults(case, given, wide, mine, plain) if fault not in result.faults]
        if not given["x"].numel():
            continue
        y, *_ = (t.detach() for t in truth.outputs)
        pairs = zip(mine.outputs, truth.outputs, _bounds(case, wide, y, plain), strict=True)
        for output, exact, bound in pairs:
            excess = (output.detach().double() - exact.detach()).abs() / bound.detach()
            result.forward = max(result.forward, float("inf") if excess.isnan().any() else excess.max().item())
        forward.append((relative_error(mine.outputs[0].detach(), y), relative_error(eager.outputs[0].detach(), y)))
        for results, theirs, true in (
            (mine.gradients, eager.gradients, truth.gradients),
            (mine.statistics, eager.statistics, truth.statistics),
        ):
            for name, found in results.items():
                pair = (relative_error(t, true[name]) for t in (found, theirs[name]))
                errors.setdefault(name, []).append((next(pair), next(pair)))
    if forward:
        result.forward_error, result.eager_error = (statistics.median(e) for e in zip(*forward, strict=True))
    for name, of_draws in errors.items():
        mine_median, eager_median = (statistics.median(e) for e in zip(*of_draws, strict=True))
        result.gradients[name] = (mine_median, 2 * eager_median + GRADIENT_FLOOR)
    return result


def condition(case: Case, seeds: Sequence[int]) -> dict[str, float]:
    """Relative change of each exact gradient when x changes by rounding errors of float32, as a median over the draws.

    Every element changes by up to half a unit of its precision, as if x were rounded once more, and the elements of
    each (n, c) change together by the error that a float32 mean of S terms may have (error_bounds.py), with random
    signs. A computation in float32 rounds in about this way, on whatever path. Where the exact gradient changes by
    more than eager's error, as with a mean of 100 standard deviations or at a kink, eager's error is chance, and an
    implementation that rounds elsewhere may have this change as its own error.
    """
    changes: dict[str, list[float]] = {}
    for seed in seeds:
        wide = _plain(case.draw(seed), case.layout, torch.float64)
        x: Tensor = wide["x"].detach()
        generator = generator_on(case.device, seed + 2)
        elements, means = (
            torch.rand(shape, generator=generator, device=generator.device, dtype=x.dtype).to(x.device) * 2 - 1
            for shape in (x.shape, x.shape[:2])
        )
        moved = x * (1 + EPS / 2 * elements) + per_channel(mean_error(x) * means.sign(), x)
        given = {**wide, "x": to_usual(moved, case.layout).requires_grad_(wide["x"].requires_grad)}
        truth, changed = (_run(case, reference, arguments, seed).gradients for arguments in (wide, given))
        for name, gradient in truth.items():
            changes.setdefault(name, []).append(relative_error(changed[name], gradient))
    return {name: statistics.median(of_draws) for name, of_draws in changes.items()}


def cases(devices: Sequence[str] = ("cpu",)) -> Iterator[Case]:
    """Every op × training × dtype × layout, on small maps with an odd number of positions. Each closing activation
    occurs with each op × training, with each dtype and with each layout."""
    modes = [(op, training) for op in ALL_OPS for training in ((True, False) if "batch_norm" in op else (False,))]
    formats = list(itertools.product(DTYPES.values(), LAYOUTS))
    closings = list(reference.OUT_ACTIVATIONS)
    for device, (shift, (op, training)) in itertools.product(devices, enumerate(modes)):
        for number in range(max(len(formats), len(closings))):
            dtype, layout = formats[number % len(formats)]
            # channel_gate's bound holds for a gate that computes in float32.
            parameter_dtype = torch.float32 if op == "channel_gate" else None
            yield Case(
                op, dtype=dtype, layout=layout, device=device, training=training, parameter_dtype=parameter_dtype,
                out_act=closings[(number + shift) % len(closings)],
            )  # fmt: skip


def run(devices: Sequence[str] | None = None, progress: Callable[[int, int], None] | None = None) -> list[Result]:
    """Check every case on every backend that can run it.

    Args:
        devices: device types; None for all that this machine has.
        progress: called with (number of finished checks, number of all checks).
    """
    if devices is None:
        devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    asked = backends.forced()

    def refusal(backend: backends.Backend, case: Case) -> str | None:
        if asked == "auto":
            return backends.why_not(backend, case.device, case.dtype)
        return backend.can_use(case.device, case.dtype)

    todo = [
        (name, case)
        for case in cases(devices)
        for name in ((asked,) if asked != "auto" else backends.AUTO_ORDER)
        if name == "reference" or refusal(backends.BACKENDS[name], case) is None
    ]
    results = []
    for done, (name, case) in enumerate(todo):
        with backends.use_backend(name):
            results.append(check(case, seeds=range(5)))
        if progress is not None:
            progress(done + 1, len(todo))
    return results


def _row(result: Result) -> dict[str, Any]:
    name, error, bound = result.worst_gradient
    case = result.case
    return {
        "backend": result.backend, "op": case.op, "mode": "training" if case.training else "inference",
        "dtype": str(case.dtype).removeprefix("torch."), "layout": case.layout, "device": case.device,
        "shape": list(case.shape), "forward_error": result.forward_error, "eager_forward_error": result.eager_error,
        "forward_error_over_bound": result.forward, "worst_gradient": name, "gradient_error": error,
        "gradient_bound": bound, "ok": result.ok,
    }  # fmt: skip


def verify_command(as_json: bool) -> int:
    """The command ``se-fused verify``: prints a table (or JSON) of all cases and returns the exit code, 1 on a
    failure."""
    import json

    from rich import box
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    with Progress(console=Console(stderr=True), transient=True, disable=as_json) as bar:
        task = bar.add_task("against float64", total=None)
        rows = [_row(r) for r in run(progress=lambda done, of: bar.update(task, completed=done, total=of))]
    failed = [row for row in rows if not row["ok"]]
    if as_json:
        print(json.dumps(rows, indent=1))
        return 1 if failed or not rows else 0
    console = Console()
    for group in dict.fromkeys((row["op"], row["mode"], row["device"], row["backend"]) for row in rows):
        table = Table(
            title="{}, {}, on {} by backend {}".format(*group),
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        for heading in ("dtype", "layout"):
            table.add_column(heading)
        for heading in ("error", "of bound", "gradient", "error", "bound", ""):
            table.add_column(heading, justify="right")
        for row in rows:
            if (row["op"], row["mode"], row["device"], row["backend"]) == group:
                table.add_row(
                    row["dtype"], row["layout"], f"{row['forward_error']:.0e}",
                    f"{row['forward_error_over_bound']:.0%}", row["worst_gradient"], f"{row['gradient_error']:.0e}",
                    f"{row['gradient_bound']:.0e}", "ok" if row["ok"] else "[red]FAILED",
                )  # fmt: skip
        console.print(table)
    if not rows:
        reasons = "; ".join(f"{name}: {b.can_use('cpu', torch.float32)}" for name, b in backends.BACKENDS.items())
        print(f"No backend can run here, so nothing was verified. {reasons}")
    else:
        console.print(
            f"{len(rows) - len(failed)} of {len(rows)} within their bounds. error: relative to float64, median; "
            "of bound: the largest share of the derived bound that an element took (se_fused.testing.error_bounds); "
            "gradient: the one nearest to its bound, twice eager PyTorch's own error."
        )
    return 1 if failed or not rows else 0
