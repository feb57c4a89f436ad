"""Random calls against the op contract on the Triton backend, in the interpreter if there is no GPU."""

import pytest
import torch
from support.fuzz import every_call_is_right

from se_fused import backends

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
reason = backends.BACKENDS["triton"].can_use(DEVICE, torch.float32)


@pytest.mark.skipif(reason is not None, reason=str(reason))
def test_random_calls(request: pytest.FixtureRequest) -> None:
    with backends.use_backend("triton"):
        every_call_is_right("triton", DEVICE, request.config.getoption("tier"), largest=1000, examples=6, nightly=300)
