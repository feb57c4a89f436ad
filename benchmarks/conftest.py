"""Options and fixtures: ``pytest benchmarks/ --benchmark-only``, with ``--stages small`` for a quick look."""

from collections.abc import Callable

import pytest
import torch

from se_fused.compare import Result, agreement
from se_fused.introspect import cpu_instructions, cuda_kernels, summary
from se_fused.measure import copy_bandwidth, device_seconds, keep_freed_memory, peak_memory, saved_bytes, synchronizer
from se_fused.workloads import STAGES, Workload

SMALL_STAGES = ((2, 64, 14, 14), (2, 128, 7, 7))
GPU_BATCH = 128


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--stages", default="full", choices=("full", "small"), help="ResNet-50's, or a smoke test")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    small = metafunc.config.getoption("stages") == "small"
    if "stage" in metafunc.fixturenames:
        full = [(GPU_BATCH, *s[1:]) for s in STAGES] if torch.cuda.is_available() else STAGES
        metafunc.parametrize("stage", ["x".join(map(str, s)) for s in (SMALL_STAGES if small else full)])
    if "network" in metafunc.fixturenames:  # name, batch, size
        metafunc.parametrize("network", ["seresnet18-2-64" if small else "seresnet50-8-224"])


@pytest.hookimpl(optionalhook=True)  # pytest-benchmark's
def pytest_benchmark_update_machine_info(machine_info: dict) -> None:
    machine_info["se_fused"] = {"cpu_instructions": cpu_instructions(), "cuda_kernels": cuda_kernels()}


def pytest_terminal_summary(terminalreporter) -> None:
    kernels = cuda_kernels()
    rows = [] if isinstance(kernels, str) else summary(kernels)
    terminalreporter.section("kernels")
    terminalreporter.write_line(
        f"CPU: {cpu_instructions()}; CUDA: {kernels if isinstance(kernels, str) else len(kernels)}"
    )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        terminalreporter.write_line("  ".join(map(str.ljust, row, widths)).rstrip())


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def copy_speed(device: str) -> Callable[[int], float]:
    """Bytes per second of copy_ on a working set of that size; each is measured once."""
    known: dict[int, float] = {}

    def speed(working_set: int) -> float:
        if working_set not in known:
            known[working_set] = copy_bandwidth(device, working_set)
        return known[working_set]

    return speed


@pytest.fixture
def run_benchmark(benchmark, copy_speed: Callable[[int], float]) -> Callable[[Workload, str, str], None]:
    """Check one candidate against float64, then time it, and note memory and counted bytes beside the time."""

    def run(workload: Workload, name: str, layout: str) -> None:
        keep_freed_memory()
        candidate, result = workload.candidate(name, layout), Result(name, layout)
        agreement(workload, [(candidate, result)])
        if result.status == "failed" and name == "compile":
            pytest.skip(f"torch.compile does not run here: {result.note}")
        assert result.status == "ok", result.note
        wait = synchronizer(workload.device)

        def once() -> None:
            candidate.run()
            wait()

        shape, dtype = "x".join(map(str, workload.shape)), workload.describe()["dtype"]
        # A network's candidates choose their own order; a tail's is part of the workload.
        benchmark.group = " ".join([workload.title, shape, dtype, *([layout] if len(workload.layouts) == 1 else [])])
        benchmark.extra_info.update(workload.describe(), candidate=name, errors=result.errors)
        benchmark(once)
        candidate.reset()
        benchmark.extra_info["peak_bytes"] = peak_memory(candidate.run, workload.device)
        candidate.reset()
        if workload.mode == "train":
            benchmark.extra_info["saved_bytes"] = saved_bytes(candidate.forward, candidate.kept)
        counted = workload.counted()
        if benchmark.stats is None:  # --benchmark-disable
            return
        seconds = benchmark.stats.stats.median
        if workload.device.type == "cuda":  # without the host's part, which a wall clock cannot leave out
            seconds = device_seconds(candidate.run, workload.device)
            benchmark.extra_info["device_seconds"] = seconds
        if counted is not None:
            speed = counted[0] / seconds
            benchmark.extra_info.update(
                counted_bytes=counted[0], gb_per_second=speed / 1e9, share_of_copy=speed / copy_speed(counted[1])
            )

    return run
