"""Tests of fused_gate_projection, and of convert on blocks that rescale before their projection.

The blocks are EfficientNet's, MobileNetV3's and RegNetY's of two libraries.
"""

import copy
import itertools
from typing import Any

import pytest
import torch
from support.modules import PROJECTION, assert_as_close, batch, one_thread, randomise, spy_on_functional
from support.projection_blocks import BLOCKS, WITHOUT_SE, draw
from torch import Tensor, nn

import se_fused
from se_fused import SqueezeExcite
from se_fused.nn import fused_gate_projection
from se_fused.nn.convert.class_swap import is_fused

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

from timm.layers import SEModule  # noqa: E402
from timm.layers.norm_act import BatchNormAct2d  # noqa: E402
from timm.models._efficientnet_blocks import SqueezeExcite as EfficientNetSE  # noqa: E402
from torchvision.ops import SqueezeExcitation  # noqa: E402

pytestmark = pytest.mark.quick

__all__ = ["one_thread"]
C, D = 12, 5


class Middle(nn.Module):
    """The modules between a block's convolutions; forward calls them one after another."""

    def __init__(self, bn: nn.Module, act: nn.Module | None, se: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.bn, self.act, self.se, self.projection = bn, act, se, projection

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(x)
        return self.projection(self.se(y if self.act is None else self.act(y)))


def fused(middle: Middle, x: Tensor) -> Tensor:
    return fused_gate_projection(middle.bn, middle.act, middle.se, middle.projection, x)


NORMS: dict[str, Any] = {
    "relu": lambda: (nn.BatchNorm2d(C), nn.ReLU(inplace=True)),
    "silu": lambda: (nn.BatchNorm2d(C, momentum=None), nn.SiLU()),
    "hard-swish": lambda: (nn.BatchNorm2d(C), nn.Hardswish()),
    "no-act": lambda: (nn.BatchNorm2d(C, affine=False), None),
    "untracked": lambda: (nn.BatchNorm2d(C, track_running_stats=False), nn.SiLU()),
    "timm-silu": lambda: (BatchNormAct2d(C, act_layer=nn.SiLU), None),
    "timm-hard-swish": lambda: (BatchNormAct2d(C, act_layer="hard_swish", momentum=0.3), None),
    "timm-no-act": lambda: (BatchNormAct2d(C, apply_act=False), None),
}
GATES: dict[str, Any] = {
    "ours": lambda: SqueezeExcite(C, rd_channels=4, gate_layer="hard_sigmoid"),
    "timm": lambda: SEModule(C, rd_channels=4),
    "efficientnet": lambda: EfficientNetSE(C, act_layer=nn.SiLU),
    "torchvision": lambda: SqueezeExcitation(C, 3, scale_activation=nn.Hardsigmoid),
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return spy_on_functional(monkeypatch, PROJECTION)


# ---- fused_gate_projection
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("gate", GATES)
def test_it_is_its_modules(norm: str, gate: str, calls: list[str]) -> None:
    """Outputs, gradients and statistics are the modules', in two training steps, eval mode and without gradients."""
    theirs = Middle(*NORMS[norm](), GATES[gate](), nn.Conv2d(C, D, 1, bias=gate == "ours"))
    randomise(theirs)
    ours, truth, wide = (copy.deepcopy(theirs) for _ in range(3))
    truth.double(), wide.double()
    memory = torch.channels_last if norm in ("silu", "timm-silu") else torch.contiguous_format
    for step in range(4):
        x, weight = 2 * batch(3, C, seed=10 * step) + 0.5, batch(3, D, seed=10 * step + 1)
        results = []
        for middle, call in ((ours, fused), (theirs, Middle.__call__), (truth, Middle.__call__), (wide, fused)):
            middle.train(step < 2)
            middle.zero_grad()
            calls.clear()
            with torch.set_grad_enabled(step < 3):
                given = x.to(next(middle.parameters()).dtype, memory_format=memory, copy=True).requires_grad_(step < 3)
                y = call(middle, given)
            assert calls == (["batch_norm_act_squeeze", "gated_conv1x1"] if call is fused else [])
            if step < 3:
                (y * weight.to(y.dtype)).sum().backward()
            results.append([y, *(t.grad for t in (given, *middle.parameters()) if t.grad is not None)])
            results[-1] += [b.double() for b in middle.buffers()]
        assert results[0][0].stride() == results[1][0].stride()
        for mine, eager, true, exact in zip(*results, strict=True):
            assert_as_close(mine, eager, true)
            torch.testing.assert_close(exact, true, rtol=1e-10, atol=1e-10)
    assert ours.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize("norm", ["silu", "timm-silu"])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("grad", [True, False])
def test_every_hook_is_called_once(norm: str, gate: str, grad: bool, calls: list[str]) -> None:
    """A hook on any module is called once, with the input and output of the plain module."""
    theirs = Middle(*NORMS[norm](), GATES[gate](), nn.Conv2d(C, D, 1))
    randomise(theirs)
    x = batch(3, C)
    theirs.eval()
    wanted: dict[str, Any] = {}
    for name, module in theirs.named_modules():
        if name:
            module.register_forward_hook(
                lambda m, i, o, _n=name: wanted.setdefault(_n, (i[0].clone(), o.clone())) and None
            )
    plain = copy.deepcopy(theirs)
    for module in plain.modules():
        module._forward_hooks.clear()
    truth = theirs(x)
    # Only modules that were called are in `wanted`: our own layer computes its activations without calling modules.
    names = [n for n, _ in plain.named_modules() if n in wanted]
    for name in names:
        middle = copy.deepcopy(plain)
        seen = []
        keep = seen.append
        middle.get_submodule(name).register_forward_hook(lambda m, i, o, keep=keep: keep((i[0].clone(), o.clone())))
        with torch.set_grad_enabled(grad):
            y = fused(middle, x.clone())
        assert len(seen) == 1, name
        for mine, theirs_saw in zip(seen[0], wanted[name], strict=True):
            torch.testing.assert_close(mine, theirs_saw, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(y, truth, rtol=1e-4, atol=1e-5)


def test_what_no_kernel_has_is_called(calls: list[str]) -> None:
    """Modules without a kernel are called: all of them if batch norm must be called, or only SE."""
    silu = NORMS["silu"]
    conv = nn.Conv2d(C, D, 1)
    cases = {
        "activation": Middle(nn.BatchNorm2d(C), nn.Softplus(), GATES["timm"](), conv),
        "group norm": Middle(nn.GroupNorm(2, C), nn.SiLU(), GATES["timm"](), conv),
        "max pool": Middle(*silu(), SEModule(C, add_maxpool=True), conv),
        "no SE": Middle(*silu(), nn.Identity(), conv),
        "dropout inside": Middle(BatchNormAct2d(C, drop_layer=nn.Dropout2d), None, GATES["timm"](), conv),
    }
    x = batch(3, C)
    for name, middle in cases.items():
        randomise(middle)
        middle.eval()
        exact = name in ("activation", "group norm", "dropout inside")
        tolerance = dict(rtol=0, atol=0) if exact else dict(rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(fused(middle, x), middle(x), **tolerance)
        assert not calls, name


@pytest.mark.parametrize("projection", [
    nn.Conv2d(C, D, 3, padding=1), nn.Conv2d(C, D, 1, stride=2), nn.Conv2d(C, 6, 1, groups=2),
    nn.Conv2d(C, D, 1, padding=1), nn.Sequential(nn.Conv2d(C, D, 1)),
], ids=["3x3", "stride", "groups", "padding", "sequential"])  # fmt: skip
def test_another_projection_gets_the_scaled_map(projection: nn.Module, calls: list[str]) -> None:
    middle = Middle(*NORMS["silu"](), GATES["timm"](), projection)
    randomise(middle)
    middle.eval()
    x = batch(3, C)
    torch.testing.assert_close(fused(middle, x), middle(x), rtol=1e-4, atol=1e-5)
    assert calls == ["batch_norm_act_squeeze"]


def test_autocast() -> None:
    middle = Middle(*NORMS["silu"](), GATES["efficientnet"](), nn.Conv2d(C, D, 1))
    randomise(middle)
    x = batch(3, C)
    for training, dtype in itertools.product((True, False), (torch.float32, torch.bfloat16)):
        middle.train(training)
        with torch.autocast("cpu", torch.bfloat16):
            mine, eager = fused(copy.deepcopy(middle), x.to(dtype)), copy.deepcopy(middle)(x.to(dtype))
        assert mine.dtype == eager.dtype == torch.bfloat16
        torch.testing.assert_close(mine, eager, rtol=3e-2, atol=5e-2)


def test_compiles_without_a_break() -> None:
    middle = Middle(*NORMS["timm-silu"](), GATES["efficientnet"](), nn.Conv2d(C, D, 1))
    randomise(middle)
    x = batch(3, C)
    for training in (True, False):
        middle.train(training)
        compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(copy.deepcopy(middle), x), fused(copy.deepcopy(middle), x))


# ---- blocks
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(name: str, calls: list[str]) -> None:
    """Two training steps, eval mode, and inference agree with float64 and with the original block."""
    theirs = BLOCKS[name]()
    randomise(theirs)
    ours, truth, exact = (copy.deepcopy(theirs) for _ in range(3))
    truth.double(), exact.double()
    for model in (ours, exact):
        assert se_fused.convert(model) is model and is_fused(model)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for step in range(4):
        results = []
        for model in (ours, theirs, truth, exact):
            model.train(step < 2)
            model.zero_grad()
            calls.clear()
            x = draw(name, step).to(next(model.parameters()).dtype).requires_grad_(step < 3)
            torch.manual_seed(step)
            with pytest.MonkeyPatch.context() as patch, torch.set_grad_enabled(step < 3):
                kept = torch.tensor([1.0, 0.0, 1.0], dtype=x.dtype)  # the draw depends on the dtype
                patch.setattr(Tensor, "bernoulli_", lambda t, p, _k=kept: t.copy_(_k.reshape(t.shape)))
                y = model(x)
            if model is ours:
                has_projection = name not in (*WITHOUT_SE, "timm-blur")
                assert calls == (["batch_norm_act_squeeze", "gated_conv1x1"] if has_projection else [])
            if step < 3:
                weight = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
                (y * weight).sum().backward()
            results.append([y, *(t.grad for t in (x, *model.parameters()) if t.grad is not None)])
            results[-1] += [b.double() for b in model.buffers()]
        for mine, eager, true, same in zip(*results, strict=True):
            assert_as_close(mine, eager, true, terms=1000)
            torch.testing.assert_close(same, true, rtol=1e-9, atol=1e-9)
    classes = {n: type(m) for n, m in theirs.named_modules()}
    assert {n: type(m) for n, m in se_fused.revert(ours).named_modules()} == classes


@pytest.mark.parametrize("name", [name for name in BLOCKS if name not in WITHOUT_SE])
@pytest.mark.parametrize("training", [True, False])
def test_hooks_see_what_they_saw(name: str, training: bool) -> None:
    """A hook on any module of a converted block is called as often as before, and on the same map."""
    block = BLOCKS[name]().train(training)
    randomise(block)
    for part, module in block.named_modules():
        if "drop_path" in part or "stochastic" in part:
            continue
        seen: list[list[Tensor]] = [[], []]
        results = []
        for model, into in zip((copy.deepcopy(block), se_fused.convert(copy.deepcopy(block))), seen, strict=True):
            hooked = model.get_submodule(part)
            hooked.register_forward_hook(lambda m, i, o, into=into: into.append(o.detach().clone()))
            with torch.no_grad():
                torch.manual_seed(0)
                results.append(model(draw(name, 0)))
        del module
        assert len(seen[0]) == len(seen[1]), part
        for a, b in zip(seen[0] + results[:1], seen[1] + results[1:], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_feature_hooks_before_the_projection() -> None:
    """A hook on the projection's input, as timm's feature extractors use it, sees the plain block's map."""
    block = se_fused.convert(BLOCKS["timm-mbconv"]().eval())
    seen = []
    block.conv_pwl.register_forward_pre_hook(lambda m, i: seen.append(i[0]))
    plain = se_fused.revert(copy.deepcopy(block))
    x = draw("timm-mbconv", 0)
    torch.testing.assert_close(block(x), plain(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*seen, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["timm-mobilenetv3_small_050", "timm-regnety_002", "timm-efficientnet_b0",
                                  "torchvision-mobilenet_v3_small", "torchvision-regnet_y_400mf"])  # fmt: skip
def test_whole_networks(name: str) -> None:
    library, model = name.split("-")
    theirs = timm.create_model(model) if library == "timm" else getattr(torchvision.models, model)()
    randomise(theirs)
    theirs.eval()
    truth, ours = copy.deepcopy(theirs).double(), se_fused.convert(copy.deepcopy(theirs))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert_as_close(ours(x), theirs(x), truth(x.double()), terms=1000)
        exact = se_fused.convert(copy.deepcopy(truth))
        torch.testing.assert_close(exact(x.double()), truth(x.double()), rtol=1e-8, atol=1e-8)
