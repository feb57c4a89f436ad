"""convert and revert on a small model of each family: the keys, tensors, results and training step are unchanged."""

import copy

import pytest
import torch
from support.convert import MODELS, build, cancelled_sizes, classes, images, step, trio
from support.modules import FLIPS, assert_as_close, one_thread, rms, spy_on_functional  # noqa: F401 (a fixture)

import se_fused
from se_fused.nn.convert.class_swap import Fused

PROJECTED = "BN + act + squeeze, gate in the projection, BN + add"
# The expected conversions, by class: without them, a family that is not converted would pass all tests.
EXPECTED = {
    "timm-seresnet18": {"BN + SE + add + act": 8, "squeeze-excite": 8},
    "timm-seresnet18-drop-path": {"BN + SE + add + act": 8, "squeeze-excite": 8},
    "timm-seresnext26d_32x4d": {"BN + SE + add + act": 8, "squeeze-excite": 8},
    "timm-legacy_seresnet18": {"BN + act, SE + add + act": 8, "squeeze-excite": 8},
    "timm-legacy_seresnext26_32x4d": {"BN + SE + add + act": 8, "squeeze-excite": 8},
    "timm-efficientnet_b0": {PROJECTED: 16, "squeeze-excite": 16},
    "timm-mobilenetv3_small_050": {PROJECTED: 9, "BN + act, BN + add": 2, "squeeze-excite": 9},
    "timm-ghostnet_050": {"squeeze-excite": 7},
    "timm-regnety_002": {"BN + add + act": 13, "squeeze-excite": 13},
    "timm-ese_vovnet19b_slim_dw": {"channel gate": 4},
    "timm-ecaresnet26t": {"BN, gate + add + act": 8, "channel gate": 8},
    "timm-resnet18": {"BN + add + act": 8},
    "timm-resnet18-silu": {"BN, gate + add + act": 8, "channel gate": 8},
    "timm-rexnetr_200": {"channel gate": 13},
    "timm-tresnet_m": {"BN + SE + add + act": 7, "BN + add + act": 14, "squeeze-excite": 18},
    "torchvision-efficientnet_b0": {PROJECTED: 16, "squeeze-excite": 16},
    "torchvision-mobilenet_v3_small": {PROJECTED: 9, "BN + act, BN + add": 2, "squeeze-excite": 9},
    "torchvision-regnet_y_400mf": {"BN + add + act": 16, "squeeze-excite": 16},
    "torchvision-resnet18": {"BN + add + act": 8},
    "monai-SEResNet50": {"BN + SE + add + act": 16, "squeeze-excite": 16},
    "monai-SEResNext50-3d": {"BN + SE + add + act": 16, "squeeze-excite": 16},
}


def test_every_family_is_expected():
    assert EXPECTED.keys() == MODELS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_converts_and_reverts(name, monkeypatch):
    """Every recognised layer is converted and runs fused in inference, and revert restores the model exactly."""
    model = build(name).eval()
    before, parameters = classes(model), dict(model.named_parameters())
    original, _, truth = trio(model)
    original = copy.deepcopy(model)
    state = model.state_dict()
    x = images(name)
    with torch.no_grad():
        exact, theirs = truth(x.double()), original(x)
        assert se_fused.convert(model) is model
        counts: dict[str, int] = {}
        for _, _, what in se_fused.conversion_report(model).converted:
            counts[what] = counts.get(what, 0) + 1
        assert counts == EXPECTED[name] and not se_fused.conversion_report(model).left
        calls = spy_on_functional(monkeypatch)
        ours = model(x)
        gates = ("squeeze_excite", "batch_norm_squeeze_excite", "channel_gate", "gated_conv1x1")
        assert sum(map(calls.count, gates)) == counts.get("squeeze-excite", 0) + counts.get("channel gate", 0)
        torch.testing.assert_close(se_fused.convert(copy.deepcopy(truth))(x.double()), exact, rtol=1e-10, atol=1e-12)
    assert_as_close(ours, theirs, exact)
    assert torch.equal(ours.argmax(1), theirs.argmax(1))
    assert list(model.state_dict()) == list(state)
    assert all(p is parameters[k] for k, p in model.named_parameters())
    assert all(torch.equal(v, original.state_dict()[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == [False] * len(before)

    converted = classes(model)
    assert classes(se_fused.convert(model)) == converted, "calling it twice changes something"
    assert se_fused.revert(model) is model and classes(model) == before
    with torch.no_grad():
        assert torch.equal(model(x), theirs)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.isa) if n == "timm-rexnetr_200" else n for n in MODELS]
)
def test_training_step(name):
    """Output, gradients and running statistics agree in float64 to the last digits, and in float32 up to rounding."""
    model, original, truth = trio(build(name).train())
    x = images(name, 4)
    ours64 = step(se_fused.convert(copy.deepcopy(truth)), x.double())
    sizes = cancelled_sizes(truth)
    y, wanted = step(truth, x.double())
    torch.testing.assert_close(ours64[0], y, rtol=1e-9, atol=1e-11)
    assert ours64[1].keys() == wanted.keys()
    for key, value in ours64[1].items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-7, atol=1e-9 * rms(wanted[key]) + 1e-13, msg=key)
    (ours, mine), (theirs, eager) = step(se_fused.convert(model), x), step(original, x)
    assert_as_close(ours, theirs, y, flips=1e-4)
    for key, value in mine.items():
        if key.endswith("num_batches_tracked"):
            assert value == 1 == eager[key]
        else:
            assert_as_close(value, eager[key], wanted[key], flips=FLIPS, size=sizes.get(key, 0.0))


@pytest.mark.isa
@pytest.mark.parametrize("name", ["timm-seresnet18", "timm-regnety_002", "timm-ecaresnet26t"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_and_channels_last(name, dtype):
    """Errors are at most 1.1 times the original's, plus 4 eps, and the memory format is unchanged."""
    model = build(name).eval().to(dtype).to(memory_format=torch.channels_last)
    original, truth = copy.deepcopy(model), copy.deepcopy(model).double()
    x = images(name).to(dtype).to(memory_format=torch.channels_last)
    maps = []
    for m in (se_fused.convert(model), original):
        last = [b for b in m.modules() if type(b).__name__.endswith(("BasicBlock", "Bottleneck"))][-1]
        last.register_forward_hook(lambda _, i, o: maps.append(o))
    with torch.no_grad():
        ours, theirs, exact = model(x), original(x), truth(x.double())
    assert ours.dtype == dtype and maps[0].stride() == maps[1].stride()
    assert maps[0].is_contiguous(memory_format=torch.channels_last)
    assert rms(ours.double() - exact) <= 1.1 * rms(theirs.double() - exact) + 4 * torch.finfo(dtype).eps * rms(exact)


@pytest.mark.parametrize("name", ["timm-seresnet18", "timm-efficientnet_b0"])
def test_autocast(name):
    model, original, truth = trio(build(name).train())
    se_fused.convert(model)
    x = images(name)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours, theirs = model(x), original(x)
    exact = truth(x.double())
    assert ours.dtype == theirs.dtype
    assert rms(ours.double() - exact) <= 1.5 * rms(theirs.double() - exact)


@pytest.mark.parametrize("name", MODELS)
def test_shapes_alone(name):
    """Converted models work on the meta device, which has no autocast; timm uses it to compute shapes."""
    model, original = build(name).to("meta"), build(name).to("meta")
    x = images(name).to("meta")
    with torch.no_grad():
        assert se_fused.convert(model).eval()(x).shape == original.eval()(x).shape
    y = model.train()(x)
    assert y.shape == original.train()(x).shape
    y.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_own_models_are_left_as_they_are():
    model = se_fused.SEResNet18(num_classes=3)
    before = classes(model)
    assert classes(se_fused.convert(model)) == before
    report = se_fused.conversion_report(model)
    assert not report.converted and not report.left and "layer1.0.se" in report.own


def test_left_alone():
    """A model without SE, skresnet, is not changed, and the report names its blocks."""
    import timm

    model = timm.create_model("skresnet18", num_classes=3)
    before = classes(model)
    assert classes(se_fused.convert(model)) == before
    assert not any(isinstance(m, Fused) for m in model.modules())
    assert {cls for _, cls, _ in se_fused.conversion_report(model).left} >= {"timm.models.sknet.SelectiveKernelBasic"}
