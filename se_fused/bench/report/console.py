"""Tables on the terminal: what was compared, and what ``se-fused info`` says."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...info.kernels import summary
from ..providers.registry import BASELINES, OURS
from .format import NOTHING, layout_name, megabytes, milliseconds, shape, times

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ..compare import Row

__all__ = ["console", "print_info", "print_rows", "print_table", "table"]

_WIDTH = 132
_SHOWN = (OURS, *BASELINES)


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


def _print_blocks(rows: Sequence["Row"], to: "Console") -> None:
    where = rows[0].workload
    training = where["mode"] == "train"
    made = table(
        ("map", "dtype", "layout"),
        (*_SHOWN, *(f"vs {name}" for name in BASELINES), "× copy", "× copy in memory"),
    )
    memory = table(
        ("map", "dtype", "layout"),
        [f"{kind}{name}" for kind in (("", "saved ") if training else ("",)) for name in _SHOWN],
    )
    for row in rows:
        key = shape(row.workload["shape"]), row.workload["dtype"], layout_name(row.workload["layout"])
        best = [row.best(name) for name in _SHOWN]
        speedups, over = row.speedups, row.over_copy
        made.add_row(
            *key,
            *(milliseconds(None if r is None else r.timing) for r in best),
            *(times(speedups.get(name)) for name in BASELINES),
            times(over.get("same_size")),
            times(over.get("memory")),
        )
        saved = [megabytes(None if r is None else r.saved_bytes) for r in best] if training else []
        memory.add_row(*key, *(megabytes(None if r is None else r.peak_bytes) for r in best), *saved)
    print_table(f"{where['title']} on {where['device']}: ms", made, to)
    saving = ", and MB saved for the backward pass" if training else ""
    print_table(f"{where['title']}: MB at the peak{saving}", memory, to)


def _print_network(row: "Row", to: "Console") -> None:
    about = row.workload
    made = table(("", "layout"), ("ms", "img/s", "MB at the peak", "MB saved", "time over ours"))
    best = row.best("se_fused")
    for result in row.results:
        rate = NOTHING if result.images_per_second is None else f"{result.images_per_second:.1f}"
        ratio = times(None if best is None else result.milliseconds / best.milliseconds)
        name = result.name + ("" if result.status == "ok" else f" ({result.status})")
        made.add_row(
            name, layout_name(result.layout), milliseconds(result.timing), rate, megabytes(result.peak_bytes),
            megabytes(result.saved_bytes), ratio,
        )  # fmt: skip
    where = f"{about['title']} on {about['device']}, {shape(about['shape'])}, {about['dtype']}"
    print_table(f"{where}; eager and compiled: {about['baseline']}", made, to)


def print_rows(rows: Sequence["Row"], memory_copy: dict[str, float], to: "Console") -> None:
    """The tables of :func:`se_fused.bench.compare.run`, then what went wrong, one line each."""
    blocks: dict[str, list[Row]] = {}
    for row in rows:
        if row.workload["layout"] == "both":
            _print_network(row, to)
        else:
            blocks.setdefault(row.workload["title"], []).append(row)
    for group in blocks.values():
        _print_blocks(group, to)
    if blocks and memory_copy:
        for device, speed in memory_copy.items():
            to.print(
                f"× copy: our time over that of the counted bytes (DESIGN.md section 4) at the speed of copy_ on as "
                f"many bytes as the op touches;\nin memory: at that of a copy far larger than the caches, here "
                f"{speed / 1e9:.1f} GB/s read and written on {device}."
                + ("\nThe C library keeps freed memory, for all alike." if device == "cpu" else ""),
                markup=False,
            )
    for row in rows:
        for result in row.results:
            if result.status != "ok":
                about = row.workload
                to.print(
                    f"{about['title']} {shape(about['shape'])} {about['dtype']}: {result.name} "
                    f"{layout_name(result.layout)} {result.status}, not timed: {result.note}",
                    markup=False,
                    style="red",
                    soft_wrap=True,
                )


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
        "GPUs": "; ".join(
            f"{g['name']} sm_{g['capability'].replace('.', '')}, {g['memory_bytes'] / 1e9:.0f} GB"
            for g in about["gpus"]
        )
        or "none that torch sees",
        "built": "; ".join(f"{k} {v}" if k != "note" else str(v) for k, v in build.items() if v),
        "asked for": f"backend {about['asked_for']}",
    }
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
