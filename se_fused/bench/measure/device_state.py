"""State of a device during a measurement: clocks, power, temperature and load. Unknown values are omitted.

Values of GPUs come from NVML (package nvidia-ml-py, module ``pynvml``), those of CPUs from /proc and /sys.
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
    """NVML's handle of a torch device, found by its UUID.

    The index cannot be used: NVML counts all GPUs of the machine, torch only those in CUDA_VISIBLE_DEVICES, in that
    order. The UUID of a part of a GPU (MIG) has another prefix.
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
    """The initialised NVML module and the device's handle. Raises ImportError or NVML's own errors."""
    import pynvml

    pynvml.nvmlInit()
    try:
        yield pynvml, _handle(pynvml, device)
    finally:
        pynvml.nvmlShutdown()


def theoretical_bandwidth(device: str | torch.device) -> float | None:
    """Theoretical bytes per second of a GPU's memory: highest memory clock x bus width x 2 / 8.

    NVML gives the clock in MHz (``nvmlDeviceGetMaxClockInfo``, NVML_CLOCK_MEM) and the bus width in bits
    (``nvmlDeviceGetMemoryBusWidth``). The factor 2 is for two transfers per clock period (double data rate), the factor
    8 for the bits of a byte. NVIDIA's nvbench uses the same formula (device_info::get_global_memory_bandwidth).

    Returns:
        Bytes per second; None for a CPU, without nvidia-ml-py, and if NVML fails or returns 0.
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
    """Result of the first of these functions that pynvml has and the driver supports."""
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
                "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,  # NVML returns milliwatts
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
                except (nvml.NVMLError, AttributeError) as error:  # AttributeError: pynvml has no such function
                    unavailable[name] = _told(error)
    except pynvml.NVMLError as error:
        unavailable["nvml"] = _told(error)
    return {**found, "unavailable": unavailable} if unavailable else found


# ---- CPU
def _frequency_mhz() -> float | None:
    """Current mean frequency of all CPUs, from cpufreq or else from /proc/cpuinfo."""
    files = _SYS.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")
    values = [int(file.read_text()) / 1000 for file in files]  # in kHz
    if not values:
        lines = (_PROC / "cpuinfo").read_text().splitlines()
        values = [float(line.partition(":")[2]) for line in lines if line.lower().startswith("cpu mhz")]
    return sum(values) / len(values) if values else None


def _steal() -> tuple[float, float] | None:
    """Seconds of CPU time that the host gave to other virtual machines since boot, and their share of all time."""
    fields = (_PROC / "stat").read_text().split("\n", 1)[0].split()
    # user nice system idle iowait irq softirq steal; the guest times after them are included in user: proc(5)
    ticks = [int(field) for field in fields[1:9]]
    if len(ticks) < 8 or not sum(ticks):
        return None
    return ticks[7] / os.sysconf("SC_CLK_TCK"), ticks[7] / sum(ticks)


def _temperature_c() -> float | None:
    """Temperature of the hottest thermal zone."""
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
    """Current state of the device, as a dict for JSON. Unavailable values are omitted.

    Returns:
        CUDA: ``sm_clock_mhz``, ``memory_clock_mhz``, ``power_w``, ``temperature_c``, ``utilization_percent`` (in NVML's
        last sampling period), ``clocks_event_reasons`` (names of NVML's current throttle reasons) and
        ``memory_used_bytes`` (by all processes).
        CPU: ``load_average_1min``, ``frequency_mhz`` (mean of all CPUs), ``steal_seconds`` and ``steal_share`` (CPU
        time that the host gave to other virtual machines since boot, summed over the CPUs, and its share of all time)
        and ``temperature_c`` (of the hottest thermal zone).
        ``unavailable``: the errors, by the name of the value, if there were any.
    """
    device = torch.device(device)
    return _gpu(device) if device.type == "cuda" else _cpu()
