"""Report of the stored results of a GPU: report.md and its pictures."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from se_fused._atomic_write import write_text
from se_fused.bench.report.format import layout_name, number, percent, table, times
from se_fused.bench.report.pairs import family
from se_fused.bench.report.style import Bar, Panel, bar_pages, save

from .steps import COMMANDS
from .store import load

__all__ = ["draw"]

Record = dict[str, Any]


def _over_ours(row: Record) -> str:
    return times(row["over_ours"]["median"]) if "over_ours" in row else ""


def _name(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _bars_of_kernels(rows: Sequence[Record]) -> Iterator[Panel]:
    """A panel for each map and layout at the largest batch: share of a copy's speed, and the prediction."""
    timed = [row for row in rows if "share" in row and "backend" in row and not row.get("variant")]
    largest = max((row["shape"][0] for row in timed), default=0)
    timed = [row for row in timed if row["shape"][0] == largest and row["what"] != "all"]
    for shape, layout in dict.fromkeys((tuple(row["shape"]), row["layout"]) for row in timed):
        bars: dict[str, dict[str, Bar]] = {}
        for row in timed:
            if (tuple(row["shape"]), row["layout"]) != (shape, layout):
                continue
            plan = f", {row['plan']}" if row.get("plan") else ""
            label = f"{row['what']}, {row['mode']}{plan}"
            one = bars.setdefault(label, {})
            one[row["backend"]] = Bar.exact(100 * row["share"])
            if row.get("expected") and row["expected"][0] == "percent":
                one["predicted"] = Bar.exact(row["expected"][1])
        yield Panel(f"{_name(shape)} {layout_name(layout)}", list(bars.items()))


def _bars_of_blocks(rows: Sequence[Record]) -> Iterator[Panel]:
    blocks = [row for row in rows if row.get("ok") and "share_of_copy" in row and "over_ours" in row]
    for mode in dict.fromkeys(row["mode"] for row in blocks):
        bars: dict[str, dict[str, Bar]] = {}
        for row in blocks:
            if row["mode"] == mode and row["what"] != "se_fused":
                over = row["over_ours"]
                bars.setdefault(_name(row["shape"]), {})[row["what"]] = Bar(over["median"], over["q1"], over["q3"])
        yield Panel(f"block, {mode}", list(bars.items()))


def _bars_of_networks(rows: Sequence[Record]) -> Iterator[Panel]:
    good = [row for row in rows if row.get("ok") and "images_per_second" in row]
    for mode, batch in dict.fromkeys((row["mode"], row["batch"]) for row in good):
        bars = [
            (f"{row['network']} {row['what']}", {family(row["what"]): Bar.exact(row["images_per_second"])})
            for row in good
            if (row["mode"], row["batch"]) == (mode, batch)
        ]
        yield Panel(f"{mode}, batch {batch}", bars)


def _told_networks(rows: Sequence[Record]) -> list[str]:
    """Section on networks: images per second, and the cost of SE, time with SE over time without it, minus 1."""
    good = {
        (row["network"], row["mode"], row["batch"], row["what"]): row
        for row in rows
        if row.get("ok") and "images_per_second" in row
    }
    if not good:
        return []
    plain = {key[1:]: row for key, row in good.items() if not key[0].startswith("se")}
    lines = []
    for (name, mode, batch, what), row in good.items():
        cost = ""
        if name.startswith("se") and (mode, batch, what) in plain:
            cost = percent(plain[mode, batch, what]["images_per_second"] / row["images_per_second"] - 1)
        graph = number(row["device_ms"]) if row["timed_by"] == "graph replay" else ""
        lines.append(
            (name, mode, str(batch), what, number(row["images_per_second"]), number(row["wall_ms"]), graph,
                _over_ours(row), cost, number(row["peak_bytes"] / 1e6))
        )  # fmt: skip
    right = ("images/s", "wall, ms", "graph replay, ms", "time over ours", "cost of SE", "peak, MB")
    about = "`eager` and `compile` are timm's models. The cost of SE is time with SE over time without it, minus 1."
    return ["", "## Whole networks", "", about, "", *table(("network", "mode", "batch", "candidate"), right, lines)]


def _told_blocks(rows: Sequence[Record]) -> list[str]:
    blocks = [row for row in rows if row.get("ok") and "share_of_copy" in row]
    if not blocks:
        return []
    right = ("µs", "time over ours", "share of a copy", "peak, MB", "timed by")
    lines = [
        (row["mode"], _name(row["shape"]), row["what"], number(row["us"]),
         _over_ours(row), percent(row["share_of_copy"]),
         number(row["peak_bytes"] / 1e6), row["timed_by"])
        for row in blocks
    ]  # fmt: skip
    return ["", "## The block", "", *table(("block", "map", "candidate"), right, lines)]


def draw(place: Path) -> list[Path]:
    """Write ``report.md`` and the pictures of the results in a folder; return the files.

    Args:
        place: the folder benchmarks/results/<gpu>, with COMMAND.jsonl and COMMAND.txt of the stored commands.
    """
    kept = {c: load((place / f"{c}.jsonl").read_text()) for c in COMMANDS if (place / f"{c}.jsonl").exists()}
    written: list[Path] = []
    environment = next(iter(kept.values()))[0]
    lines = [f"# {environment['gpu']}", ""]
    for about, _, _ in kept.values():
        versions = about["versions"]
        lines.append(
            f"- `{about['command']}`: commit {str(about['commit'])[:10]}, torch {versions['torch']}, "
            f"triton {versions['triton']}, CUDA {versions['cuda']}"
        )
    rows = {command: found for command, (_, _, found) in kept.items()}
    pictures = {
        "kernels": (_bars_of_kernels(rows.get("where", [])), "Kernels: % of a copy's speed on counted bytes",
                    lambda value: f"{value:.0f} %", "%"),
        "blocks": (_bars_of_blocks(rows.get("claims", [])), "Blocks: time of a baseline over ours", times, "times"),
        "networks": (_bars_of_networks(rows.get("claims", [])), "Images per second", number, "images/s"),
    }  # fmt: skip
    for name, (panels, title, text, x) in pictures.items():
        for page, figure in enumerate(bar_pages(panels, title, text, x, line=1 if name == "blocks" else None), start=1):
            path = place / (f"{name}.png" if page == 1 else f"{name}-{page}.png")
            save(figure, path)
            written.append(path)
            lines += ["", f"![{title}]({path.name})"]
    lines += _told_blocks(rows.get("claims", [])) + _told_networks(rows.get("claims", []))
    for command in kept:
        lines += ["", f"## {command}", "", "```", (place / f"{command}.txt").read_text().rstrip(), "```"]
    write_text(place / "report.md", "\n".join(lines) + "\n")
    return [place / "report.md", *written]
