"""Sections of the report on the machine, its speed of copies and matrix products, and on skipped benchmarks."""

from collections.abc import Mapping
from typing import Any

from .format import bandwidth, number, size, table
from .records import Run

__all__ = ["machine", "skipped"]


def machine(run: Run) -> list[str]:
    """Lines of the section on the machine."""
    return [*_facts(run), *_speeds(run)]


def _facts(run: Run) -> list[str]:
    lines = []
    cpu = run.info.get("cpu")
    if isinstance(cpu, Mapping):
        about = [f"{cpu[key]} {key}" for key in ("cores", "threads") if cpu.get(key)]
        kernels = f"; kernels use {cpu['instructions']}" if cpu.get("instructions") else ""
        lines.append(f"- CPU: {', '.join([str(cpu.get('model') or 'unknown'), *about])}{kernels}")
    for gpu in run.info.get("gpus") or []:
        about = [f"sm_{str(gpu['capability']).replace('.', '')}"] if gpu.get("capability") else []
        about += [f"{gpu['memory_bytes'] / 1e9:.0f} GB"] if gpu.get("memory_bytes") else []
        lines.append(f"- GPU: {', '.join([str(gpu.get('name')), *about])}")
    versions: dict[str, Any] = {"se_fused": run.info.get("se_fused"), **(run.info.get("versions") or {})}
    told = [f"{name} {version}" for name, version in versions.items() if version]
    lines += [f"- Versions: {', '.join(told)}"] if told else []
    lines += [f"- Platform: {run.info['platform']}"] if run.info.get("platform") else []
    if run.commit:
        branch = f" on {run.branch}" if run.branch else ""
        lines.append(f"- Commit: {run.commit[:12]}{branch}{', with uncommitted changes' if run.dirty else ''}")
    about = [f"preset {run.preset}"] if run.preset else []
    about += [run.time[:16].replace("T", " ")] if run.time else []
    lines += [f"- Run: {', '.join(about)}"] if about else []
    lines += [f"- Command: `{command}`" for command in run.commands]
    if run.freed_memory_kept is not None:
        keeps = "keeps freed memory, for all candidates" if run.freed_memory_kept else "returns freed memory"
        lines.append(f"- The C library {keeps}")
    return lines


def _speeds(run: Run) -> list[str]:
    lines: list[str] = []
    rows = []
    for device, limits in run.limits.items():
        cache = f", last cache {size(limits.cache_bytes)}" if limits.cache_bytes else ""
        theory = limits.theoretical
        told = [f"theoretical memory bandwidth {bandwidth(theory)} GB/s"] if theory else []
        products = ", ".join(f"{number(flops / 1e9)} in {dtype}" for dtype, flops in limits.matmul.items())
        told += [f"fastest measured matrix product {products} GFLOP/s"] if products else []
        if told or cache:
            lines.append(f"- {device}{cache}{': ' if told else ''}{'; '.join(told)}")
        rows += [[device, size(c.working_set_bytes), bandwidth(c.warm), bandwidth(c.cold)] for c in limits.copy]
    if rows:
        lines += ["", "Speed of copy_, read and written bytes together; cold: with buffers larger than all caches.", "",
                  *table(("device", "working set"), ("GB/s warm", "GB/s cold"), rows)]  # fmt: skip
    return lines


def skipped(run: Run) -> list[str]:
    """Lines on the benchmarks that did not run, by reason."""
    reasons: dict[str, list[str]] = {}
    for entry in run.skipped:
        reasons.setdefault(entry.reason, []).append(entry.name)
    return [
        f"- {reason}: {len(names)} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1]))
    ]
