"""Formatting of numbers with at most three significant digits, and of tables in GitHub's Markdown."""

import math
from collections.abc import Iterable, Sequence

from ..measure.timing import Timing

__all__ = [
    "NOTHING",
    "bandwidth",
    "layout_name",
    "megabytes",
    "milliseconds",
    "number",
    "percent",
    "plus_minus",
    "shape",
    "size",
    "table",
    "times",
]

NOTHING = "–"
_LAYOUT_NAMES = {"contiguous": "NCHW", "channels_last": "NHWC"}


def _decimals(value: float) -> int:
    """Number of decimal places that give three significant digits."""
    return 2 - math.floor(math.log10(abs(value))) if value else 0


def number(value: float | None) -> str:
    """A number with three significant digits: 1230, 123, 12.3, 1.23, 0.0123."""
    if value is None or not math.isfinite(value):
        return NOTHING
    rounded = round(value, _decimals(value))
    return f"{rounded:.{min(max(_decimals(rounded), 0), 9)}f}"


def plus_minus(median: float, spread: float) -> str:
    """Median and spread, both with the decimal places of three significant digits of the median: "12.3 ±0.4"."""
    places = _decimals(median)
    shown = round(spread, places)
    digits = min(max(places, 0), 9)
    if spread > 0 and shown == 0:
        return f"{number(median)} ±<{10.0**-places:.{digits}f}"
    return f"{number(median)} ±{shown:.{digits}f}"


def milliseconds(seconds: Timing | None) -> str:
    """Median and half the distance of the quartiles, in milliseconds."""
    return NOTHING if seconds is None else plus_minus(seconds.median * 1e3, (seconds.q3 - seconds.q1) / 2 * 1e3)


def times(ratio: Timing | float | None) -> str:
    """A ratio as "1.93×"."""
    value = ratio.median if isinstance(ratio, Timing) else ratio
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:.2f}×" if value < 9.995 else f"{number(value)}×"


def percent(share: float | None, digits: int = 0) -> str:
    """A share as "92 %"."""
    return NOTHING if share is None else f"{100 * share:.{digits}f} %"


def megabytes(count: float | None) -> str:
    """A number of bytes in MB (10^6 bytes), without the unit."""
    return NOTHING if count is None else number(count / 1e6)


def bandwidth(speed: float | None) -> str:
    """Bytes per second in GB/s, without the unit."""
    return NOTHING if speed is None else number(speed / 1e9)


def size(count: float) -> str:
    """A number of bytes as "64 KiB" or "256 MiB"."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            shown = number(count / scale)
            return f"{shown.rstrip('0').rstrip('.') if '.' in shown else shown} {unit}"
    return f"{count:.0f} bytes"


def shape(sizes: Iterable[int]) -> str:
    """A shape as "8×256×56×56"."""
    return "×".join(map(str, sizes))


def layout_name(layout: str) -> str:
    """NCHW for "contiguous", NHWC for "channels_last"; other words unchanged."""
    return _LAYOUT_NAMES.get(layout, layout)


def table(left: Sequence[str], right: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table with left-aligned and right-aligned columns; empty right-aligned columns are omitted."""
    heads, cells = [*left, *right], [list(row) for row in rows]
    kept = [i for i in range(len(heads)) if i < len(left) or any(row[i] != NOTHING for row in cells)]
    marks = ["---"] * len(left) + ["---:"] * len(right)
    lines = [[heads[i] for i in kept], [marks[i] for i in kept], *([row[i] for i in kept] for row in cells)]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
