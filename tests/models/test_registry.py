"""Tests of se_fused.models by name, and of checkpoints and arguments that they refuse."""

import copy

import pytest
import timm
import torch
from torch import nn

from se_fused import models
from se_fused.models import SEResNet, SEResNet18, SEResNet50, create_model, list_models
from se_fused.models.se_resnet import BasicBlock

pytestmark = pytest.mark.quick

NAMES = [
    "seresnet18", "seresnet34", "seresnet50", "seresnet101", "seresnet152",
    "seresnext50_32x4d", "seresnext101_32x4d", "senet154",
]  # fmt: skip


def test_registry() -> None:
    assert set(NAMES) <= set(list_models()) and list_models() == sorted(list_models())
    for name in NAMES:
        assert getattr(models, next(n for n in models.__all__ if n.lower() == name))
    assert isinstance(create_model("SEResNet18", device="meta", pretrained=False), SEResNet)
    with pytest.raises(ValueError, match=r"got 'seresnet51'; did you mean seresnet50"):
        create_model("seresnet51")
    with pytest.raises(ValueError, match=r"got 'vit'; there are .*seresnet18"):
        create_model("vit")
    with pytest.raises(TypeError, match=r"name must be a string such as 'seresnet50', got 50"):
        create_model(50)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"pretrained must be False: se_fused downloads nothing; load .*checkpoint_path=path"
    ):
        create_model("seresnet18", pretrained=True)
    with pytest.raises(TypeError, match="features_only"):
        create_model("seresnet18", features_only=True)


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not-strict"])
@pytest.mark.parametrize("nested", [True, False], ids=["nested", "whole"])
def test_legacy_checkpoints_are_refused(strict: bool, nested: bool) -> None:
    """Loading a legacy checkpoint is an error and changes nothing; most of its keys exist in the model.

    Without the error, these weights would be wrong without notice.
    """
    legacy = timm.create_model("legacy_seresnet50", num_classes=10).state_dict()
    model = SEResNet50(num_classes=10)
    assert legacy["layer1.0.conv1.weight"].shape == model.state_dict()["layer1.0.conv1.weight"].shape
    before = copy.deepcopy(model.state_dict())
    target = nn.Sequential(model) if nested else model
    state = {f"0.{k}": v for k, v in legacy.items()} if nested else legacy
    with pytest.raises(
        RuntimeError, match=r"'(0\.)?layer0\.conv1\.weight' is of a legacy SE-ResNet.*stride.*load_pretrained"
    ) as info:
        target.load_state_dict(state, strict=strict)
    assert "\n" not in str(info.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("key", ["layer1.0.se_module.fc1.weight", "last_linear.bias", "layer2.0.se_layer.fc.0.bias"])
def test_each_legacy_key_is_known(key: str) -> None:
    small = SEResNet18(num_classes=5)
    with pytest.raises(RuntimeError, match="legacy SE-ResNet"):
        small.load_state_dict({**small.state_dict(), key: torch.zeros(1)}, strict=False)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod."])
def test_wrapped_checkpoints_are_explained(wrapper: str) -> None:
    small = SEResNet18(num_classes=5)
    with pytest.raises(RuntimeError, match=rf"every key of the state_dict starts with '{wrapper}'.*removeprefix"):
        small.load_state_dict({wrapper + k: v for k, v in small.state_dict().items()}, strict=False)


def test_strict_loading_still_names_keys() -> None:
    small = SEResNet18(num_classes=5)
    state = small.state_dict()
    del state["layer1.0.se.fc1.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"layer1\.0\.se\.fc1\.bias\""):
        copy.deepcopy(small).load_state_dict(state)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(num_classes=-1), ValueError, r"num_classes must be an int of at least 0, got -1"),
        (dict(num_classes=1e3), TypeError, r"num_classes must be an int of at least 0, got 1000.0 \(float\)"),
        (dict(in_chans=0), ValueError, r"in_chans must be an int of at least 1, got 0"),
        (dict(in_chans="3"), TypeError, r"in_chans must be an int of at least 1, got '3' \(str\)"),
        (dict(drop_rate=1.0), ValueError, r"drop_rate must be a number in \[0, 1\), got 1.0"),
        (dict(drop_rate=-0.1), ValueError, r"drop_rate must be a number in \[0, 1\), got -0.1"),
        (dict(drop_path_rate=1), ValueError, r"drop_path_rate must be a number in \[0, 1\), got 1"),
        (dict(drop_path_rate=float("nan")), ValueError, r"drop_path_rate must be a number in \[0, 1\), got nan"),
        (dict(drop_path_rate=None), TypeError, r"drop_path_rate must be a number in \[0, 1\), got None \(NoneType\)"),
        (dict(global_pool="mean"), ValueError, r"global_pool must be one of 'avg', 'max', .*, '', got 'mean'"),
        (dict(global_pool=None), ValueError, r"global_pool must be one of .*got None"),
        (
            dict(global_pool=""),
            ValueError,
            r"global_pool must pool for a classifier of num_classes=1000.*=0",
        ),
        (dict(pretrained=True), TypeError, r"pretrained"),
    ],
    ids=lambda v: "-".join(f"{k}={a}" for k, a in v.items()) if isinstance(v, dict) else "",
)
def test_refuses(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SEResNet18(device="meta", **arguments)  # type: ignore[arg-type]


def test_layout_errors() -> None:
    with pytest.raises(ValueError, match=r"cardinality must be 1 with BasicBlock, got 2; Bottleneck takes others"):
        SEResNet(BasicBlock, (1, 1, 1, 1), cardinality=2)
    with pytest.raises(ValueError, match=r"layers must hold one number for each of 4 stages, got \(1, 1\)"):
        SEResNet(BasicBlock, (1, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"layers\[2\] must be an int of at least 1, got 0"):
        SEResNet(BasicBlock, (1, 1, 0, 1), device="meta")
