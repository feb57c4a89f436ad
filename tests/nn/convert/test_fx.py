"""torch.fx traces converted models and our own to plain graphs with the usual names, or to kernels as leaf modules."""

import copy

import pytest
import timm
import torch
from support.convert import build, images
from support.modules import SPACES, assert_as_close, batch, one_thread, randomise, spy_on_functional  # noqa: F401
from torch import fx, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import se_fused
from se_fused.nn import DropPath, SqueezeExcite

LEAVES = {"leaf_modules": [se_fused.nn.Fused]}
# typical requests: a stage, and nodes inside a block
NODES = {
    "timm-seresnet18": (["layer1", "layer3.1"], "layer2.0.bn2"),
    "timm-mobilenetv3_small_050": (["blocks.2", "blocks.4"], "blocks.1.0.conv_pwl"),
    "timm-efficientnet_b0": (["blocks.1", "blocks.5"], "blocks.2.0.se.conv_reduce"),
    "timm-regnety_002": (["s1", "s3"], "s2.b1.conv3.conv"),
    "torchvision-resnet18": (["layer1", "layer3.1"], "layer2.0.bn2"),
    "torchvision-mobilenet_v3_small": (["features.3", "features.8"], "features.4.block.2"),
    "torchvision-efficientnet_b0": (["features.2", "features.6"], "features.3.0.block.2"),
    "torchvision-regnet_y_400mf": (
        ["trunk_output.block1", "trunk_output.block3"],
        "trunk_output.block2.block2-0.f.c",
    ),
}


def still(name: str) -> nn.Module:
    """A model without random numbers."""
    model = build(name)
    for module in model.modules():
        for rate in ("p", "drop_prob"):
            if hasattr(module, rate):
                setattr(module, rate, 0.0)
    return model


@pytest.mark.parametrize("name", NODES)
def test_the_plain_graph_keeps_its_names_and_values(name):
    stages, inner = NODES[name]
    model = still(name)
    converted = se_fused.convert(copy.deepcopy(model))
    names = get_graph_node_names(model, suppress_diff_warning=True)
    assert get_graph_node_names(converted, suppress_diff_warning=True) == names and inner in names[0]
    ours, theirs = (create_feature_extractor(m, [*stages, inner]) for m in (converted, copy.deepcopy(model)))
    x = images(name, 4)
    for training in (True, False):
        maps = [extractor.train(training)(x) for extractor in (ours, theirs)]
        assert maps[0].keys() == maps[1].keys() == {*stages, inner}
        for key, value in maps[0].items():
            # torchvision's SE is a leaf of its tracer, and rounds like our kernel.
            torch.testing.assert_close(value, maps[1][key], rtol=1e-4, atol=1e-4)
    for key, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[key], rtol=1e-4, atol=1e-4, msg=key)
    assert fx.symbolic_trace(converted.eval()).code == fx.symbolic_trace(model.eval()).code


@pytest.mark.parametrize("name", NODES)
def test_leaf_modules_keep_the_kernels(name, monkeypatch):
    """With leaf modules, the kernels are called as in the converted model, in both modes of one extractor.

    Names of blocks and stages are unchanged, gradients are computed, and running statistics are updated.
    """
    stages, _ = NODES[name]
    model = still(name)
    converted, truth = se_fused.convert(copy.deepcopy(model)), copy.deepcopy(model).double()
    ours = create_feature_extractor(converted, [*stages], tracer_kwargs=copy.copy(LEAVES))
    theirs, exact = (create_feature_extractor(m, [*stages]) for m in (model, truth))
    x = images(name, 4)
    calls = spy_on_functional(monkeypatch)
    for training in (True, False):
        calls.clear()
        maps = [m.train(training)(t) for m, t in ((ours, x), (theirs, x), (exact, x.double()))]
        traced = calls.copy()
        calls.clear()
        copy.deepcopy(converted).train(training)(x)
        assert traced and traced == calls[: len(traced)]
        assert maps[0].keys() == maps[1].keys() == set(stages)
        for key, value in maps[0].items():
            assert_as_close(value, maps[1][key], maps[2][key], terms=1000)
    maps[0][stages[-1]].square().mean().backward()
    assert next(converted.parameters()).grad.any()
    eager, wanted = theirs.state_dict(), exact.state_dict()
    for key, value in ours.state_dict().items():
        if value.is_floating_point():
            assert_as_close(value, eager[key], wanted[key], terms=1000)
        else:
            assert key.endswith("num_batches_tracked") and value == 1, key


@pytest.mark.parametrize("name", ["seresnet18", "mobilenetv3_small_050", "efficientnet_b0", "regnety_002"])
def test_features_only_needs_no_trace(name, monkeypatch):
    plain = timm.create_model(name, features_only=True).eval()
    randomise(plain)
    ours, truth = se_fused.convert(copy.deepcopy(plain)), copy.deepcopy(plain).double()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    calls = spy_on_functional(monkeypatch)
    with torch.no_grad():
        maps = [ours(x), plain(x), truth(x.double())]
    assert len(calls) >= 16
    for triple in zip(*maps, strict=True):
        assert_as_close(*triple, terms=1000)


def test_the_report_says_what_a_graph_has_lost():
    model = still("torchvision-resnet18")
    extractor = create_feature_extractor(se_fused.convert(model), ["layer1"])
    (left,) = se_fused.conversion_report(se_fused.convert(extractor)).left
    assert left[0] == "" and "traced through its blocks" in left[2] and "leaf_modules=[se_fused.nn.Fused]" in left[2]
    leaves = create_feature_extractor(model, ["layer1"], tracer_kwargs=copy.copy(LEAVES))
    report = se_fused.conversion_report(leaves)
    assert not report.left and [name for name, *_ in report.converted] == ["layer1.0", "layer1.1"]
    optimised = se_fused.optimize_for_inference(model.eval(), torch.randn(1, 3, 64, 64))
    assert not se_fused.conversion_report(optimised).left


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["seresnet18", "legacy_seresnet18", "resnet18"])
def test_own_models_can_be_traced(name, training):
    model = se_fused.create_model(name, num_classes=3, drop_path_rate=0.5).train(training)
    randomise(model)
    traced = fx.symbolic_trace(copy.deepcopy(model))
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    results = []
    for m in (traced, model):
        torch.manual_seed(0)
        results.append(m(x))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    extractor = create_feature_extractor(model, ["layer1", "layer2.0.bn2"])
    assert extractor(x)["layer2.0.bn2"].shape == (3, 128, 8, 8)


@pytest.mark.parametrize("dims", SPACES)
@pytest.mark.parametrize(
    "layer", [SqueezeExcite(8, rd_channels=4, gate_layer="hard_sigmoid"), DropPath(0.5)], ids=["se", "drop-path"]
)
def test_own_layers_can_be_traced(layer, dims):
    x = batch(4, 8, dims)
    results = []
    for module in (fx.symbolic_trace(nn.Sequential(layer)), layer):
        torch.manual_seed(0)
        results.append(module(x))
    torch.testing.assert_close(*results)
