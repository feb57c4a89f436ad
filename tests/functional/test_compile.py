"""Tests of torch.compile, torch.export, and of operators that are called directly."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from se_fused import backends, functional
from se_fused.testing.verify import OPS, Case


def forward_arguments():
    """Arguments of ``batch_norm_squeeze_excite_forward`` for a training step."""
    given = Case("batch_norm_squeeze_excite").draw(0)
    names = (
        "x residual running_mean running_var bn_weight bn_bias fc1_weight fc1_bias fc2_weight fc2_bias drop_path_scale"
    )
    tensors = [given[name] for name in names.split()]
    tensors[2:4] = None, None
    return (*tensors, True, 1e-5, "relu", "sigmoid", "relu", True)


@pytest.mark.quick
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_fullgraph_with_backward(op, layout):
    """A compiled function has no graph break, eager's results and strides, and updates running statistics once."""
    case = Case(op, layout=layout, training="batch_norm" in op)
    counter = CompileCounter()
    compiled = torch.compile(getattr(functional, op), fullgraph=True, backend=counter)
    results = []
    for function in (getattr(functional, op), compiled):
        given = case.draw(0)
        y = function(**given)
        tensors = [v for v in given.values() if isinstance(v, torch.Tensor) and v.requires_grad]
        results.append([y, *torch.autograd.grad(y.sum(), tensors), *(v for k, v in given.items() if "running" in k)])
        assert y.stride() == given["x"].stride()
    assert counter.frame_count == 1
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_batch_norm_and_activation_in_inference_are_left_to_the_compiler():
    """In inference, batch norm and activation stay PyTorch operators, which the compiler fuses into one pass as well.

    The operator is called if there is a gradient, in training, with SE, or if a backend is requested.
    """

    def operators(op, training=False, grad=False):
        torch._dynamo.reset()
        graphs = []

        def keep(graph, _):
            graphs.append(graph)
            return graph

        given = Case(op, training=training).draw(0)
        fresh = [{k: v.clone() if "running" in k else v for k, v in given.items()} for _ in range(2)]
        with torch.set_grad_enabled(grad):
            y = torch.compile(getattr(functional, op), fullgraph=True, backend=keep)(**fresh[0])
            torch.testing.assert_close(y, getattr(functional, op)(**fresh[1]), rtol=1e-5, atol=1e-5)
        return any("se_fused.batch_norm_squeeze_excite" in str(node.target) for node in graphs[0].graph.nodes)

    assert not operators("batch_norm_act")
    assert operators("batch_norm_act", grad=True)
    assert operators("batch_norm_act", training=True)
    assert operators("batch_norm_squeeze_excite")
    with backends.use_backend("cpu"):
        assert operators("batch_norm_act")


def test_inductor_and_dynamic_batch():
    """Inductor's code is right for another batch size without a new graph break, and follows a change of backend."""
    torch._dynamo.reset()
    w1, w2 = torch.randn(3, 6, requires_grad=True), torch.randn(6, 3)

    def block(x):
        return functional.squeeze_excite(x * 2, w1, None, w2, None, x, out_act="relu") + 1

    compiled = torch.compile(block, fullgraph=True, dynamic=True)
    for n in (4, 7):
        x = torch.randn(n, 6, 5, 5)
        torch.testing.assert_close(compiled(x), block(x))
        mine, truth = (torch.autograd.grad(f(x).square().sum(), w1)[0] for f in (compiled, block))
        torch.testing.assert_close(mine, truth)
    with backends.use_backend("reference"):
        torch.testing.assert_close(compiled(x), block(x))


def test_export_keeps_the_operator():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w1, self.w2 = torch.nn.Parameter(torch.randn(3, 6)), torch.nn.Parameter(torch.randn(6, 3))

        def forward(self, x):
            return functional.squeeze_excite(x, self.w1, None, self.w2, None, x, out_act="relu")

    block, x = Block().eval(), torch.randn(2, 6, 4, 4)
    with torch.no_grad():
        program = torch.export.export(block, (x,), dynamic_shapes={"x": {0: torch.export.Dim("n", min=2, max=64)}})
        assert any("se_fused.batch_norm_squeeze_excite_forward" in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(torch.randn(5, 6, 4, 4)).shape, torch.Size((5, 6, 4, 4)))
        torch.testing.assert_close(program.module()(x), block(x))


def test_operator_with_a_gradient_and_without_save_is_an_error():
    arguments = (*forward_arguments()[:-1], False)
    with pytest.raises(RuntimeError, match="save=False"):
        torch.ops.se_fused.batch_norm_squeeze_excite_forward(*arguments)


def test_operator_called_directly_has_gradients():
    arguments = forward_arguments()
    y = torch.ops.se_fused.batch_norm_squeeze_excite_forward(*arguments)[0]
    given = Case("batch_norm_squeeze_excite").draw(0)
    truth = functional.batch_norm_squeeze_excite(**given)
    torch.testing.assert_close(
        torch.autograd.grad(y.sum(), arguments[0])[0], torch.autograd.grad(truth.sum(), given["x"])[0]
    )


def test_activation_checkpointing():
    given = Case("batch_norm_squeeze_excite", drop_path=False).draw(0)
    names = [k for k, v in given.items() if isinstance(v, torch.Tensor) and v.requires_grad]

    def run(*tensors):
        fresh = {k: v.clone() for k, v in given.items() if k.startswith("running")}
        return functional.batch_norm_squeeze_excite(**(given | fresh | dict(zip(names, tensors, strict=True))))

    tensors = [given[k] for k in names]
    plain = torch.autograd.grad(run(*tensors).sum(), tensors)
    again = torch.autograd.grad(torch.utils.checkpoint.checkpoint(run, *tensors, use_reentrant=False).sum(), tensors)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
