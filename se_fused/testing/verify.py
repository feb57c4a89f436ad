"""Checks of every op × dtype × layout against float64, for ``se-fused verify`` and the tests.

The arguments of a case are drawn from a seed. The case runs through :mod:`se_fused.functional`, through plain PyTorch
in the same dtype, and through plain PyTorch in float64, which is the truth. The forward error must be within a derived
bound, element by element. Each gradient may have twice the error of eager PyTorch. Gradients are compared by the median
over several draws, because errors of a single draw are random where a sum cancels.
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
from .error_bounds import GRADIENT_FLOOR, forward_bound, relative_error
from .generators import generator_on

__all__ = ["Case", "Result", "cases", "check", "run"]

OPS = ("squeeze_excite", "batch_norm_squeeze_excite", "batch_norm_act")
_GATE = ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")
_BATCH_NORM = ("running_mean", "running_var", "bn_weight", "bn_bias")


def to_layout(x: Tensor, layout: str) -> Tensor:
    """x (N, C, *spatial) in memory order ``layout``."""
    return x.contiguous() if layout == "contiguous" else x.movedim(1, -1).contiguous().movedim(-1, 1)


@dataclass(frozen=True)
class Case:
    """Description of one call of an operator: name, shape, dtype, layout, device and options, without tensors."""

    op: str
    shape: tuple[int, ...] = (4, 24, 7, 5)  # an odd number of positions, more channels than one vector step
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    device: str = "cpu"
    training: bool = True
    hidden: int = 6
    act: str = "relu"
    gate: str = "sigmoid"
    out_act: str | None = "relu"
    residual: bool = True
    residual_grad: bool = True  # whether the residual requires a gradient
    drop_path: bool = True
    absent: tuple[str, ...] = ()  # parameters that are None
    parameter_dtype: torch.dtype | None = None  # None: float32 for batch norm, x's for the layers
    mean: float = 1.0  # of x, in standard deviations; a large mean causes cancellation

    def draw(self, seed: int) -> dict[str, Any]:
        """The call's arguments by name, with numbers drawn from ``seed``. Differentiable tensors require a gradient."""
        generator = generator_on(self.device, seed)
        n, c = self.shape[:2]

        def normal(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
            numbers = torch.randn(*shape, generator=generator, device=generator.device)
            return (numbers * scale).to(self.device, dtype)

        layer_dtype = self.parameter_dtype or self.dtype
        norm_dtype = self.parameter_dtype or torch.float32
        given: dict[str, Any] = {"x": to_layout((normal(*self.shape) + self.mean).to(self.dtype), self.layout)}
        if "batch_norm" in self.op:
            given["running_mean"] = normal(c, dtype=norm_dtype)
            given["running_var"] = (normal(c).abs() + 0.5).to(norm_dtype)
            given["bn_weight"] = (normal(c, scale=0.3) + 1).to(norm_dtype)
            given["bn_bias"] = normal(c, scale=0.3, dtype=norm_dtype)
        if "squeeze_excite" in self.op:
            given["fc1_weight"] = normal(self.hidden, c, scale=c**-0.5, dtype=layer_dtype)
            given["fc1_bias"] = normal(self.hidden, scale=0.3, dtype=layer_dtype)
            given["fc2_weight"] = normal(c, self.hidden, scale=self.hidden**-0.5, dtype=layer_dtype)
            given["fc2_bias"] = normal(c, scale=0.3, dtype=layer_dtype)
        given["residual"] = to_layout(normal(*self.shape, dtype=self.dtype), self.layout) if self.residual else None
        for name, value in given.items():
            if name in self.absent:
                given[name] = None
            elif value is not None and not name.startswith("running"):
                value.requires_grad_(name != "residual" or self.residual_grad)
        keep = torch.rand(n, generator=generator, device=generator.device) > 0.3
        given["drop_path_scale"] = (keep / 0.7).to(self.device) if self.drop_path else None
        given["out_act"] = self.out_act
        if "batch_norm" in self.op:
            given.update(training=self.training, eps=1e-5, momentum=0.3)
        if "squeeze_excite" in self.op:
            given.update(act=self.act, gate=self.gate)
        return given

    def call(self, module: ModuleType, given: dict[str, Any]) -> Tensor:
        """Run the op of ``module`` (functional or reference)."""
        function: Callable[..., Tensor] = getattr(module, self.op)
        return function(**given)


def _double(given: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.detach().double().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value
        for name, value in given.items()
    }


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

    @property
    def ok(self) -> bool:
        """Whether every error is within its bound; a NaN is not."""
        return self.forward <= 1 and all(error <= bound for error, bound in self.gradients.values())

    @property
    def worst_gradient(self) -> tuple[str, float, float]:
        """(name, error, bound) of the gradient with the largest ratio of error and bound."""
        name = max(self.gradients, key=lambda k: self.gradients[k][0] / self.gradients[k][1])
        return (name, *self.gradients[name])


def _run(case: Case, module: ModuleType, given: dict[str, Any], seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    given = _copy(given)
    y = case.call(module, given)
    wanted = {k: v for k, v in given.items() if isinstance(v, Tensor) and v.requires_grad}
    generator = generator_on(case.device, seed + 1)
    dy = torch.randn(case.shape, generator=generator, device=generator.device).to(case.device, case.dtype)
    gradients = torch.autograd.grad(y, list(wanted.values()), to_layout(dy, case.layout).to(y.dtype))
    results = dict(zip(wanted, gradients, strict=True))
    if case.training:
        results |= {k: v for k, v in given.items() if k.startswith("running") and v is not None}
    return y.detach(), results


def check(case: Case, seeds: Sequence[int] = (0, 1, 2)) -> Result:
    """Run one case on the current backend, with one draw per seed."""
    backend, _ = backends.find(case.device, case.dtype)
    result = Result(case, "reference" if backend is None else backend.name)
    errors: dict[str, list[tuple[float, float]]] = {}
    forward: list[tuple[float, float]] = []
    for seed in seeds:
        given = case.draw(seed)
        wide = _double(given)
        truth, true_gradients = _run(case, reference, wide, seed)
        mine, my_gradients = _run(case, functional, given, seed)
        eager, eager_gradients = _run(case, reference, given, seed)
        excess = (mine.double() - truth).abs() / forward_bound(wide, truth, case.dtype)
        result.forward = max(result.forward, float("inf") if excess.isnan().any() else excess.max().item())
        forward.append((relative_error(mine, truth), relative_error(eager, truth)))
        for name, gradient in my_gradients.items():
            theirs = relative_error(eager_gradients[name], true_gradients[name])
            errors.setdefault(name, []).append((relative_error(gradient, true_gradients[name]), theirs))
    result.forward_error, result.eager_error = (statistics.median(e) for e in zip(*forward, strict=True))
    for name, pairs in errors.items():
        mine_median, eager_median = (statistics.median(e) for e in zip(*pairs, strict=True))
        result.gradients[name] = (mine_median, 2 * eager_median + GRADIENT_FLOOR)
    return result


def cases(devices: Sequence[str] = ("cpu",)) -> Iterator[Case]:
    """Every op × training × dtype × layout, on small maps with an odd number of positions."""
    for device, op, (_, dtype), layout in itertools.product(devices, OPS, DTYPES.items(), LAYOUTS):
        for training in (True, False) if "batch_norm" in op else (False,):
            yield Case(op, dtype=dtype, layout=layout, device=device, training=training)


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
