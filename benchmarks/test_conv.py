"""conv3 + SE + add + ReLU in inference, channels_last: one product, convolution and fused tail, plain PyTorch.

``se_fused`` is what the library chooses by itself. The plain convolution alone is there too: what SE costs beside it.
``cublaslt`` is the one product by NVIDIA's library (cublaslt.py), behind the gate of our own: two launches of ours.
"""

from collections.abc import Callable

import pytest
import torch
from cublaslt import bytes_moved, cublaslt_tail

from se_fused import backends, functional, reference
from se_fused.measure import device_seconds, keep_freed_memory, synchronizer
from se_fused.ops.codes import ACT_CODES, GATE_CODES
from se_fused.workloads import DTYPES


def gate(x: torch.Tensor, folded: tuple, fc2_weight: torch.Tensor, fc2_bias: torch.Tensor) -> torch.Tensor:
    """The gate (N, C), float32, by the two launches that also precede the product of our own."""
    from se_fused.backends.triton.streams import map_of
    from se_fused.backends.triton.tail import coefficients, parameters_of

    parameters = parameters_of(None, None, None, None, *folded, fc2_weight, fc2_bias, None)
    codes = ACT_CODES["relu"], GATE_CODES["sigmoid"]
    return coefficients(x, map_of(x), parameters, False, 0.0, *codes, False).scale


@pytest.mark.parametrize("peer", ["se_fused", "product", "separate", "cublaslt", "eager", "convolution"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_conv(
    benchmark, monkeypatch: pytest.MonkeyPatch, device: str, stage: str, dtype: str, peer: str
) -> None:  # fmt: skip
    keep_freed_memory()
    n, c, h, w = (int(size) for size in stage.split("x"))
    k, r = c // 4, max(c // 16, 8)
    torch.manual_seed(0)

    def draw(*size: int, scale: float = 1.0) -> torch.Tensor:
        t = (torch.randn(*size, device=device) * scale).to(DTYPES[dtype])
        return t.to(memory_format=torch.channels_last) if len(size) == 4 else t

    x, residual = draw(n, k, h, w), draw(n, c, h, w)
    conv = (draw(c, k, 1, 1, scale=k**-0.5), draw(c))
    fc = (draw(r, c, scale=c**-0.5), draw(r), draw(c, r, scale=r**-0.5), draw(c))
    folded = functional.fold_squeeze(*conv, *fc[:2])
    if peer in ("product", "separate"):
        if device != "cuda":
            pytest.skip("on a CPU there is one way")
        from se_fused.backends.triton import conv as triton_conv

        way = "product" if peer == "product" else "convolution and tail"
        monkeypatch.setattr(triton_conv, "fastest", lambda key, ways, device: way)
        monkeypatch.setattr(backends, "_forced", "triton")  # auto may prefer one that has no product
    if peer == "cublaslt" and (device != "cuda" or torch.version.cuda is None):
        pytest.skip("cuBLASLt needs an NVIDIA GPU")

    def run() -> torch.Tensor:
        with torch.no_grad():
            if peer == "convolution":
                return reference.conv1x1(x, *conv)
            if peer == "cublaslt":  # float32 is multiplied as in the other peers, which follow the convolutions
                return cublaslt_tail(x, *conv, gate(x, folded, *fc[2:]), residual, tf32=torch.backends.cudnn.allow_tf32)
            if peer == "eager":
                return reference.conv1x1_squeeze_excite(x, *conv, *fc, residual, out_act="relu")
            return functional.conv1x1_squeeze_excite(x, *conv, *fc, residual, out_act="relu", folded=folded)

    if peer != "convolution":  # nothing is timed before it is right; its bound is held by the tests
        wide = [t.double() for t in (x[:2], *conv, *fc, residual[:2])]
        truth = reference.conv1x1_squeeze_excite(*wide, out_act="relu")
        error = ((run()[:2].double() - truth).norm() / truth.norm()).item()
        # TF32, which PyTorch's convolutions use by default too, keeps 11 bits
        assert error < (2e-3 if dtype == "float32" else 1e-2), f"relative error {error:.1e}"
    wait = synchronizer(device)
    benchmark.group = f"conv3+SE+add+ReLU inference {stage} {dtype}"
    benchmark.extra_info.update(
        title="conv3+SE+add+ReLU",
        shape=[n, c, h, w],
        dtype=dtype,
        layout="channels_last",
        candidate=peer,
        device=device,
    )
    call: Callable[[], object] = lambda: (run(), wait())  # noqa: E731
    benchmark(call)
    if benchmark.stats is not None and device == "cuda":
        seconds = benchmark.extra_info["device_seconds"] = device_seconds(run, device)
        if peer in ("product", "cublaslt"):
            counted = bytes_moved(n, c, k, h * w, DTYPES[dtype].itemsize, scaled_weights=peer == "cublaslt")
            benchmark.extra_info.update(counted_bytes=counted, gb_per_second=counted / seconds / 1e9)
