"""Tests of the legacy order of SE-ResNets against timm's legacy_* models, and of the options of SE."""

import copy

import pytest
import timm
import torch
from support.modules import FLIPS, assert_as_close, one_thread, randomise, rms, spy_on_functional  # noqa: F401 (a fixture)
from torch import Tensor, nn

from se_fused.models import SENet154, SEResNet, SEResNet18, SEResNet50, create_model, list_models
from se_fused.models._zoos import rename
from se_fused.models.se_resnet import BasicBlock, Bottleneck
from se_fused.nn import SqueezeExcite


def images(n: int = 2, size: int = 40) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def in_our_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {own: tensors[key] for key, own in rename("legacy", tensors).items()}


def pair(name: str, **options: object) -> tuple[nn.Module, nn.Module]:
    """Our model with the legacy order and timm's, with the same random weights."""
    theirs = timm.create_model(f"legacy_{name}", num_classes=10, **options)
    ours = create_model(name, num_classes=10, variant="caffe", **options)
    randomise(theirs)
    ours.load_state_dict({**in_our_names(theirs.state_dict()), "caffe_order": torch.tensor(1)})
    return ours, theirs


# meta only computes shapes, for which no kernel is needed
@pytest.mark.filterwarnings("ignore:se_fused has no kernel")
@pytest.mark.parametrize(
    "name",
    [
        "seresnet18", "seresnet34", "seresnet50", "seresnet101", "seresnet152",
        "seresnext26_32x4d", "seresnext50_32x4d", "seresnext101_32x4d", "senet154",
    ],
)  # fmt: skip
def test_shapes_are_those_of_timms_legacy_models(name: str) -> None:
    theirs = timm.create_model(f"legacy_{name}", device="meta")
    wanted = in_our_names({k: v for k, v in theirs.state_dict().items()})
    for ours in (create_model(f"legacy_{name}", device="meta"), create_model(name, variant="caffe", device="meta")):
        state = ours.state_dict()
        assert state.pop("caffe_order").shape == ()
        assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in wanted.items()}
        assert ours(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 1000)
        assert ours.variant == "caffe" and ours.drop_rate == (0.2 if name == "senet154" else 0.0)
    assert f"legacy_{name}" in list_models()


@pytest.mark.parametrize("name", ["seresnet18", "seresnet50", "seresnext26_32x4d"])
def test_eval_outputs_are_those_of_timms_legacy_models(name: str) -> None:
    """Float32 kernels give the outputs of timm's legacy models; 40 x 40 gives odd sizes, where ceil mode matters."""
    ours, theirs = (m.eval() for m in pair(name))
    truth = copy.deepcopy(theirs).double()
    with torch.no_grad():
        assert_as_close(ours(images()), theirs(images()), truth(images().double()))
        maps = ours.forward_features(images()), theirs.forward_features(images())
        assert_as_close(*maps, truth.forward_features(images().double()))


@pytest.mark.parametrize("name", ["seresnet18", "seresnet50", "seresnext26_32x4d"])
def test_training_is_that_of_timms_legacy_models(name: str) -> None:
    """Gradients and running statistics agree in float64 to the last digits, and in float32 up to rounding."""
    ours, theirs = (m.train() for m in pair(name, drop_rate=0.0))
    results = []
    for model in (ours, theirs, copy.deepcopy(ours).double(), copy.deepcopy(theirs).double()):
        x = images(4, 48).to(next(model.parameters()).dtype).requires_grad_()
        out = model(x)
        (out * torch.linspace(-1, 1, out.numel(), dtype=x.dtype).reshape(out.shape)).sum().backward()
        named = {"input": x.grad, **{k: p.grad for k, p in model.named_parameters()}}
        named |= {k: b for k, b in model.named_buffers() if "running" in k}
        results.append(in_our_names(named) if type(model) is not SEResNet else named)
    mine, wanted, mine64, truth = results
    assert mine.keys() == truth.keys()
    for key, value in truth.items():
        torch.testing.assert_close(mine64[key], value, rtol=1e-7, atol=1e-9 * rms(value) + 1e-14, msg=key)
        assert_as_close(mine[key], wanted[key], value, flips=FLIPS)


@pytest.mark.parametrize("name", ["seresnet18", "seresnet50"])
def test_initial_values_are_those_of_timms_legacy_models(name: str) -> None:
    torch.manual_seed(7)
    ours = create_model(name, num_classes=3, variant="caffe").state_dict()
    torch.manual_seed(7)
    theirs = in_our_names(timm.create_model(f"legacy_{name}", num_classes=3).state_dict())
    assert all(torch.equal(ours[k], v) for k, v in theirs.items())
    last = create_model(name, variant="caffe", zero_init_last=True).layer1[0].last_norm()
    assert not last.weight.any()


def test_calls_of_a_block_with_the_early_relu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block with the early ReLU ends in two calls: batch norm with ReLU; SE with addition, drop path and ReLU."""
    names = spy_on_functional(monkeypatch)
    block = BasicBlock(8, 8, se_layer=SqueezeExcite, caffe=True, drop_path=0.5)
    block(torch.randn(2, 8, 5, 5))
    assert names == ["batch_norm_act", "batch_norm_act", "squeeze_excite"]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_early_relu_compiles_in_one_graph(training: bool) -> None:
    eager = SEResNet18(num_classes=5, variant="caffe", drop_path_rate=0.4).train(training)
    randomise(eager)
    run = torch.compile(copy.deepcopy(eager), fullgraph=True, backend="eager")
    torch.manual_seed(2)
    wanted = eager(images())
    torch.manual_seed(2)
    torch.testing.assert_close(run(images()), wanted)


def test_drop_path_of_the_early_relu() -> None:
    """A dropped sample still passes through the shortcut and the last ReLU."""
    block = SEResNet(BasicBlock, (2, 1, 1, 1), variant="caffe", drop_path_rate=0.9).layer1[1].train()
    block.drop_path.drop_prob = 1.0
    x = torch.randn(2, 64, 6, 6)
    assert torch.equal(block(x), x.relu())


# ---- checkpoints of one order loaded into the other


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not-strict"])
def test_the_orders_refuse_each_other(strict: bool) -> None:
    """A model refuses the other order's state_dict: shapes are equal, but only one has the key caffe_order."""
    models = {v: SEResNet50(5, variant=v) for v in ("timm", "caffe")}
    states = {v: copy.deepcopy(m.state_dict()) for v, m in models.items()}
    assert states["caffe"].keys() - states["timm"].keys() == {"caffe_order"}
    with pytest.raises(
        RuntimeError, match=r"'0\.caffe_order' shows that .*variant='caffe'; this model has variant='timm'"
    ):
        nn.Sequential(models["timm"]).load_state_dict({f"0.{k}": v for k, v in states["caffe"].items()}, strict=strict)
    with pytest.raises(RuntimeError, match=r"no key 'caffe_order', so it has variant='timm'; this model .*'legacy'\)"):
        models["caffe"].load_state_dict(states["timm"], strict=strict)
    for name, model in models.items():
        assert all(torch.equal(v, states[name][k]) for k, v in model.state_dict().items())
        model.load_state_dict(states[name], strict=True)
    models["caffe"].load_state_dict({"fc.weight": torch.zeros(5, 2048)}, strict=False)
    assert not models["caffe"].fc.weight.any()


def test_the_mark_goes_everywhere_with_the_model() -> None:
    model = SEResNet18(5, variant="caffe")
    assert model.half().caffe_order.dtype == torch.long
    assert copy.deepcopy(model).caffe_order == 1
    assert not any("caffe" in key for key, _ in model.named_parameters())


# ---- options


@pytest.mark.parametrize(
    ("options", "widths", "bias"),
    [
        ({}, [8, 8, 16, 32], True),
        (dict(variant="caffe"), [4, 8, 16, 32], True),
        (dict(rd_divisor=1, se_bias=False), [4, 8, 16, 32], False),
        (dict(rd_channels=16), [16, 16, 16, 16], True),
        (dict(rd_channels=16, variant="caffe"), [16, 16, 16, 16], True),
        (dict(rd_ratio=1 / 4), [16, 32, 64, 128], True),
        (dict(variant="caffe", rd_divisor=8), [8, 8, 16, 32], True),
    ],
)
def test_widths_of_the_squeeze(options: dict[str, object], widths: list[int], bias: bool) -> None:
    model = create_model("seresnet18", device="meta", dtype=torch.bfloat16, **options)
    layers = [stage[1].se for stage in (model.layer1, model.layer2, model.layer3, model.layer4)]
    assert [se.fc1.out_channels for se in layers] == widths == [se.fc2.in_channels for se in layers]
    assert all((se.fc1.bias is not None) is bias and (se.fc2.bias is not None) is bias for se in layers)
    assert layers[0].fc1.weight.device.type == "meta" and layers[0].fc1.weight.dtype == torch.bfloat16


def test_strides_of_the_bottleneck() -> None:
    for options, strides in (({}, (1, 2)), (dict(variant="caffe"), (2, 1))):
        block = SEResNet50(device="meta", **options).layer2[0]
        assert (block.conv1.stride[0], block.conv2.stride[0]) == strides
    for options in ({}, dict(variant="caffe")):
        block = SEResNet(Bottleneck, (1, 1, 1, 1), cardinality=32, base_width=4, device="meta", **options).layer2[0]
        assert (block.conv1.stride[0], block.conv2.stride[0]) == (1, 2)


def test_refused_options() -> None:
    with pytest.raises(ValueError, match=r"variant must be one of 'timm', 'caffe', got 'legacy'"):
        SEResNet18(variant="legacy")
    with pytest.raises(ValueError, match=r"rd_divisor must be an int of at least 1, got 0"):
        SEResNet18(rd_divisor=0)
    with pytest.raises(TypeError, match=r"bias must be True or False, got 1"):
        SEResNet18(se_bias=1)  # type: ignore[arg-type]
    assert SENet154(device="meta", variant="caffe", drop_rate=0.5).drop_rate == 0.5
