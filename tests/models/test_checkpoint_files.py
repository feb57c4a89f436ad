"""load_pretrained on files that do not fit, that wrap a state_dict, or that are not checkpoints: nothing is changed."""

import argparse
import copy
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from support import zoo_models
from support.checkpoints import ONE, images, legacy, made, monai_net, refused, write
from support.modules import one_thread  # noqa: F401 (a fixture)
from torch import nn

from se_fused import create_model, load_pretrained
from se_fused.models import SEResNet, SEResNet18, UNet
from se_fused.models.se_resnet import Bottleneck

pytestmark = pytest.mark.quick


def test_keys_that_do_not_fit_are_counted_and_named(tmp_path: Path) -> None:
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
        "2 missing in the file: layer1.0.bn1.weight, layer4.1.bn2.running_var;",
        "2 not in the model: layer1.0.extra, more;",
        "2 of another shape or type: ",
        "layer2.0.conv1.weight is (3, 3), not (128, 64, 3, 3)",
        "layer3.0.bn1.bias is torch.int8, not torch.float32",
    ):
        assert wanted in message, wanted
    odd = {key: torch.zeros(()) for key in model.state_dict()}
    torch.save(odd, tmp_path / "odd.pth")
    wrong = len(odd)  # scalars differ in dtype, not in shape
    message = refused(
        model, tmp_path / "odd.pth", rf"loaded: {wrong} of another shape or type: .* and {wrong - 3} more\."
    )
    assert message.count(" is (), not ") == 3
    legacy_state = timm.create_model("legacy_seresnet18", num_classes=5).state_dict()
    legacy_state["layer1.0.se_module.fc3.weight"] = torch.zeros(1)
    legacy_state["conv1.weight"] = legacy_state["layer0.conv1.weight"]
    torch.save(legacy_state, tmp_path / "b.pth")
    caffe = create_model("legacy_seresnet18", num_classes=5)
    message = refused(caffe, tmp_path / "b.pth", r"not in the model: layer1.0.se_module.fc3.weight")
    assert "layer0.conv1.weight and conv1.weight are both conv1.weight here" in message


def one(**options: Any) -> nn.Module:
    return SEResNet(Bottleneck, ONE, 5, **options)


# The file's model, our model, and the expected error message.
MISFITS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], str]] = {
    "classes": (
        lambda: SEResNet18(7), lambda: SEResNet18(5),
        r"fc.weight is \(7, 512\), not \(5, 512\).*"
        r"num_classes=7 and call reset_classifier\(5\) afterwards, or give skip_classifier=True",
    ),
    "no classifier in the file": (
        lambda: SEResNet18(0), lambda: SEResNet18(5),
        r"missing in the file: fc.weight, fc.bias\. To do: give skip_classifier=True: the file has no [^;]*$",
    ),
    "no classifier in the model": (
        lambda: SEResNet18(7), lambda: SEResNet18(0),
        r"not in the model: fc.weight, fc.bias.*num_classes=7, or give skip_classifier",
    ),
    "pooling": (
        lambda: SEResNet18(5, global_pool="catavgmax"), lambda: SEResNet18(5),
        r"fc.weight is \(5, 1024\), not \(5, 512\)\. To do: build the model with the global_pool",
    ),
    "channels": (
        lambda: SEResNet18(5), lambda: SEResNet18(5, 1),
        r"conv1.weight is \(64, 3, 7, 7\), not \(64, 1, 7, 7\).*in_chans=3, or give adapt_in_chans=True",
    ),
    "NVIDIA's width": (
        lambda: zoo_models.Nvidia(ONE, 5, 32, 16), lambda: one(cardinality=32, base_width=4),
        r"9 of another shape or type: layers.1.0.squeeze.squeeze.weight is \(16, 512, 1, 1\), not \(32, 512, "
        r"1, 1\).*To do: build the model with rd_channels=16, the width of the file's SE$",
    ),
    "moskomule's SE": (
        lambda: zoo_models.moskomule((2, 2, 2, 2), 5, False), lambda: SEResNet18(5),
        r"missing in the file: layer1.0.se.fc1.bias.*rd_divisor=1.*se_bias=False",
    ),
    "timm's rounding": (
        lambda: timm.create_model("seresnet18", num_classes=5), lambda: SEResNet18(5, rd_divisor=1),
        r"layer1.0.se.fc1.weight is \(8, 64, 1, 1\), not \(4, 64, 1, 1\)",
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
        lambda: monai_net("SEResNet50", spatial_dims=3, in_channels=3, layers=ONE), lambda: one(variant="caffe"),
        r"layer1.0.conv2.conv.weight is \(64, 64, 3, 3, 3\), not \(64, 64, 3, 3\).*To do: build the model that "
        r"the file was saved from$",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_says_what_to_do(case: str, tmp_path: Path) -> None:
    build, model, message = MISFITS[case]
    refused(model(), write(tmp_path / "a.pth", build()), message)


# The file's network, another one of ours, and the message about depths; None: no remedy is known.
WRONG: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], str | None]] = {
    "other blocks": (
        lambda: timm.create_model("resnet50", num_classes=7), lambda: create_model("resnet18", num_classes=5),
        "3, 4, 6, 3 blocks of 3 convolutions, not 2, 2, 2, 2 of 2",
    ),
    "a deeper file": (
        lambda: timm.create_model("seresnet34", num_classes=5), lambda: SEResNet18(5),
        "3, 4, 6, 3 blocks of 2 convolutions, not 2, 2, 2, 2 of 2",
    ),
    "a shallower file": (
        lambda: timm.create_model("seresnet18", num_classes=5), lambda: create_model("seresnet152", num_classes=5),
        "2, 2, 2, 2 blocks of 2 convolutions, not 3, 8, 36, 3 of 3",
    ),
    "EfficientNet": (lambda: timm.create_model("efficientnet_b0", num_classes=7), lambda: SEResNet18(5), None),
    "ViT": (lambda: timm.create_model("vit_tiny_patch16_224", num_classes=0), lambda: SEResNet18(5), None),
    "ResNet for DenseNet": (
        lambda: torchvision.models.resnet50(num_classes=7), lambda: create_model("densenet121", num_classes=5), None
    ),
    "DenseNet for ResNet": (
        lambda: torchvision.models.densenet121(num_classes=7), lambda: create_model("resnet50", num_classes=5), None
    ),
    "ResNet for U-Net": (
        lambda: torchvision.models.resnet50(num_classes=7), lambda: UNet(5, width=4), None
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wholly_wrong_file_is_one_readable_line(case: str, tmp_path: Path) -> None:
    build, model, depths = WRONG[case]
    theirs = build()
    for content in (
        theirs.state_dict(),
        {"state_dict": {f"model.{key}": value for key, value in theirs.state_dict().items()}},
    ):
        torch.save(content, tmp_path / "a.pth")
        message = refused(model(), tmp_path / "a.pth", "does not fit the model, and nothing was loaded: ")
        # 600 characters plus the file's name.
        assert len(message) <= 600 + len(str(tmp_path / "a.pth")), message
        to_do = message.partition(" To do: ")[2]
        for hint in ("rd_channels", "rd_divisor", "se_bias", "global_pool", "in_chans"):
            assert hint not in to_do, message
        if depths is None:
            assert re.fullmatch(r"build the model that the file was saved from; this is another .*", to_do), message
        else:
            assert to_do == f"build the model of the file's depth: {depths}", message


def test_long_keys_are_shortened(tmp_path: Path) -> None:
    state = dict(SEResNet18(5).state_dict())
    state |= {f"{'a_long_name.' * 50}{i}\n.weight": torch.zeros(1) for i in range(7)}
    torch.save(state, tmp_path / "a.pth")
    message = refused(SEResNet18(5), tmp_path / "a.pth", r"7 not in the model: a_long_name.* and 4 more\.")
    assert len(message) <= 600 + len(str(tmp_path))


# ---- options


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
        # timm sums the colours in float32
        torch.testing.assert_close(model(grey), theirs(grey.expand(-1, 3, -1, -1)), rtol=1e-5, atol=1e-5)
        wrong = SEResNet18(5, 3).double().eval()
        load_pretrained(wrong, path, skip_classifier=True, adapt_in_chans=True)
        assert torch.equal(wrong.conv1.weight, theirs.conv1.weight)


def test_weights_are_converted_to_the_models_dtype(tmp_path: Path) -> None:
    theirs = made(lambda: timm.create_model("seresnet18", num_classes=5))
    model = SEResNet18(5).bfloat16()
    load_pretrained(model, write(tmp_path / "a.pth", theirs))
    assert torch.equal(model.conv1.weight, theirs.conv1.weight.bfloat16())


# ---- files


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
    """A file of timm's training script holds two models, weights and their average, so ``entry`` is required."""
    first, second = (made(lambda: SEResNet18(5), seed) for seed in (1, 2))
    content = {"args": argparse.Namespace(lr=0.1), "arch": "seresnet18", "state_dict": first.state_dict()}
    torch.save({**content, "state_dict_ema": second.state_dict()}, tmp_path / "a.pth")
    model = SEResNet18(5).double()
    refused(
        model,
        tmp_path / "a.pth",
        r"in more than one entry: choose one with entry='state_dict' or entry='state_dict_ema'$",
    )
    refused(model, tmp_path / "a.pth", r"entry must name a state_dict in .*got 'ema'; there are", entry="ema")
    for entry, wanted in (("state_dict", first), ("state_dict_ema", second)):
        load_pretrained(model, tmp_path / "a.pth", entry=entry)
        assert torch.equal(model.fc.weight, wanted.fc.weight)


def test_values_that_are_no_tensors_are_keys_too_many(tmp_path: Path) -> None:
    torch.save({"state_dict": {**SEResNet18(5).state_dict(), "step": 3}}, tmp_path / "step.pth")
    refused(SEResNet18(5), tmp_path / "step.pth", r"1 not in the model: step\. To do")


def test_safetensors_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(SEResNet18(5).state_dict(), tmp_path / "a.safetensors")
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
    """Blocks after the tenth are loaded; MONAI's own loader omits them, because their keys have two digits."""
    build = lambda: legacy("SEResNetBottleneck", (1, 1, 12, 1), groups=1)  # noqa: E731
    theirs, model = made(build), SEResNet(Bottleneck, (1, 1, 12, 1), 5, variant="caffe").double().eval()
    load_pretrained(model, write(tmp_path / "a.pth", theirs))
    assert torch.equal(model.layer3[11].conv2.weight, theirs.layer3[11].conv2.weight)
    monai_model = made(
        lambda: monai_net(
            "SENet", 2, 3, "se_resnet_bottleneck", (1, 1, 12, 1), 1, 16, None, inplanes=64, downsample_kernel_size=1,
            input_3x3=False, num_classes=5,
        )
    )  # fmt: skip
    load_pretrained(model, write(tmp_path / "b.pth", monai_model))
    assert torch.equal(model.layer3[11].conv2.weight, monai_model.layer3[11].conv2.conv.weight)
