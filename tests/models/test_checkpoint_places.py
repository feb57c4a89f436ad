"""load_pretrained finds the model in a training run's file, by entry and prefix, and asks for a choice if two fit."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from support import zoo_models
from support.checkpoints import ONE, images, made, monai_net, refused
from support.modules import one_thread, rms  # noqa: F401 (a fixture)
from torch import Tensor, nn

from se_fused import create_model, load_pretrained
from se_fused.models import SEResNet, SEResNet18
from se_fused.models.se_resnet import Bottleneck

pytestmark = pytest.mark.quick


def small(classes: int, name: str = "seresnet18") -> nn.Module:
    return create_model(name, num_classes=classes, channels=(16, 16, 16, 16), stem_channels=16)


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


def lightning(state: dict[str, Any]) -> dict[str, Any]:
    """The content of a Lightning checkpoint with this state_dict."""
    return {
        "epoch": 3, "global_step": 100, "pytorch-lightning_version": "2.5.0", "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}}}, "callbacks": {"ModelCheckpoint{'monitor': 'val'}": {"best": 0.5}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}],
        "lr_schedulers": [], "hyper_parameters": {"lr": 0.1},
    }  # fmt: skip


# The library's model and ours. Each library has its own names, which are recognised only after the prefix.
NAMES: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "timm": (lambda: timm.create_model("seresnet18", num_classes=5), lambda: SEResNet18(5)),
    "torchvision": (
        lambda: torchvision.models.resnet18(num_classes=5),
        lambda: create_model("resnet18", num_classes=5),
    ),
    "torchvision, bottlenecks": (
        lambda: torchvision.models.resnet50(num_classes=5),
        lambda: create_model("resnet50", num_classes=5),
    ),
    "legacy": (
        lambda: timm.create_model("legacy_seresnet18", num_classes=5),
        lambda: create_model("legacy_seresnet18", num_classes=5),
    ),
    "MONAI": (
        lambda: monai_net("SEResNet50", layers=ONE, spatial_dims=2, in_channels=3, num_classes=5),
        lambda: SEResNet(Bottleneck, ONE, 5, variant="caffe"),
    ),
    "NVIDIA": (
        lambda: zoo_models.Nvidia(ONE, 5, groups=32, squeeze=16),
        lambda: SEResNet(Bottleneck, ONE, 5, cardinality=32, base_width=4, rd_channels=16),
    ),
    "ours, caffe": (
        lambda: create_model("legacy_seresnet18", num_classes=5),
        lambda: create_model("legacy_seresnet18", num_classes=5),
    ),
}
PREFIXES = (
    "model.", "net.", "encoder.", "backbone.", "module.model.", "_orig_mod.", "model._orig_mod.", "classifier.base.",
)  # fmt: skip


@pytest.mark.parametrize("zoo", NAMES)
def test_the_prefix_is_found_and_the_rest_is_named(zoo: str, tmp_path: Path) -> None:
    build, ours = NAMES[zoo]
    theirs = made(build)
    rest = {"criterion.pos_weight": torch.ones(5), "val_auc.preds": torch.zeros(7), "val_auc.seen": [torch.zeros(2)]}
    with torch.no_grad():
        wanted = theirs(images())
    # `backbone.` could hide each library's marks; the other prefixes work alike for all.
    for prefix in PREFIXES if zoo == "timm" else ("model.", "backbone."):
        torch.save(lightning({**under(prefix, theirs.state_dict()), **rest}), tmp_path / "a.ckpt")
        model = ours().double().eval()
        report = load_pretrained(model, tmp_path / "a.ckpt")
        with torch.no_grad():
            torch.testing.assert_close(model(images()), wanted, rtol=1e-10, atol=1e-10 * rms(wanted))
        assert set(report.ignored) == set(rest), prefix
        assert set(report.ignored.values()) == {f"not under the prefix {prefix!r}"}
        assert f"prefix {prefix!r} stripped" in str(report) and "entry 'state_dict'" in str(report)


def test_wrappers_inside_a_model(tmp_path: Path) -> None:
    """Names that torch.compile, FSDP and activation checkpointing insert in the middle of keys are removed."""
    theirs = made(lambda: small(5))
    state = {
        key.replace("layer1.", "layer1._orig_mod.")
        .replace("layer2.0.", "layer2.0._checkpoint_wrapped_module.")
        .replace("fc.weight", "fc._fsdp_wrapped_module.weight"): value
        for key, value in theirs.state_dict().items()
    }
    torch.save(state, tmp_path / "a.pth")
    model = small(5).double()
    load_pretrained(model, tmp_path / "a.pth")
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in model.state_dict().items())


def test_two_prefixes_that_fit_are_asked_about(tmp_path: Path) -> None:
    first, second = (made(lambda: small(5), seed) for seed in (1, 2))
    model = small(5).double()
    for one, other in (("student.", "teacher."), ("model.", "ema_model.module."), ("model.", "ema.module.")):
        state = {**under(one, first.state_dict()), **under(other, second.state_dict()), "n_averaged": torch.tensor(4)}
        torch.save(lightning(state), tmp_path / "a.ckpt")
        message = refused(model, tmp_path / "a.ckpt", "holds this model under more than one prefix")
        assert f"prefix={one!r} or prefix={other!r}" in message and len(message) < 400
        for prefix, wanted in ((one, first), (other, second), (other.rstrip("."), second)):
            report = load_pretrained(model, tmp_path / "a.ckpt", prefix=prefix)
            assert torch.equal(model.layer4[1].conv2.weight, wanted.layer4[1].conv2.weight)
            assert "n_averaged" in report.ignored and len(report.ignored) == len(first.state_dict()) + 1
    refused(
        model,
        tmp_path / "a.ckpt",
        r"must be a prefix of keys .*, got 'net\.'; there are 'ema\.', 'model\.'",
        prefix="net",
    )
    with pytest.raises(TypeError, match=r"prefix must be a string such as 'model\.' or None, got 3"):
        load_pretrained(model, tmp_path / "a.ckpt", prefix=3)  # type: ignore[arg-type]


def test_nothing_is_asked_where_one_of_two_fits(tmp_path: Path) -> None:
    """No choice is required if only one of two models fits, or if both have the same weights.

    A teacher with more blocks has all the names of its student.
    """
    student, teacher = (
        made(lambda: small(5)),
        made(lambda: small(5, "seresnet34")),
    )
    state = {**under("teacher.", teacher.state_dict()), **under("student.", student.state_dict())}
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    for net, wanted in (
        (small(5), student),
        (small(5, "seresnet34"), teacher),
    ):
        load_pretrained(net.double(), tmp_path / "a.ckpt")
        assert torch.equal(net.layer1[1].conv2.weight, wanted.layer1[1].conv2.weight)
    twice = {**under("model.", student.state_dict()), **under("loss.model.", student.state_dict())}
    torch.save({"state_dict": twice}, tmp_path / "b.ckpt")
    report = load_pretrained(small(5), tmp_path / "b.ckpt")
    assert "prefix 'model.' stripped" in str(report)
    other = {
        **under("student.", student.state_dict()),
        **under("teacher.", made(lambda: small(7)).state_dict()),
    }
    torch.save({"state_dict": other}, tmp_path / "c.ckpt")
    load_pretrained(small(5), tmp_path / "c.ckpt")
    refused(
        small(9),
        tmp_path / "c.ckpt",
        "under more than one prefix: .*prefix='student.' or prefix='teacher.'",
    )
    refused(small(9), tmp_path / "c.ckpt", "teacher.fc.weight is .*num_classes=7", prefix="teacher.")


def test_a_copy_inside_the_model_is_asked_about_too(tmp_path: Path) -> None:
    """A choice is required if the model holds an averaged copy as an attribute: then only the average has a prefix."""
    first, second = (made(lambda: small(5), seed) for seed in (1, 2))
    model = small(5).double()
    for one, other in (("", "ema."), ("model.", "model.ema.module.")):
        state = {**under(one, first.state_dict()), **under(other, second.state_dict())}
        torch.save({"state_dict": state}, tmp_path / "a.ckpt")
        refused(
            model,
            tmp_path / "a.ckpt",
            rf"under more than one prefix: choose one with prefix='{one}' or prefix='{other}'$",
        )
        for prefix, wanted in ((one, first), (other, second)):
            report = load_pretrained(model, tmp_path / "a.ckpt", prefix=prefix)
            assert torch.equal(model.conv1.weight, wanted.conv1.weight)
            assert len(report.ignored) == len(first.state_dict())
        assert set(load_pretrained(model, tmp_path / "a.ckpt", prefix=one).ignored.values()) == {
            f"a copy of the model under the prefix {other!r}"
        }
        state[f"{one}more.weight"] = torch.zeros(1)
        torch.save({"state_dict": state}, tmp_path / "a.ckpt")
        refused(model, tmp_path / "a.ckpt", rf"1 not in the model: {one}more\.weight\.", prefix=one)


def test_an_encoder_alone(tmp_path: Path) -> None:
    """A file of segmentation_models.pytorch (an encoder without a classifier, a decoder) needs skip_classifier=True."""
    theirs = made(lambda: small(0))
    rest = {"decoder.blocks.0.conv1.weight": torch.zeros(4), "segmentation_head.0.weight": torch.zeros(2)}
    model = small(5).double()
    for prefix in ("encoder.", "model.encoder."):
        torch.save({"state_dict": {**under(prefix, theirs.state_dict()), **rest}}, tmp_path / "a.ckpt")
        message = refused(model, tmp_path / "a.ckpt", r"2 missing in the file: fc\.weight, fc\.bias\. To do: ")
        assert message.endswith("To do: give skip_classifier=True: the file has no classifier, the model keeps its own")
        report = load_pretrained(model, tmp_path / "a.ckpt", skip_classifier=True)
        assert set(report.ignored) == set(rest) and set(report.kept) == {"fc.weight", "fc.bias"}
        assert torch.equal(model.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)


def test_backbone_may_be_mmpretrains(tmp_path: Path) -> None:
    """For keys under `backbone.` without a classifier, the error names both remedies: a style or the prefix.

    Such keys may be of either of mmpretrain's two styles, or of a module with an attribute `backbone`.
    """
    theirs = made(lambda: timm.create_model("resnet50", num_classes=0))
    torch.save(
        lightning({**under("backbone.", theirs.state_dict()), "head.weight": torch.zeros(2, 2)}), tmp_path / "a.ckpt"
    )
    model = create_model("resnet50", num_classes=5).double()
    refused(
        model,
        tmp_path / "a.ckpt",
        r"style='caffe' have .*, or prefix='backbone\.' if it is not of mmpretrain",
        skip_classifier=True,
    )
    report = load_pretrained(model, tmp_path / "a.ckpt", skip_classifier=True, prefix="backbone.")
    assert report.source.startswith("timm") and set(report.ignored) == {"head.weight"}
    assert torch.equal(model.conv1.weight, theirs.conv1.weight)


def test_entries(tmp_path: Path) -> None:
    """The entry with the model's keys is found in files of timm, torchvision, MONAI, fastai and mmengine."""
    first, second = (made(lambda: small(5), seed) for seed in (1, 2))
    state, other = first.state_dict(), second.state_dict()
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}
    averaged = {"n_averaged": torch.tensor(4), **under("module.", other)}
    alone: dict[str, dict[str, Any]] = {
        "net": {"net": state, "opt": optimizer},
        "model": {"model": state, "opt": optimizer, "criterion": {"pos_weight": torch.ones(5)}},
        "state_dict": {"meta": {"epoch": 3}, "state_dict": state, "message_hub": {}, "optimizer": optimizer},
        "weights": {"weights": state, "epoch": 1},
        "classifier": {"generator": {"conv.weight": torch.zeros(2)}, "classifier": under("module.", state)},
    }
    model = small(5).double()
    for entry, content in alone.items():
        torch.save(content, tmp_path / "a.pth")
        assert f"from its entry {entry!r}" in str(load_pretrained(model, tmp_path / "a.pth"))
        assert torch.equal(model.conv1.weight, first.conv1.weight)
        nn.init.zeros_(model.conv1.weight)
    two: dict[tuple[str, str], dict[str, Any]] = {
        ("state_dict", "state_dict_ema"): {"arch": "seresnet18", "state_dict": state, "state_dict_ema": other},
        ("model", "model_ema"): {"model": state, "optimizer": optimizer, "model_ema": averaged, "epoch": 9},
        ("online", "target"): {"target": averaged, "online": state},
    }
    for entries, content in two.items():
        torch.save(content, tmp_path / "a.pth")
        message = refused(model, tmp_path / "a.pth", "holds this model in more than one entry: choose one with entry=")
        assert all(f"entry={entry!r}" in message for entry in entries) and len(message) < 400
        for entry, wanted in zip(entries, (first, second), strict=True):
            load_pretrained(model, tmp_path / "a.pth", entry=entry)
            assert torch.equal(model.conv1.weight, wanted.conv1.weight)
    refused(
        model,
        tmp_path / "a.pth",
        r"entry must name a state_dict in .*, got 'ema'; there are 'target', 'online'$",
        entry="ema",
    )


def test_counters_of_thop_are_left_out(tmp_path: Path) -> None:
    theirs = made(lambda: small(5))
    state = copy.deepcopy(theirs.state_dict())
    state |= {"total_ops": torch.zeros(1), "layer1.0.conv1.total_params": torch.zeros(1)}
    torch.save(state, tmp_path / "a.pth")
    report = load_pretrained(small(5), tmp_path / "a.pth")
    assert set(report.ignored) == {"total_ops", "layer1.0.conv1.total_params"}
    assert "counters of thop" in str(report)
