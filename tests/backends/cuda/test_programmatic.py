"""Programmatic dependent launches of the CUDA backend: which launches are, that results do not depend on it, and their
switch. On the shim each launch of a chain begins before its predecessor (cuda_shim/cuda_shim.h), so every test of this
folder shows a kernel that reads too early; on a GPU these tests show that the driver takes them.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from support import contract
from support.contract import Shape
from support.cuda_backend import (  # noqa: F401 (fixtures)
    A100,
    DEVICE,
    H200,
    SEPARATE,
    cuda_alone,
    given_backend,
    infer,
    launched,
    on_cpu,
    on_shim,
    order_of_threads,
    stand_in,
)

from se_fused import functional
from se_fused._formats import DTYPES, LAYOUTS
from se_fused.backends.cuda import CudaBackend
from se_fused.testing.verify import Case

STEP = [*SEPARATE, "moments_backward", "excitation_backward", "scale_shift_act_backward"]


def programmatic() -> int:
    """The number of programmatic launches since the last call."""
    return int(torch.ops.se_fused_cuda_shim.programmatic_count())


@pytest.mark.quick
@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("shape", "more"), [((5, 40, 6, 6), {}), ((1, 16, 70, 61), {"out_act": "silu"})], ids=str)
def test_same_bits_with_and_without(
    backend: CudaBackend, shape: Shape, more: dict[str, Any], dtype: torch.dtype, layout: str
) -> None:
    case = Case("batch_norm_squeeze_excite", shape, dtype, layout, DEVICE, hidden=18, **more)
    results = []
    for on in (True, False):
        with backend.programmatic_launches(on):
            results.append(contract.results(case))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.quick
@on_shim
def test_a_chain_is_programmatic_but_for_its_first_launch(backend: CudaBackend) -> None:
    case = Case("batch_norm_squeeze_excite", (3, 16, 4, 3))
    programmatic()
    contract.results(case)
    assert (launched(), programmatic()) == (STEP, 4)
    with backend.programmatic_launches(False):
        contract.results(case)
        assert (launched(), programmatic()) == (STEP, 0)
    stand_in(A100)
    contract.results(case)
    assert (launched(), programmatic()) == (STEP, 0)
    stand_in(H200)
    backend.moments(torch.ones(2, 8, 4))
    backend.scale_shift_act(torch.ones(2, 8, 4), None, torch.ones(2, 8), torch.ones(2, 8), 0, True)
    assert launched() == ["moments", "scale_shift_act"]
    infer(Case("batch_norm_act", (3, 16, 4, 3), training=False), ["scale_shift_act"])
    infer(Case("squeeze_excite", (4, 24, 6, 8), training=False), ["cluster_fused"])
    assert programmatic() == 0


@pytest.mark.quick
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_prefetched_memory_at_any_address(dtype: torch.dtype, layout: str) -> None:
    """Weights and a residual that begin between 16-byte vectors, and weights of a few bytes."""

    def moved(t: torch.Tensor) -> torch.Tensor:
        view = torch.empty(1 + t.numel(), dtype=t.dtype, device=t.device).as_strided(t.shape, t.stride(), 1)
        assert view.copy_(t).data_ptr() % 16
        return view

    for hidden in (1, 75):
        results = []
        for move in (False, True):
            given = Case("batch_norm_squeeze_excite", (2, 24, 5, 7), dtype, layout, DEVICE, hidden=hidden).draw(0)
            if move:
                given |= {name: moved(given[name]) for name in ("fc1_weight", "fc2_weight", "residual")}
            with torch.no_grad():
                results.append(functional.batch_norm_squeeze_excite(**given))
        torch.testing.assert_close(*results)


@pytest.mark.quick
@on_shim
def test_the_environment_switches_them_off(backend: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {}
    with backend.programmatic_launches(True):  # restores the setting afterwards
        said["1"] = backend.describe()["programmatic launches"]
        monkeypatch.setenv("SE_FUSED_PDL", "0")
        assert on_cpu(backend.library).load() is None
        said["0"] = backend.describe()["programmatic launches"]
        programmatic()
        contract.results(Case("batch_norm_squeeze_excite", (3, 16, 4, 3)))
        assert programmatic() == 0
    stand_in(A100)
    said["A100"] = backend.describe()["programmatic launches"]
    assert said == {
        "1": "yes",
        "0": "no: switched off, or refused by the driver",
        "A100": "no: needs compute capability 9.0 and a driver for CUDA 12.3",
    }
    monkeypatch.setenv("SE_FUSED_PDL", "off")
    with pytest.raises(ValueError, match="environment variable SE_FUSED_PDL must be 0 or 1; got 'off'"):
        on_cpu(backend.library).load()


def test_a_missing_library_is_an_error(tmp_path: Path) -> None:
    missing = CudaBackend(tmp_path / "_C_cuda.abi3.so")
    with pytest.raises(RuntimeError, match="is not built"), missing.programmatic_launches(False):
        pass
