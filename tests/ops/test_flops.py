"""Tests of ``torch.utils.flop_counter``, which counts converted models like plain ones, and of dispatch modes."""

import copy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.convert import build, images
from support.modules import one_thread  # noqa: F401 (a fixture)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import se_fused
from se_fused import backends, functional
from se_fused.ops import flops

BACKENDS = [name for name in ("cpu", "triton") if backends.BACKENDS[name].can_use("cpu", torch.float32) is None]
MODELS = ["timm-resnet18", "timm-seresnet18", "timm-efficientnet_b0", "timm-mobilenetv3_small_050", "timm-regnety_002",
          "timm-ecaresnet26t", "timm-seresnext26d_32x4d", "torchvision-mobilenet_v3_small"]  # fmt: skip


def counted(model: Callable[[Tensor], Tensor], x: Tensor, backward: bool = False) -> int:
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        y = model(x)
        if backward:
            y.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", MODELS)
def test_converted_models_count_as_plain_ones(name: str, training: bool) -> None:
    plain = build(name).train(training)
    ours = se_fused.convert(copy.deepcopy(plain))
    x = images(name).requires_grad_()
    for backward in (False, True):
        found, wanted = counted(ours, x, backward), counted(plain, x, backward)
        assert found == wanted > 0


@pytest.mark.parametrize("name", MODELS)
def test_optimised_models_count_as_plain_ones(name: str) -> None:
    plain, x = build(name).eval(), images(name)
    found, wanted = counted(se_fused.optimize_for_inference(plain, x), x), counted(plain, x)
    assert found == wanted > 0


@pytest.mark.parametrize("ours", [se_fused.SEResNet50, se_fused.SEResNet18])
def test_own_models_count_as_plain_pytorch(ours: Any) -> None:
    model, x = ours(num_classes=5), images("timm-seresnet18").requires_grad_()
    with se_fused.use_backend("reference"):
        wanted = counted(model, x), counted(model, x, backward=True)
    assert (counted(model, x), counted(model, x, backward=True)) == wanted
    x = x.detach()
    found = counted(se_fused.optimize_for_inference(model.eval(), x), x)
    assert found == wanted[0]


# ---- each function. N, C, K, R are different primes, so that no two products of them are equal
N, C, K, R = 2, 5, 7, 3


def _leaf(*shape: int) -> Tensor:
    return torch.randn(shape).requires_grad_()


BN = (torch.zeros(C), torch.ones(C), _leaf(C), _leaf(C))
SE = (_leaf(R, C), _leaf(R), _leaf(C, R, 1, 1), None)
WEIGHT = torch.ones(C, K)
PREPARED = dict(folded=functional.fold_squeeze(WEIGHT, None, SE[0].detach(), None))  # else folding is counted too
INFERENCE: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "conv1x1_squeeze_excite": lambda x, h: functional.conv1x1_squeeze_excite(h, WEIGHT, None, *SE, x, **PREPARED),
    "packed": lambda x, h: functional.conv1x1_squeeze_excite(
        h, WEIGHT, None, *SE, packed=functional.pack_conv1x1(WEIGHT), **PREPARED
    ),
    "gated_conv1x1": lambda x, h: functional.gated_conv1x1(h, torch.ones(N, K), WEIGHT),
    "gated_conv1x1-bias": lambda x, h: functional.gated_conv1x1(h, torch.ones(N, K), WEIGHT, torch.ones(C)),
}
BOTH: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "squeeze_excite": lambda x, h: functional.squeeze_excite(x, *SE, out_act="relu"),
    "batch_norm_squeeze_excite": lambda x, h: functional.batch_norm_squeeze_excite(x, *BN, *SE, training=True),
    "batch_norm_act": lambda x, h: functional.batch_norm_act(x, *BN, x, training=True),
    "batch_norm_act_squeeze": lambda x, h: functional.batch_norm_act_squeeze(x, *BN, training=True)[1],
    "channel_gate": lambda x, h: functional.channel_gate(x, lambda m: torch.sigmoid(m @ SE[0].T @ SE[0])),
    **INFERENCE,
}


def arguments(layout: str) -> tuple[Tensor, Tensor]:
    order = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x, h = (torch.randn(N, c, 4, 3).contiguous(memory_format=order).requires_grad_() for c in (C, K))
    return x, h


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", BOTH)
def test_functions_count_as_plain_pytorch(name: str, backend: str, layout: str) -> None:
    x, h = arguments(layout)

    def count(backward: bool) -> int:
        return counted(lambda x: BOTH[name](x, h), x, backward)

    with se_fused.use_backend("reference"):
        wanted = count(False), count(True)
    with se_fused.use_backend(backend):
        assert (count(False), count(True)) == wanted
    assert (wanted[0] > 0) == (name not in ("batch_norm_act", "batch_norm_act_squeeze"))


# ---- dispatch modes
class Seen(TorchDispatchMode):
    """Records the names of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


OURS = {
    "squeeze_excite": ["batch_norm_squeeze_excite_forward", "batch_norm_squeeze_excite_backward"],
    "batch_norm_squeeze_excite": ["batch_norm_squeeze_excite_forward", "batch_norm_squeeze_excite_backward"],
    "batch_norm_act": ["batch_norm_squeeze_excite_forward", "batch_norm_squeeze_excite_backward"],
    "batch_norm_act_squeeze": ["batch_norm_act_squeeze", "batch_norm_act_squeeze_backward"],
    "channel_gate": ["squeeze", "rescale", "rescale_backward", "squeeze_backward"],
    "conv1x1_squeeze_excite": ["conv1x1_squeeze_excite"],
    "packed": ["conv1x1_squeeze_excite"],
    "gated_conv1x1": ["gated_conv1x1"],
    "gated_conv1x1-bias": ["gated_conv1x1"],
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", BOTH)
def test_a_mode_sees_operators_and_changes_nothing(name: str, backend: str) -> None:
    """A dispatch mode changes no number, gradient or statistic, and operator names do not depend on the backend."""
    x, h = arguments("channels_last")

    def run() -> list[Tensor]:
        BN[0].zero_()
        y = BOTH[name](x, h)
        gradients = () if name in INFERENCE else torch.autograd.grad(y.square().sum(), [x])
        return [y, *gradients, BN[0].clone()]

    with se_fused.use_backend(backend), torch.set_grad_enabled(name not in INFERENCE):
        wanted = run()
        with Seen() as mode:
            found = run()
    assert [n.split(".")[1] for n in mode.names if n.startswith("se_fused")] == OURS[name]
    assert not [n for n in mode.names if n.startswith("se_fused_")], "kernels of a backend"
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs) and ours.stride() == theirs.stride()


@pytest.mark.quick
@pytest.mark.parametrize("name", ["squeeze_excite", "batch_norm_act"])
def test_a_mode_sees_operators_in_inference(name: str) -> None:
    """In eager mode, such a call has a shorter way to the kernels than the operator."""
    x, _ = arguments("channels_last")
    call = {
        "squeeze_excite": lambda: functional.squeeze_excite(x, *SE),
        "batch_norm_act": lambda: functional.batch_norm_act(x, *BN, training=False),
    }[name]
    with se_fused.use_backend("cpu"), torch.no_grad(), Seen() as mode:
        call()
    assert [n.split(".")[1] for n in mode.names if n.startswith("se_fused")] == OURS[name][:1]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", BOTH)
def test_fake_tensors(name: str, layout: str) -> None:
    x, h = arguments(layout)
    with torch.set_grad_enabled(name not in INFERENCE):
        wanted = BOTH[name](x, h)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = [mode.from_tensor(t) for t in (x, h)]
            y = BOTH[name](*fake)
            if name not in INFERENCE:
                y.sum().backward()
                assert fake[0].grad is not None and fake[0].grad.shape == x.shape
    assert y.shape == wanted.shape and y.dtype == wanted.dtype and y.stride() == wanted.stride()


@pytest.mark.parametrize("name", BOTH)
def test_operators_do_not_call_themselves(name: str) -> None:
    """Operators run their kernels if a mode is on the stack while dispatch to it is off."""
    with torch.no_grad(), Seen() as mode, torch._C._DisableTorchDispatch():
        BOTH[name](*arguments("channels_last"))
    assert not mode.names


# ---- registration
@pytest.mark.parametrize("first", ["torch.utils.flop_counter", "se_fused"])
def test_order_of_imports(first: str) -> None:
    """Formulas are registered in either order of imports; se_fused does not import the counter: it imports Triton."""
    code = f"""
import sys, {first}
assert {first == "se_fused"} == ("torch.utils.flop_counter" not in sys.modules)
import se_fused, torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from se_fused.ops.flops import FORMULAS
for namespace, name in FORMULAS:
    assert getattr(getattr(torch.ops, namespace), name) in flop_registry, name
assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("se_fused")]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_formula_of_pytorchs_own_stays() -> None:
    packet = torch.ops.mkldnn._convolution_pointwise
    theirs = flop_registry[packet]
    flops.register()  # must not register a second formula, which PyTorch refuses
    assert flop_registry[packet] is theirs
