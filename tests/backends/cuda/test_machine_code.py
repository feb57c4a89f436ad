"""The op contract for sm_90's machine code, which benchmarks/gpu/sass executes on the CPU. Needs nvcc, but no GPU.

The shim (test_contract.py) runs the kernels' source as a C++ compiler understands it. Here runs what nvcc made of it,
with the GPU's own conversions, shuffles, clusters, bulk copies and distributed shared memory, as far as the meanings in
benchmarks/gpu/sass/operations.py are right. Timing and the order of memory accesses between blocks are not modelled.
"""

from typing import Any

import pytest
from support import contract
from support.machine_code import LINE

pytestmark = pytest.mark.skipif(LINE.why_not() is not None, reason=str(LINE.why_not()))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "call" in metafunc.fixturenames:
        strength = LINE.budget.strengths[metafunc.config.getoption("tier")]
        listed = contract.calls(LINE.budget.elements, strength, LINE.all_axes)
        metafunc.parametrize("call", [pytest.param(values, id=name) for name, values in listed])


def test_calls(call: dict[str, Any]) -> None:
    with LINE.using(call):
        contract.meets(contract.case_of(call), LINE.name, LINE.device)
