"""Random calls against the op contract on the CPU backend: combinations that the grids of other tests leave out."""

import pytest
from support.fuzz import every_call_is_right

from se_fused import backends


def test_random_calls(request: pytest.FixtureRequest) -> None:
    with backends.use_backend("cpu"):
        every_call_is_right("cpu", "cpu", request.config.getoption("tier"), largest=20_000, examples=40, nightly=2000)
