"""Tests of the modules in se_fused.nn against timm's: SqueezeExcite with SEModule, DropPath with DropPath."""

import copy
import functools
from typing import Any

import pytest
import timm.layers
import torch
from support.modules import SPACES, assert_as_close, batch, one_thread, randomise, spy_on_functional  # noqa: F401 (a fixture)
from torch import nn
from torch.nn.utils import parametrize, prune

from se_fused.activations import ACTIVATIONS
from se_fused.nn import DropPath, SqueezeExcite, activation_name, drop_path_scale, gate_name

pytestmark = pytest.mark.quick


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return spy_on_functional(monkeypatch)


@pytest.mark.parametrize(
    "arguments",
    [
        dict(channels=64),
        dict(channels=8),
        dict(channels=200, rd_ratio=0.25),
        dict(channels=72, rd_ratio=0.3, rd_divisor=1),
        dict(channels=48, rd_channels=5),
        dict(channels=48, bias=False),
        dict(channels=48, act_layer=nn.SiLU, gate_layer="hard_sigmoid"),
        dict(channels=48, act_layer="gelu", gate_layer=nn.Hardsigmoid),
        dict(channels=48, act_layer=nn.LeakyReLU, gate_layer=nn.Sigmoid),
    ],
    ids=lambda a: "-".join(f"{k}={getattr(v, '__name__', v)}" for k, v in a.items()),
)
def test_squeeze_excite_is_timms(arguments: dict[str, object]) -> None:
    torch.manual_seed(1)
    theirs = timm.layers.SqueezeExcite(**arguments)
    torch.manual_seed(1)
    ours = SqueezeExcite(**arguments)
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    for key, value in ours.state_dict().items():
        assert torch.equal(value, state[key]), f"initial {key}"
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())

    x = batch(3, ours.fc1.in_channels)
    truth = copy.deepcopy(theirs).double()
    ins = [x.clone().requires_grad_(), x.clone().requires_grad_(), x.double().requires_grad_()]
    outs = [m(i) for m, i in zip((ours, theirs, truth), ins, strict=True)]
    weight = batch(3, ours.fc1.in_channels, seed=2)
    for out in outs:
        (out * weight.to(out.dtype)).sum().backward()
    assert_as_close(*outs)
    assert_as_close(*(i.grad for i in ins))
    for key, value in ours.named_parameters():
        assert_as_close(value.grad, theirs.get_parameter(key).grad, truth.get_parameter(key).grad)


def test_squeeze_excite_has_timms_argument_order() -> None:
    ours = SqueezeExcite(64, 0.5, 12, 4, False, False, nn.SiLU, None, "hard_sigmoid")
    assert (ours.fc1.out_channels, ours.fc1.bias, ours.act, ours.gate) == (12, None, "silu", "hard_sigmoid")


@pytest.mark.parametrize("dims", SPACES)
@pytest.mark.parametrize("out_act", [None, "relu", "silu"])
def test_squeeze_excite_closes_the_block(dims: int, out_act: str | None) -> None:
    se = SqueezeExcite(16, rd_channels=4, dtype=torch.float64)
    randomise(se)
    x, residual = batch(3, 16, dims, dtype=torch.float64), batch(3, 16, dims, seed=1, dtype=torch.float64)
    scale = torch.tensor([0.0, 2.0, 1.5], dtype=torch.float64)
    matrix1, matrix2 = se.fc1.weight.flatten(1), se.fc2.weight.flatten(1)
    hidden = torch.relu(x.flatten(2).mean(2) @ matrix1.T + se.fc1.bias)
    per_sample = (-1,) + (1,) * (x.dim() - 1)
    gate = torch.sigmoid(hidden @ matrix2.T + se.fc2.bias).reshape(*x.shape[:2], *per_sample[2:])
    wanted = x * gate * scale.reshape(per_sample) + residual
    wanted = {None: wanted, "relu": wanted.relu(), "silu": nn.functional.silu(wanted)}[out_act]
    torch.testing.assert_close(se(x, residual, out_act, scale), wanted)


def test_squeeze_excite_loads_matrices() -> None:
    source, plain, inside = (SqueezeExcite(32) for _ in range(3))
    state = {k: v.flatten(1) if v.dim() == 4 else v for k, v in source.state_dict().items()}
    assert state["fc1.weight"].shape == (8, 32)
    plain.load_state_dict(state)
    nn.Sequential(inside).load_state_dict({f"0.{k}": v for k, v in state.items()})
    for loaded in (plain, inside):
        assert loaded.fc1.weight.shape == (8, 32, 1, 1)
        assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in source.state_dict().items())
    assert state["fc1.weight"].dim() == 2, "the caller's state_dict was changed"
    with pytest.raises(RuntimeError, match=r"size mismatch for fc2\.weight"):
        plain.load_state_dict({**state, "fc2.weight": state["fc2.weight"].T})


@pytest.mark.parametrize("touch", ["hook", "prune", "parametrize", "linear", "wrapped"])
def test_squeeze_excite_respects_its_layers(touch: str, calls: list[str]) -> None:
    """A layer that does more than store a weight is called; one that only stores it differently is not."""
    se = SqueezeExcite(16, rd_channels=4)
    randomise(se)
    seen: list[int] = []
    if touch == "hook":
        se.fc1.register_forward_hook(lambda m, i, o: (seen.append(1), 2 * o)[1])
    elif touch == "prune":
        prune.l1_unstructured(se.fc1, "weight", amount=0.5)
        with torch.no_grad():
            se.fc1.weight_orig.add_(1)  # pruning applies its mask in a hook: the attribute is stale until it runs
    elif touch == "parametrize":
        parametrize.register_parametrization(se.fc1, "weight", nn.Tanh())
    elif touch == "linear":
        linear = nn.Linear(16, 4)
        se.fc1 = linear  # type: ignore[assignment]
    else:
        se.fc2 = nn.Sequential(se.fc2, nn.Hardtanh(-0.1, 0.1))  # type: ignore[assignment]
    x, residual = batch(2, 16), batch(2, 16, seed=1)
    pooled = x.mean((2, 3), keepdim=touch != "linear")
    wanted = torch.relu(x * torch.sigmoid(se.fc2(torch.relu(se.fc1(pooled)).reshape(2, 4, 1, 1))) + residual)
    torch.testing.assert_close(se(x, residual, "relu"), wanted)
    assert calls == (["squeeze_excite"] if touch == "linear" else [])
    assert not seen or len(seen) == 2


LAYERS = {
    "class": nn.Hardswish,
    "timm-class": timm.layers.activations.Swish,
    "instance": nn.GELU(approximate="tanh"),
} | {name: functools.partial(row.modules[0], **row.attributes) for name, row in ACTIVATIONS.items() if row.modules}


@pytest.mark.parametrize("given", LAYERS.values(), ids=LAYERS)
def test_activation_names(given: Any) -> None:
    built = given() if isinstance(given, type | functools.partial) else given
    x = torch.linspace(-4, 4, 33)
    torch.testing.assert_close(ACTIVATIONS[activation_name(given)].forward(x), built(x))
    assert activation_name(activation_name(given)) == activation_name(given)


def test_aliases() -> None:
    assert [activation_name(n) for n in ("swish", "hardswish", "ReLU")] == ["silu", "hard_swish", "relu"]
    layers = ("hardsigmoid", nn.Hardsigmoid, nn.Sigmoid(), timm.layers.Sigmoid)
    assert [gate_name(n) for n in layers] == ["hard_sigmoid", "hard_sigmoid", "sigmoid", "sigmoid"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(channels=0), ValueError, r"channels must be an int of at least 1, got 0"),
        (dict(channels=8.0), TypeError, r"channels must be an int of at least 1, got 8.0 \(float\)"),
        (dict(channels=True), TypeError, r"channels must be an int of at least 1, got True"),
        (dict(rd_channels=-4), ValueError, r"rd_channels must be an int of at least 0, got -4"),
        (dict(rd_divisor=0), ValueError, r"rd_divisor must be an int of at least 1, got 0"),
        (dict(rd_ratio=0.0), ValueError, r"rd_ratio must be a number above 0, got 0.0"),
        (dict(rd_ratio=float("nan")), ValueError, r"rd_ratio must be a number above 0, got nan"),
        (dict(rd_ratio="16"), TypeError, r"rd_ratio must be a number above 0, got '16' \(str\)"),
        (dict(bias=nn.ReLU), TypeError, r"bias must be True or False"),
        (dict(add_maxpool=True), ValueError, r"add_maxpool must be False.*keep timm's SEModule"),
        (dict(norm_layer=nn.BatchNorm2d), ValueError, r"norm_layer must be None.*keep timm's SEModule"),
        (
            dict(act_layer="elu"),
            ValueError,
            r"act_layer must be one of identity, relu, .*got 'elu'.*keep the SE",
        ),
        (dict(act_layer=None), ValueError, r"act_layer must be one of .*got None"),
        (dict(act_layer=nn.PReLU), ValueError, r"act_layer must be one of .*got <class .*PReLU"),
        (
            dict(act_layer=nn.LeakyReLU(0.2)),
            ValueError,
            r"act_layer must be one of .*got LeakyReLU\(neg",
        ),
        (dict(act_layer=nn.Sigmoid), ValueError, r"act_layer must be one of .*Sigmoid"),
        (dict(gate_layer="softmax"), ValueError, r"gate_layer must be one of sigmoid, .*got 'softmax'"),
        (dict(gate_layer=nn.ReLU), ValueError, r"gate_layer must be one of sigmoid, .*ReLU"),
    ],
    ids=lambda v: "-".join(f"{k}={str(a)[:20]}" for k, a in v.items()) if isinstance(v, dict) else "",
)
def test_squeeze_excite_refuses(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SqueezeExcite(**{"channels": 16, **arguments})


def test_squeeze_excite_repr_and_factory() -> None:
    se = SqueezeExcite(16, gate_layer=nn.Hardsigmoid, device="meta", dtype=torch.bfloat16)
    assert "act=relu, gate=hard_sigmoid" in repr(se)
    assert {(p.device.type, p.dtype) for p in se.parameters()} == {("meta", torch.bfloat16)}


# ---- DropPath


@pytest.mark.parametrize("drop_prob", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("scale_by_keep", [True, False], ids=["scaled", "unscaled"])
def test_drop_path_is_timms(drop_prob: float, scale_by_keep: bool) -> None:
    ours, theirs = DropPath(drop_prob, scale_by_keep), timm.layers.DropPath(drop_prob, scale_by_keep)
    x = batch(64, 3)
    torch.manual_seed(3)
    wanted = theirs(x)
    torch.manual_seed(3)
    assert torch.equal(ours(x), wanted)
    torch.manual_seed(3)
    scale = ours.scale(x)
    if drop_prob == 0.0:
        assert scale is None
    else:
        assert scale.shape == (64,) and scale.dtype == x.dtype
        assert torch.equal(x * scale[:, None, None, None], wanted)
    assert ours.eval().scale(x) is None and torch.equal(ours(x), x)


def test_drop_path_scale_dtype_and_checks() -> None:
    scale = drop_path_scale(torch.zeros(500, 2, dtype=torch.bfloat16), 0.2)
    assert scale.dtype == torch.bfloat16 and set(scale.tolist()) == {0.0, 1.25}
    assert repr(DropPath(0.25)) == "DropPath(drop_prob=0.250)"
    with pytest.raises(ValueError, match=r"drop_prob must be a number in \[0, 1\], got 1.5"):
        DropPath(1.5)
    with pytest.raises(TypeError, match=r"drop_prob must be a number in \[0, 1\], got '0'"):
        DropPath("0")  # type: ignore[arg-type]
