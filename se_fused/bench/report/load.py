"""Reader of the files of ``pytest benchmarks/ --benchmark-json=FILE``.

The format is pytest-benchmark's. This suite adds the top-level key ``se_fused`` and each benchmark's ``extra_info``.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .records import CopySpeed, Limits, Measurement, Ratio, Run, Skipped, Spread

__all__ = ["load", "load_all", "parse"]


class _Fields:
    """Typed access to an object of the file. Every error message names the file, the place and the field."""

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        self.content, self.where = content, where

    def wrong(self, name: str, wanted: str) -> ValueError:
        got = json.dumps(self.content[name])[:60] if name in self.content else "nothing"
        return ValueError(f"{self.where}: {name} must be {wanted}, got {got}")

    def text(self, name: str, default: str | None = None) -> str:
        value = self.content.get(name, default)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        return value

    def number(self, name: str, above: float = -math.inf) -> float | None:
        value = self.content.get(name)
        if value is None:
            return None
        real = isinstance(value, int | float) and not isinstance(value, bool)
        if not (real and math.isfinite(value) and value > above):
            raise self.wrong(name, "a finite number" if above == -math.inf else f"a finite number above {above:g}")
        return value

    def positive(self, name: str) -> float:
        value = self.number(name, above=0)
        if value is None:
            raise self.wrong(name, "a finite number above 0")
        return value

    def count(self, name: str) -> int | None:
        value = self.number(name, above=-1)
        return None if value is None else round(value)

    def object(self, name: str) -> "_Fields | None":
        value = self.content.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return _Fields(value, f"{self.where}: {name}")

    def objects(self, name: str) -> list["_Fields"]:
        value = self.content.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise self.wrong(name, "a list of objects")
        return [_Fields(entry, f"{self.where}: {name}[{i}]") for i, entry in enumerate(value)]

    def spread(self, name: str) -> Spread | None:
        values = self.object(name)
        if values is None:
            return None
        median, n = values.positive("median"), values.count("n")
        q1, q3 = values.number("q1", above=0), values.number("q3", above=0)
        return Spread(median, median if q1 is None else q1, median if q3 is None else q3, 1 if n is None else n)

    def ratio(self, name: str) -> Ratio | None:
        spread, values = self.spread(name), self.object(name)
        if spread is None or values is None:
            return None
        return Ratio(spread.median, spread.q1, spread.q3, spread.n, values.text("to"))


def _measurement(entry: _Fields, path: str) -> Measurement | None:
    """The measurement of one benchmark; None if the benchmark is not of this suite."""
    info = entry.object("extra_info")
    name = entry.content.get("fullname") or entry.content.get("name")
    if info is None or "kind" not in info.content or not isinstance(name, str):
        return None
    info.where = f"{path}: {name}"
    sizes = info.content.get("shape")
    if not isinstance(sizes, list) or not sizes or not all(isinstance(s, int) and s >= 0 for s in sizes):
        raise info.wrong("shape", "a list of sizes")
    seconds = info.spread("seconds")
    if seconds is None:
        raise info.wrong("seconds", "an object of median, q1, q3 and n")
    study, shares = info.object("study"), info.object("share_of_copy")
    return Measurement(
        fullname=name, group=entry.text("group", ""), kind=info.text("kind"), title=info.text("title"),
        mode=info.text("mode", ""), shape=tuple(sizes), dtype=info.text("dtype"), layout=info.text("layout", ""),
        device=info.text("device", "cpu"), candidate=info.text("candidate"), seconds=seconds,
        cold=info.spread("cold"), ratio=info.ratio("ratio"), cold_ratio=info.ratio("cold_ratio"),
        plain=bool(info.content.get("plain")), network=info.text("network", ""), baseline=info.text("baseline", ""),
        axis="" if study is None else study.text("axis"),
        value=0 if study is None else round(study.positive("value")),
        counted_bytes=info.count("counted_bytes"), flops=info.count("flops"),
        working_set_bytes=info.count("working_set_bytes"),
        copy_share=None if shares is None else shares.number("warm", above=0),
        cold_copy_share=None if shares is None else shares.number("cold", above=0),
        peak_bytes=info.count("peak_bytes"), saved_bytes=info.count("saved_bytes"),
    )  # fmt: skip


def _limits(about: _Fields) -> Limits:
    matmul = about.object("matmul_flops_per_second")
    return Limits(
        cache_bytes=about.count("cache_bytes"),
        copy=tuple(
            sorted(
                (CopySpeed(round(c.positive("working_set_bytes")), c.number("warm", above=0), c.number("cold", above=0))
                 for c in about.objects("copy")), key=lambda speed: speed.working_set_bytes)
        ),
        theoretical=about.number("theoretical_bytes_per_second", above=0),
        matmul={} if matmul is None else {dtype: matmul.positive(dtype) for dtype in matmul.content
                                          if matmul.content[dtype] is not None},
    )  # fmt: skip


def parse(content: Any, path: str) -> Run:
    """A run from the content of a JSON file.

    Args:
        content: the decoded JSON.
        path: name of the file for messages.

    Raises:
        ValueError: the suite does not write such files. The message names the file, the benchmark and the field.
    """
    if not isinstance(content, dict) or not isinstance(content.get("benchmarks"), list):
        raise ValueError(
            f"{path}: not a file of pytest-benchmark (no list 'benchmarks'); make one with "
            "pytest benchmarks/ --benchmark-json=FILE"
        )
    whole = _Fields(content, path)
    about = whole.object("se_fused")
    if about is None:
        raise ValueError(
            f"{path}: no key 'se_fused': not written by the benchmarks of se_fused; make such a file with "
            "pytest benchmarks/ --benchmark-json=FILE"
        )
    entries = whole.objects("benchmarks")
    read = [_measurement(entry, path) for entry in entries]
    foreign = [str(e.content.get("name", "?")) for e, m in zip(entries, read, strict=True) if m is None]
    notes = []
    if foreign:
        named = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        notes.append(f"{path}: {len(foreign)} benchmarks of other suites omitted: {named}")
    info, limits = about.object("info"), about.object("limits")
    commit = whole.object("commit_info") or _Fields({}, path)
    devices = {} if limits is None else {device: limits.object(device) for device in limits.content}
    kept = about.content.get("freed_memory_kept")
    return Run(
        files=(path,), measurements=tuple(m for m in read if m is not None),
        limits={device: _limits(fields) for device, fields in devices.items() if fields is not None},
        info={} if info is None else info.content, commands=tuple(filter(None, [about.text("command", "")])),
        preset=about.text("preset", ""),
        commit=commit.text("id", "") or ("" if info is None else info.text("commit", "")),
        branch=commit.text("branch", ""), dirty=bool(commit.content.get("dirty")), time=whole.text("datetime", ""),
        freed_memory_kept=kept if isinstance(kept, bool) else None,
        skipped=tuple(Skipped(s.text("name", "?"), s.text("reason", "no reason given"))
                      for s in about.objects("skipped")),
        notes=tuple(notes),
    )  # fmt: skip


def load(path: str | os.PathLike[str]) -> Run:
    """Read one file.

    Raises:
        ValueError: the file cannot be read or has another format. The message is one line that names the file.
    """
    name = os.fspath(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{name}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or 'it is not text'}") from None
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{name}: not JSON: {str(error)[:80]}") from None
    return parse(content, name)


def _same_machine(first: Run, other: Run) -> None:
    if first.machine != other.machine:
        raise ValueError(
            f"{other.files[0]} is from another machine ({other.where}) than {first.files[0]} "
            f"({first.where}): give files of one machine"
        )


def _first(runs: Sequence[Run], value: Callable[[Run], Any]) -> Any:
    return next((value(run) for run in runs if value(run)), value(runs[0]))


def load_all(paths: Sequence[str | os.PathLike[str]]) -> Run:
    """Read files of one machine as one run: parts of the suite, or a part that was run again.

    If several files contain a benchmark, the last one counts. The run has a note on this, and on different commits.

    Raises:
        ValueError: a file cannot be read, or the files are from different machines.
    """
    if not paths:
        raise ValueError("paths must name at least one file, got none")
    runs = [load(path) for path in paths]
    first = runs[0]
    if len(runs) == 1:
        return first
    notes = [note for run in runs for note in run.notes]
    for run in runs[1:]:
        _same_machine(first, run)
        if run.commit != first.commit:
            notes.append(
                f"{run.files[0]} is from commit {run.commit[:10] or 'unknown'}, {first.files[0]} from "
                f"{first.commit[:10] or 'unknown'}: the figures are from different code"
            )
    merged = {m.fullname: m for run in runs for m in run.measurements}
    twice = sum(len(run.measurements) for run in runs) - len(merged)
    if twice:
        notes.append(f"{twice} benchmarks are in several files; the last file counts")
    measured = {name.rpartition("::")[2] for name in merged}
    skipped = {s.name: s for run in runs for s in run.skipped if s.name.rpartition("::")[2] not in measured}
    return replace(
        first, files=tuple(f for run in runs for f in run.files), measurements=tuple(merged.values()),
        limits={device: limits for run in reversed(runs) for device, limits in run.limits.items()},
        info=_first(runs, lambda run: run.info),
        commands=tuple(dict.fromkeys(c for run in runs for c in run.commands)),
        dirty=any(run.dirty for run in runs), skipped=tuple(skipped.values()), notes=tuple(notes),
    )  # fmt: skip
