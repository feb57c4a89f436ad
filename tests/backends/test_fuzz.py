"""Random calls against the op contract on every backend: combinations and sizes that the covering arrays leave out."""

import secrets

import pytest
from support.fuzz import search
from support.lines import LINES, Line


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_random_calls(line: Line, request: pytest.FixtureRequest) -> None:
    """The same few calls in each run; in the tier "nightly" new ones, and a failure names its seed."""
    if (reason := line.why_not()) is not None:
        pytest.skip(reason)
    nightly = request.config.getoption("tier") == "nightly"
    cases = line.budget.random_calls["nightly" if nightly else "test"]
    found = search(line, secrets.randbelow(2**31) if nightly else 0, cases)
    assert found.failing is None, found.report()
