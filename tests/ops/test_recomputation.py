"""Under gradient checkpointing, running statistics are updated as often as in plain PyTorch, to the same values."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from support.convert import build, images
from support.modules import one_thread  # noqa: F401 (a fixture)
from support.recomputation import FUNCTIONS, KINDS, assert_same_statistics, checkpointed, stopping, take_steps, trio
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import se_fused
from se_fused import backends

pytestmark = pytest.mark.quick

BACKENDS = [name for name in ("cpu", "triton") if backends.BACKENDS[name].can_use("cpu", torch.float32) is None]
SHAPE = (3, 3, 5, 4)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("momentum", [0.1, None], ids=["momentum", "cumulative"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_statistics_move_as_in_pytorch(name: str, momentum: float | None, kind: str, backend: str) -> None:
    modules = trio(name, momentum)
    with se_fused.use_backend(backend):
        take_steps(modules, lambda m, x: checkpointed(kind, m, x), SHAPE)
    assert modules[0].bn.num_batches_tracked == 4
    assert_same_statistics(*modules)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_statistics_with_strides(name: str, backend: str) -> None:
    """Kernels update contiguous statistics; PyTorch updates others at the same point of the forward pass."""
    modules = trio(name, 0.1)
    bn = modules[0].bn
    for key in ("running_mean", "running_var"):
        setattr(bn, key, getattr(bn, key).repeat_interleave(2)[::2])
    assert not bn.running_mean.is_contiguous()
    with se_fused.use_backend(backend):
        take_steps(modules, lambda m, x: checkpointed("early-stop", m, x), SHAPE)
    assert_same_statistics(*modules)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_statistics_where_a_dispatch_mode_looks_on(name: str, kind: str, backend: str) -> None:
    """Under a dispatch mode the operators mutate nothing, and PyTorch updates the statistics at the same point."""

    modules = trio(name, 0.1)
    with se_fused.use_backend(backend), FlopCounterMode(display=False):
        take_steps(modules, lambda m, x: checkpointed(kind, m, x), SHAPE)
    assert_same_statistics(*modules)


@pytest.mark.grid(quick=0)
@pytest.mark.parametrize("outside", [False, True], ids=["compiled-around", "compiled-within"])
@pytest.mark.parametrize(("name", "kind"), [*zip(FUNCTIONS, KINDS, strict=True), (FUNCTIONS[0], "early-stop")])
def test_statistics_of_compiled_modules(name: str, kind: str, outside: bool) -> None:
    """A graph around the checkpoint updates statistics once per step, a recomputed graph twice, as PyTorch's does."""

    class Checkpointed(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: torch.Tensor) -> Any:
            return checkpoint(self.module, x, use_reentrant=kind == "reentrant")

    torch._dynamo.reset()
    modules = trio(name, 0.1)
    graphs = {m: torch.compile(m if outside else Checkpointed(m), backend="aot_eager") for m in modules}
    with stopping(kind):
        take_steps(modules, lambda m, x: checkpointed(kind, graphs[m], x) if outside else graphs[m](x), SHAPE)
    assert modules[0].bn.num_batches_tracked == (4 if outside else 2)
    assert_same_statistics(*modules)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_hook_that_raises_leaves_a_whole_step(name: str, backend: str) -> None:
    """If a hook stops the forward pass at the first saved tensor, count and statistics are both of the new batch."""

    def refuse(t: torch.Tensor) -> torch.Tensor:
        raise InterruptedError

    modules = trio(name, 0.1)
    x = torch.randn(SHAPE)
    with se_fused.use_backend(backend):
        ours = modules[0].bn
        versions = ours.running_mean._version, ours.running_var._version
        modules[0].conv.requires_grad_(False)  # so that nothing is saved before batch norm
        with torch.autograd.graph.saved_tensors_hooks(refuse, lambda t: t), pytest.raises(InterruptedError):
            modules[0](x)
        assert ours.running_mean._version > versions[0] and ours.running_var._version > versions[1]
    with torch.no_grad():
        modules[1](x), modules[2](x.double())
    assert_same_statistics(*modules)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    before = timm.layers.use_reentrant_ckpt()
    timm.layers.set_reentrant_ckpt(request.param == "reentrant")
    with stopping(request.param):
        yield request.param
    timm.layers.set_reentrant_ckpt(before)


@pytest.mark.grid(quick=0)
@pytest.mark.parametrize("momentum", [0.1, None], ids=["momentum", "cumulative"])
@pytest.mark.parametrize("name", ["timm-seresnet18", "timm-mobilenetv3_small_050", "timm-regnety_002"])
def test_converted_models(name: str, momentum: float | None, kind: str) -> None:
    theirs = build(name)
    theirs.set_grad_checkpointing(True)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    ours, truth = se_fused.convert(copy.deepcopy(theirs)), copy.deepcopy(theirs).double()
    take_steps((ours, theirs, truth), lambda m, x: m(x), images(name).shape)
    assert_same_statistics(ours, theirs, truth)
