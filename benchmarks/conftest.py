"""Options, fixtures and the additions to the JSON file of ``pytest benchmarks/ --benchmark-only``."""

from typing import Any

import pytest
import torch
from cases import PRESETS, cases
from harness import Bench, Settings, WorkloadCache

from se_fused.bench.measure.device_limits import limits
from se_fused.bench.measure.memory import keep_freed_memory
from se_fused.info.kernels import cpu_instructions, cuda_kernels, summary
from se_fused.info.provenance import environment, portable, this_command

_SKIPPED = pytest.StashKey[list[dict[str, str]]]()
SIZES = [2**20, 2**22, 2**24, 2**26, 2**28]
"""Working sets in bytes for which the speed of a copy is measured and stored in the JSON file."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("se_fused")
    group.addoption(
        "--preset",
        default="default",
        choices=PRESETS,
        help="smoke: tiny maps, every benchmark once; default: the usual cases, about an hour on two CPU cores; "
        "full: every batch size, network and baseline, hours on a CPU",
    )
    group.addoption("--seconds", type=float, default=None, help="seconds per candidate; default: by workload")
    group.addoption("--device", default=None, help="cpu or cuda; default: cuda if torch finds a GPU")


def chosen_device(config: pytest.Config) -> str:
    return str(config.getoption("--device") or ("cuda" if torch.cuda.is_available() else "cpu"))


def pytest_configure(config: pytest.Config) -> None:
    device = chosen_device(config)
    if device != "cpu" and not torch.cuda.is_available():
        raise pytest.UsageError(f"--device {device}: torch finds no GPU here; give --device cpu")
    config.stash[_SKIPPED] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize a benchmark with the rows of cases.py, which are strings because pytest-benchmark stores them."""
    found = cases(metafunc.function.__name__, metafunc.config.getoption("--preset"), chosen_device(metafunc.config))
    if found is not None:
        names, rows = found
        metafunc.parametrize(names, rows, ids=["-".join(row) for row in rows])


@pytest.fixture(scope="session")
def settings(pytestconfig: pytest.Config) -> Settings:
    return Settings(
        pytestconfig.getoption("--preset"), chosen_device(pytestconfig), pytestconfig.getoption("--seconds")
    )


@pytest.fixture(scope="session")
def workloads() -> WorkloadCache:
    return WorkloadCache()


@pytest.fixture
def bench(benchmark: Any, workloads: WorkloadCache, settings: Settings) -> Bench:
    return Bench(benchmark, workloads, settings)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    outcome = yield
    report = outcome.get_result()
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        item.config.stash[_SKIPPED].append({"name": item.name, "reason": reason})


@pytest.hookimpl(optionalhook=True)  # pytest-benchmark's
def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info["se_fused"] = {"cpu_instructions": cpu_instructions(), "cuda_kernels": cuda_kernels()}


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    device = chosen_device(config)
    smoke = config.getoption("--preset") == "smoke"
    if not config.getoption("benchmark_save_data", False):
        for row in output_json["benchmarks"]:  # remove the time of each round, but not medians and quartiles
            row["stats"].pop("data", None)
    output_json["se_fused"] = {
        "command": this_command(),
        "preset": config.getoption("--preset"),
        "info": environment(),
        "freed_memory_kept": keep_freed_memory(),
        "limits": {device: limits(device, [torch.float32, torch.bfloat16], SIZES[: 2 if smoke else None])},
        "skipped": config.stash[_SKIPPED],
    }
    output_json |= portable(output_json)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    kernels = cuda_kernels()
    rows = [] if isinstance(kernels, str) else summary(kernels)
    terminalreporter.section("kernels")
    terminalreporter.write_line(
        f"CPU: {cpu_instructions()}; CUDA: {kernels if isinstance(kernels, str) else len(kernels)}"
    )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        terminalreporter.write_line("  ".join(map(str.ljust, row, widths)).rstrip())
