"""Tests of device_limits: caches, rotations, copies and products, with sizes and seconds that are known."""

from pathlib import Path

import pytest
import torch

from se_fused.bench.measure import device_limits
from se_fused.bench.measure.device_limits import (
    cache_bytes,
    copier,
    copy_bandwidth,
    copy_limits,
    larger_than_cache,
    limits,
    rotation,
)

MIB = 2**20


@pytest.fixture
def cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write the files that describe a machine's caches: (CPU, index, level, size, CPUs that share it)."""

    def write(*caches: tuple[int, int, int, str, str]) -> None:
        monkeypatch.setattr(device_limits, "_CPUS", tmp_path)
        for cpu, index, level, size, shared in caches:
            folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            for name, text in (("level", level), ("size", size), ("shared_cpu_list", shared)):
                (folder / name).write_text(f"{text}\n")

    return write


def use_cpus(monkeypatch: pytest.MonkeyPatch, *cpus: int) -> None:
    monkeypatch.setattr(device_limits.os, "sched_getaffinity", lambda _: set(cpus), raising=False)


def test_last_level_caches_add_up(cpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Last-level caches of all usable CPUs are added once each; here two dies with 32 MiB, without level 2."""
    third = [(0, 3, 3, "32768K", "0-1"), (1, 3, 3, "32768K", "0-1"), (2, 3, 3, "32M", "2")]
    cpus(*third, *((cpu, 2, 2, "1024K", str(cpu)) for cpu in range(3)))
    use_cpus(monkeypatch, 0, 1, 2)
    assert cache_bytes("cpu") == 64 * MIB
    use_cpus(monkeypatch, 0, 1)
    assert cache_bytes("cpu") == 32 * MIB


def test_caches_that_nobody_tells(cpus, monkeypatch: pytest.MonkeyPatch) -> None:
    cpus((0, 0, 1, "", "0"))
    use_cpus(monkeypatch, 0)
    assert cache_bytes("cpu") == 32 * MIB


@pytest.mark.parametrize(
    ("last", "expected"), [(1, 256), (64, 256), (100, 400), (512, 2048), (900, 2048), (1152, 2304)]
)
def test_larger_than_cache(monkeypatch: pytest.MonkeyPatch, last: int, expected: int) -> None:
    monkeypatch.setattr(device_limits, "cache_bytes", lambda device: last * MIB)
    assert larger_than_cache("cpu") == expected * MIB


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch):
    """A device whose caches do not hold 1000 bytes, with the given free memory."""

    def free(nbytes: int | None) -> None:
        monkeypatch.setattr(device_limits, "larger_than_cache", lambda device: 1000)
        monkeypatch.setattr(device_limits, "_free_bytes", lambda device: nbytes)

    return free


def test_rotation(small) -> None:
    """Between two uses of one set, the others of the rotation have at least 1000 bytes."""
    small(10**9)
    assert [rotation(n, "cpu") for n in (1, 100, 300, 999, 1000, 5000)] == [1001, 11, 5, 3, 2, 2]
    small(None)
    assert rotation(100, "cpu") == 11


def test_rotation_takes_a_quarter_of_the_memory(small) -> None:
    small(4 * 500)
    assert [rotation(n, "cpu") for n in (100, 250, 251, 500, 501)] == [5, 2, 1, 1, 1]


def test_rotation_refuses() -> None:
    with pytest.raises(ValueError, match="nbytes must be at least 1, got 0"):
        rotation(0, "cpu")


def test_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "meminfo"
    monkeypatch.setattr(device_limits, "_MEMINFO", file)
    assert device_limits._free_bytes(torch.device("cpu")) is None
    file.write_text("MemTotal:  9000 kB\nMemFree:  1 kB\nMemAvailable:   3000 kB\n")
    assert device_limits._free_bytes(torch.device("cpu")) == 3000 * 1024
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (77, 99))
    assert device_limits._free_bytes(torch.device("cuda")) == 77


def test_copier_copies() -> None:
    state = torch.random.get_rng_state()
    target = copier("cpu", 8000)()
    assert target.nbytes == 4000 and target.min() >= 0 and target.std() > 0.1  # neither zeros nor a single value
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let copies take as many seconds as the rotation has pairs; returns these numbers of pairs."""
    found: list[int] = []

    def sampler(fns, device):
        pairs = {fn().data_ptr() for fn in fns}  # all are alive, so each pair has its own address
        found.append(len(pairs))
        return lambda: float(len(pairs))

    monkeypatch.setattr(device_limits, "sampler", sampler)
    return found


def test_copy_bandwidth(small, seconds: list[int]) -> None:
    small(10**9)
    assert copy_bandwidth("cpu", 400) == 400
    assert copy_bandwidth("cpu", 400, cold=True) == 100  # 4 pairs of 400: the others have 1200 bytes
    assert copy_bandwidth("cpu") == 1000  # larger than the caches
    assert seconds == [1, 4, 1]


def test_copy_limits(small, seconds: list[int]) -> None:
    small(10**9)
    assert copy_limits("cpu", [400, 2000], repeats=1) == [
        {"working_set_bytes": 400, "warm": 400, "cold": 100},
        {"working_set_bytes": 2000, "warm": 2000, "cold": 1000},
    ]
    small(4 * 1000)  # enough for two of 400
    assert copy_limits("cpu", [400], repeats=1) == [{"working_set_bytes": 400, "warm": 400}]


def test_warm_copies_follow_a_copy_of_their_own(small, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each warm copy is preceded by another warm one, because the cold copies in between empty the caches."""
    small(10**9)
    calls = []

    def sampler(fns, device):
        name = "warm" if len(fns) == 1 else "cold"
        return lambda: calls.append(name) or 1.0

    monkeypatch.setattr(device_limits, "sampler", sampler)
    copy_limits("cpu", [400], repeats=1)
    measured = ["warm", "warm", "cold"], ["cold", "warm", "warm"]
    assert calls == [*measured[0], *measured[1], *measured[0]]


def test_copies_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_limits, "larger_than_cache", lambda device: 8 * MIB)
    (found,) = copy_limits("cpu", [4 * MIB], repeats=2)
    assert found["working_set_bytes"] == 4 * MIB
    assert 1e7 < found["warm"] < 1e13 and 1e7 < found["cold"] < 1e13


def test_flops_of_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product has 2 n^3 operations, with the largest n expected to take at most a fifth of a second."""
    sizes = []

    def sampler(fn, device):
        out = fn()
        n = out.shape[0]
        assert out.dtype == torch.float64 and out.std() > 0.5 * n**0.5  # normal numbers, not zeros
        sizes.append(n)
        return lambda: 2 * n**3 / 1e10

    monkeypatch.setattr(device_limits, "sampler", sampler)
    assert device_limits.matmul_flops("cpu", torch.float64) == pytest.approx(1e10)
    # 512: 0.027 s; 1024 would take 0.21 s
    assert sizes == [256, 512, 512]


def test_flops_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_limits, "_CPU_MATMUL_SECONDS", 1e-6)
    assert 1e8 < device_limits.matmul_flops("cpu", torch.float32, repeats=2) < 1e15


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_limits, "cache_bytes", lambda device: 5)
    monkeypatch.setattr(device_limits, "copy_limits", lambda device, sizes: [{"working_set_bytes": s} for s in sizes])
    monkeypatch.setattr(device_limits, "matmul_flops", lambda device, dtype: float(dtype.itemsize))
    assert limits("cpu", (torch.float32, torch.bfloat16), (1, 2)) == {
        "cache_bytes": 5,
        "copy": [{"working_set_bytes": 1}, {"working_set_bytes": 2}],
        "theoretical_bytes_per_second": None,
        "matmul_flops_per_second": {"float32": 4.0, "bfloat16": 2.0},
    }


@pytest.mark.gpu
def test_limits_on_gpu() -> None:
    found = limits("cuda", (torch.bfloat16,), (16 * MIB,))
    (copy,) = found["copy"]
    assert found["cache_bytes"] > MIB and copy["cold"] > 1e10 and copy["warm"] > 1e10
    assert found["matmul_flops_per_second"]["bfloat16"] > 1e12
    theoretical = found["theoretical_bytes_per_second"]
    assert theoretical is None or copy["cold"] < theoretical
