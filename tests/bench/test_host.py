"""The calls whose instructions benchmarks/host.py counts: every public function, on kernels, in both modes."""

import pytest
import torch

from benchmarks import host
from se_fused import backends, functional

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_public_function_is_counted(layout: str) -> None:
    with backends.use_backend("cpu"):  # raises if a call would run in plain PyTorch
        with torch.no_grad():
            calls = host.functions(layout, training=False)
            assert set(calls) == set(functional.__all__)
            for call in calls.values():
                assert call().isfinite().all()
        for name, call in host.functions(layout, training=True).items():
            y = call()
            assert y.requires_grad, name
            y.backward(torch.ones_like(y))
