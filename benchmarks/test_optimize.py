"""A whole SE-ResNet-50 in inference: as optimize_for_inference makes it, compiled, in OpenVINO, in ONNX Runtime.

The measure of what SE costs is ``se_fused plain``, the equally optimised ResNet-50.
"""

import copy

import pytest
import torch
from optimized import CANDIDATES, allowed, candidate, error, trained

from se_fused.measure import keep_freed_memory, synchronizer
from se_fused.workloads import DTYPES


@pytest.mark.parametrize("peer", CANDIDATES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [1, 8])
def test_optimize(benchmark, request: pytest.FixtureRequest, device: str, batch: int, dtype: str, peer: str) -> None:
    small = request.config.getoption("stages") == "small"
    if small and peer.startswith("compile"):
        pytest.skip("minutes of compiling")
    keep_freed_memory()
    size = 64 if small else 224
    name = CANDIDATES[peer].replace("50", "18") if small else CANDIDATES[peer]
    model = trained(name, size).to(device)
    x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device, DTYPES[dtype])
    if device == "cuda" and peer.split()[0] in ("openvino", "onnxruntime"):
        pytest.skip("the CPU's peers")
    with torch.no_grad():
        truth = copy.deepcopy(model).double()(x.double())
        try:
            run = candidate(peer, model, x)
        except ImportError as missing:
            pytest.skip(str(missing))
        wrong = error(run(), truth)
        assert wrong < allowed(peer, x), f"relative error {wrong:.1e}"
        wait = synchronizer(device)
        benchmark.group = f"SE-ResNet inference {batch} x {size} {dtype}"
        benchmark.extra_info.update(
            title=f"{name} inference", shape=list(x.shape), dtype=dtype, candidate=peer, layout="channels_last",
            device=device, errors={"logits": wrong},
        )  # fmt: skip
        benchmark(lambda: (run(), wait()))
