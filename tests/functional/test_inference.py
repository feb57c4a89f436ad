"""Tests of inference: the first pass computes means only, results are stored in whole lines, and y may overwrite x."""

import pytest
import torch
from torch import Tensor

import se_fused
from se_fused import backends, functional
from se_fused._formats import DTYPES, LAYOUTS
from se_fused._params import BatchNormParams, BlockOptions, ExcitationParams
from se_fused.activations import OUT_ACTIVATIONS
from se_fused.nn import is_own
from se_fused.testing.verify import to_layout

pytestmark = pytest.mark.quick

CPU = backends.BACKENDS["cpu"]
# Rows of 4, 16, 25, 49 and 9 positions; channels below, at and not a multiple of a vector step. The last shape exceeds
# the caches (10 MB).
SHAPES = [(1, 5, 2, 2), (3, 16, 4, 4), (2, 24, 5, 5), (3, 40, 7, 7), (2, 33, 3, 3), (2, 19, 1, 1), (8, 300, 33, 33)]
SHAPE_IDS = ["x".join(map(str, shape)) for shape in SHAPES]


def parameters(n: int, c: int, r: int = 4) -> tuple[Tensor, ...]:
    """running_mean, running_var, bn_weight, bn_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, drop_path_scale"""
    return (
        torch.randn(c), torch.rand(c) + 0.5, torch.randn(c), torch.randn(c),
        torch.randn(r, c), torch.randn(r), torch.randn(c, r), torch.randn(c), torch.rand(n),
    )  # fmt: skip


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
@pytest.mark.parametrize("with_residual", [True, False], ids=["residual", "alone"])
def test_inference_gives_the_bits_of_training(
    shape: tuple[int, ...], dtype: torch.dtype, layout: str, with_residual: bool
) -> None:
    """Inference without saving gives the same bits as the forward pass that saves, which uses other kernels.

    Those are tested against their definition elsewhere.
    """
    x = to_layout(torch.randn(shape).to(dtype), layout)
    residual = to_layout(torch.randn(shape).to(dtype), layout) if with_residual else None
    mean, var, gamma, beta, w1, b1, w2, b2, drop = parameters(*shape[:2])
    bn, fc = BatchNormParams(mean, var, gamma, beta, False, 0.1, 1e-5), ExcitationParams(w1, b1, w2, b2)
    for out_act in OUT_ACTIVATIONS:
        before, options = x.clone(), BlockOptions(residual, drop, out_act)
        wanted = CPU.batch_norm_squeeze_excite_forward(x, bn, fc, options, True).y
        y, *absent = CPU.batch_norm_squeeze_excite_forward(x, bn, fc, options, False)
        assert torch.equal(y, wanted) and torch.equal(x, before)
        assert all(t.numel() == 0 for t in absent)
        over = x.clone()
        for into in (torch.empty_like(x), over):
            CPU.batch_norm_squeeze_excite_inference(over, bn, fc, options, into)
            assert torch.equal(into, wanted)


def call(op: str, x: Tensor, inplace: bool, training: bool = False) -> Tensor:
    mean, var, gamma, beta, w1, b1, w2, b2, _ = parameters(*x.shape[:2])
    if op == "squeeze_excite":
        return functional.squeeze_excite(x, w1, b1, w2, b2, inplace=inplace)
    if op == "batch_norm_act":
        return functional.batch_norm_act(x, mean, var, gamma, beta, training=training, inplace=inplace)
    return functional.batch_norm_squeeze_excite(
        x, mean, var, gamma, beta, w1, b1, w2, b2, training=training, inplace=inplace
    )


@pytest.mark.parametrize("op", ["squeeze_excite", "batch_norm_act", "batch_norm_squeeze_excite"])
def test_inplace_is_taken_in_inference_alone(op: str) -> None:
    def fresh(requires_grad: bool = False) -> Tensor:
        torch.manual_seed(1)
        return torch.randn(2, 24, 7, 7).requires_grad_(requires_grad)

    wanted, x = call(op, fresh(), False), fresh()
    y = call(op, x, True)
    assert y is x and torch.equal(y, wanted)
    strided = fresh().transpose(2, 3)  # neither memory order, so x is copied, and only the copy may be overwritten
    before = strided.clone()
    call(op, strided, True)
    assert torch.equal(strided, before)
    for x, training in ((fresh(True), False), (fresh(), True)):
        if training and op == "squeeze_excite":
            continue
        before = x.detach().clone()
        assert call(op, x, True, training) is not x
        assert torch.equal(x, before)
    with backends.use_backend("reference"):
        x = fresh()
        call(op, x, True)
        assert torch.equal(x, fresh())


@pytest.mark.parametrize("where", ["module", "everywhere"])
def test_what_a_hook_has_seen_stays(where: str) -> None:
    """A convolution's output that a hook saved by reference is not overwritten by the block."""
    model = se_fused.SEResNet18(num_classes=3, zero_init_last=False).eval()
    image = torch.randn(2, 3, 64, 64)
    seen: list[tuple[Tensor, Tensor]] = []

    def hook(module: torch.nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, torch.nn.Conv2d):
            seen.append((output, output.clone()))

    with torch.no_grad():
        wanted, before = model(image), image.clone()
        assert torch.equal(image, before)
        if where == "module":
            handle = model.layer2[0].conv2.register_forward_hook(hook)
        else:
            handle = torch.nn.modules.module.register_module_forward_hook(hook)
        try:
            assert torch.equal(model(image), wanted)
        finally:
            handle.remove()
    assert len(seen) == 1 if where == "module" else len(seen) > 19
    assert all(torch.equal(kept, copy) for kept, copy in seen)


def test_is_own_trusts_plain_convolutions_alone() -> None:
    class Passing(torch.nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return x

    assert is_own(torch.nn.Conv2d(4, 4, 1))
    assert not is_own(torch.nn.Identity()) and not is_own(Passing(4, 4, 1))


def test_a_block_whose_convolution_was_removed_leaves_its_input_alone() -> None:
    """A block whose convolution is nn.Identity does not overwrite its input, which is also the shortcut."""
    block = se_fused.models.se_resnet.BasicBlock(8, 8).eval()
    block.conv1 = torch.nn.Identity()
    x = torch.randn(2, 8, 5, 5)
    before = x.clone()
    with torch.no_grad():
        y = block(x)
        with backends.use_backend("reference"):
            wanted = block(before.clone())
    assert torch.equal(x, before)
    torch.testing.assert_close(y, wanted)


@pytest.mark.filterwarnings("ignore:se_fused has no kernel")
def test_torch_func_and_forward_mode() -> None:
    """torch.func and forward mode are right, in plain PyTorch: kernels have no tangents or batching rules."""
    x, tangent = torch.randn(2, 24, 7, 7), torch.randn(2, 24, 7, 7)
    mean, var, gamma, beta, w1, b1, w2, b2, _ = parameters(2, 24)

    def run(t: Tensor) -> Tensor:
        return functional.batch_norm_squeeze_excite(t, mean, var, gamma, beta, w1, b1, w2, b2, training=False)

    with backends.use_backend("reference"):
        _, wanted = torch.func.jvp(run, (x,), (tangent,))
        gradient = torch.func.grad(lambda t: run(t).square().sum())(x)
    assert torch.equal(torch.func.jvp(run, (x,), (tangent,))[1], wanted)
    assert torch.equal(torch.func.grad(lambda t: run(t).square().sum())(x), gradient)
    torch.testing.assert_close(torch.func.vmap(run)(torch.stack([x, tangent]))[0], run(x))
    with torch.autograd.forward_ad.dual_level():
        y = run(torch.autograd.forward_ad.make_dual(x, tangent))
        assert torch.equal(torch.autograd.forward_ad.unpack_dual(y).tangent, wanted)


def test_torch_func_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional.dispatch, "_warned", set())
    with pytest.warns(UserWarning, match=r"runs plain PyTorch \(the kernels support neither torch.func's transforms"):
        w1, w2 = torch.randn(2, 4), torch.randn(4, 2)
        torch.func.vmap(lambda t: functional.squeeze_excite(t, w1, None, w2, None))(torch.randn(2, 1, 4, 3, 3))
