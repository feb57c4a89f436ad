"""Tests of training steps under torch.compile: the operators update batch norm's running statistics themselves."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import se_fused
from se_fused import functional
from se_fused._formats import LAYOUTS
from se_fused._params import BatchNormParams
from se_fused.ops.running import update
from se_fused.testing.verify import Case

STEPS = ("batch_norm_squeeze_excite", "batch_norm_act", "batch_norm_act_squeeze")
STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "float32": lambda t: t,
    "float64": Tensor.double,
    "bfloat16": Tensor.bfloat16,
    "strided": lambda t: torch.stack([t, t], 1)[:, 0],
}


def arguments(step: str, seed: int = 0, **statistics: Any) -> dict[str, Any]:
    """Arguments of a training step, with statistics in the form of the name."""
    if step == "batch_norm_act_squeeze":
        given = Case("batch_norm_act", training=True).draw(seed)
        given = {name: given[name] for name in ("x", "running_mean", "running_var", "bn_weight", "bn_bias")}
        given |= {"training": True, "out_act": "silu"}
    else:
        given = Case(step, training=True).draw(seed)
    form = STATISTICS[statistics.get("form", "float32")]
    return given | {name: form(given[name]) for name in ("running_mean", "running_var")}


def outcome(function: Callable[..., Any], given: dict[str, Any]) -> list[Tensor]:
    """The result, all gradients and the statistics afterwards."""
    y = function(**given)
    total = sum(t.float().square().sum() for t in ([y] if isinstance(y, Tensor) else y))
    wanted = [t for t in given.values() if isinstance(t, Tensor) and t.requires_grad]
    found = torch.autograd.grad(total, wanted)
    return [*([y] if isinstance(y, Tensor) else y), *found, given["running_mean"], given["running_var"]]


def assert_close(mine: list[Tensor], truth: list[Tensor]) -> None:
    for a, b in zip(mine, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def operators(graph: torch.fx.GraphModule) -> list[str]:
    """Names of a graph's operators, without overloads."""
    names = (str(node.target) for node in graph.graph.nodes if node.op == "call_function")
    return [name.partition(".default")[0] for name in names if not name.startswith("<")]


@pytest.mark.quick
@pytest.mark.parametrize("step", STEPS)
def test_a_graph_has_one_operator_and_nothing_for_the_statistics(step: str) -> None:
    graphs = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    given = arguments(step)
    torch.compile(getattr(functional, step), fullgraph=True, backend=keep)(**given)
    operator = "batch_norm_act_squeeze" if step.endswith("act_squeeze") else "batch_norm_squeeze_excite"
    assert operators(graphs[0]) == [f"se_fused.{operator}_train"]


@pytest.mark.parametrize("form", STATISTICS)
@pytest.mark.parametrize("step", STEPS)
def test_inductor_updates_the_statistics_once(step: str, form: str) -> None:
    torch._dynamo.reset()
    function = getattr(functional, step)
    compiled = torch.compile(function, fullgraph=True)
    for seed in (0, 1):  # the second call does not trace
        assert_close(*(outcome(f, arguments(step, seed, form=form)) for f in (compiled, function)))


@pytest.mark.parametrize("step", STEPS)
def test_without_gradients(step: str) -> None:
    torch._dynamo.reset()
    function = getattr(functional, step)
    results = []
    for f in (function, torch.compile(function, fullgraph=True)):
        given = arguments(step)
        with torch.no_grad():
            y = f(**given)
        results.append([*([y] if isinstance(y, Tensor) else y), given["running_mean"], given["running_var"]])
    assert_close(*results)


def test_checkpoints_update_the_statistics_once() -> None:
    """The forward pass runs again in the backward pass; its update then is of nobody's statistics."""
    torch._dynamo.reset()

    def step(**given: Any) -> Tensor:
        names = [name for name, value in given.items() if isinstance(value, Tensor) and "running" not in name]

        def run(*tensors: Tensor) -> Tensor:
            return functional.batch_norm_squeeze_excite(**(given | dict(zip(names, tensors, strict=True))))

        return checkpoint(run, *(given[name] for name in names), use_reentrant=False)

    plain, compiled = functional.batch_norm_squeeze_excite, torch.compile(step, fullgraph=True)
    assert_close(*(outcome(f, arguments("batch_norm_squeeze_excite")) for f in (compiled, plain)))


@pytest.mark.parametrize("strict", [False, True])
def test_exported_programs_have_the_functional_operator(strict: bool) -> None:
    """Saved files keep the operators that they were written with, and their statistics are updated after them."""
    block = se_fused.SEResNet18().layer1[0].train()
    x = torch.randn(2, 64, 8, 8)
    program = torch.export.export(block, (x,), strict=strict)
    names = operators(program.graph_module)
    assert names.count("se_fused.batch_norm_squeeze_excite_forward") == 2
    assert not any("train" in name for name in names)
    module = program.module()
    before = {name: t.clone() for name, t in block.named_buffers()}
    module(x)
    exported = dict(module.named_buffers())
    block.load_state_dict(before, strict=False)
    block(x)
    assert not torch.equal(before["bn1.running_mean"], block.bn1.running_mean)
    for name, buffer in block.named_buffers():
        torch.testing.assert_close(exported[name], buffer)


@pytest.mark.quick
def test_the_operator_called_directly() -> None:
    """It computes what the functional operator does, and autograd sees its write."""
    given = Case("batch_norm_squeeze_excite", training=True).draw(0)
    names = "x residual running_mean running_var bn_weight bn_bias fc1_weight fc1_bias fc2_weight fc2_bias"
    tensors = [given[name] for name in names.split()]
    rest = (given["drop_path_scale"], True, 1e-5, "relu", "sigmoid", "relu", True)
    mean, var = tensors[2].clone(), tensors[3].clone()
    truth = torch.ops.se_fused.batch_norm_squeeze_excite_forward(*tensors, *rest)
    found = torch.ops.se_fused.batch_norm_squeeze_excite_train(*tensors[:2], mean, var, *tensors[4:], *rest, 0.1)
    for a, b in zip(found, truth, strict=True):
        assert torch.equal(a, b)
    assert mean._version == var._version == 1
    norm = BatchNormParams(tensors[2], tensors[3], None, None, True, 0.1)
    update(norm, truth[-1], tensors[0])
    torch.testing.assert_close((mean, var), (tensors[2], tensors[3]))
    wanted = [t for t in tensors if t.requires_grad]
    mine, theirs = (torch.autograd.grad(y[0].square().sum(), wanted) for y in (found, truth))
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_a_step_of_a_network() -> None:
    """A compiled step of a network has eager mode's gradients, statistics and counts."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    plain = nn.Sequential(se_fused.SEResNet18().layer1, se_fused.SEResNet18().layer2).train()
    compiled = copy.deepcopy(plain)
    x = torch.randn(4, 64, 8, 8).to(memory_format=torch.channels_last)
    for run in (plain, torch.compile(compiled, fullgraph=True, backend="aot_eager")):
        for _ in range(2):
            run(x).square().mean().backward()
    for (name, a), (_, b) in zip(compiled.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    for (name, a), (_, b) in zip(compiled.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.quick
@pytest.mark.parametrize("x_order, other", [("contiguous", "channels_last"), ("channels_last", "contiguous")])
@pytest.mark.parametrize("out_act", ["relu", "silu"])
def test_maps_in_different_orders(x_order: str, other: str, out_act: str) -> None:
    """A compiler may give the operators each tensor in another order than the traced one."""
    given = Case("batch_norm_squeeze_excite", training=True).draw(0)
    names = "residual running_mean running_var bn_weight bn_bias fc1_weight fc1_bias fc2_weight fc2_bias"
    tensors = [given[name].detach() for name in names.split()]
    x, dy = given["x"].detach(), torch.randn_like(given["x"])
    w1, w2 = tensors[5], tensors[7]

    def step(orders: tuple[str, str, str], transposed: bool) -> list[Tensor]:
        a, b, c = (t.contiguous(memory_format=LAYOUTS[o]) for t, o in zip((x, tensors[0], dy), orders, strict=True))
        layers = [t.t().contiguous().t() if transposed else t for t in (w1, w2)]
        mean, var = tensors[1].clone(), tensors[2].clone()
        rest = (given["drop_path_scale"], True, 1e-5, "relu", "sigmoid", out_act, True, 0.1)
        y, *saved = torch.ops.se_fused.batch_norm_squeeze_excite_train(
            a, b, mean, var, *tensors[3:5], layers[0], tensors[6], layers[1], tensors[8], *rest
        )
        kept = b if out_act == "silu" else None
        found = torch.ops.se_fused.batch_norm_squeeze_excite_backward(
            c, a, kept, *saved, *tensors[3:5], *layers, *rest[:-2], True
        )
        assert y.stride() == found[0].stride() == a.stride()
        return [y, mean, var, *found]

    truth = step((x_order, x_order, x_order), False)
    for a, b in zip(step((x_order, other, other), True), truth, strict=True):
        assert torch.equal(a, b)
