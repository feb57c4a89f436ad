"""Every test runs with poisoned allocations: torch.empty hands out NaN (and all ones in integers and masks)."""

import getpass
import os
import tempfile
from pathlib import Path

import pytest
import torch
from support.interpreter import round_bfloat16

from se_fused import backends

# Read by cuBLAS at its first call: without it, it warns that it is not deterministic, and our warnings are errors.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# torch.compile's cache does not tell instruction sets apart (torch 2.14.1): what it compiled while ATEN_CPU_CAPABILITY
# was avx2, and finds again without it, writes past its buffers ("malloc(): unaligned tcache chunk detected").
_capability = torch.backends.cpu.get_cpu_capability().lower()
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"se-fused-inductor-{getpass.getuser()}-{_capability}")
)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton: its own functions are interpreted too
    if backends.BACKENDS["triton"].can_use("cpu", torch.float32) is None:
        round_bfloat16()
os.environ.pop("SE_FUSED_AUTOTUNE", None)
# On a GPU a few calls are measured and remembered: not in the user's file.
_cache = tempfile.TemporaryDirectory(prefix="se-fused-tests-")
os.environ["SE_FUSED_CACHE"] = _cache.name


def shard_of(items, shard, shards):
    """Every so manieth test; those that need a GPU's memory alone are all the first shard's, one after another."""
    alone = [item for item in items if item.get_closest_marker("alone")]
    others = [item for item in items if not item.get_closest_marker("alone")]
    return others[shard::shards] + (alone if shard == 0 else [])


def pytest_collectstart(collector):
    """What a test file draws while it is imported does not depend on which files were imported before it."""
    if isinstance(collector, pytest.Module):
        torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    # "2/8": the third of eight processes that share the tests (benchmarks/gpu: each has a time limit of its own)
    shard, _, shards = os.environ.get("SE_FUSED_TEST_SHARD", "").partition("/")
    if shards:
        items[:] = shard_of(items, int(shard), int(shards))
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True)
def poisoned_allocations():
    """What a kernel forgets to write is NaN, not a stale right answer; and a test draws the same numbers each time."""
    torch.manual_seed(0)
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(autouse=True)
def backend_as_found():
    """A test that forces a backend or an instruction set leaves nothing behind; a cap of the whole run stays."""
    asked, cpu = backends.forced(), backends.BACKENDS["cpu"]
    built = cpu.can_use("cpu", torch.float32) is None
    capability = cpu.capability() if built else ""
    yield
    backends.use_backend(asked)
    if built:
        cpu.capability(capability)


@pytest.fixture(autouse=True)
def small_maps_are_fused(monkeypatch, request):
    """The tests' maps are so small that ``auto`` would leave them to the modules; test_dispatch.py wants that."""
    if request.path.name != "test_dispatch.py":
        monkeypatch.setattr(backends.BACKENDS["cpu"], "projection_from", {})


@pytest.fixture(params=["default", "avx2", "avx512"])
def instructions(request):
    """Each instruction set that this machine can run."""
    cpu = backends.BACKENDS["cpu"]
    reason = cpu.can_use("cpu", torch.float32)
    if reason is not None:
        pytest.fail(f"the C++ library is needed: {reason}")
    if cpu.capability(request.param) != request.param:
        pytest.skip(f"this processor has no {request.param}")
    return request.param


@pytest.fixture(autouse=True, scope="module")
def application_on_one_thread(request):
    """The application's tests train networks so small that two threads on a busy machine mostly wait for each other."""
    threads = torch.get_num_threads()
    if "apps" in request.path.parts:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
