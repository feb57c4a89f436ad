"""Random calls against the op contract on the CUDA backend, on the CPU (cuda_shim) if there is no GPU."""

import pytest
from support.cuda_backend import DEVICE, cuda_alone, given_backend  # noqa: F401 (fixtures)
from support.fuzz import every_call_is_right


def test_random_calls(request: pytest.FixtureRequest) -> None:
    every_call_is_right("cuda", DEVICE, request.config.getoption("tier"), largest=1000, examples=10, nightly=300)
