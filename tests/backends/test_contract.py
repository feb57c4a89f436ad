"""The op contract on every backend: calls that together have each pair (in the tier "nightly" each triple) of values.

support/contract.py describes the calls, support/lines.py the backends. What is special to a backend is tested in its
own folder.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from support import contract
from support.lines import LINES, Line

from se_fused import reference

pytestmark = pytest.mark.quick


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """List the calls of the tier: listing those of a stronger tier takes seconds."""
    if "call" in metafunc.fixturenames:
        tier = metafunc.config.getoption("tier")
        listed = [
            pytest.param((line, values), id=f"{line.name}-{name}")
            for line in LINES.values()
            for name, values in contract.calls(line.budget.elements, line.budget.strengths[tier], line.all_axes)
        ]
        metafunc.parametrize("call", listed)


def test_calls(call: tuple[Line, dict[str, Any]]) -> None:
    line, values = call
    if (reason := line.why_not()) is not None:
        pytest.skip(reason)
    with line.using(values):
        contract.meets(contract.case_of(values), line.name, line.device)


@pytest.fixture(params=LINES.values(), ids=LINES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test on each backend, and give its device."""
    line: Line = request.param
    if (reason := line.why_not()) is not None:
        pytest.skip(reason)
    with line.using({name: values[-1] for name, values in line.axes.items()}):
        yield line.device


def test_running_statistics_follow_pytorch(device: str) -> None:
    contract.check_running_statistics(device)
    contract.check_statistics_of_infinity(device)


def test_gate_slopes_at_corners(device: str) -> None:
    contract.check_gate_corners(device)


@pytest.mark.parametrize("act", reference.ACTIVATIONS)
def test_slopes_at_corners(act: str, device: str) -> None:
    contract.check_corners(act, device)
