"""Predictions beside measurements: rows of the model that travel with the libraries to the GPU machine."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import machine_code, triton_launches
from .tables import aligned

__all__ = ["Predictions", "of_this_machine", "table"]

Row = dict[str, Any]


def of_this_machine(progress: Callable[[str], None] = lambda text: None) -> tuple[list[Row], list[str]]:
    """(rows of the model for this checkout, reasons why a backend has none here)."""
    from .model import predictions

    kept = ("backend", "kernel", "mode", "layout", "shape", "us", "share", "limit")
    rows, reasons = [], []
    for backend, why_not in (("cuda", machine_code.why_not), ("triton", triton_launches.why_not)):
        if (reason := why_not()) is not None:
            reasons.append(f"without predictions for {backend}: {reason}")
            continue
        rows += [{name: row[name] for name in kept} for row in predictions(backend, progress=progress)]
    for row in rows:
        row["us"] = round(row["us"], 1)
        row["share"] = None if row["share"] is None else round(row["share"], 3)
    return rows, reasons


class Predictions:
    """The rows in the manifest of a pack.

    Args:
        folder: of the pack or of a variant; there are no rows without a manifest.
    """

    def __init__(self, folder: Path) -> None:
        rows: list[Row] = []
        if (folder / "manifest.json").exists():
            rows = json.loads((folder / "manifest.json").read_text()).get("predicted", [])
        self._rows = {(r["backend"], r["kernel"], r["mode"], r["layout"], tuple(r["shape"])): r for r in rows}

    def find(self, backend: str, kernel: str, mode: str, layout: str, shape: Sequence[int]) -> tuple[str, float] | None:
        """("percent" of a copy's speed or "us", value) of a kernel; None without a prediction."""
        row = self._rows.get((backend, kernel, mode, layout, tuple(shape)))
        if row is None:
            return None
        return ("us", row["us"]) if row["share"] is None else ("percent", round(100 * row["share"]))


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of a table with a line for each launch; columns are described by :class:`.model.Prediction`."""
    head = ("kernel", "layout", "mode", "map", "of a copy", "us", "limit", "regs", "blocks/SM", "rounds",
            "instr/16 B", "conflicts")  # fmt: skip
    lines = [head]
    for row in rows:
        lines.append(
            (row["kernel"], row["layout"], row["mode"], "x".join(map(str, row["shape"])),
             "" if row["share"] is None else f"{row['share']:.0%}", f"{row['us']:.1f}", row["limit"],
             str(row["registers"]), str(row["resident"]), f"{row['rounds']:.2f}",
             "" if row["per_vector"] is None else f"{row['per_vector']:.0f}", f"{row['conflicts']:.0%}")
        )  # fmt: skip
    return aligned(lines, (0, 1, 2, 3, 6), width=None)
