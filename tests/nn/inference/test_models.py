"""optimize_for_inference on typical models: views, vectors, padding, in-place writes, frozen norms."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.optimize import CLOSE, NORMS, block, images, norms, optimized_and_same, ready, timm_model
from torch import Tensor, nn

import se_fused
from se_fused.activations import OUT_ACTIVATIONS
from se_fused.nn.inference import folding, layers
from se_fused.nn.inference.casts import CastInput

pytestmark = pytest.mark.quick

# ---- values that are not finite
NOT_FINITE = {
    "timm-seresnet50": lambda: timm_model("seresnet50"),
    "timm-seresnet18": lambda: timm_model("seresnet18"),
    "timm-mobilenetv3": lambda: timm_model("mobilenetv3_small_050"),
    "timm-efficientnet": lambda: timm_model("efficientnet_b0"),
    "torchvision-resnet18": lambda: pytest.importorskip("torchvision").models.resnet18(num_classes=5),
    "ours-seresnet50": lambda: se_fused.create_model("seresnet50", num_classes=5),
    "ours-unet": lambda: se_fused.create_model("unet", num_classes=5),
    "relu": lambda: block(),
    "silu": lambda: block(act=nn.SiLU()),
    "hard-swish": lambda: block(act=nn.Hardswish()),
    "volume": lambda: block(dims=3),
}


@pytest.mark.grid(quick=0)
@pytest.mark.isa
@pytest.mark.parametrize("pixels", ["one", "all"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("build", NOT_FINITE.values(), ids=NOT_FINITE)
def test_what_is_not_finite_goes_through(build: Any, value: float, pixels: str, request: pytest.FixtureRequest) -> None:
    model = ready(build())
    dims = 3 if request.node.callspec.id.startswith("volume") else 2
    x = images(2, 3, *(32,) * dims)
    fast = se_fused.optimize_for_inference(model, x)
    x[(-1, *(0,) * (dims + 1)) if pixels == "one" else -1] = value
    with torch.no_grad():
        theirs, ours = model(x), fast(x)
    assert not theirs[-1].isfinite().all() and theirs[0].isfinite().all()
    assert torch.equal(ours.isfinite(), theirs.isfinite())
    if value != value:
        assert torch.equal(ours.isnan(), theirs.isnan())


@pytest.mark.isa
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("act", OUT_ACTIVATIONS)
def test_a_layers_own_nan(act: str, with_residual: bool) -> None:
    """NaN propagates as in the convolution, if the sum goes into new memory and if it overwrites the residual."""
    conv = nn.Conv2d(3, 20, 3, padding=1)
    x = CastInput(torch.float32)(images(2, 3, 9, 9))
    x[1, 1, 4, 4] = math.nan
    residual = CastInput(torch.float32)(images(2, 20, 9, 9)) if with_residual else None
    with torch.no_grad():
        wanted = conv(x) if residual is None else conv(x) + residual
        wanted = OUT_ACTIVATIONS[act].forward(wanted)
        for keeps in (True, False):
            layer = layers.ConvAct(conv, None, torch.float32, act)
            layer.keeps_residual = keeps
            given = [] if residual is None else [residual.clone(memory_format=torch.preserve_format)]
            torch.testing.assert_close(layer(x, *given), wanted, equal_nan=True, **CLOSE)
    assert wanted.isnan().sum() == 20 * 9


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_a_rewriting_that_hides_a_nan_is_refused(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    right = layers.ConvAct.forward

    def hides(self: Any, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return right(self, torch.nan_to_num(x, 0.0, 0.0, 0.0), residual)

    monkeypatch.setattr(layers.ConvAct, "forward", hides)
    with pytest.raises(RuntimeError, match=r"a pixel that is nan: of .* numbers, .* are finite, and .* for the model"):
        se_fused.optimize_for_inference(ready(block()), images(2, 3, 9, 9))


# ---- views of maps
class Viewed(nn.Module):
    """A head as in InsightFace, LeNet and lc0, with one of the ways to call ``view``."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.features, self.fc, self.how = block(), nn.Linear(8 * 6 * 6, 4), how

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        if self.how == "groups":  # channel shuffle
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        if self.how == "dtype":
            return self.fc(x.contiguous().view(torch.int32).view(torch.float32).flatten(1))
        if self.how == "as_strided":
            return self.fc(x.as_strided((x.shape[0], 8 * 36), (8 * 36, 1)))
        if self.how == "view_as":
            return self.fc(x.view_as(x.flatten(1)))
        return self.fc(x.view(size=(x.size(0), 288)) if self.how == "size" else x.view(x.size(0), -1))


@pytest.mark.parametrize("how", ["sizes", "size", "groups", "view_as", "as_strided", "dtype"])
def test_a_view_means_what_it_means_in_the_models_own_layout(how: str) -> None:
    fast = optimized_and_same(ready(Viewed(how)), images(2, 3, 6, 6))
    assert norms(fast) == 0


# ---- batch norm of vectors
class Neck(nn.Module):
    """A head with vector norms, as in re-identification and ArcFace, and a table beside the image."""

    def __init__(self) -> None:
        super().__init__()
        self.features = block()
        self.pool, self.alone = nn.AdaptiveAvgPool2d(1), nn.BatchNorm1d(8)
        self.fc, self.bn, self.fc2, self.bn2 = nn.Linear(8, 6, bias=False), nn.BatchNorm1d(6), nn.Linear(6, 5), None
        self.last = nn.BatchNorm1d(5, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.alone(self.pool(self.features(x)).flatten(1))
        return self.last(self.fc2(torch.relu(self.bn(self.fc(x)))))


def test_batch_norm_of_vectors_goes_into_the_linear_layer() -> None:
    fast = optimized_and_same(ready(Neck()), images(3, 3, 6, 6))
    assert [type(m).__name__ for m in fast.modules() if isinstance(m, (*NORMS, nn.Linear))] == [
        "BatchNorm1d",
        "Linear",
        "Linear",
    ]


class Sequence(nn.Module):
    """A norm of (N, L, C) after a linear layer, whose channels are L."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.bn = nn.Conv2d(3, 4, 1), nn.Linear(6, 7), nn.BatchNorm1d(4)
        self.twice, self.bn2, self.bn3 = nn.Linear(7, 7), nn.BatchNorm1d(7), nn.BatchNorm1d(7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.fc(self.conv(x).mean(2)))
        x = x[:, 0]
        return self.bn2(self.twice(x)) + self.bn3(self.twice(x))


def test_other_norms_of_vectors_stay() -> None:
    optimized_and_same(ready(Sequence()), images(2, 3, 6, 6))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_vectors_in_16_bits(dtype: torch.dtype) -> None:
    model = ready(Neck()).to(dtype)
    fast = se_fused.optimize_for_inference(model, images(3, 3, 6, 6).to(dtype))
    assert fast(images(3, 3, 6, 6)).dtype == dtype


# ---- writes in place
class InPlace(nn.Module):
    """Activations that write to a tensor with other readers, by module, function, method and operator."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem, self.shortcut = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.act, self.clip = nn.ReLU(inplace=True), nn.ReLU6(inplace=True)
        self.se, self.bn = se_fused.SqueezeExcite(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        how = self.how
        if how == "shortcut first":
            s = self.shortcut(x)
            return self.branch(torch.relu_(x)) + s
        if how == "se first":
            s = self.se(x)
            return self.branch(self.act(x)) + s
        if how == "norm first":
            s = self.bn(x)
            x *= 2
            return torch.relu(s), x
        if how == "module":
            self.act(x)  # its result is unused; x is read
            return self.branch(x) + self.shortcut(x)
        if how == "function":
            F.relu(x, inplace=True)
            return self.branch(x) + x
        if how == "method":
            x.clamp_(-1, 1)
            return self.branch(x) + x
        if how == "out":
            y = torch.zeros_like(x)
            torch.neg(x, out=y)
            return self.branch(y) + x
        if how == "add to the shortcut":
            y = x
            y += self.branch(x)
            return torch.relu(y), x
        if how == "add_ twice":
            y = self.branch(x)
            z = y.add_(x)
            return self.shortcut(y) + z.add_(1)
        if how == "relu of a sum":
            y = self.branch(x)
            y += x
            return self.shortcut(self.act(y)) + y
        if how == "both residual and input":
            r = self.act(x)
            return self.branch(x) + r, self.clip(x)
        if how == "view of the input":
            v = x.view(x.size(0), -1)
            s = self.shortcut(x)
            v.relu_()
            return self.branch(x) + s
        if how == "items":
            s = self.shortcut(x)
            x[:, ::2, 1:] = 0
            return self.branch(x) + s
        if how == "sizes":
            n = m = x.size(0)
            m += 1
            return self.branch(x) * n + self.shortcut(x) * m
        if how == "copy_":
            y = self.shortcut(x)
            x.copy_(y * 2)
            return torch.relu(self.bn(y)) + x
        raise AssertionError(how)


HOW = ["shortcut first", "se first", "norm first", "module", "function", "method", "out", "add to the shortcut",
       "add_ twice", "relu of a sum", "both residual and input", "copy_", "items", "sizes"]  # fmt: skip


@pytest.mark.parametrize("how", HOW)
def test_no_move_past_a_write(how: str) -> None:
    torch.manual_seed(0)
    optimized_and_same(ready(InPlace(how)), images(2, 3, 6, 6))


class WritesToItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.conv(batch["image"].relu_())


def test_the_example_is_left_as_it_is() -> None:
    batch = {"image": images(2, 3, 6, 6)}
    fast = se_fused.optimize_for_inference(WritesToItsInput().eval(), (batch,))
    assert torch.equal(batch["image"], images(2, 3, 6, 6)) and fast(batch).shape == (2, 4, 6, 6)


def test_a_write_through_a_view_is_right_or_refused() -> None:
    with pytest.raises(ValueError, match=r"writes in place \(relu_\) to a tensor that it also reads through a view"):
        se_fused.optimize_for_inference(ready(InPlace("view of the input")), images(2, 3, 6, 6))


# ---- convolutions that pad their input
class StaticSame(nn.Conv2d):
    """The convolution of efficientnet_pytorch for a known image size; the padding is a module."""

    def __init__(self, c: int, d: int, k: int, stride: int, border: tuple[int, ...], **options: Any) -> None:
        super().__init__(c, d, k, stride, **options)
        self.static_padding = nn.ZeroPad2d(border)

    def forward(self, x: Tensor) -> Tensor:
        x = self.static_padding(x)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Conv2dDynamicSamePadding(nn.Conv2d):
    """The convolution of efficientnet_pytorch whose padding depends on the image size."""

    def forward(self, x: Tensor) -> Tensor:
        border: list[int] = []
        for n, k, s, d in zip(x.shape[2:], self.weight.shape[2:], self.stride, self.dilation, strict=True):
            total = max((math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n, 0)
            border = [total // 2, total - total // 2, *border]
        x = F.pad(x, border)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Standardised(nn.Conv2d):
    """A subclass of a convolution that computes its weight in forward."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


PADDED = {
    "static": lambda: StaticSame(3, 8, 3, 2, (0, 1, 0, 1)),
    "static symmetric": lambda: StaticSame(3, 8, 3, 1, (1, 1, 2, 2), bias=False),
    "same": lambda: nn.Conv2d(3, 8, (3, 4), padding="same", dilation=2),
    "valid": lambda: nn.Conv2d(3, 8, 3, padding="valid"),
    "timm": lambda: pytest.importorskip("timm").layers.Conv2dSame(3, 8, 3, 2),
    "timm 5x5": lambda: pytest.importorskip("timm").layers.Conv2dSame(3, 8, 5, 1, bias=False),
    "dynamic": lambda: Conv2dDynamicSamePadding(3, 8, 3, 2),
    "function": lambda: StaticSame(3, 9, 3, 1, (0, 0, 0, 0), groups=3),
}


@pytest.mark.parametrize("size", [(8, 8), (9, 12)])
@pytest.mark.parametrize("build", PADDED.values(), ids=PADDED)
def test_batch_norm_goes_into_convolutions_that_pad(
    build: Any, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Conv2dDynamicSamePadding, "__module__", "efficientnet_pytorch.utils")
    conv = build()
    model = ready(nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True)))
    fast = optimized_and_same(model, images(2, 3, *size))
    assert norms(fast) == 0 and sum(type(m).__name__ == "ConvAct" for m in fast.modules()) == 1
    with torch.no_grad():  # the padding follows the size of this input, not of the example
        x = images(3, 3, 11, 10)
        torch.testing.assert_close(fast(x), model(x), **CLOSE)


def test_symmetric_zeros_are_the_convolutions() -> None:
    model = ready(nn.Sequential(nn.ZeroPad2d((2, 2, 1, 1)), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    fast = optimized_and_same(model, images(2, 3, 6, 6))
    assert [type(m).__name__ for m in fast.children()] == ["ConvAct", "CastInput"]


def test_convolutions_with_a_forward_of_their_own_say_why() -> None:
    model = ready(nn.Sequential(Standardised(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))
    fast = optimized_and_same(model, images(2, 3, 6, 6))
    assert se_fused.conversion_report(fast).left == (("conv2d", "F.conv", "its weight is computed in forward"),)


def layers_of(model: nn.Module) -> Counter:
    """Number of layers by class, and of the functions between them."""
    functions = [n.target for n in model.graph.nodes if n.op in ("call_function", "call_method")]
    return Counter([type(m).__name__ for m in model.children()]) + Counter(map(str, functions))


def test_frozen_batch_norm_is_folded() -> None:
    models = pytest.importorskip("torchvision").models
    freeze = pytest.importorskip("timm").utils.model.freeze_batch_norm_2d
    x = images(2, 3, 32, 32)
    for build in (models.resnet18, lambda: timm_model("seresnet18"), lambda: timm_model("mobilenetv3_small_050")):
        model = ready(build())
        wanted = layers_of(se_fused.optimize_for_inference(model, x))
        freeze(model)
        assert layers_of(optimized_and_same(model.eval(), x)) == wanted


# ---- the comparison with the original model
class Magnifies(nn.Module):
    """A model that magnifies rounding errors a hundred thousand times: the mean difference of nearly equal maps."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.bn = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.b.load_state_dict(self.a.state_dict())
        self.b.weight.data += 1e-5
        for tensor in (self.bn.running_mean, self.bn.running_var, self.bn.weight, self.bn.bias):
            tensor.data.uniform_(0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        difference = torch.relu(self.bn(self.a(x)) + 2) - torch.relu(self.bn(self.b(x)) + 2)
        return difference.mean((2, 3))[:, :1] * 1e5


@pytest.mark.grid(quick=0)
def test_an_ill_conditioned_model_is_not_refused_by_luck() -> None:
    """An ill-conditioned model is never refused, although its own error may be small by chance.

    With that error as the only measure, 17 of 60 such models were refused.
    """
    for seed in range(40):
        torch.manual_seed(seed)
        se_fused.optimize_for_inference(Magnifies().eval(), torch.randn(1, 3, 5, 5))


def test_the_message_says_that_the_model_is_ill_conditioned(monkeypatch: pytest.MonkeyPatch) -> None:
    right = folding.fold_batch_norm
    monkeypatch.setattr(layers, "fold_batch_norm", lambda *a: (right(*a)[0] * (1 + 1e-1), right(*a)[1]))
    with pytest.raises(RuntimeError, match=r"ill-conditioned: it magnifies rounding errors \d+ times"):
        se_fused.optimize_for_inference(Magnifies().eval(), images(2, 3, 12, 12))
