"""Tests of device_state with a fake NVML, with files that replace /proc and /sys, and on this CPU."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from se_fused.bench.measure import device_state
from se_fused.bench.measure.device_state import snapshot, theoretical_bandwidth


class NVMLError(Exception):
    pass


class FakeNVML:
    """An NVML with two GPUs. ``missing`` contains functions that the driver does not support."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self) -> None:
        self.gpus = {
            "GPU-aa": {"sm": 1980, "memory": 2619, "width": 6144},
            "GPU-bb": {"sm": 345, "memory": 405, "width": 384},
        }
        self.reasons = 0x4 | 0x40
        self.missing: set[str] = set()
        self.open = 0

    def __getattribute__(self, name: str):
        if name.startswith("nvml") and name in object.__getattribute__(self, "missing"):

            def refuse(*_: object):
                raise NVMLError("Not Supported")

            return refuse
        return object.__getattribute__(self, name)

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> dict:
        if uuid not in self.gpus:
            raise NVMLError("Not Found")
        return self.gpus[uuid]

    def nvmlDeviceGetMaxClockInfo(self, gpu: dict, kind: int) -> int:
        return {1: 1, 2: gpu["memory"]}[kind]

    def nvmlDeviceGetMemoryBusWidth(self, gpu: dict) -> int:
        return gpu["width"]

    def nvmlDeviceGetClockInfo(self, gpu: dict, kind: int) -> int:
        return {1: gpu["sm"], 2: gpu["memory"]}[kind]

    def nvmlDeviceGetPowerUsage(self, gpu: dict) -> int:
        return 345_600

    def nvmlDeviceGetTemperatureV(self, gpu: dict, sensor: int) -> int:
        assert sensor == 0
        return 61

    def nvmlDeviceGetTemperature(self, gpu: dict, sensor: int) -> int:
        return 62

    def nvmlDeviceGetUtilizationRates(self, gpu: dict) -> SimpleNamespace:
        return SimpleNamespace(gpu=97, memory=40)

    def nvmlDeviceGetCurrentClocksEventReasons(self, gpu: dict) -> int:
        return self.reasons

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu: dict) -> int:
        return 0x1

    def nvmlDeviceGetMemoryInfo(self, gpu: dict) -> SimpleNamespace:
        return SimpleNamespace(total=10, free=3, used=7)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch):
    """A fake NVML; torch numbers its GPUs in reverse, as after CUDA_VISIBLE_DEVICES=1,0."""
    fake = FakeNVML()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=["bb", "aa"][device.index])
    )
    yield fake
    assert fake.open == 0, "NVML was not shut down as often as it was started"


def test_theoretical_bandwidth(nvml: FakeNVML) -> None:
    """At 2619 MHz, a bus of 5120 bits has the 3.35 TB/s of an H100 SXM's data sheet."""
    assert theoretical_bandwidth("cuda:1") == pytest.approx(2619e6 * 6144 * 2 / 8)
    assert theoretical_bandwidth("cuda:0") == pytest.approx(405e6 * 384 * 2 / 8)
    nvml.gpus["GPU-aa"]["width"] = 5120
    assert theoretical_bandwidth("cuda:1") == pytest.approx(3.35e12, rel=0.001)


def test_no_theoretical_bandwidth(nvml: FakeNVML, monkeypatch: pytest.MonkeyPatch) -> None:
    assert theoretical_bandwidth("cpu") is None
    nvml.gpus["GPU-aa"]["width"] = 0
    assert theoretical_bandwidth("cuda:1") is None
    for name in ("nvmlDeviceGetMemoryBusWidth", "nvmlDeviceGetHandleByUUID"):
        nvml.missing = {name}
        assert theoretical_bandwidth("cuda:1") is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert theoretical_bandwidth("cuda:1") is None


def test_no_driver(nvml: FakeNVML) -> None:
    nvml.missing = {"nvmlInit"}
    assert theoretical_bandwidth("cuda:1") is None
    assert snapshot("cuda:1") == {"unavailable": {"nvml": "NVMLError: Not Supported"}}


def test_snapshot_of_a_gpu(nvml: FakeNVML) -> None:
    assert snapshot("cuda:1") == {
        "sm_clock_mhz": 1980,
        "memory_clock_mhz": 2619,
        "power_w": 345.6,
        "temperature_c": 61,
        "utilization_percent": 97,
        "clocks_event_reasons": ["sw_power_cap", "hw_thermal_slowdown"],
        "memory_used_bytes": 7,
    }
    assert snapshot("cuda:0")["sm_clock_mhz"] == 345


def test_reasons_that_have_no_name_yet(nvml: FakeNVML) -> None:
    nvml.reasons = 0x1 | 0x1000
    assert snapshot("cuda:0")["clocks_event_reasons"] == ["gpu_idle", "0x1000"]
    nvml.reasons = 0
    assert snapshot("cuda:0")["clocks_event_reasons"] == []


def test_older_drivers(nvml: FakeNVML) -> None:
    nvml.missing = {"nvmlDeviceGetTemperatureV", "nvmlDeviceGetCurrentClocksEventReasons"}
    found = snapshot("cuda:0")
    assert (found["temperature_c"], found["clocks_event_reasons"]) == (62, ["gpu_idle"])
    assert "unavailable" not in found


def test_what_a_gpu_does_not_tell_is_absent(nvml: FakeNVML, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.missing = {"nvmlDeviceGetPowerUsage", "nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature"}
    found = snapshot("cuda:0")
    assert found.keys().isdisjoint({"power_w", "temperature_c"}) and found["utilization_percent"] == 97
    assert found["unavailable"] == {"power_w": "NVMLError: Not Supported", "temperature_c": "NVMLError: Not Supported"}
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert snapshot("cuda:0") == {"unavailable": {"nvml": "pynvml is not installed: pip install nvidia-ml-py"}}


def test_a_part_of_a_gpu(nvml: FakeNVML) -> None:
    nvml.gpus = {"MIG-aa": {"sm": 1200, "memory": 1, "width": 1}}
    assert snapshot("cuda:1")["sm_clock_mhz"] == 1200
    assert snapshot("cuda:0") == {"unavailable": {"nvml": "NVMLError: Not Found"}}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write files of /proc and /sys; all others are missing."""
    monkeypatch.setattr(device_state, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(device_state, "_SYS", tmp_path / "sys")

    def write(**files: str) -> None:
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def test_snapshot_of_a_cpu(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 2.0, 3.0))
    machine(
        proc__stat="cpu  100 0 50 800 0 0 0 50 90 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n",
        proc__cpuinfo="processor: 0\ncpu MHz\t\t: 2300.000\nprocessor: 1\ncpu MHz\t\t: 2500.5\n",
    )
    ticks = os.sysconf("SC_CLK_TCK")
    assert snapshot("cpu") == {
        "load_average_1min": 1.5,
        "frequency_mhz": pytest.approx(2400.25),
        "steal_seconds": 50 / ticks,
        "steal_share": 0.05,
    }
    machine(
        sys__devices__system__cpu__cpu0__cpufreq__scaling_cur_freq="3000000\n",
        sys__devices__system__cpu__cpu1__cpufreq__scaling_cur_freq="1000000\n",
        sys__class__thermal__thermal_zone0__temp="41000\n",
        sys__class__thermal__thermal_zone1__temp="47500\n",
    )
    found = snapshot("cpu")
    assert (found["frequency_mhz"], found["temperature_c"]) == (2000, 47.5)


def test_what_a_cpu_does_not_tell_is_absent(machine) -> None:
    machine(proc__stat="cpu 1 2 3\n", proc__cpuinfo="processor: 0\n")
    assert snapshot("cpu").keys() == {"load_average_1min"}
    machine(proc__stat="cpu  0 0 0 0 0 0 0 0\n", proc__cpuinfo="cpu MHz: fast\n")
    found = snapshot("cpu")
    assert found.keys() == {"load_average_1min", "unavailable"}
    assert found["unavailable"].keys() == {"frequency_mhz"}


def test_this_cpu() -> None:
    found = snapshot("cpu")
    json.dumps(found, allow_nan=False)
    assert found["load_average_1min"] >= 0
    assert 0 <= found.get("steal_share", 0.0) <= 1 and found.get("steal_seconds", 0.0) >= 0
    assert 100 < found.get("frequency_mhz", 1000) < 10_000


@pytest.mark.gpu
def test_this_gpu() -> None:
    pytest.importorskip("pynvml")
    found = snapshot("cuda")
    json.dumps(found, allow_nan=False)
    assert found["sm_clock_mhz"] > 0 and found["memory_used_bytes"] > 0
    assert 1e10 < theoretical_bandwidth("cuda") < 1e14
