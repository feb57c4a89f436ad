"""optimize_for_inference gives the same results from fewer, larger layers, and changes nothing of the caller's."""

import copy
import pickle
from collections import Counter
from typing import Any

import pytest
import torch
from support.optimize import NORMS, images, timm_model
from torch import Tensor, nn

import se_fused
from se_fused import create_model
from se_fused.nn.inference import folding, layers, optimize
from se_fused.nn.inference.casts import CastInput
from se_fused.nn.inference.layers import ConvAct, ConvSqueezeExcite, NormAct
from se_fused.ops.layout import is_channels_last

pytestmark = pytest.mark.quick


def trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """Set norms to values as in a trained network, with no statistic or weight of 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, NORMS):
            for name, low, high in (("running_mean", -0.3, 0.3), ("running_var", 0.5, 1.5)):
                getattr(module, name).uniform_(low, high, generator=generator)
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.0, generator=generator)
                module.bias.uniform_(-0.2, 0.2, generator=generator)
    return model.eval()


def kinds(model: nn.Module) -> Counter:
    return Counter(type(m).__name__ for m in model.modules())


MODELS = {
    "ours-50": lambda: create_model("seresnet50", num_classes=7),
    "ours-18": lambda: create_model("seresnet18", num_classes=7),
    "ours-caffe": lambda: create_model("seresnet50", num_classes=7, variant="caffe"),
    "ours-caffe-18": lambda: create_model("seresnet18", num_classes=7, variant="caffe"),
    "ours-drop-path": lambda: create_model("seresnet18", num_classes=7, drop_path_rate=0.2, drop_rate=0.1),
    "resnet": lambda: create_model("resnet18", num_classes=7),
    "densenet": lambda: create_model("densenet121", num_classes=7),
    "unet": lambda: create_model("unet", num_classes=7),
    "timm-seresnet50": lambda: timm_model("seresnet50"),
    "timm-seresnext26d": lambda: timm_model("seresnext26d_32x4d"),
    "timm-legacy-18": lambda: timm_model("legacy_seresnet18"),
    "timm-legacy-50": lambda: timm_model("legacy_seresnet50"),
    "timm-efficientnet": lambda: timm_model("efficientnet_b0"),
    "timm-mobilenetv3": lambda: timm_model("mobilenetv3_small_050"),
    "timm-regnety": lambda: timm_model("regnety_002"),
    "timm-ecaresnet": lambda: timm_model("ecaresnet26t"),
    "monai-seresnet50": lambda: pytest.importorskip("monai.networks.nets").SEResNet50(
        spatial_dims=2, in_channels=3, num_classes=7
    ),
    "torchvision-resnet": lambda: pytest.importorskip("torchvision").models.resnet18(num_classes=7),
    "torchvision-regnet": lambda: pytest.importorskip("torchvision").models.regnet_y_400mf(num_classes=7),
}


def errors(model: nn.Module, optimized: nn.Module, x: Tensor) -> tuple[float, float]:
    """(ours, the model's own): root mean square errors against float64, relative to the truth's size."""
    with torch.no_grad():
        truth = copy.deepcopy(model).double()(x.double())
        results = optimized(x), copy.deepcopy(model).to(x.dtype)(x)
    size = truth.square().mean().sqrt()
    ours, theirs = (((y.double() - truth).square().mean().sqrt() / size).item() for y in results)
    return ours, theirs


@pytest.mark.grid(quick=0)
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_same_answers(build: Any) -> None:
    torch.manual_seed(0)
    model = trained(build())
    before = copy.deepcopy(model.state_dict())
    optimized = se_fused.optimize_for_inference(model, images(2, 3, 64, 64))
    x = images(3, 3, 96, 64)  # another batch and another size than in optimize's check
    kept = x.clone()
    ours, theirs = errors(model, optimized, x)
    assert ours <= 2 * theirs + 4 * torch.finfo(torch.float32).eps
    with torch.no_grad():
        assert torch.equal(optimized(x), optimized(x))
    assert torch.equal(x, kept)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_eps_of_a_folded_norm_is_its_own() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=0.5)))
    x = images(2, 3, 8, 8)
    ours, theirs = errors(model, se_fused.optimize_for_inference(model, x), x)
    assert ours <= 4 * theirs + 1e-6


def test_nothing_is_left_between_the_layers() -> None:
    model = trained(create_model("seresnet50", num_classes=7))
    optimized = se_fused.optimize_for_inference(model, images(2, 3, 64, 64))
    found = kinds(optimized)
    assert found["ConvSqueezeExcite"] == 16 and found["ConvAct"] == 1 + 2 * 16 + 4
    assert not any(isinstance(m, (*NORMS, nn.Conv2d, nn.ReLU)) for m in optimized.modules())
    functions = [n.target for n in optimized.graph.nodes if n.op == "call_function"]
    assert not any("relu" in str(f) or "add" in str(f) for f in functions)
    # Each block's residual is last used there and was made by one of our layers, so it may be overwritten.
    given_away = [not m.keeps_residual for m in optimized.modules() if isinstance(m, ConvSqueezeExcite)]
    assert all(given_away)


@pytest.mark.grid(quick=0)
@pytest.mark.parametrize("name", ["resnet18", "timm-legacy-18", "timm-efficientnet", "densenet"])
def test_layers_of_other_blocks(name: str) -> None:
    model = trained(MODELS[name]() if name in MODELS else create_model(name, num_classes=7))
    found = kinds(se_fused.optimize_for_inference(model, images(2, 3, 64, 64)))
    assert not found["BatchNorm2d"]
    if name == "timm-legacy-18":
        assert found["Rescale"] == 8  # after 3x3 convolutions and their ReLU
    if name == "timm-efficientnet":
        assert found["GatedConvAct"] == 16  # its gates are applied in the projections
    if name == "densenet":
        assert found["NormAct"] > 50  # norms before their convolution


@pytest.mark.isa
@pytest.mark.parametrize("inside", ["chosen", "same"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits(dtype: torch.dtype, inside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """16-bit models are right if computed in their dtype, and in float32 where the processor is faster there.

    The dtype itself may be required, by a model from a GPU or a file, on a CPU whose oneDNN has no such convolution.
    """
    if inside == "same":
        monkeypatch.setattr(optimize, "compute_dtype", lambda dtype, device: dtype)
    model = trained(create_model("seresnet18", num_classes=7)).to(dtype)
    x = images(2, 3, 32, 32).to(dtype)
    optimized = se_fused.optimize_for_inference(model, x)
    with torch.no_grad():
        assert optimized(x).dtype == dtype
    ours, theirs = errors(model, optimized, x)
    assert ours <= 2 * theirs + 4 * torch.finfo(dtype).eps
    wanted = dtype if inside == "same" else layers.compute_dtype(dtype, torch.device("cpu"))
    assert f"(cast_input): CastInput(dtype={wanted})" in str(optimized)
    assert {m.weight.dtype for m in optimized.modules() if isinstance(m, ConvAct)} == {wanted}


def test_16_bits_need_amx_and_a_onednn_that_may_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 bits are used if the processor has AMX and oneDNN is allowed to use it.

    An environment variable can restrict oneDNN, which the processor's flags do not show.
    """
    cpu = torch.device("cpu")
    for name in ("_is_amx_tile_supported", "_is_amx_fp16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: True)
    for dtype in (torch.bfloat16, torch.float16):
        for takes, wanted in ((True, dtype), (False, torch.float32)):
            monkeypatch.setattr(layers, "_onednn_takes", lambda dtype, takes=takes: takes)
            assert layers.compute_dtype(dtype, cpu) == wanted
            assert layers.compute_dtype(dtype, torch.device("cuda")) == dtype


@pytest.mark.isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_maps_between_the_layers_are_channels_last(dtype: torch.dtype) -> None:
    """Maps between the layers are channels_last, also volumes.

    PyTorch convolves those in 16 bits itself where oneDNN cannot, with contiguous results.
    """
    for conv in (nn.Conv2d(3, 8, 3, stride=2), nn.Conv3d(3, 8, 3, padding=1)):
        x = images(2, 3, *(9,) * (conv.weight.dim() - 2)).to(dtype)
        ordered = CastInput(dtype)(x)
        layer = layers.ConvAct(conv, None, dtype, "relu")
        with torch.no_grad():
            y = layer(ordered)
            assert is_channels_last(y) and not y.is_contiguous()
            residual = CastInput(dtype)(images(*y.shape))
            y = layer(ordered, residual)
            assert is_channels_last(y) and not y.is_contiguous()


def test_weights_are_packed_for_the_last_shapes_alone() -> None:
    model = trained(create_model("seresnet18", num_classes=7))
    optimized = se_fused.optimize_for_inference(model, images(2, 3, 64, 64))
    layers = [m for m in optimized.modules() if isinstance(m, ConvAct)]
    with torch.no_grad():
        for batch in (1, 2, 3, 1):
            torch.testing.assert_close(optimized(images(batch, 3, 64, 64)), model(images(batch, 3, 64, 64)))
    assert all({shape[0] for shape in m._packed} == {1, 3} for m in layers)


def test_another_dtype_than_the_models() -> None:
    model = trained(create_model("seresnet18", num_classes=7))
    optimized = se_fused.optimize_for_inference(model, images(2, 3, 64, 64), dtype=torch.bfloat16)
    with torch.no_grad():
        assert optimized(images(2, 3, 64, 64)).dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.grid(quick=0)
@pytest.mark.parametrize("name", ["ours-50", "densenet", "timm-efficientnet"])
def test_without_onednn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without oneDNN, as on a GPU, the library's convolution runs, followed by one pass for the rest."""
    monkeypatch.setattr(ConvAct, "packable", lambda self, x: False)
    model = trained(MODELS[name]())
    optimized = se_fused.optimize_for_inference(model, images(2, 3, 64, 64))
    x = images(3, 3, 96, 64)
    ours, theirs = errors(model, optimized, x)
    assert ours <= 2 * theirs + 4 * torch.finfo(torch.float32).eps


class Toy(nn.Module):
    """A model with one residual block, which tests extend with problematic parts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.inner = nn.Conv2d(16, 8, 1)
        self.conv = nn.Conv2d(8, 16, 1)
        self.bn = nn.BatchNorm2d(16)
        self.se = se_fused.SqueezeExcite(16)

    def block(self, x: Tensor) -> Tensor:
        return torch.relu(self.se(self.bn(self.conv(self.inner(x)))) + x)

    def forward(self, x: Tensor) -> Any:
        return self.block(self.stem(x))


class ReturnsResidual(Toy):
    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        return self.block(x), x


class ViewOfResidual(Toy):
    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        view = x.flatten(2)
        return self.block(x).flatten(2) * view


class InputIsResidual(Toy):
    def forward(self, x: Tensor) -> Any:
        return self.block(torch.cat([x] * 6, 1)[:, :16]), self.block(x.repeat(1, 6, 1, 1)[:, :16])


class ResidualIsInput(Toy):
    """A block whose 1x1 convolution reads the tensor that would be overwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.conv = nn.Identity(), nn.Conv2d(16, 16, 1)  # type: ignore[assignment]


class Dictionary(Toy):
    def forward(self, x: Tensor) -> Any:
        return {"map": self.block(self.stem(x)), "size": x.shape[2]}


@pytest.mark.parametrize("kind", [Toy, ReturnsResidual, ViewOfResidual, InputIsResidual, ResidualIsInput, Dictionary])
def test_what_is_still_wanted_is_not_written_over(kind: type[Toy]) -> None:
    torch.manual_seed(0)
    model = trained(kind())
    x = images(2, 3, 12, 12)
    optimized = se_fused.optimize_for_inference(model, x)
    with torch.no_grad():
        theirs, ours = model(x), optimized(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    given_away = [not m.keeps_residual for m in optimized.modules() if isinstance(m, ConvSqueezeExcite)]
    assert any(given_away) == (kind in (Toy, Dictionary))


class Twice(Toy):
    """A convolution followed by two batch norms in turn; folding either would change the other call."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Any:
        x = self.inner(self.stem(x))
        return self.bn(self.conv(x)) + self.other(self.conv(x))


class Mirrored(nn.Module):
    """A convolution with padding by name, which is fused, and one with another padding mode, which is not."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding="same")
        self.b = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.b(self.a(x))))


@pytest.mark.parametrize("kind", [Twice, Mirrored])
def test_convolutions_that_stay(kind: type[nn.Module]) -> None:
    model = trained(kind())
    x = images(2, 3, 12, 12)
    optimized = se_fused.optimize_for_inference(model, x)
    assert kinds(optimized)["Conv2d"] == 1
    assert any(isinstance(m, NormAct) for m in optimized.modules())
    with torch.no_grad():
        torch.testing.assert_close(optimized(x), model(x), rtol=1e-5, atol=1e-5)
    left = {Twice: ("conv", "it is called more than once"), Mirrored: ("b", "padding_mode='reflect'")}
    assert [(name, why) for name, _, why in se_fused.conversion_report(optimized).left] == [left[kind]]


class Broadcasts(Toy):
    """A block whose residual has another shape: one value per channel, computed by one of our layers."""

    def __init__(self) -> None:
        super().__init__()
        self.pooled = nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        every = self.pooled(x.mean((2, 3), keepdim=True))
        return torch.relu(self.bn(self.conv(self.inner(x))) + every), torch.relu(
            every + self.se(self.conv(self.inner(x)))
        )


def test_a_sum_that_broadcasts_stays() -> None:
    torch.manual_seed(0)
    model = trained(Broadcasts())
    x = images(2, 3, 12, 12)
    optimized = se_fused.optimize_for_inference(model, x)
    with torch.no_grad():
        torch.testing.assert_close(optimized(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("geometry", [{"stride": 2}, {"padding": 1}, {"groups": 2}, {"kernel_size": 3}])
def test_the_squeeze_is_taken_before_plain_products_alone(geometry: dict[str, Any]) -> None:
    conv = nn.Conv2d(8, 16, **{"kernel_size": 1} | geometry)
    model = trained(nn.Sequential(nn.Conv2d(3, 8, 1), conv, nn.BatchNorm2d(16), se_fused.SqueezeExcite(16)))
    x = images(2, 3, 9, 9)
    optimized = se_fused.optimize_for_inference(model, x)
    assert kinds(optimized)["Rescale"] == 1
    with torch.no_grad():
        torch.testing.assert_close(optimized(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.isa
def test_volumes_and_signals() -> None:
    for dims in (1, 3):
        conv, norm = (nn.Conv1d, nn.BatchNorm1d) if dims == 1 else (nn.Conv3d, nn.BatchNorm3d)
        model = trained(
            nn.Sequential(conv(2, 8, 3), norm(8), nn.ReLU(), conv(8, 16, 1), norm(16), se_fused.SqueezeExcite(16))
        )
        x = images(2, 2, *(9,) * dims)
        optimized = se_fused.optimize_for_inference(model, x)
        with torch.no_grad():
            torch.testing.assert_close(optimized(x), model(x), rtol=1e-5, atol=1e-5)
        assert kinds(optimized)["ConvSqueezeExcite"] == (dims == 3)


def test_pickle_copy_and_cast() -> None:
    model = trained(create_model("seresnet18", num_classes=7))
    x = images(2, 3, 64, 64)
    optimized = se_fused.optimize_for_inference(model, x)
    with torch.no_grad():
        y = optimized(x)
        assert torch.equal(copy.deepcopy(optimized)(x), y)
        assert torch.equal(pickle.loads(pickle.dumps(optimized))(x), y)


def test_compiles_without_a_break() -> None:
    model = trained(create_model("seresnet18", num_classes=7))
    x = images(2, 3, 64, 64)
    optimized = se_fused.optimize_for_inference(model, x)
    with torch.no_grad():
        y = torch.compile(optimized, fullgraph=True, backend="aot_eager")(x)
        torch.testing.assert_close(y, optimized(x), rtol=1e-4, atol=1e-5)


def test_a_wrong_result_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(create_model("seresnet18", num_classes=7))
    right = folding.fold_batch_norm

    def slightly_wrong(conv: Any, bn: Any) -> Any:
        weight, bias = right(conv, bn)
        return weight * (1 + 1e-4), bias

    monkeypatch.setattr(layers, "fold_batch_norm", slightly_wrong)
    with pytest.raises(RuntimeError, match=r"away from the float64 result.*on a second input.*are allowed"):
        se_fused.optimize_for_inference(model, images(2, 3, 64, 64))


class Decides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > 0 else x


def test_bad_input() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module.*got int"):
        se_fused.optimize_for_inference(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"dtype must be torch\.float32.*got torch\.float64"):
        se_fused.optimize_for_inference(Toy(), dtype=torch.float64)
    with pytest.raises(ValueError, match=r"cannot be traced by torch.fx.*se_fused.convert\(model\)"):
        se_fused.optimize_for_inference(Decides(), images(1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"no convolution.*example_input"):
        se_fused.optimize_for_inference(nn.Linear(3, 4))
    with pytest.raises(ValueError, match="no parameters"):
        se_fused.optimize_for_inference(nn.ReLU())
