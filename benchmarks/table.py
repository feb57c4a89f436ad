"""python benchmarks/table.py benchmarks.json: the run as one Markdown table, slowest share of a copy's bandwidth last.

``device`` is the time on the device alone (graph replays; on a CPU the wall clock), ``of copy`` the counted bytes over
that time, held against a copy of the same size, ``eager`` and ``compile`` how many times longer those took.
"""

import json
import sys
from pathlib import Path
from typing import Any


def seconds(row: dict[str, Any]) -> float:
    """What a candidate is compared by."""
    return float(row["extra_info"].get("device_seconds", row["stats"]["median"]))


def table(benchmarks: list[dict[str, Any]]) -> str:
    """One line per measurement of ours; peers are those of the same group."""
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    lines = []
    for row in benchmarks:
        name = row["extra_info"].get("candidate", row["name"])
        groups.setdefault(f"{row['group']} {row['extra_info'].get('title')}", {})[name] = row
    for group in groups.values():
        ours = group.get("se_fused")
        if ours is None:
            continue
        info = ours["extra_info"]
        ratios = [f"{seconds(group[p]) / seconds(ours):.2f}x" if p in group else "" for p in ("eager", "compile")]
        share, speed = info.get("share_of_copy"), info.get("gb_per_second")
        lines.append(
            (
                -(share or 0),
                [info.get("title", ours["name"]), "x".join(map(str, info["shape"])), info["dtype"], info["layout"],
                 f"{seconds(ours) * 1e6:.1f}", f"{speed:.0f}" if speed else "", f"{share:.2f}" if share else "",
                 *ratios],
            )
        )  # fmt: skip
    head = ["what", "map", "dtype", "order", "device us", "GB/s", "of copy", "eager", "compile"]
    rows = [head, ["---"] * len(head), *(cells for _, cells in sorted(lines, key=lambda line: (line[1][0], line[0])))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_file():
        sys.exit("usage: python benchmarks/table.py benchmarks.json (of pytest benchmarks --benchmark-json=...)")
    print(table(json.loads(Path(sys.argv[1]).read_text())["benchmarks"]))
