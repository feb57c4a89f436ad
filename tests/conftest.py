"""Fixtures and hooks of all tests.

Every test runs with poisoned allocations: torch.empty returns NaN (and all ones in integers and masks).
"""

import getpass
import os
import tempfile
from pathlib import Path

import pytest

# Test processes share the cores: a thread that waits must not spin. libgomp reads this once, when torch loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from support.instructions import SUPPORTED
from support.interpreter import round_bfloat16
from support.tiers import TIERS, in_tier

from se_fused import backends

# cuBLAS reads this at its first call. Without it, cuBLAS warns that it is not deterministic, and warnings are errors
# here.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# The cache of torch.compile does not distinguish instruction sets (torch 2.14.1): code compiled while
# ATEN_CPU_CAPABILITY was avx2, and found again without it, writes past its buffers ("malloc(): unaligned tcache chunk
# detected").
_capability = torch.backends.cpu.get_cpu_capability().lower()
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"se-fused-inductor-{getpass.getuser()}-{_capability}")
)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton: its own functions are interpreted too
    if backends.BACKENDS["triton"].can_use("cpu", torch.float32) is None:
        round_bfloat16()
os.environ.pop("SE_FUSED_AUTOTUNE", None)
# On a GPU a few launch choices are measured and saved; this keeps them out of the user's cache file.
_cache = tempfile.TemporaryDirectory(prefix="se-fused-tests-")
os.environ["SE_FUSED_CACHE"] = _cache.name


def shard_of(items, shard, shards):
    """The tests of one shard; the first shard also gets all tests marked ``alone``, which need a GPU's memory alone."""
    alone = [item for item in items if item.get_closest_marker("alone")]
    others = [item for item in items if not item.get_closest_marker("alone")]
    return others[shard::shards] + (alone if shard == 0 else [])


def pytest_collectstart(collector):
    """Seed before each test file is imported, so that its random numbers do not depend on the files before it."""
    if isinstance(collector, pytest.Module):
        torch.manual_seed(0)


def pytest_addoption(parser):
    parser.addoption(
        "--tier", choices=TIERS, help="the tests of `make quick`, `make test` (the default) or `make nightly`"
    )


def pytest_configure(config):
    if config.option.tier is None:
        # A test that is named on the command line, with "::" behind its file, runs whatever its tier.
        config.option.tier = "nightly" if any("::" in name for name in config.args) else "test"


def pytest_collection_modifyitems(config, items):
    chosen = in_tier(items, config.option.tier)
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = [item for item in items if item in chosen]
    # "2/8": the third of eight processes that share the tests. benchmarks/gpu uses it: each process has its own time
    # limit.
    shard, _, shards = os.environ.get("SE_FUSED_TEST_SHARD", "").partition("/")
    if shards:
        items[:] = shard_of(items, int(shard), int(shards))
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True)
def poisoned_allocations():
    """Elements that a kernel forgets to write are NaN, not stale correct values; every run draws the same numbers."""
    torch.manual_seed(0)
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(autouse=True)
def backend_as_found():
    """Restore the backend and the instruction set after each test; a limit set for the whole run stays in force."""
    asked, cpu = backends.forced(), backends.BACKENDS["cpu"]
    built = cpu.can_use("cpu", torch.float32) is None
    capability = cpu.capability() if built else ""
    yield
    backends.use_backend(asked)
    if built:
        cpu.capability(capability)


@pytest.fixture(autouse=True)
def small_maps_are_fused(monkeypatch, request):
    """Make ``auto`` fuse small maps, which it would leave to the modules; only test_dispatch.py tests that rule."""
    if request.path.name != "test_dispatch.py":
        monkeypatch.setattr(backends.BACKENDS["cpu"], "projection_from", {})


@pytest.fixture(params=SUPPORTED)
def instructions(request):
    """Run the test with each instruction set that this machine supports."""
    cpu = backends.BACKENDS["cpu"]
    reason = cpu.can_use("cpu", torch.float32)
    if reason is not None:
        pytest.fail(f"the C++ library is needed: {reason}")
    assert cpu.capability(request.param) == request.param
    return request.param


@pytest.fixture(autouse=True, scope="module")
def networks_on_one_thread(request):
    """Tests of whole networks leave the other cores to the other test processes; those of the application always do,
    because its networks are so small that two threads mostly wait for each other."""
    threads = torch.get_num_threads()
    shared = "PYTEST_XDIST_WORKER" in os.environ
    if "apps" in request.path.parts or (shared and {"bench", "models", "nn"} & set(request.path.parts)):
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
