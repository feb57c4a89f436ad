"""Tests of the paper's baselines: torchvision's ResNet and DenseNet with our interface, and the U-Net classifier."""

import copy
import pickle
import sys
from typing import Any

import pytest
import timm
import torch
import torchvision
from support.modules import assert_as_close, one_thread, randomise, rms  # noqa: F401 (a fixture)
from torch import Tensor, nn

from se_fused.models import DenseNet, DenseNet121, ResNet18, SEResNet, UNet, create_model, list_models

BASELINES = ["seresnet50", "resnet50", "densenet121", "unet"]


def images(n: int = 2, size: int = 64, chans: int = 3) -> Tensor:
    return torch.randn(n, chans, size, size, generator=torch.Generator().manual_seed(0))


def small(name: str, num_classes: int = 5, in_chans: int = 3, **options: Any) -> nn.Module:
    """A model of the named class, small enough to train here, without neutral values."""
    if name == "densenet121":
        model: nn.Module = DenseNet(8, (2, 2, 2, 2), 16, num_classes, in_chans, **options)
    else:
        if name == "unet":
            options.setdefault("width", 8)
        model = create_model({"seresnet50": "seresnet18", "resnet50": "resnet18"}.get(name, name),
                             num_classes=num_classes, in_chans=in_chans, **options)  # fmt: skip
    randomise(model)
    return model


# ---- equality with torchvision


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "densenet121"]
)
def test_keys_and_shapes_are_torchvisions(name: str) -> None:
    ours = create_model(name, device="meta")
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name)
    state, wanted = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(wanted)
    assert {k: (v.shape, v.dtype) for k, v in state.items()} == {k: (v.shape, v.dtype) for k, v in wanted.items()}
    assert all(value.device.type == "meta" for value in state.values())


def test_keys_of_resnext_are_timms() -> None:
    ours = create_model("resnext50_32x4d", device="meta").state_dict()
    with torch.device("meta"):
        theirs = timm.create_model("resnext50_32x4d").state_dict()
    assert [(k, v.shape) for k, v in ours.items()] == [(k, v.shape) for k, v in theirs.items()]


@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d", "densenet121"])
def test_outputs_are_torchvisions(name: str) -> None:
    theirs = torchvision.models.get_model(name, num_classes=5).eval()
    randomise(theirs)
    ours = create_model(name, num_classes=5).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    truth = copy.deepcopy(theirs).double()
    with torch.no_grad():
        assert_as_close(ours(images()), theirs(images()), truth(images().double()))
        same = ours.double()(images().double())
    torch.testing.assert_close(same, truth(images().double()), rtol=1e-12, atol=1e-12 * rms(same))


def test_a_narrow_densenet() -> None:
    model = create_model("densenet121", growth_rate=4, num_init_features=8, num_classes=3)
    theirs = torchvision.models.DenseNet(4, (6, 12, 24, 16), 8, num_classes=3)
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


def test_training_of_densenet_is_torchvisions() -> None:
    theirs = torchvision.models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=5)
    ours = DenseNet(8, (2, 2, 2, 2), 16, 5)
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict())
    for model in (ours, theirs):
        model.train()(images()).square().sum().backward()
    for (key, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), key
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in ours.state_dict().items())


def test_initial_values_of_resnet() -> None:
    for build, zero in ((lambda: timm.create_model("resnet18"), None), (torchvision.models.resnet18, False)):
        torch.manual_seed(7)
        ours = ResNet18(zero_init_last=zero).state_dict()
        torch.manual_seed(7)
        assert all(torch.equal(v, ours[k]) for k, v in build().state_dict().items())


def test_densenet_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(
        ImportError, match=r"torchvision, which is not installed: pip install torchvision, or 'se_fused"
    ):
        DenseNet121()


# ---- the U-Net


def unet_in_plain_pytorch(model: nn.Module, x: Tensor) -> Tensor:
    """Ronneberger's Figure 1: four levels down, four up, each with the encoder's map concatenated in front."""
    p = dict(model.named_modules())

    def double(name: str, x: Tensor) -> Tensor:
        x = p[f"{name}.bn1"](p[f"{name}.conv1"](x)).relu()
        return p[f"{name}.bn2"](p[f"{name}.conv2"](x)).relu()

    def crop(skip: Tensor, like: Tensor) -> Tensor:
        return skip[:, :, : like.shape[2], : like.shape[3]]

    pool = nn.functional.max_pool2d
    d1 = double("encoder.0", x)
    d2 = double("encoder.1", pool(d1, 2))
    d3 = double("encoder.2", pool(d2, 2))
    d4 = double("encoder.3", pool(d3, 2))
    u = double("encoder.4", pool(d4, 2))
    for i, skip in enumerate((d4, d3, d2, d1)):
        u = p[f"up.{i}"](u)
        u = double(f"decoder.{i}", torch.cat([crop(skip, u), u], 1))
    return u


@pytest.mark.parametrize("size", [(32, 32), (37, 50)], ids=["even", "odd"])
def test_unet_is_the_papers(size: tuple[int, int]) -> None:
    model = small("unet").double().eval()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        u = model.forward_features(x)
        torch.testing.assert_close(u, unet_in_plain_pytorch(model, x), rtol=1e-12, atol=1e-12)
        assert u.shape == (2, 8, size[0] // 16 * 16, size[1] // 16 * 16)
        torch.testing.assert_close(model(x), model.fc(u.mean((2, 3))), rtol=1e-12, atol=1e-12)


def test_unet_has_the_papers_widths() -> None:
    """The U-Net has 64 to 1024 channels and 22 convolutions: the paper's 23 less the last, for the segmentation."""
    model = UNet(device="meta")
    assert [m.conv2.out_channels for m in model.encoder] == [64, 128, 256, 512, 1024]
    assert [m.conv1.in_channels for m in model.decoder] == [1024, 512, 256, 128]
    assert sum(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in model.modules()) == 22
    assert model.num_features == 64


def test_unet_refuses() -> None:
    with pytest.raises(ValueError, match=r"x must be at least 16 x 16 for 4 halvings, got shape \(2, 3, 15, 64\)"):
        UNet(width=1)(torch.zeros(2, 3, 15, 64))
    with pytest.raises(ValueError, match=r"width must be an int of at least 1, got 0"):
        UNet(width=0)


# ---- the common interface


@pytest.mark.filterwarnings("ignore:se_fused has no kernel")
@pytest.mark.parametrize("name", BASELINES)
def test_create_model_serves_all_four(name: str) -> None:
    assert name in list_models()
    options: dict[str, Any] = dict(global_pool="avgmax", drop_rate=0.1, device="meta", dtype=torch.bfloat16)
    model = create_model(name, num_classes=4, in_chans=1, **options)
    x = torch.empty(2, 1, 64, 64, device="meta", dtype=torch.bfloat16)
    assert model(x).shape == (2, 4) and model(x).dtype == torch.bfloat16
    assert (model.num_classes, model.in_chans, model.drop_rate) == (4, 1, 0.1)
    assert model.forward_features(x).shape[:2] == (2, model.num_features)


@pytest.mark.parametrize("name", BASELINES)
def test_interface(name: str) -> None:
    model = small(name, in_chans=1, drop_rate=0.5).eval()
    x = images(chans=1)
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape[:2] == (2, model.num_features)
        pooled = model.forward_head(features, pre_logits=True)
        torch.testing.assert_close(pooled, features.mean((2, 3)))
        torch.testing.assert_close(model(x), model.get_classifier()(pooled))
        torch.testing.assert_close(model(x), model.forward_head(features))
        model.train()
        dropped = model.forward_head(features, pre_logits=True)
        assert (dropped == 0).float().mean() > (pooled == 0).float().mean() + 0.2
    assert isinstance(model.get_classifier(), nn.Linear)
    keys = set(model.state_dict())
    model.bfloat16().reset_classifier(3, "catavgmax")
    assert model.get_classifier().weight.shape == (3, 2 * model.num_features) == (3, model.head_hidden_size)
    assert model.get_classifier().weight.dtype == torch.bfloat16
    assert set(model.state_dict()) == keys, "the new classifier has the old one's name"
    model.float().eval().reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity) and model(x).shape == (2, 2 * model.num_features)
    model.reset_classifier(0, "")
    assert model(x).shape == model.forward_features(x).shape
    with pytest.raises(ValueError, match=r"global_pool must pool for a classifier of num_classes=2, got ''"):
        model.reset_classifier(2)


@pytest.mark.parametrize("name", BASELINES)
def test_every_parameter_learns_and_copies_are_equal(name: str) -> None:
    model = small(name)
    model(images()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    model.eval()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(images()), model(images()))


@pytest.mark.parametrize("name", ["densenet121", "unet"])
def test_kernels_and_layouts_agree(name: str) -> None:
    """Float32 results in both memory formats agree with the same model in float64."""
    model = small(name).eval()
    truth = copy.deepcopy(model).double()
    with torch.no_grad():
        wanted = truth(images().double())
        for layout in (torch.contiguous_format, torch.channels_last):
            got = copy.deepcopy(model).to(memory_format=layout)(images().to(memory_format=layout))
            assert rms(got - wanted) <= 1e-5 * rms(wanted)


@pytest.mark.parametrize("name", ["densenet121", "unet"])
def test_compiles_in_one_graph(name: str) -> None:
    model = small(name).eval()
    run = torch.compile(copy.deepcopy(model), fullgraph=True, backend="eager")
    torch.testing.assert_close(run(images()), model(images()))


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(num_classes=-1), ValueError, r"num_classes must be an int of at least 0, got -1"),
        (dict(in_chans=0), ValueError, r"in_chans must be an int of at least 1, got 0"),
        (dict(drop_rate=1.0), ValueError, r"drop_rate must be a number in \[0, 1\), got 1.0"),
        (dict(global_pool="mean"), ValueError, r"global_pool must be one of 'avg', .*got 'mean'"),
    ],
    ids=["classes", "chans", "drop", "pool"],
)
def test_refuses(name: str, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        create_model(name, device="meta", **arguments)


@pytest.mark.parametrize("name", ["densenet121", "unet"])
def test_wrapped_checkpoints_are_explained(name: str) -> None:
    model = small(name)
    with pytest.raises(RuntimeError, match=r"every key of the state_dict starts with 'module\.'.*load_pretrained"):
        model.load_state_dict({f"module.{k}": v for k, v in model.state_dict().items()}, strict=False)


def test_resnet_is_seresnet_without_se() -> None:
    model = ResNet18(device="meta", variant="caffe", drop_path_rate=0.1)
    assert isinstance(model, SEResNet) and all(block.se is None for block in model.layer1)
    assert model.layer4[1].drop_path.drop_prob == 0.1
