"""Benchmarks of the host: SE-ResNet50 on a device without kernels, ours and timm's in turns.

The seconds are those of Python, PyTorch's dispatcher, autograd and allocation, which bound small batches on a GPU. The
device is a stand-in (benchmarks/standin) in a process of its own; no result is computed, so none is compared.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from harness import Settings, timed
from host_process import HostProcess

from se_fused.bench.measure.timing import Timing, ratio


@pytest.fixture(scope="module")
def host() -> Iterator[HostProcess]:
    process = HostProcess()
    yield process
    process.close()


def test_host(benchmark: Any, host: HostProcess, settings: Settings, mode: str, dtype: str, candidate: str) -> None:
    if host.reason is not None:
        pytest.skip(host.reason)
    benchmark.group = f"host seresnet50 {mode} {dtype}"
    budget = 0.01 if settings.preset == "smoke" else settings.seconds or 5.0
    theirs = timed(
        benchmark,
        lambda: host.run(candidate, mode, dtype),
        lambda: host.run("timm", mode, dtype),
        "cpu", budget, prime=False, pause=0.0,
    )  # fmt: skip
    if theirs is None:  # --benchmark-disable
        return
    seconds = list(benchmark.stats.stats.data)
    benchmark.extra_info.update(
        candidate=candidate,
        seconds=Timing.of(seconds).as_dict(),
        ratio={"to": "timm", **ratio(seconds, theirs).as_dict()},
    )
