"""convert on the blocks that rescale before their projection: EfficientNet, MobileNetV3, RegNetY of two libraries."""

import copy

import pytest
import torch
from support.modules import PROJECTION, assert_as_close, one_thread, randomise, spy_on_functional
from support.projection_blocks import BLOCKS, WITHOUT_SE, draw
from torch import Tensor

import se_fused
from se_fused.nn.convert.class_swap import is_fused

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")


__all__ = ["one_thread"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return spy_on_functional(monkeypatch, PROJECTION)


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(name: str, calls: list[str]) -> None:
    """Two training steps, one in eval mode and one without gradients, against float64 and against the original."""
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
                fused = name not in (*WITHOUT_SE, "timm-blur")
                assert calls == (["batch_norm_act_squeeze", "gated_conv1x1"] if fused else [])
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
    """A hook on any one module of a converted block is called as often and on the same map as before."""
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
    """timm's feature extractors hook the projection's input."""
    block = se_fused.convert(BLOCKS["timm-mbconv"]().eval())
    seen = []
    block.conv_pwl.register_forward_pre_hook(lambda m, i: seen.append(i[0]))
    plain = se_fused.revert(copy.deepcopy(block))
    x = draw("timm-mbconv", 0)
    torch.testing.assert_close(block(x), plain(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*seen, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
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
