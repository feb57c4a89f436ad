"""The op contract for sm_90's machine code, which benchmarks/gpu/sass executes on the CPU. Needs nvcc, but no GPU.

The shim (test_contract.py) runs the kernels' source as a C++ compiler understands it. Here runs what nvcc made of it,
with the GPU's own conversions, shuffles, clusters, bulk copies and distributed shared memory, as far as the meanings in
benchmarks/gpu/sass/operations.py are right. Timing and the order of memory accesses between blocks are not modelled.
"""

from typing import Any

import pytest
import torch
from support import contract
from support.machine_code import LINE

from se_fused import backends
from se_fused._formats import DTYPES, LAYOUTS
from se_fused.backends.cuda import CudaBackend
from se_fused.testing.verify import Case

pytestmark = pytest.mark.skipif(LINE.why_not() is not None, reason=str(LINE.why_not()))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "call" in metafunc.fixturenames:
        strength = LINE.budget.strengths[metafunc.config.getoption("tier")]
        listed = contract.calls(LINE.budget.elements, strength, LINE.all_axes)
        metafunc.parametrize("call", [pytest.param(values, id=name) for name, values in listed])


def test_calls(call: dict[str, Any]) -> None:
    with LINE.using(call):
        contract.meets(contract.case_of(call), LINE.name, LINE.device)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("path", ["cluster_fused", "l2_grouped", "separate"])
def test_paths_of_inference(path: str, dtype: torch.dtype, layout: str) -> None:
    """Each path, among them clusters whose blocks read each other's shared memory."""
    case = Case("batch_norm_squeeze_excite", (3, 24, 7, 5), dtype, layout, "cpu", training=False)
    with LINE.using({"order": "backwards", "like": "H200"}):
        backend = backends.BACKENDS["cuda"]
        assert isinstance(backend, CudaBackend)
        with backend.forced_plan(path):
            error, _, _ = contract.infer(case)
    assert error <= 1
