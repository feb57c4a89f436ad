"""load_pretrained on each library's checkpoints: the outputs are that library's, or the file is refused.

A refusal changes nothing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from support import zoo_models
from support.checkpoints import (
    ONE,
    OUR_SENET,
    SENET,
    images,
    legacy,
    made,
    monai_densenet,
    monai_net,
    ours,
    refused,
    short,
    write,
)
from support.modules import one_thread, randomise, rms  # noqa: F401 (a fixture)
from torch import nn

from se_fused import create_model, load_pretrained
from se_fused.models import SEResNet, SEResNet18
from se_fused.models.se_resnet import BasicBlock, Bottleneck

pytestmark = pytest.mark.quick

# The library's model, our model, the library's name in the report, and arguments.
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
        lambda: monai_net("SEResNet50", spatial_dims=2, in_channels=3, num_classes=5),
        ours("legacy_seresnet50"), "MONAI", {},
    ),
    "monai-SEResNext50": (
        lambda: monai_net("SEResNext50", spatial_dims=2, in_channels=3, num_classes=5),
        ours("legacy_seresnext50_32x4d"), "MONAI", {},
    ),
    "monai-SENet154": (
        lambda: monai_net("SENet154", layers=ONE, spatial_dims=2, in_channels=3, num_classes=5),
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


@pytest.mark.grid(quick=0)
@pytest.mark.parametrize("case", GOLDEN)
def test_outputs_are_the_librarys(case: str, tmp_path: Path) -> None:
    """Outputs equal the library's in float64, where both are plain PyTorch.

    Only the sums in SE's two matrix products have another order.
    """
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


@pytest.mark.nightly
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
    """With renamed keys, a checkpoint fits models of both block orders, but only one order gives the right outputs.

    So the tests above can fail, and a renamed file is loaded correctly only if its source is named.
    """
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
    """Each difference of the orders changes the outputs: pooling alone (SE-ResNeXt), and the ReLU before SE (18)."""
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


# ---- refusals


def test_other_orders_are_refused(tmp_path: Path) -> None:
    caffe, plain = create_model("legacy_seresnet18"), SEResNet18()
    mine = write(tmp_path / "mine.pth", caffe)
    refused(plain, mine, r"se_fused with variant='caffe' \(its key 'caffe_order'\).*build it with variant='caffe'$")
    legacy_file = write(tmp_path / "legacy.pth", timm.create_model("legacy_seresnet18"))
    refused(plain, legacy_file, r"timm legacy_\* or Cadene \(its key 'layer0.conv1.weight'\), whose order")
    for build in (lambda: zoo_models.Nvidia(ONE, 5, 32, 16), lambda: zoo_models.moskomule(ONE, 5)):
        model = SEResNet(Bottleneck, ONE, variant="caffe")
        refused(model, write(tmp_path / "x.pth", build()), r"build it with variant='timm'$")


def test_monais_order_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "monai.pth", monai_net("SEResNet50", layers=ONE, spatial_dims=2, in_channels=3))
    refused(SEResNet(Bottleneck, ONE), file, r"is of MONAI .*variant='caffe'")
    refused(SEResNet(Bottleneck, ONE), file, r"source='timm', but key .* is one of MONAI", source="timm")


def test_mmpretrains_style_is_asked_for(tmp_path: Path) -> None:
    """mmpretrain's two styles have the same keys and shapes but different outputs, so ``style`` is required."""
    styles = [made(lambda s=s: zoo_models.MMPretrain(ONE, 5, style=s)) for s in ("pytorch", "caffe")]
    styles[1].load_state_dict(styles[0].state_dict())
    with torch.no_grad():
        assert rms(styles[0](images()) - styles[1](images())) > 1e-2 * rms(styles[0](images()))
    path, model = write(tmp_path / "mm.pth", styles[0]), SEResNet(Bottleneck, ONE, 5)
    refused(model, path, r"style='pytorch' and style='caffe' have the same keys.*look into its config")
    refused(model, path, r"padding in the stem's pooling; no model of se_fused has both", style="caffe")
    refused(model, path, r"style must be one of 'pytorch', 'caffe', got 'tf'", style="tf")
    caffe = SEResNet(Bottleneck, ONE, 5, variant="caffe")
    refused(caffe, path, r"build it with variant='timm'", style="caffe")
    refused(model, write(tmp_path / "a.pth", model), r"style='caffe' applies to mmpretrain's files only", style="caffe")


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
    """timm's models with the keys of a plain ResNet but another function are refused if the file names them."""
    theirs = timm.create_model(name, num_classes=5)
    model = create_model("resnet18" if "18" in name else "resnet50", num_classes=5)
    model.load_state_dict(theirs.state_dict())  # the keys and shapes alone fit
    for path in (write(tmp_path / f"{name}.pth", theirs), write(tmp_path / "a.pth", theirs, arch=name)):
        refused(model, path, rf"seems to be of timm's {name}.*another function; if it is not, give source='timm'")
    load_pretrained(model, tmp_path / "a.pth", source="timm")
