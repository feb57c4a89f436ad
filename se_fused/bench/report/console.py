"""What measurements look like: tables on the screen, and one JSON document that says how they were taken."""

import json
import math
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...info.kernels import summary
from ...info.provenance import command, environment
from ..compare import Result, Row
from ..measure.memory import keep_freed_memory

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = [
    "NAMES",
    "SHORT",
    "check_writable",
    "console",
    "document",
    "print_info",
    "print_rows",
    "print_table",
    "shape",
    "table",
    "times",
]

SHORT = {"contiguous": "NCHW", "channels_last": "NHWC"}
_WIDTH = 132
NAMES = {"se_fused": "se_fused", "eager": "eager", "compile": "torch.compile"}


def check_writable(path: Path) -> None:
    """ValueError, one line, unless a file can be made there: asked before minutes of measuring."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a file")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{path}: the folder {path.parent} cannot be written to")


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def document(rows: Sequence[Row], memory_copy: dict[str, float], arguments: Sequence[str]) -> str:
    """Everything that was measured and what it takes to repeat it, as JSON."""
    content = {
        "command": command(["se-fused", *arguments]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **environment(),
        "copy_bytes_per_second": memory_copy,
        "freed_memory_kept": keep_freed_memory(),
        "rows": [row.as_dict() for row in rows],
    }
    return json.dumps(_finite(content), indent=1) + "\n"


# ---- numbers as people read them
def milliseconds(result: Result | None) -> str:
    """Median and half the distance of the quartiles, in ms."""
    if result is None or result.timing is None:
        return "–"
    median, spread = result.timing.median * 1e3, (result.timing.q3 - result.timing.q1) / 2 * 1e3
    digits = 3 if median < 1 else 2 if median < 10 else 1 if median < 100 else 0
    return f"{median:.{digits}f} ±{spread:.{digits}f}"


def megabytes(count: int | None) -> str:
    """In MB = 10^6 bytes."""
    if count is None:
        return "–"
    value = count / 1e6
    return f"{value:.{3 if value < 1 else 1 if value < 100 else 0}f}"


def times(value: float | None) -> str:
    """A ratio."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.2f}×"


def shape(row: Row) -> str:
    """8×256×56×56"""
    return "×".join(map(str, row.workload["shape"]))


# ---- tables
def console(stderr: bool = False) -> "Console":
    """A console as wide as the terminal; for tables at least so wide that no number is cut short."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False)
    if not stderr and made.width < _WIDTH:
        made.width = _WIDTH
    return made


def table(left: Sequence[str], right: Sequence[str]) -> "Table":
    """An empty table with left-aligned columns and then right-aligned ones."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in left:
        table.add_column(heading, no_wrap=True)
    for heading in right:
        table.add_column(heading, justify="right")
    return table


def print_table(title: str, made: "Table", to: "Console") -> None:
    """A table under its title, which may be wider than it."""
    to.print(title, style="bold", markup=False, soft_wrap=True)
    to.print(made)


def _print_tails(rows: Sequence[Row], to: "Console") -> None:
    where = rows[0].workload
    training = where["mode"] == "train"
    best_names = ("se_fused", "eager", "compile")
    made = table(
        ("map", "dtype", "layout"),
        ("se_fused", "eager", "torch.compile", "vs eager", "vs compile", "× copy", "× copy in memory"),
    )
    memory = table(
        ("map", "dtype", "layout"),
        [f"{kind}{name}" for kind in (("", "saved ") if training else ("",)) for name in best_names],
    )
    for row in rows:
        key = shape(row), row.workload["dtype"], SHORT[row.workload["layout"]]
        best = {name: row.best(name) for name in NAMES}
        speedups, over = row.speedups, row.over_copy
        made.add_row(
            *key, *(milliseconds(r) for r in best.values()), times(speedups.get("eager")),
            times(speedups.get("compile")), times(over.get("same_size")), times(over.get("memory")),
        )  # fmt: skip
        saved = [megabytes(None if r is None else r.saved_bytes) for r in best.values()] if training else []
        memory.add_row(*key, *(megabytes(None if r is None else r.peak_bytes) for r in best.values()), *saved)
    print_table(f"{where['title']} on {where['device']}: ms", made, to)
    saving = ", and MB saved for the backward pass" if training else ""
    print_table(f"{where['title']}: MB at the peak{saving}", memory, to)


def _print_network(row: Row, to: "Console") -> None:
    about = row.workload
    made = table(("", "layout"), ("ms", "img/s", "MB at the peak", "MB saved", "time over ours"))
    best = row.best("se_fused")
    for result in row.results:
        rate = "–" if result.images_per_second is None else f"{result.images_per_second:.1f}"
        ratio = times(None if best is None else result.milliseconds / best.milliseconds)
        name = NAMES[result.name] + ("" if result.status == "ok" else f" ({result.status})")
        made.add_row(
            name, SHORT[result.layout], milliseconds(result), rate, megabytes(result.peak_bytes),
            megabytes(result.saved_bytes), ratio,
        )  # fmt: skip
    where = f"{about['title']} on {about['device']}, {shape(row)}, {about['dtype']}"
    print_table(f"{where}; eager and compiled: {about['peer']}", made, to)


def print_rows(rows: Sequence[Row], memory_copy: dict[str, float], to: "Console") -> None:
    """The tables of :func:`se_fused.bench.compare.run`, then what went wrong, one line each."""
    tails: dict[str, list[Row]] = {}
    for row in rows:
        if row.workload["layout"] == "both":
            _print_network(row, to)
        else:
            tails.setdefault(row.workload["title"], []).append(row)
    for group in tails.values():
        _print_tails(group, to)
    if tails and memory_copy:
        for device, speed in memory_copy.items():
            to.print(
                f"× copy: our time over that of the counted bytes (DESIGN's passes) at the speed of copy_ on as many "
                f"bytes as the op touches;\nin memory: at that of a copy far larger than the caches, here "
                f"{speed / 1e9:.1f} GB/s read and written on {device}."
                + ("\nThe C library keeps freed memory, for all alike." if device == "cpu" else ""),
                markup=False,
            )
    for row in rows:
        for result in row.results:
            if result.status != "ok":
                layout = SHORT[result.layout]
                to.print(
                    f"{row.workload['title']} {shape(row)} {row.workload['dtype']}: {NAMES[result.name]} {layout} "
                    f"{result.status}, not timed: {result.note}",
                    markup=False, style="red", soft_wrap=True,
                )  # fmt: skip


def print_info(about: dict[str, Any], to: "Console") -> None:
    """What :func:`se_fused.info` says, for people."""
    versions = ", ".join(f"{name} {version or 'missing'}" for name, version in about["versions"].items())
    cpu, build, kernels = about["cpu"], about["build"], about["kernels"]
    lines = {
        "se_fused": f"{about['se_fused']} in {about['path']}"
        + (f", commit {about['commit']}" if about["commit"] else ""),
        "versions": versions,
        "platform": about["platform"],
        "CPU": f"{cpu['model']}, {cpu['cores']} cores, {cpu['threads']} threads; kernels use "
        f"{cpu['instructions'] or 'nothing: they are not loaded'}"
        + (f" (ATEN_CPU_CAPABILITY={cpu['cap']})" if cpu["cap"] else "")
        + f", torch {cpu['torch_instructions']}",
        "GPUs": "; ".join(f"{g['name']} sm_{g['capability'].replace('.', '')}, {g['memory_bytes'] / 1e9:.0f} GB"
                          for g in about["gpus"]) or "none that torch sees",
        "built": "; ".join(f"{k} {v}" if k != "note" else str(v) for k, v in build.items() if v),
        "asked for": f"backend {about['asked_for']}",
    }  # fmt: skip
    made = table((), ())
    made.show_header = False
    made.add_column("", style="bold", no_wrap=True)
    made.add_column("", overflow="fold")
    from rich.text import Text

    for name, text in lines.items():
        made.add_row(name, Text(text))
    for name, described in about["backends"].items():
        state = "built and loaded" if "reason" not in described else described["reason"]
        detail = ", ".join(f"{k} {v}" for k, v in described.items() if k not in ("built", "reason"))
        made.add_row(f"backend {name}", Text(state + (f": {detail}" if detail else "")))
    if kernels != about["backends"]["cuda"].get("reason"):  # that stands above
        made.add_row("CUDA kernels", Text(kernels if isinstance(kernels, str) else f"{len(kernels)}: the last table"))
    to.print(made)
    chosen = table(("op", "device", "dtype", "takes"), ())
    chosen.add_column("why not", overflow="fold")
    built = {name for name, described in about["backends"].items() if "reason" not in described}
    for choice in about["choices"]:
        # A backend that cannot run at all has its line above.
        reasons = "; ".join(f"{name}: {reason}" for name, reason in choice["why_not"].items() if name in built)
        takes = "plain PyTorch" if choice["auto"] == "reference" else choice["auto"]
        chosen.add_row(choice["op"], choice["device"], choice["dtype"], takes, Text(reasons))
    print_table("What auto takes, and why not another", chosen, to)
    unable = sorted(set(about["backends"]) - built)
    if unable:
        to.print(f"Why not {', '.join(unable)}: their lines above.", markup=False)
    if not isinstance(kernels, str):
        headings, *rows = summary(kernels)
        made = table(headings[:1], headings[1:-1])
        made.add_column(headings[-1], overflow="fold")
        for row in rows:
            made.add_row(*row[:-1], Text(row[-1]))
        print_table("What the compiler made of the CUDA kernels", made, to)
