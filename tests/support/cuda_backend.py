"""Fixtures of the CUDA backend's tests: on a GPU if there is one, otherwise with the kernels' source on the CPU."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from se_fused import backends
from se_fused.backends.cuda import CudaBackend
from se_fused.testing.verify import Case
from support import contract, shim_library

DEVICE = "cuda" if backends.BACKENDS["cuda"].can_use("cuda", torch.float32) is None else "cpu"
on_shim = pytest.mark.skipif(DEVICE == "cuda", reason="only the CPU build lets tests set the device's properties")
if DEVICE == "cpu" and (reason := shim_library.why_not()) is not None:
    pytest.skip(reason, allow_module_level=True)

H200 = (90, 132, 60 << 20, 232448)  # capability, multiprocessors, bytes of L2, shared memory of a block
A100 = (80, 108, 40 << 20, 166912)


@pytest.fixture(scope="module", name="backend")
def given_backend() -> CudaBackend:
    given = os.environ.get("SE_FUSED_SHIM")  # built with sanitizers; set by test_contract.py
    return CudaBackend() if DEVICE == "cuda" else on_cpu(Path(given or shim_library.library()))


def on_cpu(library: Path, product: Any = None) -> CudaBackend:
    return CudaBackend(library, "cpu", product, "se_fused_cuda_shim")


@pytest.fixture(autouse=True)
def cuda_alone(backend: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    assert backend.load() is None
    monkeypatch.setitem(backends.BACKENDS, "cuda", backend)
    with backends.use_backend("cuda"):
        stand_in()
        yield
        stand_in()


def stand_in(device: tuple[int, ...] = H200) -> None:
    """Set the device that the launch rules see, and clear the list of launches.

    The fifth number is the largest shared memory per block with which the device can place clusters of 16 blocks;
    without it, the device can place them all.
    """
    if DEVICE == "cpu":
        torch.ops.se_fused_cuda_shim.stand_in(*device)
        torch.ops.se_fused_cuda_shim.launched()


def launched() -> list[str]:
    return str(torch.ops.se_fused_cuda_shim.launched()).split()


@pytest.fixture(params=["forwards", "backwards"] if DEVICE == "cpu" else ["gpu"], name="order")
def order_of_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set the order in which the shim runs threads and blocks; a missing barrier shows in one of the two orders."""
    if DEVICE == "cpu":
        torch.ops.se_fused_cuda_shim.reverse(request.param == "backwards")
    yield
    if DEVICE == "cpu":
        torch.ops.se_fused_cuda_shim.reverse(False)


def infer(case: Case, path: list[str], inplace: bool = False) -> None:
    error, x, y = contract.infer(case, inplace)
    assert error <= 1, f"error is {error:.2f} of its bound"
    assert (y is x) == inplace
    if DEVICE == "cpu":
        assert launched() == path


SEPARATE = ["moments", "excitation", "scale_shift_act"]
