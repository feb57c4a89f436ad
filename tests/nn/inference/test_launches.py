"""Launches of an optimised SE-ResNet block for one image, on the CUDA backend."""

import itertools
import sys
from collections.abc import Callable

import pytest
import torch
from support.cuda_backend import A100, H200, SEPARATE, launched, on_cpu, on_shim, stand_in
from support.launches import Operators
from support.optimize import images, ready
from support.shim_library import library
from torch import Tensor, fx, nn

import se_fused
from se_fused import backends
from se_fused.backends.cuda import CudaBackend
from se_fused.nn.inference.layers import ConvAct, ConvSqueezeExcite

TRITON = backends.BACKENDS["triton"]
pytestmark = [
    pytest.mark.quick,
    on_shim,
    pytest.mark.skipif(TRITON.can_use("cpu", torch.float32) is not None, reason="needs Triton's interpreter"),
]
PRODUCT = ["moments_kernel", "excitation_kernel", "conv1x1_kernel"]


@pytest.fixture(name="count")
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Returns what a call launches, as on a GPU: the layers leave oneDNN and the CPU's product aside."""
    from se_fused.backends.triton.launch import recording

    backend: CudaBackend = on_cpu(library(), TRITON)
    assert backend.load() is None
    monkeypatch.setitem(backends.BACKENDS, "cuda", backend)
    monkeypatch.setattr(ConvAct, "packable", lambda self, x: False)
    for module, where in itertools.product(
        ("batch_norm_squeeze_excite", "conv1x1_squeeze_excite"), ("functional", "ops")
    ):
        # A call without a mode does this. Under the mode below, the call would go through the operators.
        monkeypatch.setattr(
            sys.modules[f"se_fused.{where}.{module}"], "through_dispatcher", lambda: False, raising=False
        )

    def count(module: nn.Module, *inputs: Tensor, way: str, device: tuple[int, ...]) -> list[str]:
        for each in module.modules():
            if isinstance(each, ConvSqueezeExcite):
                each.packed = None
        monkeypatch.setattr("se_fused.backends.triton.conv1x1_squeeze_excite.fastest", lambda key, ways, device: way)
        with backends.use_backend("cuda"), torch.no_grad():
            stand_in(device)
            with recording(dry=True):
                module(*inputs)  # creates what later calls keep
            launched()
            with recording(dry=True) as launches, Operators() as operators:
                module(*inputs)
        return [*operators.names, *launched(), *(launch.name for launch in launches)]

    return count


def optimised() -> fx.GraphModule:
    return se_fused.optimize_for_inference(ready(se_fused.SEResNet50(num_classes=5)), images(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("way", "device", "wanted"),
    [
        ("product", H200, PRODUCT),
        ("product", A100, PRODUCT),
        ("convolution and block", H200, ["convolution", "cluster_fused"]),
        ("convolution and block", A100, ["convolution", *SEPARATE]),
    ],
    ids=["product, sm_90", "product, sm_80", "convolution and block, sm_90", "convolution and block, sm_80"],
)
def test_launches_of_the_end_of_a_block(
    count: Callable[..., list[str]], way: str, device: tuple[int, ...], wanted: list[str]
) -> None:
    """conv3, SE, addition and ReLU of a bottleneck, batch 1, take at most three launches, the convolution included.

    Counted are the kernels of this library, and PyTorch's operators that compute: a convolution is one launch, and one
    more if it has a bias. The product is three launches on every GPU: means of conv3's input, excitation, and the
    convolution with scale, residual and ReLU. The other way is a cuDNN convolution and the block, in two launches where
    thread-block clusters exist. It takes four before sm_90, where the product is the way with at most three; the
    backend takes the way that it measured to be the faster one.
    """
    (layer,) = [m for name, m in optimised().named_modules() if name == "layer2_1_conv3"]
    assert isinstance(layer, ConvSqueezeExcite)
    h, residual = (images(1, c, 4, 4).contiguous(memory_format=torch.channels_last) for c in (128, 512))
    found = count(layer, h, residual, way=way, device=device)
    assert found == wanted
    assert len(found) <= (4 if found[-3:] == SEPARATE else 3)


@pytest.mark.parametrize("way", ["product", "convolution and block"])
def test_launches_of_a_network(count: Callable[..., list[str]], way: str) -> None:
    """SE-ResNet50, batch 1, sm_90: each of the 16 blocks takes two launches for each of conv1 and conv2 (convolution,
    and bias with ReLU) and at most three for its end; a shortcut with a convolution takes two."""
    model, x = optimised(), images(1, 3, 64, 64)
    found = count(model, x, way=way, device=H200)
    ends = 16 * (3 if way == "product" else 2)
    shortcuts = 4 * 2
    stem = 4  # channels_last copy of the images, convolution, bias with ReLU, pooling
    head = 2  # mean, linear layer
    assert len(found) == ends + 16 * 4 + shortcuts + stem + head
