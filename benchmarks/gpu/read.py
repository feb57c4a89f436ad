"""Readers of the steps' output: result rows, pytest's summary, Nsight Compute's table, compute-sanitizer's summary."""

import csv
import re
from collections.abc import Callable
from typing import Any

from .target import kernel_of

__all__ = ["READERS"]

Row = dict[str, Any]
Reader = Callable[[str, list[Row]], tuple[str, list[Row]]]
"""Function of (output of a step, its rows) that returns (a line for the table, more rows)."""

_COUNT = re.compile(r"(\d+) (passed|failed|errors?|skipped)")


def _rows(_: str, rows: list[Row]) -> tuple[str, list[Row]]:
    """Reader for our programs: the last "figure", and the first wrong result."""
    figures = [str(row["figure"]) for row in rows if "figure" in row]
    wrong = [row for row in rows if row.get("ok") is False]
    told = [] if not wrong else [f"{len(wrong)} of {len(rows)} wrong: {wrong[0].get('what')}: {wrong[0].get('note')}"]
    return "; ".join(told + figures[-1:]), []


def _pytest(text: str, _: list[Row]) -> tuple[str, list[Row]]:
    """Reader for pytest: the counts in the last line, and the failed tests."""
    summary = next((line for line in reversed(text.splitlines()) if _COUNT.search(line) and " in " in line), "")
    counts = {name.rstrip("s"): int(number) for number, name in _COUNT.findall(summary)}
    broken = re.findall(r"^(?:FAILED|ERROR) (\S+)(?: - (.*))?$", text, re.MULTILINE)
    rows: list[Row] = [
        {"what": name.rpartition("::")[2] or name, "test": name, "ok": False, "note": note.strip()[:200]}
        for name, note in broken
    ]
    if not counts:
        return "pytest printed no summary", rows
    rows.append({"what": "tests", "ok": not (counts.get("failed") or counts.get("error")), **counts})
    told = ", ".join(f"{n} {name}" for name, n in counts.items())
    return told + "".join(
        f"; {row['what']}: {row['note']}" for row in rows[:1] if not row["ok"] and "test" in row
    ), rows


_NCU = {
    "gpu__time_duration.sum": "us",
    "dram__bytes_read.sum": "read_bytes",
    "dram__bytes_write.sum": "written_bytes",
    "lts__t_sector_hit_rate.pct": "l2_hit_percent",
    "launch__registers_per_thread": "registers",
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed": "dram_percent",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "sm_percent",
}
_UNITS = {
    "nsecond": 1e-3, "usecond": 1.0, "msecond": 1e3, "second": 1e6, "ns": 1e-3, "us": 1.0, "ms": 1e3, "s": 1e6,
    "byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9,
}  # fmt: skip


def _ncu(text: str, _: list[Row]) -> tuple[str, list[Row]]:
    """Reader for Nsight Compute: a row for each launch, converted to microseconds, bytes and percent."""
    lines = text.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if first is None:
        return "ncu printed no table", []
    launches: dict[str, Row] = {}
    for entry in csv.DictReader(line for line in lines[first:] if line.startswith('"')):
        name = _NCU.get(entry.get("Metric Name") or "")
        if name is None:
            continue
        kernel = entry["Kernel Name"]
        row = launches.setdefault(entry["ID"], {"what": kernel_of(kernel) or kernel[:40], "ncu": True})
        value = float(entry["Metric Value"].replace(",", ""))
        row[name] = value * _UNITS.get(entry["Metric Unit"], 1.0)
    return f"{len(launches)} launches", list(launches.values())


def _sanitizer(text: str, rows: list[Row]) -> tuple[str, list[Row]]:
    """Reader for compute-sanitizer: its summary, and that of the tests that it ran."""
    told, found = _pytest(text, rows)
    errors = re.findall(r"ERROR SUMMARY: (\d+) error", text) + re.findall(r"RACECHECK SUMMARY: (\d+) hazard", text)
    if not errors:
        return f"{told}; the sanitizer printed no summary", []
    count = sum(map(int, errors))
    first = next((line.strip("= ") for line in text.splitlines() if re.search(r"Invalid|hazard detected", line)), "")
    found.append({"what": "sanitizer", "ok": count == 0, "errors": count, "note": first[:200]})
    return f"{count} errors; {told}", found


READERS: dict[str, Reader] = {"rows": _rows, "pytest": _pytest, "ncu": _ncu, "sanitizer": _sanitizer}
