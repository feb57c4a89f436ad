"""Typed records of a benchmark run, which :mod:`.load` reads from the JSON files of the suite."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..measure.timing import Timing

__all__ = ["CopySpeed", "Limits", "Measurement", "Ratio", "Run", "Skipped", "Spread"]


@dataclass(frozen=True)
class Spread(Timing):
    """Median and quartiles of n values, with arithmetic."""

    n: int = 1

    def over(self, other: "Spread") -> "Spread":
        """Quotient of two independent measurements, with the widest range that the quartiles of both allow."""
        return Spread(self.median / other.median, self.q1 / other.q3, self.q3 / other.q1, min(self.n, other.n))

    def inverse(self) -> "Spread":
        """The reciprocal."""
        return Spread(1 / self.median, 1 / self.q3, 1 / self.q1, self.n)


@dataclass(frozen=True)
class Ratio(Spread):
    """Time of a candidate over the time of the candidate ``to``, measured in turn."""

    to: str = "se_fused"


@dataclass(frozen=True)
class Measurement:
    """One benchmark, with the field names of the suite's ``extra_info``; None means not measured."""

    fullname: str
    group: str
    kind: str
    title: str
    mode: str
    shape: tuple[int, ...]
    dtype: str
    layout: str
    device: str
    candidate: str
    seconds: Spread
    cold: Spread | None = None
    ratio: Ratio | None = None
    cold_ratio: Ratio | None = None
    plain: bool = False
    network: str = ""
    baseline: str = ""
    axis: str = ""
    value: int = 0
    counted_bytes: int | None = None
    flops: int | None = None
    working_set_bytes: int | None = None
    copy_share: float | None = None
    cold_copy_share: float | None = None
    peak_bytes: int | None = None
    saved_bytes: int | None = None

    @property
    def ours(self) -> bool:
        """Whether the candidate is of this package."""
        return self.candidate.startswith(("se_fused", "converted"))

    @property
    def rate(self) -> float:
        """Samples per second; for a network, images per second."""
        return self.shape[0] / self.seconds.median

    def speed(self, cold: bool = False) -> float | None:
        """Counted bytes per second, with warm or with cold caches."""
        seconds = self.cold if cold else self.seconds
        return None if seconds is None or not self.counted_bytes else self.counted_bytes / seconds.median


@dataclass(frozen=True)
class CopySpeed:
    """Bytes per second of copy_, read and written together, for one size of the working set."""

    working_set_bytes: int
    warm: float | None
    cold: float | None


@dataclass(frozen=True)
class Limits:
    """Measured limits of a device, see :mod:`se_fused.bench.measure.device_limits`."""

    cache_bytes: int | None = None
    copy: tuple[CopySpeed, ...] = ()
    theoretical: float | None = None
    matmul: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """A benchmark that did not run."""

    name: str
    reason: str


@dataclass(frozen=True)
class Run:
    """A run of the benchmarks, or several runs on one machine that were merged."""

    files: tuple[str, ...]
    measurements: tuple[Measurement, ...]
    limits: Mapping[str, Limits]
    info: Mapping[str, Any]
    commands: tuple[str, ...] = ()
    preset: str = ""
    commit: str = ""
    branch: str = ""
    dirty: bool = False
    time: str = ""
    freed_memory_kept: bool | None = None
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def machine(self) -> tuple[str, tuple[str, ...]]:
        """Model of the CPU and names of the GPUs; only runs of the same machine may be compared."""
        cpu, gpus = self.info.get("cpu") or {}, self.info.get("gpus") or []
        return str(cpu.get("model") or "unknown CPU"), tuple(str(gpu.get("name")) for gpu in gpus)

    @property
    def where(self) -> str:
        """The machine as a text."""
        cpu, gpus = self.machine
        return ", ".join([cpu, *gpus])
