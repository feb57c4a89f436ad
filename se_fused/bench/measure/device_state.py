"""The state of a device while it is measured: clocks, power, temperature, load. Unknown values are left out.

GPUs are asked through NVML (the package nvidia-ml-py, module ``pynvml``), CPUs through /proc and /sys.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

__all__ = ["snapshot", "theoretical_bandwidth"]

_PROC = Path("/proc")
_SYS = Path("/sys")

# nvmlClocksEventReasons and nvmlClocksThrottleReasons of nvml.h: bit -> name.
_REASONS = {
    0x1: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


# ---- GPU
def _handle(nvml: Any, device: torch.device) -> Any:
    """NVML's handle of torch's device.

    NVML counts all GPUs of the machine; torch counts those of CUDA_VISIBLE_DEVICES, in its order. So the UUID tells
    which it is; that of a part of a GPU (MIG) starts differently.
    """
    uuid = torch.cuda.get_device_properties(device).uuid
    try:
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except nvml.NVMLError as error:
        try:
            return nvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")
        except nvml.NVMLError:
            raise error from None


@contextmanager
def _nvml(device: torch.device) -> Iterator[tuple[Any, Any]]:
    """NVML and the device's handle. Raises ImportError, or NVML's own error."""
    import pynvml

    pynvml.nvmlInit()
    try:
        yield pynvml, _handle(pynvml, device)
    finally:
        pynvml.nvmlShutdown()


def theoretical_bandwidth(device: str | torch.device) -> float | None:
    """Bytes per second between a GPU and its memory, from NVML: highest memory clock x bus width x 2 / 8.

    The clock comes in MHz (``nvmlDeviceGetMaxClockInfo``, NVML_CLOCK_MEM), the width in bits
    (``nvmlDeviceGetMemoryBusWidth``); 2 transfers in each period, since the memory has double data rate; 8 bits are one
    byte. NVIDIA's nvbench computes it in the same way (device_info::get_global_memory_bandwidth).

    Returns:
        None on a CPU, without nvidia-ml-py, and where NVML does not answer or says 0.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        with _nvml(device) as (nvml, handle):
            hertz = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM) * 1e6
            bits = nvml.nvmlDeviceGetMemoryBusWidth(handle)
    except (pynvml.NVMLError, AttributeError):
        return None
    return hertz * bits * 2 / 8 or None


def _first(nvml: Any, names: tuple[str, ...], *arguments: Any) -> Any:
    """The answer of the first of these functions that pynvml has and the driver supports."""
    for name in names[:-1]:
        try:
            return getattr(nvml, name)(*arguments)
        except (nvml.NVMLError, AttributeError):
            continue
    return getattr(nvml, names[-1])(*arguments)


def _reasons(bits: int) -> list[str]:
    known = [name for bit, name in _REASONS.items() if bits & bit]
    rest = bits & ~sum(_REASONS)
    return [*known, hex(rest)] if rest else known


def _gpu(device: torch.device) -> dict[str, Any]:
    try:
        import pynvml
    except ImportError:
        return {"unavailable": {"nvml": "pynvml is not installed: pip install nvidia-ml-py"}}
    found: dict[str, Any] = {}
    unavailable: dict[str, str] = {}
    try:
        with _nvml(device) as (nvml, handle):
            questions: dict[str, Callable[[], Any]] = {
                "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
                "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
                "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,  # NVML says milliwatts
                "temperature_c": lambda: _first(
                    nvml,
                    ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature"),
                    handle,
                    nvml.NVML_TEMPERATURE_GPU,
                ),
                "utilization_percent": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
                "clocks_event_reasons": lambda: _reasons(
                    _first(
                        nvml,
                        ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"),
                        handle,
                    )
                ),
                "memory_used_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used,
            }
            for name, ask in questions.items():
                try:
                    found[name] = ask()
                except (nvml.NVMLError, AttributeError) as error:  # AttributeError: a pynvml that lacks the function
                    unavailable[name] = _told(error)
    except pynvml.NVMLError as error:
        unavailable["nvml"] = _told(error)
    return {**found, "unavailable": unavailable} if unavailable else found


# ---- CPU
def _frequency_mhz() -> float | None:
    """Mean over all CPUs, now: cpufreq where there is one, else what /proc/cpuinfo says."""
    files = _SYS.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")
    values = [int(file.read_text()) / 1000 for file in files]  # in kHz
    if not values:
        lines = (_PROC / "cpuinfo").read_text().splitlines()
        values = [float(line.partition(":")[2]) for line in lines if line.lower().startswith("cpu mhz")]
    return sum(values) / len(values) if values else None


def _steal() -> tuple[float, float] | None:
    """Seconds that others on the host took from this virtual machine's CPUs since boot, and their share of all."""
    fields = (_PROC / "stat").read_text().split("\n", 1)[0].split()
    # user nice system idle iowait irq softirq steal; guests' time, which follows, is within user's: proc(5)
    ticks = [int(field) for field in fields[1:9]]
    if len(ticks) < 8 or not sum(ticks):
        return None
    return ticks[7] / os.sysconf("SC_CLK_TCK"), ticks[7] / sum(ticks)


def _temperature_c() -> float | None:
    """The hottest thermal zone."""
    values = [int(file.read_text()) / 1000 for file in _SYS.glob("class/thermal/thermal_zone*/temp")]
    return max(values, default=None)


def _cpu() -> dict[str, Any]:
    found: dict[str, Any] = {}
    questions: dict[str, Callable[[], Any]] = {
        "load_average_1min": lambda: os.getloadavg()[0],
        "frequency_mhz": _frequency_mhz,
        "steal": _steal,
        "temperature_c": _temperature_c,
    }
    unavailable: dict[str, str] = {}
    for name, ask in questions.items():
        try:
            answer = ask()
        except (OSError, ValueError) as error:
            unavailable[name] = _told(error)
            continue
        if answer is not None:
            found[name] = answer
    if "steal" in found:
        found["steal_seconds"], found["steal_share"] = found.pop("steal")
    return {**found, "unavailable": unavailable} if unavailable else found


def snapshot(device: str | torch.device) -> dict[str, Any]:
    """The device's state now, for JSON. A value that cannot be had is absent.

    Returns:
        CUDA: ``sm_clock_mhz``, ``memory_clock_mhz``, ``power_w``, ``temperature_c``, ``utilization_percent`` (of NVML's
        last sampling period), ``clocks_event_reasons`` (names of what holds the clocks down now; NVML's throttle
        reasons), ``memory_used_bytes`` (by all processes).
        CPU: ``load_average_1min``, ``frequency_mhz`` (mean of all CPUs), ``steal_seconds`` and ``steal_share`` (time
        that a virtual machine's host gave to others, summed over the CPUs since boot, and its share of all time),
        ``temperature_c`` (the hottest zone).
        ``unavailable``: by what was asked for, the error, where there was one.
    """
    device = torch.device(device)
    return _gpu(device) if device.type == "cuda" else _cpu()
