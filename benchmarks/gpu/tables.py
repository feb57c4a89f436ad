"""Text tables of the results, at most a hundred lines, because a lent machine returns no more output."""

from collections.abc import Sequence
from typing import Any

from se_fused.bench.report.format import layout_name

__all__ = ["MOST_LINES", "aligned", "render"]

MOST_LINES = 98
WIDTH = 120
"""Longest line. A hundred such lines are the 12,000 characters of output that a lent machine returns."""
DIFFERENT = 0.03  # relative difference of times from which another build of the library gets its own line
Record = dict[str, Any]


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,), width: int | None = WIDTH) -> list[str]:
    """Lines of a table with aligned columns; those in ``left`` are left-aligned, the others right-aligned.

    Lines are cut after ``width`` characters, unless it is None.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = (
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip()[:width])
    return lines


def _steps(steps: Sequence[Record]) -> list[str]:
    rows = [(s["step"], s["verdict"], f"{s['seconds']:.0f} s", str(s["figure"])) for s in steps]
    return aligned(rows, (0, 1, 3)) if rows else ["no step has ended"]


def _right(rows: Sequence[Record]) -> list[str]:
    """A line for each wrong result."""
    wrong = [row for row in rows if row.get("ok") is False and row["what"] != "tests"]
    lines = [f"{row['step']}: {row.get('case') or row.get('test') or row['what']}: {row.get('note')}" for row in wrong]
    return ["", "Wrong:", *(line[:WIDTH] for line in lines)] if lines else []


def _stage(row: Record) -> str:
    return "x".join(map(str, row["shape"][1:]))


def _cell(row: Record | None) -> str:
    if row is None:
        return ""
    unit, estimate = row.get("expected") or (None, None)
    beside = "" if estimate is None else f" ({estimate}{'%' if unit == 'percent' else 'us'})"
    return (f"{row['share']:.0%} {row['us']:.0f}us" if "share" in row else f"{row['us']:.0f}us") + beside


Key = tuple[str, str, str, str, str, str]
"""Key of a measurement: (backend, variant, mode, plan, layout, kernel)."""


def _key(row: Record) -> Key:
    return row["backend"], row.get("variant", ""), row["mode"], row.get("plan", ""), row["layout"], row["what"]


def _over_ours(row: Record) -> str:
    return f"{row['over_ours']['median']:.2f}x" if "over_ours" in row else ""


def _worth_a_line(key: Key, found: dict[Any, Record], batch: int, stages: Sequence[str], keys: set[Key]) -> bool:
    """Whether a measurement gets a line of the table.

    For a forced plan, only the total time has a line. If there is only one kernel, the total is omitted. Another build
    of the library has a line only if its time differs from that of the main build.
    """
    backend, variant, mode, plan, layout, kernel = key
    alone = len([other for other in keys if other[:5] == key[:5]]) == 2  # a kernel, and all
    whole = bool(plan) or not (alone or mode == "squeeze")
    if (kernel == "all" and not whole) or (kernel != "all" and plan):
        return False
    if not variant:
        return True
    for stage in stages:
        row, base = (found.get((backend, v, mode, plan, layout, kernel, batch, stage)) for v in (variant, ""))
        if row is not None and (base is None or abs(row["us"] / base["us"] - 1) > DIFFERENT):
            return True
    return False


def _where(rows: Sequence[Record]) -> list[str]:
    """A line for each kernel and a column for each stage: share of a copy's speed, microseconds, prediction."""
    timed = [row for row in rows if "us" in row and "backend" in row]
    if not timed:
        return []
    stages = list(dict.fromkeys(_stage(row) for row in timed))
    batches = sorted({row["shape"][0] for row in timed}, reverse=True)
    speeds = ", ".join(dict.fromkeys(f"{row['gb_s']:.0f}" for row in rows if row["what"] == "copy"))
    lines = ["", f"Share of a copy ({speeds} GB/s), time (predicted); batch {batches[0]}"]
    table = [("kernel", *stages)]
    keys = dict.fromkeys(_key(row) for row in timed if row["shape"][0] == batches[0])
    found = {(*_key(row), row["shape"][0], _stage(row)): row for row in timed}
    told = [key for key in keys if _worth_a_line(key, found, batches[0], stages, set(keys))]
    for key in sorted(told, key=lambda key: (key[0], key[4], key[2], key[3], key[1])):
        backend, variant, mode, plan, layout, kernel = key
        name = " ".join(filter(None, (backend, variant, layout_name(layout), mode, plan, kernel)))
        table.append((name, *(_cell(found.get((*key, batches[0], stage))) for stage in stages)))
    lines += aligned(table)
    small = [("all, microseconds", *(f"N={b} S{i}" for b in batches[1:] for i in range(1, len(stages) + 1)))]
    for key in keys:
        if key[5] == "all" and not key[3]:
            cells = (found.get((*key, batch, stage)) for batch in batches[1:] for stage in stages)
            name = " ".join(filter(None, (key[0], key[1], layout_name(key[4]), key[2])))
            small.append((name, *("" if row is None else f"{row['us']:.0f}" for row in cells)))
    counted = [row for row in rows if row.get("ncu")]
    if len(small) > 1:
        lines += ["", *aligned(small)]
    if counted:
        lines += ["", "Nsight Compute"]
        table = [("kernel", "us", "read MB", "written MB", "L2 hits", "memory", "registers")]
        for row in counted[:16]:
            table.append(
                (f"{row['step']} {row['what']}", f"{row.get('us', 0):.0f}", f"{row.get('read_bytes', 0) / 1e6:.0f}",
                 f"{row.get('written_bytes', 0) / 1e6:.0f}", f"{row.get('l2_hit_percent', 0):.0f}%",
                 f"{row.get('dram_percent', 0):.0f}%", f"{row.get('registers', 0):.0f}")
            )  # fmt: skip
        lines += aligned(table)
    return lines


def _claims(rows: Sequence[Record]) -> list[str]:
    lines: list[str] = []
    blocks = [row for row in rows if row["step"] == "blocks" and row.get("ok")]
    if blocks:
        table = [("block", "candidate", "us", "over ours", "share of copy", "peak MB", "timed by")]
        for row in blocks:
            table.append(
                (f"{row['mode']} {'x'.join(map(str, row['shape']))}", row["what"], f"{row['us']:.1f}", _over_ours(row),
                 f"{row['share_of_copy']:.0%}", f"{row['peak_bytes'] / 1e6:.0f}", row["timed_by"])
            )  # fmt: skip
        lines += ["", *aligned(table, (0, 1))]
    networks = [row for row in rows if "network" in row]
    if networks:
        table = [("network", "candidate", "images/s", "wall ms", "device ms", "over ours", "peak MB", "timed by")]
        for row in networks:
            name = f"{row['network']} {row['mode']} {row['batch']}"
            if row.get("ok"):
                table.append(
                    (name, row["what"], f"{row['images_per_second']:.0f}", f"{row['wall_ms']:.2f}",
                     f"{row['device_ms']:.2f}", _over_ours(row), f"{row['peak_bytes'] / 1e6:.0f}",
                     row["timed_by"])
                )  # fmt: skip
            else:
                told = str(row.get("skipped") or row.get("note"))
                table.append((name, row["what"], "", "", "", "", "", told[:40]))
        lines += ["", *aligned(table, (0, 1))]
    return lines


def render(command: str, environment: Record, steps: Sequence[Record], rows: Sequence[Record]) -> list[str]:
    """Lines of the tables of a command's results.

    Args:
        command: "right", "where" or "claims".
        environment, steps, rows: results as returned by :func:`.store.load`.
    """
    detail = {"right": _right, "where": _where, "claims": _claims}[command](rows)
    head = [f"{command} on {environment.get('gpu')}, {environment.get('commit') or 'no commit known'}"]
    body = _steps(steps)
    room = MOST_LINES - len(head) - len(body)
    if len(detail) > room:
        detail = [*detail[: room - 1], f"... {len(detail) - room + 1} more lines in {command}.tar.gz"]
    return [*head, *detail, "", *body]
