"""Tests of other libraries' models as workloads: a converted model computes what the original does."""

import sys

import pytest
import torch
from support.agreement import assert_agrees
from support.modules import one_thread  # noqa: F401 (a fixture)
from torch import nn

import se_fused
from se_fused._formats import LAYOUTS
from se_fused.bench.providers.modules import LIBRARIES
from se_fused.bench.workloads.converted import CONVERTED, ConvertWorkload, library_model
from se_fused.bench.workloads.network import ImageBatch

SMALL = [("seresnet18", "timm"), ("mobilenetv3_small_050", "timm"), ("mobilenet_v3_small", "torchvision")]


def built(name: str, library: str, mode: str, dtype: torch.dtype = torch.float32) -> ConvertWorkload:
    pytest.importorskip(library)
    return ConvertWorkload(name, library, mode, dtype, "cpu", data=ImageBatch(batch=4, size=64, num_classes=10))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "library"), SMALL)
def test_inference(name: str, library: str, dtype: torch.dtype) -> None:
    workload = built(name, library, "infer", dtype)
    assert workload.title == f"{library} {name} inference" and workload.baseline.startswith(f"{library} ")
    logits = workload.truth()["logits"]
    assert logits.std(0).norm() > 0.01 * logits.norm(), "the images make no difference"
    assert_agrees(workload, "converted", tuple(LAYOUTS), "original")
    report = se_fused.conversion_report(workload._models["converted"])
    assert report.converted and not se_fused.conversion_report(workload._models["original"]).converted
    bytes_moved, working_set = workload.counted()
    assert bytes_moved > working_set / 2 > 0 and workload.flops() > 0


@pytest.mark.parametrize(("name", "library"), SMALL)
def test_training(name: str, library: str) -> None:
    workload = built(name, library, "train")
    assert workload.title == f"{library} {name} forward+backward"
    assert_agrees(workload, "converted", tuple(LAYOUTS), "original")


def test_monai() -> None:
    assert_agrees(built("seresnet50", "monai", "infer"), "converted", tuple(LAYOUTS), "original")


@pytest.mark.parametrize(("name", "library"), SMALL)
def test_training_is_deterministic(name: str, library: str) -> None:
    """There is no dropout or stochastic depth, and no block is an identity, for which SE would not matter."""
    pytest.importorskip(library)
    model = library_model(name, library, 10).train()
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(x), model(x))
    assert all(m.weight.any() for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_the_benchmarks_models_exist() -> None:
    timm, torchvision = pytest.importorskip("timm"), pytest.importorskip("torchvision")
    nets = pytest.importorskip("monai.networks.nets")
    known = {
        "timm": set(timm.list_models()),
        "torchvision": set(torchvision.models.list_models()),
        "monai": {name.lower() for name in dir(nets)},
    }
    assert {library for _, library in CONVERTED} == set(LIBRARIES)
    assert all(name in known[library] for name, library in CONVERTED)


def test_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="library must be one of timm, torchvision, monai; got 'keras'"):
        library_model("resnet50", "keras", 10)
    for name, library, message in (
        ("resnet51", "timm", "name must be a model of timm"),
        ("seresnet51", "monai", "name must be a class of monai"),
    ):
        pytest.importorskip(library)
        with pytest.raises(ValueError, match=message):
            library_model(name, library, 10)
    with pytest.raises(ValueError, match="in_chans must be 3 for torchvision"):
        library_model("mobilenet_v3_small", "torchvision", 10, in_chans=1)
    workload = built("seresnet18", "timm", "infer")
    with pytest.raises(ValueError, match="name must be one of original, converted; got 'eager'"):
        workload.candidate("eager", "contiguous")
    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(ImportError, match="monai is not installed"):
        library_model("seresnet50", "monai", 10)
