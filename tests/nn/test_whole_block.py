"""When a residual block is computed in one call, what it does then, and when its modules are called instead."""

import copy
import pickle

import pytest
import timm
import torch
import torch.distributed as dist
from support.modules import assert_as_close, modules_only, one_thread, spy_on_blocks  # noqa: F401 (a fixture)
from support.residual_blocks import block, maps, step
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import se_fused
from se_fused import backends
from se_fused.nn import DropPath, SqueezeExcite, block_plan
from se_fused.ops import residual_block

pytestmark = pytest.mark.quick


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    return spy_on_blocks(monkeypatch)


def by_modules(made: nn.Module, x: Tensor, **options) -> dict[str, Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        modules_only(patch)
        return step(made, x, **options)


def assert_same_step(made: nn.Module, x: Tensor) -> None:
    """A step in one call is that of the modules, up to rounding."""
    truth = by_modules(copy.deepcopy(made).double(), x.double())
    ours, theirs = step(made, x), by_modules(made, x)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        if value is None or not value.is_floating_point():
            assert value is theirs[key] or torch.equal(value, theirs[key]), key
        else:
            assert_as_close(value, theirs[key], truth[key])


# ---- training
@pytest.mark.parametrize("shortcut", [None, 2])
@pytest.mark.parametrize("part", ["conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "se", "downsample", "", "x"])
def test_frozen_parts(part: str, shortcut: int | None, calls: list[Tensor]) -> None:
    """A part without gradients gets none, the others' are unchanged. "" freezes all, "x" all but the last norm."""
    made = block(shortcut=shortcut)
    if part == "x":
        made.requires_grad_(False)
        made.bn3.requires_grad_(True)
    elif part != "downsample" or shortcut is not None:
        made.get_submodule(part).requires_grad_(False)
    x = maps(made)
    if part != "":
        assert_same_step(made, x)
        calls.clear()
    y = made(x)  # x needs no gradient
    assert y.requires_grad == (part != "") and len(calls) == 1
    if part != "":
        y.sum().backward()
        assert all((p.grad is not None) == p.requires_grad for p in made.parameters())


def test_frozen_parts_cost_no_passes(calls: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward pass ends at the first layer that needs a gradient."""
    cpu, seen = backends.BACKENDS["cpu"], []
    monkeypatch.setattr(cpu, "residual_block_forward", None)
    monkeypatch.setattr(cpu, "residual_block_backward", None)
    backward = cpu.batch_norm_squeeze_excite_backward
    monkeypatch.setattr(cpu, "batch_norm_squeeze_excite_backward", lambda *a: seen.append(a[0].shape) or backward(*a))
    made = block()
    for name, wanted in (("", 3), ("conv1", 3), ("bn1", 2), ("conv2", 2), ("bn2", 1), ("conv3", 1)):
        made.get_submodule(name).requires_grad_(name == "")
        seen.clear()
        made(maps(made)).sum().backward()
        assert len(seen) == wanted, name


@pytest.mark.parametrize("layer", ["bn1", "bn3", "downsample.1"])
def test_a_norm_in_eval_mode(layer: str, calls: list[Tensor]) -> None:
    made = block(shortcut=2)
    made.get_submodule(layer).eval()
    assert_same_step(made, maps(made))
    assert len(calls) == 1


@pytest.mark.parametrize("kind", ["basic", "bottleneck", "linear"])
def test_dy_is_not_overwritten(kind: str, calls: list[Tensor]) -> None:
    """dy belongs to the caller, also where it is the residual's gradient as it is, and may have any strides."""
    if kind == "linear":
        made = timm.models.resnet.Bottleneck(32, 8)
        made.act3 = nn.Identity()
        se_fused.convert(made)
    else:
        made = block(kind)
    x = maps(made).requires_grad_()
    y = made(x)
    for dy in (torch.randn_like(y), torch.randn(y.shape), torch.randn(1, y.shape[1], 1, 1).expand_as(y)):
        kept = dy.clone()
        first = torch.autograd.grad(y, x, dy, retain_graph=True)[0]
        assert torch.equal(dy, kept)
        assert torch.equal(torch.autograd.grad(y, x, dy, retain_graph=True)[0], first)
    assert len(calls) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_low_precision(dtype: torch.dtype, calls: list[Tensor]) -> None:
    """A block in 16 bits has at most 1.5 times the modules' error."""
    made = block(shortcut=2)
    x = maps(made, n=8, dtype=dtype)
    truth = by_modules(copy.deepcopy(made.to(dtype)).double(), x.double())
    ours, theirs = step(made, x), by_modules(made, x)
    assert len(calls) == 1
    for key, value in ours.items():
        if value.is_floating_point():
            assert value.dtype == dtype
            error, other = ((t.double() - truth[key]).norm() for t in (value, theirs[key]))
            assert error <= 1.5 * other + torch.finfo(dtype).eps * truth[key].norm(), key


def test_autocast(calls: list[Tensor]) -> None:
    """Weights are cast to x's dtype, their gradients keep the parameters' dtype."""
    made = block(shortcut=2)
    x = maps(made, n=8, dtype=torch.bfloat16)
    truth = by_modules(copy.deepcopy(made).double(), x.double())
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = step(made, x), by_modules(made, x)
    assert len(calls) == 1
    for key, value in ours.items():
        assert value.dtype == theirs[key].dtype, key
        if value.is_floating_point():
            error, other = ((t.double() - truth[key]).norm() for t in (value, theirs[key]))
            assert error <= 1.5 * other + torch.finfo(torch.bfloat16).eps * truth[key].norm(), key


def test_autocast_of_a_float32_map_calls_the_modules(calls: list[Tensor]) -> None:
    made = block()
    with torch.autocast("cpu", torch.bfloat16):
        made(maps(made))
    assert not calls


def test_checkpointing(calls: list[Tensor]) -> None:
    made = block(shortcut=2)
    x = maps(made).requires_grad_()
    plain = copy.deepcopy(made)
    checkpoint(made, x, use_reentrant=False).sum().backward()
    plain(x).sum().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(made.parameters(), plain.parameters(), strict=True))
    assert made.bn1.num_batches_tracked == 2  # recomputation counts the batch again, as modules do
    assert len(calls) == 2  # and ends by an exception as soon as it has what it needs


def test_hooks_on_parameters(calls: list[Tensor]) -> None:
    """Hooks on gradients run once for each parameter, which DDP relies on."""
    made, seen = block(shortcut=2), []
    for name, p in made.named_parameters():
        p.register_post_accumulate_grad_hook(lambda p, name=name: seen.append(name))
    made(maps(made)).sum().backward()
    assert sorted(seen) == sorted(name for name, _ in made.named_parameters()) and len(calls) == 1


def test_saved_tensors_pass_through_hooks(calls: list[Tensor]) -> None:
    packed = []
    made = block()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        made(maps(made).requires_grad_()).sum().backward()
    assert any(t.shape == (3, 32, 6, 6) for t in packed) and len(calls) == 1


def test_changed_parameters_are_noticed() -> None:
    made = block()
    y = made(maps(made))
    with torch.no_grad():
        made.conv2.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_running_statistics_have_a_new_version() -> None:
    made = block()
    before = made.bn2.running_mean._version
    made(maps(made))
    assert made.bn2.running_mean._version > before


@pytest.mark.parametrize("affine", [True, False])
def test_second_derivatives_are_refused(affine: bool) -> None:
    made = block()
    made.requires_grad_(affine)
    x = maps(made).requires_grad_()
    (dx,) = torch.autograd.grad(made(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        dx.square().sum().backward()


def test_what_is_kept_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more bytes than by the modules."""

    def kept() -> int:
        storages = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: storages.setdefault(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) and t,
            lambda t: t,
        ):
            y = made(x)
        assert y.requires_grad
        return sum(storages.values())

    made = block(shortcut=2)
    x = maps(made, n=16, size=16).requires_grad_()
    ours = kept()
    modules_only(monkeypatch)
    assert ours <= 1.001 * kept()


# ---- the gradient of x
@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("shortcut", [None, 1, 2])
def test_gradients_are_added_by_the_product(shortcut, channels_last, monkeypatch) -> None:
    """Where the first convolution is a product, its input gradient is added by it; the sum is that of two steps."""
    made = block(shortcut=shortcut)
    x = maps(made, channels_last=channels_last)
    sums = []
    addmm = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *a, **k: sums.append(1) or addmm(*a, **k))
    ours = step(made, x)
    assert len(sums) == channels_last
    monkeypatch.setattr(residual_block, "adds_by_product", lambda *_: False)
    theirs = step(made, x)
    assert len(sums) == channels_last
    torch.testing.assert_close(ours["x"], theirs["x"], rtol=1e-5, atol=1e-5)


def test_products_need_the_precision_of_convolutions(monkeypatch) -> None:
    """In float32 on a GPU, a product without TF32 is slower than the convolution with it."""

    class Cuda:
        device, dtype = torch.device("cuda"), torch.float32

    made = block()
    conv = residual_block.ResidualBlockParams(
        block_plan.plan_of(made, type(made).modules_of_block).settings, [made.conv1.weight] + [None] * 21
    ).conv(0)
    monkeypatch.setattr(residual_block, "is_channels_last", lambda t: True)
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = products.fp32_precision, convolutions.fp32_precision
    try:
        for one in ("tf32", "ieee"):
            for other in ("tf32", "ieee"):
                products.fp32_precision, convolutions.fp32_precision = one, other
                assert residual_block.adds_by_product(conv, Cuda()) == (one == other)
                Cuda.dtype = torch.bfloat16
                assert residual_block.adds_by_product(conv, Cuda())
                Cuda.dtype = torch.float32
    finally:
        products.fp32_precision, convolutions.fp32_precision = before


# ---- blocks whose modules must be called
def hooked(part: str):
    return lambda made: made.get_submodule(part).register_forward_hook(lambda *_: None)


def replaced(part: str, module: nn.Module):
    def change(made: nn.Module) -> None:
        parent, _, name = part.rpartition(".")
        setattr(made.get_submodule(parent), name, module)

    return change


def overridden(made: nn.Module) -> None:
    made.conv2.forward = lambda x: nn.Conv2d.forward(made.conv2, x)


CHANGES = {
    "forward-hook": hooked("conv2"),
    "hook-in-se": hooked("se.fc1"),
    "hook-on-se": hooked("se"),
    "hook-in-shortcut": hooked("downsample.1"),
    "hook-on-shortcut": hooked("downsample"),
    "pre-hook": lambda made: made.bn1.register_forward_pre_hook(lambda *_: None),
    "backward-hook": lambda made: made.conv1.register_full_backward_hook(lambda *_: None),
    "forward": overridden,
    "parametrized": lambda made: nn.utils.parametrizations.weight_norm(made.conv2),
    "norm": replaced("bn2", nn.GroupNorm(2, 8)),
    "padding-mode": lambda made: setattr(made.conv2, "padding_mode", "circular"),
    "untracked": replaced("bn2", nn.BatchNorm2d(8, track_running_stats=False)),
    "cumulative": lambda made: setattr(made.bn2, "momentum", None),
    "shortcut": replaced("downsample", nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32))),
    "double": lambda made: made.bn2.double(),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("change", CHANGES)
def test_modules_are_called(change: str, when: str, calls: list[Tensor]) -> None:
    """A changed part before the first call or after it."""
    made = block(shortcut=2)
    if when == "after":
        made(maps(made))
        assert len(calls) == 1
        calls.clear()
    CHANGES[change](made)
    made(maps(made))
    assert not calls


@pytest.mark.parametrize(
    "change",
    [
        lambda made: setattr(made.conv2, "dilation", (2, 2)) or setattr(made.conv2, "padding", (2, 2)),
        lambda made: setattr(made.bn3, "eps", 0.5),
        lambda made: setattr(made.bn3, "momentum", 0.5),
        lambda made: setattr(made.se, "act", "silu"),
        lambda made: setattr(made.se, "gate", "hard_sigmoid"),
        lambda made: made.se.fc1.__setattr__("weight", nn.Parameter(torch.randn(4, 32, 1, 1))),
        lambda made: setattr(made, "conv3", nn.Conv2d(8, 32, 1)),
        lambda made: setattr(made, "se", None),
        lambda made: setattr(made, "se", SqueezeExcite(32, rd_channels=6, act_layer="silu")),
        lambda made: setattr(made, "drop_path", DropPath(0.5)),
        lambda made: made.bn1.eval(),
        lambda made: made.bn1.register_parameter("bias", None),
        lambda made: made.double().float(),
        lambda made: made.to(memory_format=torch.channels_last),
        lambda made: made.load_state_dict({k: v + 1 for k, v in made.state_dict().items()}, assign=True),
    ],
)  # fmt: skip
def test_changes_are_seen(change, calls: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """A block whose parts or settings changed after its first call is computed in one call, with the change."""
    made = block(shortcut=2)
    made(maps(made))
    change(made)
    twin, truth = copy.deepcopy(made), copy.deepcopy(made).double()
    results = []
    for each in (made, twin, truth):
        if each is twin:
            modules_only(monkeypatch)
        torch.manual_seed(0)
        y = each(maps(each).to(each.conv1.weight.dtype))
        y.square().sum().backward()
        results.append([y, *(p.grad for p in each.parameters()), *(b for b in each.buffers() if b.is_floating_point())])
    assert len(calls) == 2
    for ours, theirs, exact in zip(*results, strict=True):
        assert_as_close(ours, theirs, exact)


def test_hooks_are_seen_until_they_are_removed(calls: list[Tensor]) -> None:
    made = block()
    seen = []
    handle = made.conv2.register_forward_hook(lambda *_: seen.append(1))
    made(maps(made))
    handle.remove()
    made(maps(made))
    assert len(seen) == len(calls) == 1


def test_global_hooks_see_all_modules(calls: list[Tensor]) -> None:
    made, seen = block(), []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m)))
    try:
        made(maps(made))
    finally:
        handle.remove()
    assert seen.count(nn.Conv2d) == 3 and not calls


def test_modes_see_all_operations(calls: list[Tensor]) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    made = block()
    with FlopCounterMode(display=False) as counter:
        made(maps(made))
    assert counter.get_total_flops() > 0 and not calls


def test_a_subclass_of_tensor_calls_the_modules(calls: list[Tensor]) -> None:
    class Mine(Tensor):
        pass

    made = block()
    assert type(made(maps(made).as_subclass(Mine))) is Mine and not calls


@pytest.mark.filterwarnings("ignore:se_fused has no kernel")
def test_transforms_call_the_modules(calls: list[Tensor]) -> None:
    made = block().eval()
    torch.func.grad(lambda x: made(x).sum())(maps(made))
    assert not calls


def test_requested_plain_pytorch(calls: list[Tensor]) -> None:
    made = block()
    with backends.use_backend("reference"):
        made(maps(made))
    made.double()(maps(made).double())
    assert not calls


def test_sync_batch_norm(calls: list[Tensor]) -> None:
    made = nn.SyncBatchNorm.convert_sync_batchnorm(block())
    assert not dist.is_initialized()
    made.eval()(maps(made))
    assert not calls


def test_a_changed_layer_of_another_library(calls: list[Tensor]) -> None:
    """A setting that decides whether a kernel has the layer is compared too."""
    made = se_fused.convert(timm.models.resnet.Bottleneck(32, 8, attn_layer="se"))
    made(maps(made))
    assert len(calls) == 1
    made.se.add_maxpool = True
    made(maps(made))
    assert len(calls) == 1


# ---- plans
def test_copies_and_pickles_are_read_anew(calls: list[Tensor]) -> None:
    made = block(shortcut=2)
    made(maps(made))
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        with torch.no_grad():
            twin.conv2.weight.zero_()
            assert not torch.equal(twin(maps(made)), made(maps(made)))
    assert "plan" not in " ".join(made.__dict__)


def test_plans_end_with_their_blocks() -> None:
    before = len(block_plan._plans)
    made = block()
    made(maps(made))
    made.eval()(maps(made))
    assert len(block_plan._plans) == before + 2
    del made
    assert len(block_plan._plans) == before


def test_a_block_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, reads = block(), []
    reader = block_plan._Reader
    monkeypatch.setattr(block_plan, "_Reader", lambda *a: reads.append(1) or reader(*a))
    for _ in range(2):
        made.train()(maps(made))
        made.eval()(maps(made))
    assert len(reads) == 2
    hooked("conv1")(made)
    for _ in range(2):
        made(maps(made))
    assert len(reads) == 3, "a block that must call its modules is read again in each call"


# ---- errors
@pytest.mark.filterwarnings("ignore:se_fused has no kernel")
def test_errors_are_those_of_the_modules() -> None:
    made = block()
    wrong = (
        maps(made)[:, :5],
        maps(made)[:1, :, :1, :1],
        maps(made)[0],
        maps(made).half(),
        torch.ones(2, 32, 6, 6).int(),
    )
    for x in wrong:
        with pytest.raises((RuntimeError, ValueError, TypeError)) as ours:
            made(x)
        with pytest.MonkeyPatch.context() as patch:
            modules_only(patch)
            with pytest.raises((RuntimeError, ValueError, TypeError)) as theirs:
                made(x)
        assert str(ours.value) == str(theirs.value)


def test_a_shape_that_does_not_fit_the_shortcut() -> None:
    made = block()
    made.conv2.stride = (2, 2)
    with pytest.raises(ValueError, match="residual must have x's shape"):
        made(maps(made))


def test_an_error_of_pytorch_keeps_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stable ABI has RuntimeError alone; the steps one by one raise the error itself, and change no statistics."""
    made = block()

    def fails(*_):
        raise RuntimeError("API call failed")

    def full(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(backends.BACKENDS["cpu"], "residual_block_forward", fails)
    before = made.bn1.running_mean.clone()
    with pytest.raises(RuntimeError, match="API call failed"):
        made(maps(made))
    assert torch.equal(made.bn1.running_mean, before)
    monkeypatch.setattr(torch, "convolution", full)
    with pytest.raises(torch.OutOfMemoryError):
        made(maps(made))


def test_training_without_gradients(calls: list[Tensor]) -> None:
    """Running statistics are updated, and nothing is kept."""
    made = block(shortcut=2)
    twin, x = copy.deepcopy(made), maps(made)
    with torch.no_grad():
        y = made(x)
        with pytest.MonkeyPatch.context() as patch:
            modules_only(patch)
            torch.testing.assert_close(y, twin(x))
    assert not y.requires_grad and len(calls) == 1
    for ours, theirs in zip(made.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_maps_with_one_position_call_the_modules(calls: list[Tensor]) -> None:
    """There the excitation may be faster in plain PyTorch, which the function for the block's end decides."""
    for se in (True, False):
        made = block(shortcut=2, se=se)
        made(maps(made, size=2))
    assert len(calls) == 1


def test_empty_batches(calls: list[Tensor]) -> None:
    made = block().eval()
    assert made(maps(made)[:0]).shape == (0, 32, 6, 6) and not calls
