"""Tests of se_fused.models against timm's models of the same name, with the same weights."""

import copy
import io
import pickle

import pytest
import timm
import timm.models.resnet
import torch
import torchvision
from support.modules import (  # noqa: F401 (a fixture)
    EPS,
    FLIPS,
    assert_as_close,
    one_thread,
    randomise,
    rms,
    spy_on_functional,
)
from torch import Tensor, nn

from se_fused.models import SEResNet, SEResNet18, create_model
from se_fused.models.se_resnet import BasicBlock, Bottleneck

NAMES = [
    "seresnet18", "seresnet34", "seresnet50", "seresnet101", "seresnet152",
    "seresnext50_32x4d", "seresnext101_32x4d", "senet154",
]  # fmt: skip


def images(n: int = 2, size: int = 32, chans: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, chans, size, size, generator=torch.Generator().manual_seed(seed))


def pair(name: str, **arguments: object) -> tuple[nn.Module, nn.Module]:
    """(ours, timm's) with the same random weights, loaded strictly in both directions."""
    torch.manual_seed(0)
    arguments = {"num_classes": 10, **arguments}
    theirs = timm.create_model(name, **arguments)
    ours = create_model(name, **arguments)
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


@pytest.fixture(scope="module")
def small() -> SEResNet:
    """A SEResNet18 with 5 classes; a test that changes it must copy it."""
    torch.manual_seed(0)
    model = SEResNet18(num_classes=5)
    randomise(model)
    return model.eval()


# ---- equality with timm


# "meta" only computes shapes, for which no kernel is needed.
@pytest.mark.quick
@pytest.mark.filterwarnings("ignore:se_fused has no kernel")
@pytest.mark.parametrize("name", NAMES)
def test_keys_and_shapes_are_timms(name: str) -> None:
    ours = create_model(name, device="meta")
    theirs = timm.create_model(name, device="meta")
    state, wanted = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(wanted)
    assert {k: (v.shape, v.dtype) for k, v in state.items()} == {k: (v.shape, v.dtype) for k, v in wanted.items()}
    assert [k for k, _ in ours.named_parameters()] == [k for k, _ in theirs.named_parameters()]
    assert ours(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 1000)
    assert (ours.num_features, ours.head_hidden_size) == (theirs.num_features, theirs.head_hidden_size)


@pytest.mark.parametrize("zero_init_last", [True, False], ids=["zero-init", "no-zero-init"])
@pytest.mark.parametrize("name", ["seresnet18", "seresnet50"])
def test_initial_values_are_timms(name: str, zero_init_last: bool) -> None:
    torch.manual_seed(7)
    ours = create_model(name, num_classes=3, zero_init_last=zero_init_last).state_dict()
    torch.manual_seed(7)
    theirs = timm.create_model(name, num_classes=3, zero_init_last=zero_init_last).state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items())
    last = "layer3.1.bn2.weight" if name == "seresnet18" else "layer3.1.bn3.weight"
    assert bool((ours[last] == 0).all()) is zero_init_last


@pytest.mark.quick
@pytest.mark.parametrize("name", ["seresnet18", "seresnet34", "seresnet50", "seresnext50_32x4d"])
def test_eval_outputs_are_timms(name: str) -> None:
    ours, theirs = pair(name)
    ours, theirs, x = ours.eval(), theirs.eval(), images()
    truth = copy.deepcopy(theirs).double()
    with torch.no_grad():
        assert_as_close(ours(x), theirs(x), truth(x.double()))
        maps = ours.forward_features(x), theirs.forward_features(x), truth.forward_features(x.double())
        assert_as_close(*maps)
        assert_as_close(ours.forward_head(maps[0]), theirs.forward_head(maps[1]), truth.forward_head(maps[2]))
        logits = [m.forward_head(f, pre_logits=True) for m, f in zip((ours, theirs, truth), maps, strict=True)]
        assert logits[0].shape == (2, ours.num_features)
        assert_as_close(*logits)


def test_eval_outputs_of_the_senet_layout_are_timms() -> None:
    """SENet154's stem, shortcuts and narrow first convolutions, with one block per stage, give timm's outputs."""
    theirs = timm.models.resnet.ResNet(
        timm.models.resnet.Bottleneck, (1, 1, 1, 1), num_classes=4, cardinality=8, base_width=8, stem_type="deep",
        down_kernel_size=3, block_reduce_first=2, block_args=dict(attn_layer="se"),
    ).eval()  # fmt: skip
    ours = SEResNet(
        Bottleneck, (1, 1, 1, 1), 4, cardinality=8, base_width=8, deep_stem=True, down_kernel_size=3, reduce_first=2
    ).eval()
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        assert_as_close(ours(images()), theirs(images()), copy.deepcopy(theirs).double()(images().double()))


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    model.zero_grad()
    out = model(x)
    (out * torch.linspace(-1, 1, out.numel(), dtype=x.dtype).reshape(out.shape)).sum().backward()
    return {"input": x.grad, **{k: p.grad for k, p in model.named_parameters()}}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["seresnet18", "seresnet50", "seresnext50_32x4d"])
def test_gradients_are_timms(name: str, training: bool) -> None:
    """Gradients agree in float64 to the last digits, which reveals wrong connections, and in float32 up to rounding."""
    ours, theirs = (m.train(training) for m in pair(name))
    x = images(4, 48)
    truth = gradients(copy.deepcopy(theirs).double(), x.double())
    for key, value in gradients(copy.deepcopy(ours).double(), x.double()).items():
        torch.testing.assert_close(value, truth[key], rtol=1e-7, atol=1e-9 * rms(truth[key]) + 1e-14, msg=key)
    wanted = gradients(theirs, x)
    for key, value in gradients(ours, x).items():
        assert_as_close(value, wanted[key], truth[key], flips=FLIPS)


@pytest.mark.parametrize("name", [pytest.param("seresnet18", marks=pytest.mark.isa), "seresnet50"])
def test_training_steps_are_timms(name: str) -> None:
    """Logits, running statistics, counters and parameters are timm's in ten steps of SGD.

    Each step starts from the float64 state, rounded. The results of the forward pass are continuous, so no flip is
    allowed for. A flip changes the update: without the common state, after three steps three of ten seeds' networks of
    ours and one of timm's had a loss that was 1e-3 to 6e-2 off.
    """
    ours, theirs = pair(name)
    truth = copy.deepcopy(theirs).double()
    optimizers = {m: torch.optim.SGD(m.train().parameters(), lr=1e-3) for m in (ours, theirs, truth)}
    for step in range(10):
        before = {k: v.clone() for k, v in truth.float().state_dict().items()}
        logits = []
        for model, optimizer in optimizers.items():
            model.load_state_dict(before)
            x = images(4, 48, seed=step)
            if model is truth:
                x = x.to(truth.double().fc.weight)
            optimizer.zero_grad()
            logits.append(model(x))
            nn.functional.cross_entropy(logits[-1], torch.arange(4)).backward()
            optimizer.step()
        assert_as_close(*logits)
        states = theirs.state_dict(), truth.state_dict()
        for key, value in ours.state_dict().items():
            if key.endswith("num_batches_tracked"):
                assert value == step + 1, key
            else:
                update = 0.0 if "running" in key else rms(states[1][key] - before[key]) / rms(states[1][key])
                assert_as_close(value, states[0][key], states[1][key], flips=FLIPS * update)


@pytest.mark.parametrize("name", ["seresnet18", "seresnet50"])
def test_drop_path_and_dropout_are_timms(name: str) -> None:
    """As in timm, a seed drops the same samples in the same blocks, and the same features before the classifier."""
    ours, theirs = pair(name, drop_path_rate=0.5, drop_rate=0.3)
    rates = [m.drop_prob for m in theirs.modules() if type(m).__name__ == "DropPath"]
    assert rates and rates == [m.drop_prob for m in ours.modules() if type(m).__name__ == "DropPath"]
    truth = copy.deepcopy(theirs).double().train()
    x, outs = images(6, 48), []
    bernoulli = Tensor.bernoulli_
    for model in (ours.train(), theirs.train(), truth):
        torch.manual_seed(11)
        with pytest.MonkeyPatch.context() as patch:
            # A float64 draw takes other numbers from the generator than a float32 draw.
            patch.setattr(Tensor, "bernoulli_", lambda t, p: t.copy_(bernoulli(torch.empty(t.shape), p)))
            patch.setattr(nn.functional, "dropout", lambda t, p, training: t * bernoulli(torch.empty(t.shape), 1 - p))
            outs.append(model(x.double() if model is truth else x))
    assert_as_close(*outs)
    torch.manual_seed(11)
    real = ours(x)
    torch.manual_seed(11)
    torch.testing.assert_close(real, theirs(x), rtol=1e-3, atol=1e-3)
    assert torch.equal(ours.eval()(x), ours(x))


@pytest.mark.quick
@pytest.mark.parametrize("se", [True, False], ids=["se", "plain"])
def test_one_call_per_block(se: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    names = spy_on_functional(monkeypatch)
    SEResNet(BasicBlock, (2, 2, 2, 2), se=se)(images())
    ends = "batch_norm_squeeze_excite" if se else "batch_norm_act"
    assert len(names) == 20 and names.count(ends) == (8 if se else 20)  # 12: stem, 8 first norms, 3 projections


def test_channels_are_timms() -> None:
    """With timm's keyword ``channels``, keys, shapes and outputs of a narrow network are timm's; its stem has 64."""
    channels = (8, 16, 24, 32)
    theirs = timm.create_model("seresnet50", num_classes=3, channels=channels).eval()
    ours = create_model("seresnet50", num_classes=3, channels=channels).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        expected = copy.deepcopy(theirs).double()(x.double())
        error, eager = ((m(x) - expected).abs().max() for m in (ours, theirs))
    assert error <= 2 * eager + 1e-6 * expected.abs().max()


def test_a_narrow_stem() -> None:
    model = create_model("resnet18", channels=(8, 16, 24, 32), stem_channels=4, num_classes=3)
    assert model.conv1.weight.shape[0] == 4 and model.num_features == 32
    assert model(torch.randn(2, 3, 40, 40)).shape == (2, 3)
    with pytest.raises(ValueError, match="channels must hold one number for each of 4 stages"):
        create_model("resnet18", channels=(8, 16))
    with pytest.raises(ValueError, match=r"channels\[1\]"):
        create_model("resnet18", channels=(8, 0, 8, 8))
    with pytest.raises(ValueError, match="stem_channels"):
        create_model("resnet18", stem_channels=0)


def test_plain_resnet_is_torchvisions() -> None:
    theirs = torchvision.models.resnet18(num_classes=4).eval()
    randomise(theirs)
    ours = SEResNet(BasicBlock, (2, 2, 2, 2), 4, se=False).eval()
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        assert_as_close(ours(images()), theirs(images()), copy.deepcopy(theirs).double()(images().double()))


# ---- head and stem


@pytest.mark.parametrize("in_chans", [1, 4])
def test_in_chans(in_chans: int) -> None:
    ours, theirs = (m.eval() for m in pair("seresnet18", in_chans=in_chans))
    x = images(chans=in_chans)
    with torch.no_grad():
        assert_as_close(ours(x), theirs(x), copy.deepcopy(theirs).double()(x.double()))


@pytest.mark.parametrize(
    ("global_pool", "num_classes"),
    [("avg", 0), ("avg", 5), ("max", 5), ("avgmax", 5), ("catavgmax", 5), ("catavgmax", 0), ("", 0)],
)
def test_head_is_timms(global_pool: str, num_classes: int, small: SEResNet) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("seresnet18", num_classes=num_classes, global_pool=global_pool).eval()
    ours = SEResNet18(num_classes, global_pool=global_pool).eval()
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        features = small.forward_features(images(size=64))
        wanted = theirs.forward_head(features)
        assert_as_close(ours.forward_head(features), wanted, theirs.double().forward_head(features.double()))
    assert isinstance(ours.get_classifier(), nn.Linear if num_classes else nn.Identity)
    assert ours.head_hidden_size == theirs.head_hidden_size
    assert ours.num_classes == num_classes and f"pool_type={global_pool!r}" in repr(ours)


def test_reset_classifier(small: SEResNet) -> None:
    model = copy.deepcopy(small).to(torch.bfloat16).train()
    for step in ((3, None), (3, "catavgmax"), (0, None), (0, ""), (7, "avg")):
        model.reset_classifier(*step)
        theirs = timm.create_model("seresnet18", num_classes=5)
        theirs.reset_classifier(step[0], model.global_pool.pool_type)
        shapes = {k: v.shape for k, v in theirs.state_dict().items()}
        assert {k: v.shape for k, v in model.state_dict().items()} == shapes
        assert model.num_classes == step[0] and model.head_hidden_size == theirs.head_hidden_size
        assert model(images().bfloat16()).dtype == torch.bfloat16
    assert model.fc.training and model.global_pool.training
    model.eval().reset_classifier(2)
    assert not model.fc.training
    model.reset_classifier(0, "")
    with pytest.raises(ValueError, match=r"global_pool must pool for a classifier of num_classes=4, got ''"):
        model.reset_classifier(4)


# ---- typical uses of a model


def test_channels_last(small: SEResNet) -> None:
    model = copy.deepcopy(small).to(memory_format=torch.channels_last)
    x = images().to(memory_format=torch.channels_last)
    with torch.no_grad():
        features = model.forward_features(images(size=64).to(memory_format=torch.channels_last))
        assert features.is_contiguous(memory_format=torch.channels_last)
        truth = copy.deepcopy(small).double()(x.double())
        assert rms(model(x) - truth) <= 2 * rms(small(x) - truth) + 16 * EPS * rms(truth)


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies(way: str, small: SEResNet) -> None:
    model = copy.deepcopy(small) if way == "deepcopy" else None
    if way == "pickle":
        model = pickle.loads(pickle.dumps(small))
    if way == "torch.save":
        buffer = io.BytesIO()
        torch.save(small, buffer)
        model = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert model is not None and repr(model) == repr(small)
    with torch.no_grad():
        assert torch.equal(model(images()), small(images()))
        model.conv1.weight.zero_()
        assert not torch.equal(model(images()), small(images())), "the copy shares its weights"


def test_bfloat16(small: SEResNet) -> None:
    model = copy.deepcopy(small).to(torch.bfloat16)
    theirs = timm.create_model("seresnet18", num_classes=5).eval().to(torch.bfloat16)
    theirs.load_state_dict(model.state_dict())
    with torch.no_grad():
        truth = theirs.double()(images().bfloat16().double())
        wanted, got = theirs.bfloat16()(images().bfloat16()), model(images().bfloat16())
    assert got.dtype == torch.bfloat16
    assert rms(got.double() - truth) <= 2 * rms(wanted.double() - truth)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_grad_checkpointing(training: bool, small: SEResNet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradient checkpointing gives the same gradients, also with drop path, and runs each block's forward twice."""
    plain = SEResNet18(num_classes=5, drop_path_rate=0.4)
    plain.load_state_dict(small.state_dict())
    plain.train(training)
    model = copy.deepcopy(plain)
    model.set_grad_checkpointing()
    torch.manual_seed(5)
    wanted = gradients(plain, images(4, 48))
    runs: list[nn.Module] = []
    forward = BasicBlock.forward
    monkeypatch.setattr(BasicBlock, "forward", lambda block, x: (runs.append(block), forward(block, x))[1])
    torch.manual_seed(5)
    for key, value in gradients(model, images(4, 48)).items():
        torch.testing.assert_close(value, wanted[key], msg=key)
    assert len(runs) == 16
    runs.clear()
    with torch.no_grad():
        model(images())
    model.set_grad_checkpointing(False)
    model(images())
    assert len(runs) == 16


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compiles_in_one_graph(training: bool, small: SEResNet) -> None:
    eager = SEResNet18(num_classes=5, drop_path_rate=0.4)
    eager.load_state_dict(small.state_dict())
    compiled_model = copy.deepcopy(eager.train(training))
    run = torch.compile(compiled_model, fullgraph=True, backend="eager")
    for n in (2, 3):
        torch.manual_seed(2)
        wanted = eager(images(n, 48))
        torch.manual_seed(2)
        torch.testing.assert_close(run(images(n, 48)), wanted)
    state = compiled_model.state_dict()
    for key, value in eager.state_dict().items():
        torch.testing.assert_close(state[key], value, msg=key)
