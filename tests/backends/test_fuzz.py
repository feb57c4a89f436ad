"""Random calls against the op contract on every backend: combinations and sizes that the covering arrays leave out."""

import secrets
from typing import Any

import pytest
from support import contract, fuzz
from support.fuzz import search
from support.lines import LINES, Line
from torch import Tensor

from se_fused import functional
from se_fused.testing.case import Case
from se_fused.testing.verify import Result, condition

# One more rounding of x changes its gradient by about as much as twice eager's error.
ILL = Case(
    "batch_norm_act", (1, 1, 54), out_act="silu", residual=False, drop_path=False, absent=("bn_weight", "bn_bias"),
    mean=100.0,
)  # fmt: skip


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_random_calls(line: Line, request: pytest.FixtureRequest) -> None:
    """The same few calls in each run; in the tier "nightly" new ones, and a failure names its seed."""
    if (reason := line.why_not()) is not None:
        pytest.skip(reason)
    nightly = request.config.getoption("tier") == "nightly"
    cases = line.budget.random_calls["nightly" if nightly else "test"]
    found = search(line, secrets.randbelow(2**31) if nightly else 0, cases)
    assert found.failing is None, found.report()


def test_condition() -> None:
    """How far rounding of x changes the exact gradients: not at all where they do not depend on x, about as far as
    float32 rounds where they depend on it well, and further with a large mean."""
    linear = condition(Case("batch_norm_act", training=False, out_act="none"), range(3))
    assert linear["x"] == linear["residual"] == linear["bn_bias"] == 0.0 < linear["bn_weight"] < 1e-6
    well = condition(Case("batch_norm_squeeze_excite"), range(5))
    assert max(well.values()) < 5e-6
    assert condition(ILL, range(40))["x"] > 2e-6 > 5 * well["x"]


def test_only_random_calls_may_have_the_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    def passes(error: float) -> None:
        """A call whose bound is too small for its condition."""
        result = Result(ILL, "cpu", gradients={"x": (error, 3.0e-6)})
        monkeypatch.setattr(contract, "check", lambda case, seeds: result)
        fuzz.meets(ILL, LINES["cpu"])

    passes(3.2e-6)
    with pytest.raises(contract.OutOfBound):
        contract.meets(ILL, "cpu", "cpu")
    with pytest.raises(contract.OutOfBound, match="its change by rounding"):
        passes(1e-3)


def test_a_wrong_slope_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of x that are 1 % too large are no matter of rounding."""
    right = functional.squeeze_excite

    def wrong(x: Tensor, *args: Any, **given: Any) -> Tensor:
        seen = x.view_as(x)
        if seen.requires_grad:
            seen.register_hook(lambda gradient: gradient * 1.01)
        return right(seen, *args, **given)

    monkeypatch.setattr(functional, "squeeze_excite", wrong)
    monkeypatch.setattr(fuzz, "REDUCTION", 1.0)
    found = search(LINES["reference"], 0, 300)
    assert found.failing is not None and found.failing["op"] == "squeeze_excite"
    assert "gradient of x" in found.problem
