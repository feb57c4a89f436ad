"""A whole network, ours against timm's with the same weights, eager and compiled; peers in channels_last too."""

from collections.abc import Callable

import pytest

from se_fused.networks import ModelWorkload
from se_fused.workloads import DTYPES


@pytest.mark.parametrize(
    ("peer", "layout"),
    [
        ("se_fused", "contiguous"),
        ("se_fused", "channels_last"),
        ("eager", "contiguous"),
        ("eager", "channels_last"),
        ("compile", "channels_last"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", ["train", "infer"])
def test_model(
    run_benchmark: Callable[..., None], device: str, network: str, mode: str, dtype: str, layout: str, peer: str
) -> None:
    name, batch, size = network.split("-")
    run_benchmark(ModelWorkload(name, mode, DTYPES[dtype], device, batch=int(batch), size=int(size)), peer, layout)
