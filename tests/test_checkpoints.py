"""load_pretrained: every library's checkpoints give that library's outputs, or are refused and change nothing."""

import argparse
import copy
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.networks.nets as monai_nets
import pytest
import timm
import torch
import torchvision
import zoo_models
from module_support import one_thread, randomise, rms  # noqa: F401 (a fixture)
from safetensors.torch import save_file
from torch import Tensor, nn

from se_fused import create_model, load_pretrained
from se_fused.models import SEResNet, SEResNet18, UNet
from se_fused.models.se_resnet import BasicBlock, Bottleneck

ONE = (1, 1, 1, 1)


def images(chans: int = 3, size: int = 64) -> Tensor:
    return torch.randn(2, chans, size, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def write(path: Path, model: nn.Module, **entries: Any) -> Path:
    torch.save({**entries, "state_dict": model.state_dict()} if entries else model.state_dict(), path)
    return path


def made(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A model of another library in float64, with random weights and statistics."""
    model = build().double().eval()
    randomise(model, seed)
    return model


def refused(model: nn.Module, path: Path, message: str, **arguments: Any) -> str:
    """What the refusal says; the model is as before."""
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message) as info:
        load_pretrained(model, path, **arguments)
    assert "\n" not in str(info.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    return str(info.value)


def monai_densenet() -> nn.Module:
    return monai_nets.DenseNet121(spatial_dims=2, in_channels=3, out_channels=5)


def legacy(block: str, depths: tuple[int, ...], **arguments: Any) -> nn.Module:
    return timm.models.senet.SENet(getattr(timm.models.senet, block), depths, reduction=16, num_classes=5, **arguments)


SENET = dict(groups=64, inplanes=128, input_3x3=True, downsample_kernel_size=3, downsample_padding=1)
OUR_SENET = dict(cardinality=64, base_width=4, reduce_first=2, deep_stem=True, down_kernel_size=3)


def ours(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: create_model(name, num_classes=5, **options)


def short(block: type[BasicBlock] | type[Bottleneck], **options: Any) -> Callable[[], nn.Module]:
    return lambda: SEResNet(block, ONE, 5, **options)


# The library's model, ours, what the report calls the library, and arguments.
GOLDEN: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], str, dict[str, Any]]] = {
    **{
        f"timm-{name}": (lambda name=name: timm.create_model(name, num_classes=5), ours(name), "timm, torchvision", {})
        for name in ("seresnet18", "seresnet50", "seresnext50_32x4d", "resnet50")
    },
    "timm-densenet121": (
        lambda: timm.create_model("densenet121", num_classes=5), ours("densenet121"), "torchvision or timm", {}
    ),
    **{
        f"timm-legacy_{name}": (
            lambda name=name: timm.create_model(f"legacy_{name}", num_classes=5),
            ours(name, variant="caffe"), "timm legacy_* or Cadene", {},
        )
        for name in ("seresnet18", "seresnet50", "seresnext26_32x4d")
    },
    "legacy-senet": (
        lambda: legacy("SEBottleneck", ONE, **SENET), short(Bottleneck, variant="caffe", **OUR_SENET),
        "timm legacy_* or Cadene", {},
    ),
    **{
        f"torchvision-{name}": (
            lambda name=name: torchvision.models.get_model(name, num_classes=5), ours(name),
            "torchvision" if name == "densenet121" else "timm, torchvision", {},
        )
        for name in ("resnet18", "resnet50", "densenet121")
    },
    "monai-SEResNet50": (
        lambda: monai_nets.SEResNet50(spatial_dims=2, in_channels=3, num_classes=5),
        ours("legacy_seresnet50"), "MONAI", {},
    ),
    "monai-SEResNext50": (
        lambda: monai_nets.SEResNext50(spatial_dims=2, in_channels=3, num_classes=5),
        ours("legacy_seresnext50_32x4d"), "MONAI", {},
    ),
    "monai-SENet154": (
        lambda: monai_nets.SENet154(layers=ONE, spatial_dims=2, in_channels=3, num_classes=5),
        short(Bottleneck, variant="caffe", **OUR_SENET), "MONAI", {},
    ),
    "monai-DenseNet121": (monai_densenet, ours("densenet121"), "MONAI", {}),
    "nvidia-se-resnext": (
        lambda: zoo_models.Nvidia(ONE, 5, groups=32, squeeze=16),
        short(Bottleneck, cardinality=32, base_width=4, rd_channels=16), "NVIDIA", {},
    ),
    "nvidia-resnet50": (lambda: zoo_models.Nvidia((3, 4, 6, 3), 5), ours("resnet50"), "NVIDIA", {}),
    "mmpretrain-seresnet": (
        lambda: zoo_models.MMPretrain(ONE, 5), short(Bottleneck), "mmpretrain", dict(style="pytorch")
    ),
    "mmpretrain-seresnext": (
        lambda: zoo_models.MMPretrain(ONE, 5, groups=32),
        short(Bottleneck, cardinality=32, base_width=4), "mmpretrain", dict(style="pytorch"),
    ),
    "mmpretrain-resnet50": (
        lambda: zoo_models.MMPretrain((3, 4, 6, 3), 5, se=False), ours("resnet50"), "mmpretrain",
        dict(style="pytorch"),
    ),
    "moskomule-18": (
        lambda: zoo_models.moskomule((2, 2, 2, 2), 5, bottleneck=False),
        ours("seresnet18", rd_divisor=1, se_bias=False), "moskomule", {},
    ),
    "moskomule-50": (
        lambda: zoo_models.moskomule((3, 4, 6, 3), 5), ours("seresnet50", se_bias=False), "moskomule", {}
    ),
    "ours-unet": (ours("unet", width=4), ours("unet", width=4), "timm, torchvision or se_fused", {}),
    "ours-caffe": (ours("legacy_seresnet18"), ours("legacy_seresnet18"), "se_fused with variant='caffe'", {}),
}  # fmt: skip


@pytest.mark.parametrize("case", GOLDEN)
def test_outputs_are_the_librarys(case: str, tmp_path: Path) -> None:
    """In float64, where both are plain PyTorch: what differs is the order of sums in SE's two matrices."""
    build, build_ours, source, arguments = GOLDEN[case]
    theirs, model = made(build), build_ours().double().eval()
    report = load_pretrained(model, write(tmp_path / "file.pth", theirs), **arguments)
    with torch.no_grad():
        wanted = theirs(images())
        torch.testing.assert_close(model(images()), wanted, rtol=1e-10, atol=1e-10 * rms(wanted))
    assert report.source.startswith(source)
    assert report.loaded + len(report.kept) == len(model.state_dict())
    assert report.loaded == len(theirs.state_dict()) and not report.ignored
    assert set(report.kept) <= {"caffe_order"}


@pytest.mark.slow
def test_a_whole_senet154(tmp_path: Path) -> None:
    theirs = timm.create_model("legacy_senet154", num_classes=5).eval()
    randomise(theirs)
    model = create_model("senet154", num_classes=5, variant="caffe", checkpoint_path=write(tmp_path / "a.pth", theirs))
    assert model.drop_rate == 0.2
    x = images(size=32).float()
    with torch.no_grad():
        wanted = theirs(x)
        assert rms(model.eval()(x) - wanted) <= 1e-4 * rms(wanted)


def test_the_orders_differ(tmp_path: Path) -> None:
    """The weights fit both orders by name and shape once renamed; the outputs are not the same, so the tests above can
    fail, and a renamed file gives the right ones only if its source is named."""
    theirs = made(lambda: legacy("SEResNetBottleneck", ONE, groups=1))
    renamed, right = (SEResNet(Bottleneck, ONE, 5, variant="caffe").double().eval() for _ in range(2))
    wrong = SEResNet(Bottleneck, ONE, 5).double().eval()
    load_pretrained(renamed, write(tmp_path / "legacy.pth", theirs))
    state = renamed.state_dict()
    del state["caffe_order"]
    torch.save(state, tmp_path / "renamed.pth")

    refused(right, tmp_path / "renamed.pth", r"its keys are timm's.*variant='timm', or give source='legacy'")
    load_pretrained(right, tmp_path / "renamed.pth", source="legacy")
    load_pretrained(wrong, tmp_path / "renamed.pth")
    message = r"is of timm legacy_\* or Cadene \(source='legacy'\).*build it with variant='caffe'$"
    refused(wrong, tmp_path / "renamed.pth", message, source="legacy")
    with torch.no_grad():
        wanted = theirs(images())
        torch.testing.assert_close(right(images()), wanted, rtol=1e-10, atol=1e-10 * rms(wanted))
        assert rms(wrong(images()) - wanted) > 1e-2 * rms(wanted)


def test_each_difference_of_the_orders_counts(tmp_path: Path) -> None:
    """Pooling alone (SE-ResNeXt), and the ReLU before SE (18): the wrong order is another function each time."""
    for block, options in ((Bottleneck, dict(cardinality=32, base_width=4)), (BasicBlock, {})):
        caffe = made(lambda b=block, o=options: SEResNet(b, ONE, 5, variant="caffe", **o))
        other = SEResNet(block, ONE, 5, rd_divisor=1, **options).double().eval()
        other.load_state_dict({k: v for k, v in caffe.state_dict().items() if k != "caffe_order"})
        with torch.no_grad():
            pooling = rms(other(images()) - caffe(images()))
            assert pooling > 1e-3 * rms(caffe(images()))
            other.maxpool = caffe.maxpool
            same = torch.allclose(other(images()), caffe(images()), rtol=1e-12)
        assert same is (block is Bottleneck)


# refused


def test_other_orders_are_refused(tmp_path: Path) -> None:
    caffe, plain = create_model("legacy_seresnet18"), SEResNet18()
    mine = write(tmp_path / "mine.pth", caffe)
    refused(plain, mine, r"se_fused with variant='caffe' \(its key 'caffe_order'\).*build it with variant='caffe'$")
    legacy_file = write(tmp_path / "legacy.pth", timm.create_model("legacy_seresnet18"))
    refused(plain, legacy_file, r"timm legacy_\* or Cadene \(its key 'layer0.conv1.weight'\), whose order")
    monai_file = write(tmp_path / "monai.pth", monai_nets.SEResNet50(layers=ONE, spatial_dims=2, in_channels=3))
    refused(SEResNet(Bottleneck, ONE), monai_file, r"is of MONAI .*variant='caffe'")
    refused(SEResNet(Bottleneck, ONE), monai_file, r"source='timm', but key .* is one of MONAI", source="timm")
    for build in (lambda: zoo_models.Nvidia(ONE, 5, 32, 16), lambda: zoo_models.moskomule(ONE, 5)):
        model = SEResNet(Bottleneck, ONE, variant="caffe")
        refused(model, write(tmp_path / "x.pth", build()), r"build it with variant='timm'$")


def test_mmpretrains_style_is_asked_for(tmp_path: Path) -> None:
    """Its two styles have the same keys and shapes, and give other outputs."""
    styles = [made(lambda s=s: zoo_models.MMPretrain(ONE, 5, style=s)) for s in ("pytorch", "caffe")]
    styles[1].load_state_dict(styles[0].state_dict())
    with torch.no_grad():
        assert rms(styles[0](images()) - styles[1](images())) > 1e-2 * rms(styles[0](images()))
    path, model = write(tmp_path / "mm.pth", styles[0]), SEResNet(Bottleneck, ONE, 5)
    refused(model, path, r"style='pytorch' and style='caffe' have the same keys.*look into its config")
    refused(model, path, r"strides in conv1 and pads the stem's pooling; no model here does both", style="caffe")
    refused(model, path, r"style must be one of 'pytorch', 'caffe', got 'tf'", style="tf")
    caffe = SEResNet(Bottleneck, ONE, 5, variant="caffe")
    refused(caffe, path, r"build it with variant='timm'", style="caffe")
    refused(model, write(tmp_path / "a.pth", model), r"style='caffe' is a question about mmpretrain's", style="caffe")


def test_mmpretrains_basic_blocks_have_one_style(tmp_path: Path) -> None:
    theirs = made(lambda: torchvision.models.resnet18(num_classes=5))
    state = {f"{'head' if k.startswith('fc') else 'backbone'}.{k}": v for k, v in theirs.state_dict().items()}
    torch.save({"state_dict": {**state, "data_preprocessor.mean": torch.zeros(3)}, "meta": {}}, tmp_path / "a.pth")
    model = create_model("resnet18", num_classes=5).double().eval()
    report = load_pretrained(model, tmp_path / "a.pth")
    assert report.ignored == {"data_preprocessor.mean": "mmpretrain's normalisation of the image"}
    with torch.no_grad():
        torch.testing.assert_close(model(images()), theirs(images()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["resnetaa50", "resnetblur50", "resnetblur18"])
def test_lookalikes_are_refused(name: str, tmp_path: Path) -> None:
    """timm's models with a plain ResNet's keys and another function, where the file says that it is one."""
    theirs = timm.create_model(name, num_classes=5)
    model = create_model("resnet18" if "18" in name else "resnet50", num_classes=5)
    model.load_state_dict(theirs.state_dict())  # by keys and shapes alone it fits
    for path in (write(tmp_path / f"{name}.pth", theirs), write(tmp_path / "a.pth", theirs, arch=name)):
        refused(model, path, rf"seems to be of timm's {name}.*another function; if it is not, say source='timm'")
    load_pretrained(model, tmp_path / "a.pth", source="timm")


def test_every_key_that_does_not_fit_is_named(tmp_path: Path) -> None:
    model = SEResNet18(5)
    state = dict(model.state_dict())
    state["layer1.0.extra"] = state.pop("layer1.0.bn1.weight")
    state["more"] = torch.zeros(1)
    state["layer2.0.conv1.weight"] = torch.zeros(3, 3)
    state["layer3.0.bn1.bias"] = torch.zeros(256, dtype=torch.int8)
    del state["layer4.1.bn2.running_var"], state["layer4.1.bn2.num_batches_tracked"]
    torch.save(state, tmp_path / "a.pth")
    message = refused(model, tmp_path / "a.pth", r"a\.pth \(timm.*\) does not fit the model, and nothing was loaded")
    for wanted in (
        "missing in the file: layer1.0.bn1.weight, layer4.1.bn2.running_var;",
        "not in the model: layer1.0.extra, more",
        "layer2.0.conv1.weight is (3, 3) in the file and (128, 64, 3, 3) in the model",
        "layer3.0.bn1.bias is torch.int8 in the file and torch.float32 in the model",
    ):
        assert wanted in message, wanted
    odd = {key: torch.zeros(()) for key in model.state_dict()}
    torch.save(odd, tmp_path / "odd.pth")
    assert refused(model, tmp_path / "odd.pth", "does not fit").count(" is () in the file and ") == sum(
        value.dim() > 0 for value in model.state_dict().values()
    )
    legacy_state = timm.create_model("legacy_seresnet18", num_classes=5).state_dict()
    legacy_state["layer1.0.se_module.fc3.weight"] = torch.zeros(1)
    legacy_state["conv1.weight"] = legacy_state["layer0.conv1.weight"]
    torch.save(legacy_state, tmp_path / "b.pth")
    caffe = create_model("legacy_seresnet18", num_classes=5)
    message = refused(caffe, tmp_path / "b.pth", r"not in the model: layer1.0.se_module.fc3.weight")
    assert "layer0.conv1.weight and conv1.weight are both conv1.weight here" in message


def one(**options: Any) -> nn.Module:
    return SEResNet(Bottleneck, ONE, 5, **options)


# The file's model, ours, and what the refusal says.
MISFITS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], str]] = {
    "classes": (
        lambda: SEResNet18(7), lambda: SEResNet18(5),
        r"fc.weight is \(7, 512\) in the file and \(5, 512\) in the model.*"
        r"num_classes=7 and call reset_classifier\(5\) afterwards, or give skip_classifier=True",
    ),
    "no classifier in the file": (
        lambda: SEResNet18(0), lambda: SEResNet18(5),
        r"missing in the file: fc.weight, fc.bias.*num_classes=0 and call reset_classifier\(5\)",
    ),
    "no classifier in the model": (
        lambda: SEResNet18(7), lambda: SEResNet18(0),
        r"not in the model: fc.weight, fc.bias.*num_classes=7, or give skip_classifier",
    ),
    "pooling": (
        lambda: SEResNet18(5, global_pool="catavgmax"), lambda: SEResNet18(5),
        r"fc.weight is \(5, 1024\) in the file and .*To do: build the model with the global_pool",
    ),
    "channels": (
        lambda: SEResNet18(5), lambda: SEResNet18(5, 1),
        r"conv1.weight is \(64, 3, 7, 7\) in the file and \(64, 1, 7, 7\).*in_chans=3, or give adapt_in_chans=True",
    ),
    "NVIDIA's width": (
        lambda: zoo_models.Nvidia(ONE, 5, 32, 16), lambda: one(cardinality=32, base_width=4),
        r"layers.3.0.squeeze.squeeze.weight is \(16, 2048, 1, 1\) in the file and \(128, 2048, 1, 1\).*rd_channels=16",
    ),
    "moskomule's SE": (
        lambda: zoo_models.moskomule((2, 2, 2, 2), 5, False), lambda: SEResNet18(5),
        r"missing in the file: layer1.0.se.fc1.bias.*rd_divisor=1.*se_bias=False",
    ),
    "timm's rounding": (
        lambda: timm.create_model("seresnet18", num_classes=5), lambda: SEResNet18(5, rd_divisor=1),
        r"layer1.0.se.fc1.weight is \(8, 64, 1, 1\) in the file and \(4, 64, 1, 1\)",
    ),
    "no SE": (
        lambda: torchvision.models.resnet18(num_classes=5), lambda: SEResNet18(5),
        r"missing in the file: layer1.0.se.fc1.weight, layer1.0.se.fc1.bias",
    ),
    "DenseNet": (
        lambda: torchvision.models.densenet121(num_classes=5),
        lambda: create_model("densenet121", in_chans=1, num_classes=2),
        r"num_classes=5 and.*reset_classifier\(2\).*in_chans=3",
    ),
    "3-D": (
        lambda: monai_nets.SEResNet50(spatial_dims=3, in_channels=3, layers=ONE), lambda: one(variant="caffe"),
        r"layer1.0.conv2.conv.weight is \(64, 64, 3, 3, 3\) in the file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_says_what_to_do(case: str, tmp_path: Path) -> None:
    build, model, message = MISFITS[case]
    refused(model(), write(tmp_path / "a.pth", build()), message)


# options


def test_skip_classifier_and_adapt_in_chans(tmp_path: Path) -> None:
    theirs = made(lambda: timm.create_model("seresnet18", num_classes=7))
    path = write(tmp_path / "a.pth", theirs)
    for in_chans in (1, 5):
        model = SEResNet18(5, in_chans).double().eval()
        fc = copy.deepcopy(model.fc.state_dict())
        report = load_pretrained(model, path, skip_classifier=True, adapt_in_chans=True)
        assert torch.equal(model.fc.weight, fc["weight"]) and torch.equal(model.fc.bias, fc["bias"])
        wanted = timm.models.adapt_input_conv(in_chans, theirs.conv1.weight.detach().float())
        torch.testing.assert_close(model.conv1.weight.detach().float(), wanted)
        assert set(report.ignored) == set(report.kept) == {"fc.weight", "fc.bias"}
        assert f"conv1.weight adapted from 3 to {in_chans} image channels" in str(report)
    model = SEResNet18(0, 1).double().eval()
    load_pretrained(model, path, skip_classifier=True, adapt_in_chans=True)
    grey = images(1)
    with torch.no_grad():
        theirs.reset_classifier(0)
        # timm sums in float32
        torch.testing.assert_close(model(grey), theirs(grey.expand(-1, 3, -1, -1)), rtol=1e-5, atol=1e-5)
        wrong = SEResNet18(5, 3).double().eval()
        load_pretrained(wrong, path, skip_classifier=True, adapt_in_chans=True)
        assert torch.equal(wrong.conv1.weight, theirs.conv1.weight)


def test_weights_are_converted_to_the_models_dtype(tmp_path: Path) -> None:
    theirs = made(lambda: timm.create_model("seresnet18", num_classes=5))
    model = SEResNet18(5).bfloat16()
    load_pretrained(model, write(tmp_path / "a.pth", theirs))
    assert torch.equal(model.conv1.weight, theirs.conv1.weight.bfloat16())


# files


def test_files_and_what_wraps_a_state_dict(tmp_path: Path) -> None:
    theirs = made(lambda: timm.create_model("seresnet18", num_classes=5)).float()
    state = theirs.state_dict()
    forms: dict[str, Any] = {
        "plain.pth": state,
        "ddp.pth.tar": {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3},
        "compiled.bin": {"model": {f"_orig_mod.module.{k}": v for k, v in state.items()}},
        "lightning.ckpt": {"state_dict": {f"model.{k}": v for k, v in state.items()}, "hyper_parameters": {"lr": 1}},
        "averaged.pt": {"n_averaged": torch.tensor(4), **{f"module.{k}": v for k, v in state.items()}},
        "old.pth": {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
        "linear.pth": {k: v[:, :, 0, 0] if ".se." in k and v.dim() == 4 else v for k, v in state.items()},
    }
    for name, content in forms.items():
        torch.save(content, tmp_path / name)
    save_file(state, tmp_path / "a.safetensors")
    reports = {}
    for name in (*forms, "a.safetensors"):
        model = SEResNet18(5)
        reports[name] = str(load_pretrained(model, str(tmp_path / name)))
        for key, value in model.state_dict().items():
            assert key.endswith("num_batches_tracked") or torch.equal(value, state[key]), (name, key)
    assert "prefix 'module.' stripped" in reports["ddp.pth.tar"] and "entry 'state_dict'" in reports["ddp.pth.tar"]
    assert "prefix '_orig_mod.module.' stripped" in reports["compiled.bin"]
    assert "ignored: n_averaged" in reports["averaged.pt"]
    assert re.search(r"kept: bn1.num_batches_tracked, .* and 17 more \(the file does not count", reports["old.pth"])
    assert reports["a.safetensors"].startswith(
        f"{tmp_path / 'a.safetensors'}: {len(state)} tensors loaded, named as in"
    )


def test_training_checkpoints(tmp_path: Path) -> None:
    """timm's: arguments beside the weights, and an average beside them, which is asked about."""
    first, second = (made(lambda: SEResNet18(5), seed) for seed in (1, 2))
    content = {"args": argparse.Namespace(lr=0.1), "arch": "seresnet18", "state_dict": first.state_dict()}
    torch.save({**content, "state_dict_ema": second.state_dict()}, tmp_path / "a.pth")
    model = SEResNet18(5).double()
    refused(model, tmp_path / "a.pth", r"more than one state_dict, \['state_dict', 'state_dict_ema'\]: say which")
    refused(model, tmp_path / "a.pth", r"entry must name a state_dict in .*got 'ema'; there are", entry="ema")
    for entry, wanted in (("state_dict", first), ("state_dict_ema", second)):
        load_pretrained(model, tmp_path / "a.pth", entry=entry)
        assert torch.equal(model.fc.weight, wanted.fc.weight)
    torch.save({"weights": first.state_dict(), "epoch": 1}, tmp_path / "b.pth")
    refused(model, tmp_path / "b.pth", r"no state_dict under a usual name, only \['weights', 'epoch'\]: say which")
    load_pretrained(model, tmp_path / "b.pth", entry="weights")


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    model = SEResNet18(5)
    (tmp_path / "text.pth").write_text("no checkpoint")
    (tmp_path / "text.safetensors").write_text("no checkpoint")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save(model, tmp_path / "object.pth")
    torch.save([1], tmp_path / "list.pth")
    torch.save({}, tmp_path / "none.pth")
    torch.save({"state_dict": {**model.state_dict(), "step": 3}}, tmp_path / "step.pth")
    for name, message in {
        "text.pth": r"text\.pth is no checkpoint of tensors alone \(weights_only=True\)",
        "text.safetensors": r"text\.safetensors is no safetensors file: ",
        "empty.pth": r"empty\.pth is no checkpoint of tensors alone",
        "object.pth": r"object\.pth is no checkpoint of tensors alone .*Unsupported .*SEResNet",
        "list.pth": r"list\.pth must hold a state_dict, got a list",
        "none.pth": r"none\.pth holds no state_dict",
        "step.pth": r"step\.pth holds values in its state_dict that are no tensors: step",
    }.items():
        refused(model, tmp_path / name, message)
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        load_pretrained(model, tmp_path / "absent.pth")
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        load_pretrained(model, tmp_path / "absent.safetensors")


def test_safetensors_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"a\.safetensors needs safetensors, which is not installed: pip install"):
        load_pretrained(SEResNet18(5), tmp_path / "a.safetensors")


def test_arguments(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", SEResNet18(5))
    with pytest.raises(TypeError, match=r"model must be one of se_fused\.models, not wrapped.*got DataParallel"):
        load_pretrained(nn.DataParallel(SEResNet18(5)), path)
    with pytest.raises(ValueError, match=r"model must have memory .*on the meta device: model\.to_empty\(device"):
        load_pretrained(SEResNet18(5, device="meta"), path)
    with pytest.raises(ValueError, match=r"source must be one of 'mmpretrain', .*'timm', got 'keras'"):
        load_pretrained(SEResNet18(5), path, source="keras")
    with pytest.raises(TypeError, match=r"skip_classifier must be True or False, got 1"):
        load_pretrained(SEResNet18(5), path, skip_classifier=1)  # type: ignore[arg-type]
    refused(UNet(5, width=4), path, r"missing in the file: encoder\.0\.conv1\.weight")


def test_monais_late_blocks_are_loaded(tmp_path: Path) -> None:
    """MONAI's own loader leaves out blocks from the tenth on, whose keys have two digits."""
    build = lambda: legacy("SEResNetBottleneck", (1, 1, 12, 1), groups=1)  # noqa: E731
    theirs, model = made(build), SEResNet(Bottleneck, (1, 1, 12, 1), 5, variant="caffe").double().eval()
    load_pretrained(model, write(tmp_path / "a.pth", theirs))
    assert torch.equal(model.layer3[11].conv2.weight, theirs.layer3[11].conv2.weight)
    monai_model = made(
        lambda: monai_nets.SENet(
            2, 3, "se_resnet_bottleneck", (1, 1, 12, 1), 1, 16, None, inplanes=64, downsample_kernel_size=1,
            input_3x3=False, num_classes=5,
        )
    )  # fmt: skip
    load_pretrained(model, write(tmp_path / "b.pth", monai_model))
    assert torch.equal(model.layer3[11].conv2.weight, monai_model.layer3[11].conv2.conv.weight)
