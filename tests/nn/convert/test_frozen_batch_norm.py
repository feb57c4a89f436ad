"""convert on models with frozen batch norms: torchvision's FrozenBatchNorm2d and timm's FrozenBatchNormAct2d."""

import copy
from functools import partial

import pytest
import torch
import torchvision
from support.attention_blocks import BLOCKS, compare, run
from support.convert import build, images
from support.modules import FLIPS, assert_as_close, batch, one_thread, randomise, rms, spy_on_functional  # noqa: F401
from support.projection_blocks import BLOCKS as PROJECTED
from support.projection_blocks import draw
from timm.layers import freeze_batch_norm_2d, unfreeze_batch_norm_2d
from timm.layers.norm_act import FrozenBatchNormAct2d
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

import se_fused
from se_fused.nn import SqueezeExcite, fused_block_end
from se_fused.nn.inference.matching import is_norm
from se_fused.nn.norms import brought_activation

pytestmark = pytest.mark.quick

FLAT = {name: (make, calls) for name, (make, calls, dims) in BLOCKS.items() if dims == 2}
MODELS = [
    "timm-seresnet18", "timm-legacy_seresnet18", "timm-tresnet_m", "timm-regnety_002", "timm-efficientnet_b0",
    "timm-mobilenetv3_small_050", "torchvision-resnet18", "torchvision-regnet_y_400mf", "torchvision-efficientnet_b0",
    "torchvision-mobilenet_v3_small", "monai-SEResNet50",
]  # fmt: skip


def undropped(module: nn.Module) -> nn.Module:
    """Set dropout and stochastic depth to zero, because their draws depend on the dtype."""
    for part in module.modules():
        for name in ("p", "drop_prob"):
            if hasattr(part, name):
                setattr(part, name, 0.0)
    return module


def frozen(make) -> nn.Module:
    """A block with frozen batch norms, without neutral values, and with another eps than the default."""
    block = freeze_batch_norm_2d(make())
    randomise(block)
    for module in block.modules():
        if isinstance(module, FrozenBatchNorm2d | FrozenBatchNormAct2d):
            module.eps = 1e-2
    return block


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", FLAT)
def test_blocks(name, training, monkeypatch):
    """Values and gradients are the plain block's in both modes, through the functions used for trainable norms."""
    make, calls = FLAT[name]
    compare(partial(frozen, make), calls, 2, monkeypatch, training)


@pytest.mark.parametrize("name", PROJECTED)
def test_blocks_that_rescale_before_their_projection(name, monkeypatch):
    make = PROJECTED[name]
    plain = undropped(frozen(make))
    ours, truth, learning = se_fused.convert(copy.deepcopy(plain)), copy.deepcopy(plain).double(), undropped(make())
    x = draw(name, 0)
    calls = spy_on_functional(monkeypatch)
    se_fused.convert(learning)(x)
    wanted = calls.copy()
    calls.clear()
    results = run(ours, x), run(plain, x), run(truth, x.double())
    assert calls == wanted != []
    for a, b, c in zip(*results, strict=True):
        assert_as_close(a, b, c, terms=1000)


@pytest.mark.grid(quick=0)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", MODELS)
def test_frozen_before_or_after_convert(name, training, monkeypatch):
    """Results, report and calls are equal if norms are frozen before or after convert, and unfreezing is possible."""
    learning = undropped(build(name)).train(training)
    ours = freeze_batch_norm_2d(copy.deepcopy(learning)).train(training)
    theirs, truth = copy.deepcopy(ours), copy.deepcopy(ours).double()
    before, after = se_fused.convert(ours), freeze_batch_norm_2d(se_fused.convert(copy.deepcopy(learning)))
    se_fused.convert(learning)
    report = se_fused.conversion_report(learning)
    assert se_fused.conversion_report(before) == se_fused.conversion_report(after) == report and not report.left
    x, state = images(name, 4), copy.deepcopy(theirs.state_dict())
    with torch.no_grad():
        wanted, exact = theirs(x), truth(x.double())
        calls = spy_on_functional(monkeypatch)
        learning(x)
        expected = calls.copy()
        for model in (before, after):
            calls.clear()
            assert_as_close(model(x), wanted, exact)
            assert calls == expected
        assert all(torch.equal(value, state[key]) for key, value in before.state_dict().items())
        thawed, plain = (unfreeze_batch_norm_2d(model).train() for model in (before, theirs))
        for model in (thawed, plain):
            calls.clear()
            model(x)
            assert calls == (expected if model is thawed else [])
        for key, value in thawed.state_dict().items():
            torch.testing.assert_close(value, plain.state_dict()[key], rtol=1e-3, atol=1e-4, msg=key)


BUILT = {
    "resnet": lambda **options: torchvision.models.resnet18(num_classes=5, **options),
    "regnet": lambda **options: torchvision.models.regnet_y_400mf(num_classes=5, **options),
    "efficientnet": lambda **options: torchvision.models.efficientnet_b0(num_classes=5, **options),
    "mobilenet": lambda **options: torchvision.models.mobilenet_v3_small(num_classes=5, **options),
}


@pytest.mark.parametrize("name", BUILT)
def test_built_with_frozen_norms(name, monkeypatch):
    """A model built with norm_layer=FrozenBatchNorm2d is converted like one with trainable norms; results are right."""
    model = BUILT[name](norm_layer=FrozenBatchNorm2d).eval()
    randomise(model)
    theirs, truth = copy.deepcopy(model), copy.deepcopy(model).double()
    report = se_fused.conversion_report(se_fused.convert(model))
    assert report == se_fused.conversion_report(se_fused.convert(BUILT[name]())) and not report.left
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    calls = spy_on_functional(monkeypatch)
    with torch.no_grad():
        assert_as_close(model(x), theirs(x), truth(x.double()))
    assert calls.count("batch_norm_act") + calls.count("batch_norm_act_squeeze") >= 16


def detector() -> nn.Module:
    """A detector like fasterrcnn_resnet50_fpn with pretrained weights: frozen norms with eps 0, trainable layers."""
    backbone = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=2
    )
    model = torchvision.models.detection.FasterRCNN(backbone, num_classes=3, min_size=96, max_size=128)
    torchvision.models.detection._utils.overwrite_eps(model, 0.0)
    randomise(model)
    return model


@pytest.mark.grid(quick=0)
def test_detector(monkeypatch):
    """A detection backbone has eager's maps and gradients, none for frozen parameters; training gives finite losses."""
    plain = detector()
    generator = torch.Generator().manual_seed(0)
    image, boxes = torch.rand(3, 96, 120, generator=generator), torch.tensor([[8.0, 8.0, 60.0, 70.0]])
    models = {"ours": se_fused.convert(copy.deepcopy(plain)), "theirs": plain, "truth": copy.deepcopy(plain).double()}
    assert len(se_fused.conversion_report(models["ours"]).converted) == 16
    calls = spy_on_functional(monkeypatch)
    maps, gradients = [], []
    for name, model in models.items():
        calls.clear()
        dtype = torch.float64 if name == "truth" else torch.float32
        x = image[None].to(dtype)
        features = model.backbone(x)
        assert len(calls) == (48 if name == "ours" else 0)
        sum(m.square().mean() for m in features.values()).backward()
        maps.append(list(features.values()))
        gradients.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
        torch.manual_seed(0)
        losses = model([image.to(dtype)], [{"boxes": boxes.to(dtype), "labels": torch.tensor([1])}])
        assert all(loss.isfinite() for loss in losses.values())
    for a, b, c in zip(*maps, strict=True):
        assert_as_close(a, b, c, terms=1000)
    ours, theirs, exact = gradients
    assert ours.keys() == theirs.keys() and not any("layer1" in key for key in ours)
    for key, value in ours.items():
        assert_as_close(value, theirs[key], exact[key], terms=1000, flips=FLIPS)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["regnet", "tresnet-basic", "torchvision-bottleneck", "legacy", "monai-no-act"])
def test_autocast(name, training):
    """Under autocast, dtypes are the plain block's, and errors over ten draws are no larger than 1.3 times eager's.

    A frozen norm's float32 buffers make its result float32. Several draws are used because rounding may move a unit to
    the other side of its ReLU.
    """
    plain = undropped(frozen(FLAT[name][0])).train(training)
    ours, truth = se_fused.convert(copy.deepcopy(plain)), copy.deepcopy(plain).double()
    errors = []
    for seed in range(10):
        for model in (plain, ours, truth):
            randomise(model, seed)
        x = batch(4, 16, seed=seed)
        with torch.autocast("cpu", torch.bfloat16):
            mine, theirs = run(ours, x), run(plain, x)
        assert [t.dtype for t in mine] == [t.dtype for t in theirs]
        triples = zip(mine, theirs, run(truth, x.double()), strict=True)
        errors.append([(rms(a.double() - c), rms(b.double() - c), 1e-6 * rms(c)) for a, b, c in triples])
    mine, theirs, floor = torch.tensor(errors).square().mean(0).sqrt().T
    assert torch.all(mine <= 1.3 * theirs + floor)


@pytest.mark.parametrize("name", ["timm-mbconv", "torchvision-mbconv", "torchvision-v3", "timm-regnet-down"])
def test_autocast_before_a_projection(name):
    plain = undropped(frozen(PROJECTED[name])).eval()
    ours, truth = se_fused.convert(copy.deepcopy(plain)), copy.deepcopy(plain).double()
    x = draw(name, 0)
    for inference in (True, False):
        with torch.inference_mode(inference), torch.autocast("cpu", torch.bfloat16):
            mine, theirs, exact = ours(x), plain(x), truth(x.double())
        assert mine.dtype == theirs.dtype
        assert rms(mine.double() - exact) <= 1.5 * rms(theirs.double() - exact) + 1e-6 * rms(exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["regnet", "torchvision-bottleneck", "tresnet-basic"])
def test_dtypes_and_channels_last(name, dtype):
    plain = undropped(frozen(FLAT[name][0])).eval().to(dtype).to(memory_format=torch.channels_last)
    ours, truth = se_fused.convert(copy.deepcopy(plain)), copy.deepcopy(plain).double()
    x = batch(4, 16).to(dtype)
    for order in (torch.channels_last, torch.contiguous_format):
        given = x.contiguous(memory_format=order)
        with torch.no_grad():
            y, theirs, exact = ours(given), plain(given), truth(x.double())
        assert y.dtype == theirs.dtype == dtype and y.stride() == theirs.stride()
        assert rms(y.double() - exact) <= 1.1 * rms(theirs.double() - exact) + 4 * torch.finfo(dtype).eps * rms(exact)


@pytest.mark.parametrize("part", ["bn1", "bn2", "bn3"])
def test_hooks_see_a_frozen_norm(part):
    """A frozen norm with a hook is called, and the hook's return value is used."""
    outputs = []
    for convert in (True, False):
        block = frozen(partial(torchvision.models.resnet.Bottleneck, 16, 4)).eval()
        seen = []
        if convert:
            se_fused.convert(block)
        block.get_submodule(part).register_forward_hook(lambda _, i, o, s=seen: (s.append(o.clone()), o * 0.5)[1])
        with torch.no_grad():
            outputs.append([block(batch(2, 16)), *seen])
    for a, b in zip(*outputs, strict=True):
        torch.testing.assert_close(a, b)


def test_what_is_a_frozen_batch_norm():
    class Own(FrozenBatchNorm2d):
        pass

    hooked = FrozenBatchNorm2d(4)
    hooked.register_forward_hook(lambda *_: None)
    elu, relu = FrozenBatchNormAct2d(4, act_layer=nn.ELU), FrozenBatchNormAct2d(4)
    dropping = FrozenBatchNormAct2d(4, drop_layer=nn.Dropout)
    known = [is_norm(m) for m in (FrozenBatchNorm2d(4), relu, elu, dropping, hooked, Own(4))]
    assert known == [True, True, False, False, False, False]
    assert is_norm(nn.BatchNorm2d(4)) and not is_norm(nn.Identity()) and not is_norm(None)
    assert [brought_activation(m) for m in (relu, elu, FrozenBatchNorm2d(4))] == ["relu", None, None]
    block = torchvision.models.resnet.BasicBlock(16, 16, norm_layer=Own)
    report = se_fused.conversion_report(se_fused.convert(block))
    assert [reason for _, _, reason in report.left] == ["bn2 is Own, not a batch norm"]


def test_activations_that_have_to_be_called():
    """An unknown activation or a dropout inside timm's frozen norm is applied."""
    for options in (dict(act_layer=nn.ELU), dict(act_layer=nn.ReLU6), dict(drop_layer=partial(nn.Dropout, 0.5))):
        plain = PROJECTED["timm-mbconv"]()
        plain.bn1, plain.bn2 = (FrozenBatchNormAct2d(16, **options) for _ in range(2))
        randomise(plain)
        torch.manual_seed(0)
        wanted = plain(draw("timm-mbconv", 0))
        torch.manual_seed(0)
        torch.testing.assert_close(se_fused.convert(plain)(draw("timm-mbconv", 0)), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("with_se", [True, False], ids=["se", "no-se"])
def test_own_tail(with_se, monkeypatch):
    """fused_block_end accepts a frozen norm, because timm's freeze_batch_norm_2d creates them in our models too."""
    bn, se = FrozenBatchNorm2d(8), SqueezeExcite(8, rd_channels=4) if with_se else None
    randomise(bn)
    x, residual = batch(3, 8).requires_grad_(), batch(3, 8, seed=1)
    calls = spy_on_functional(monkeypatch)
    y = fused_block_end(bn, se, x, residual)
    assert calls == ["batch_norm_squeeze_excite" if with_se else "batch_norm_act"]
    u = bn(x)
    wanted = torch.relu((u if se is None else se(u)) + residual)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(t.square().sum(), x)[0] for t in (y, wanted)))


def test_compiles_without_a_break():
    block = se_fused.convert(undropped(frozen(FLAT["regnet"][0])))
    torch.testing.assert_close(
        torch.compile(block, fullgraph=True, backend="aot_eager")(batch(2, 16)), block(batch(2, 16))
    )
