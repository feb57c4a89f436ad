"""Tests of the fused block end in se_fused.nn against the modules that it replaces."""

import copy

import pytest
import timm.layers
import torch
import torch.distributed as dist
from support.modules import SPACES, assert_as_close, batch, one_thread, randomise, spy_on_functional  # noqa: F401 (a fixture)
from torch import Tensor, nn

from se_fused.nn import DropPath, SqueezeExcite, bn_act, fused_block_end

pytestmark = pytest.mark.quick


class BlockEnd(nn.Module):
    """The modules of a block's end, called one after another; fused_block_end replaces them."""

    def __init__(self, bn: nn.Module, se: nn.Module | None = None, drop_path: float = 0.0) -> None:
        super().__init__()
        self.bn = bn
        self.se = se
        self.drop_path = timm.layers.DropPath(drop_path)

    def forward(self, x: Tensor, residual: Tensor | None = None, out_act: str | None = None) -> Tensor:
        u = self.bn(x)
        u = self.drop_path(u if self.se is None else self.se(u))
        u = u if residual is None else u + residual
        return {"relu": torch.relu, "silu": nn.functional.silu, None: lambda t: t}[out_act](u)


def fused(end: BlockEnd, x: Tensor, residual: Tensor | None = None, out_act: str | None = None) -> Tensor:
    drop_path = DropPath(end.drop_path.drop_prob) if end.drop_path.drop_prob else None
    if drop_path is not None:
        drop_path.train(end.training)
    return fused_block_end(end.bn, end.se, x, residual, out_act, drop_path)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return spy_on_functional(monkeypatch)


NORMS = {
    "default": {},
    "momentum": dict(momentum=0.3, eps=1e-2),
    "cumulative": dict(momentum=None),
    "untracked": dict(track_running_stats=False),
    "no-affine": dict(affine=False),
    "no-bias": dict(bias=False),
}


@pytest.mark.parametrize("dims", SPACES)
@pytest.mark.parametrize("settings", NORMS)
@pytest.mark.parametrize("with_se", [True, False], ids=["se", "no-se"])
def test_tail_is_its_modules(dims: int, settings: str, with_se: bool, calls: list[str]) -> None:
    """Outputs, gradients, statistics and batch counts are the modules', in three training steps and in eval mode."""
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims]
    theirs = BlockEnd(norm(16, **NORMS[settings]), SqueezeExcite(16, rd_channels=4) if with_se else None, drop_path=0.4)
    randomise(theirs)
    ours, truth = copy.deepcopy(theirs), copy.deepcopy(theirs).double()
    for step in range(4):
        x, residual, weight = (3 * batch(5, 16, dims, seed=10 * step + i) + i for i in range(3))
        out_act = ("relu", "silu", None, "relu")[step]
        outs, ins = [], []
        for end, run in ((ours, fused), (theirs, BlockEnd.__call__), (truth, BlockEnd.__call__)):
            end.train(step < 3)
            dtype = torch.float64 if end is truth else torch.float32
            given = [t.to(dtype, copy=True).requires_grad_() for t in (x, residual)]
            # The dropped samples must be the same in the three runs, and the draw depends on the dtype.
            drawn = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0], dtype=dtype)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Tensor, "bernoulli_", lambda t, p, _d=drawn: t.copy_(_d.reshape(t.shape)))
                calls.clear()
                outs.append(run(end, *given, out_act))
            if end is ours:
                assert calls == ["batch_norm_squeeze_excite" if with_se else "batch_norm_act"]
            (outs[-1] * weight.to(dtype)).sum().backward()
            ins.append(given)
        assert_as_close(*outs)
        for a, b, c in zip(*ins, strict=True):
            assert_as_close(a.grad, b.grad, c.grad)
        for key, value in ours.named_parameters():
            assert_as_close(value.grad, theirs.get_parameter(key).grad, truth.get_parameter(key).grad)
        state = theirs.state_dict()
        assert list(state) == list(ours.state_dict())
        for key, value in ours.state_dict().items():
            if value.is_floating_point():
                assert_as_close(value, state[key], truth.state_dict()[key])
            else:
                assert torch.equal(value, state[key]), key
    if settings != "untracked":
        assert ours.bn.num_batches_tracked == 3


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_tail_with_tracking_switched_off_later(training: bool) -> None:
    """After bn.track_running_stats = False, training does not update the buffers, and eval mode uses them."""
    theirs = BlockEnd(nn.BatchNorm2d(8)).train(training)
    randomise(theirs)
    theirs.bn.track_running_stats = False
    ours, before = copy.deepcopy(theirs), copy.deepcopy(theirs.state_dict())
    torch.testing.assert_close(fused(ours, batch(4, 8)), theirs(batch(4, 8)))
    assert all(torch.equal(v, before[k]) for k, v in ours.state_dict().items())


@pytest.mark.parametrize("with_se", [True, False], ids=["se", "no-se"])
@pytest.mark.parametrize("touch", ["hook", "pre-hook", "backward-hook", "forward", "subclass", "identity", "flat"])
def test_tail_calls_norms_that_do_more(touch: str, with_se: bool, calls: list[str]) -> None:
    bn: nn.Module = nn.BatchNorm2d(8)
    seen: list[str] = []
    if touch == "hook":
        bn.register_forward_hook(lambda m, i, o: (seen.append(touch), o * 2)[1])
    elif touch == "pre-hook":
        bn.register_forward_pre_hook(lambda m, i: (seen.append(touch), (i[0] * 2,))[1])
    elif touch == "backward-hook":
        bn.register_full_backward_hook(lambda m, i, o: seen.append(touch))
    elif touch == "forward":
        inner = bn.forward
        bn.forward = lambda x: (seen.append(touch), inner(x) * 2)[1]  # type: ignore[method-assign]
    elif touch == "subclass":
        bn = timm.layers.BatchNormAct2d(8)
    elif touch == "identity":
        bn = nn.Identity()
    else:
        bn = nn.BatchNorm1d(8)
    end = BlockEnd(bn, SqueezeExcite(8) if with_se and touch != "flat" else None, drop_path=0.5)
    randomise(end)
    x = batch(4, 8)[..., 0, 0] if touch == "flat" else batch(4, 8)
    theirs, ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.manual_seed(4)
    wanted = end(theirs, x, "relu")
    wanted.sum().backward()
    count = len(seen)
    assert count or touch in ("subclass", "identity", "flat")
    calls.clear()
    torch.manual_seed(4)
    got = fused(end, ours, x, "relu")
    got.sum().backward()
    assert len(seen) == 2 * count
    assert calls == (["squeeze_excite"] if end.se is not None else [])
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_tail_calls_foreign_se_and_drop_path(calls: list[str]) -> None:
    """Modules of timm and our own with a hook are called with their usual input, and what they return is used."""
    x, residual = batch(6, 8), batch(6, 8, seed=1)
    bn, hooked = nn.BatchNorm2d(8).eval(), SqueezeExcite(8)
    seen: list[Tensor] = []
    hooked.register_forward_hook(lambda m, i, o: seen.append(o))
    for se in (timm.layers.SqueezeExcite(8), nn.Identity(), hooked):
        torch.manual_seed(0)
        wanted = timm.layers.DropPath(0.5)(se(bn(x))) + residual
        for drop_path in (timm.layers.DropPath(0.5), DropPath(0.5)):
            torch.manual_seed(0)
            torch.testing.assert_close(fused_block_end(bn, se, x, residual, None, drop_path), wanted)
    assert len(seen) == 3 and all(torch.allclose(o, seen[0]) for o in seen), "the hook saw more than SE's output"
    assert "batch_norm_squeeze_excite" not in calls


@pytest.mark.parametrize("world", [None, 1, 2])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_sync_batch_norm(world: int | None, training: bool, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """SyncBatchNorm is fused unless statistics are exchanged; then it is called, and the rest follows in one call."""
    sync = nn.SyncBatchNorm(8)
    end = BlockEnd(sync, SqueezeExcite(8)).train(training)
    randomise(end)
    plain = BlockEnd(nn.BatchNorm2d(8), SqueezeExcite(8)).train(training)
    plain.load_state_dict(end.state_dict())
    called: list[nn.Module] = []
    if world is not None:
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda group=None: world)
        # With several processes, the real forward needs their devices; this one only records that the module was
        # called.
        stand_in = nn.BatchNorm2d(8).train(training)
        stand_in.load_state_dict(sync.state_dict())
        monkeypatch.setattr(nn.SyncBatchNorm, "forward", lambda m, x: (called.append(m), stand_in(x))[1])
    x, residual = batch(4, 8), batch(4, 8, seed=1)
    torch.testing.assert_close(fused(end, x, residual, "relu"), plain(x, residual, "relu"))
    exchanged = world == 2 and training
    assert called == ([sync] if exchanged else [])
    assert calls[0] == ("squeeze_excite" if exchanged else "batch_norm_squeeze_excite")
    if not exchanged:
        assert torch.equal(sync.num_batches_tracked, plain.bn.num_batches_tracked)


def test_bn_act() -> None:
    end = BlockEnd(nn.BatchNorm2d(8)).train()
    randomise(end)
    other = copy.deepcopy(end)
    torch.testing.assert_close(bn_act(end.bn, batch(4, 8)), other(batch(4, 8), None, "relu"))
    torch.testing.assert_close(bn_act(end.bn, batch(4, 8), None), other(batch(4, 8), None, None))
    torch.testing.assert_close(end.bn.running_var, other.bn.running_var)


def test_tail_refuses_what_the_norm_refuses() -> None:
    with pytest.raises(ValueError, match="expected 4D input"):
        fused_block_end(nn.BatchNorm2d(8), None, torch.zeros(2, 8, 4))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_tail_compiles_without_a_break(training: bool) -> None:
    end = BlockEnd(nn.BatchNorm2d(8), SqueezeExcite(8), drop_path=0.3).train(training)
    randomise(end)
    eager = copy.deepcopy(end)
    drop_path = DropPath(0.3).train(training)
    run = torch.compile(fused_block_end, fullgraph=True, backend="eager")
    for n in (4, 6):
        x, residual = batch(n, 8), batch(n, 8, seed=1)
        torch.manual_seed(0)
        got = run(end.bn, end.se, x, residual, "relu", drop_path)
        torch.manual_seed(0)
        torch.testing.assert_close(got, fused_block_end(eager.bn, eager.se, x, residual, "relu", drop_path))
    assert torch.equal(end.bn.num_batches_tracked, eager.bn.num_batches_tracked)
    torch.testing.assert_close(end.bn.running_mean, eager.bn.running_mean)
