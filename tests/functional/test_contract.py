"""What the public functions do beside the op contract, which tests/backends/test_contract.py checks: memory, threads,
autograd, autocast."""

import gc
import weakref

import pytest
import torch
from support import contract

from se_fused import backends, functional, reference
from se_fused._formats import LAYOUTS
from se_fused.testing.verify import Case, to_layout

pytestmark = pytest.mark.quick


def passes(case, **options):
    contract.passes(case, "cpu", "cpu", **options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("out_act", ["relu", "silu"])
def test_large_results(dtype, layout, out_act):
    """Results above 4 MB, which are stored past the caches, are right."""
    passes(Case("batch_norm_squeeze_excite", (2, 64, 160, 112), dtype, layout, out_act=out_act), seeds=[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_result_does_not_depend_on_threads_or_luck(layout):
    """Results are bit-identical in every run and for any number of threads: no sum is split by thread."""
    case = Case("batch_norm_squeeze_excite", (6, 64, 25, 25), layout=layout, hidden=16)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        given = case.draw(0)
        y = case.call(functional, given)
        tensors = [v for v in given.values() if isinstance(v, torch.Tensor) and v.requires_grad]
        results.append([y, *torch.autograd.grad(y, tensors, torch.ones_like(y)), given["running_var"]])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 6, 5, 5), (4, 6, 5), (2, 6, 3, 4, 5)], ids=str)
def test_memory_format_is_kept_and_nothing_is_copied(shape, layout):
    case = Case("batch_norm_squeeze_excite", shape, layout=layout)
    given = case.draw(0)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = case.call(functional, given)
    assert y.stride() == given["x"].stride()
    assert any(t.data_ptr() == given["x"].data_ptr() for t in kept)  # x itself is saved, not a copy


def test_expanded_maps():
    """Maps whose elements share memory, as x and as the residual."""
    x = torch.randn(1, 12, 8, 10).expand(4, -1, -1, -1).requires_grad_()
    residual = torch.randn(4, 12, 1, 1).expand(4, 12, 8, 10)
    w1, w2 = torch.randn(4, 12), torch.randn(12, 4)
    mine, truth = (m.squeeze_excite(x, w1, None, w2, None, residual, out_act="relu") for m in (functional, reference))
    torch.testing.assert_close(mine, truth)
    dy = torch.randn_like(truth)
    (a,), (b,) = (torch.autograd.grad(y, x, dy) for y in (mine, truth))
    torch.testing.assert_close(a, b)


def test_saved_for_backward_is_x_the_mask_and_vectors():
    """For backward, only x, the mask and vectors are saved (DESIGN section 2.3): no batch norm output or scaled map."""
    n, c, s, r = 4, 32, 28 * 28, 8
    case = Case("batch_norm_squeeze_excite", (n, c, 28, 28), hidden=r)
    given = case.draw(0)
    parameters = {v.data_ptr() for v in given.values() if isinstance(v, torch.Tensor) and v.dim() != 4}
    kept = {}

    def pack(t):
        if t.data_ptr() not in parameters:
            kept[t.data_ptr()] = t.numel() * t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        case.call(functional, given)
    x_bytes, mask_bytes = n * c * s * 4, n * c * s // 8
    vectors = (2 * n * c + n * r + 2 * c) * 4
    assert sum(kept.values()) == x_bytes + mask_bytes + vectors


def test_nothing_outlives_the_backward_pass():
    given = Case("batch_norm_squeeze_excite").draw(0)
    y = functional.batch_norm_squeeze_excite(**given)
    watch = weakref.ref(y.grad_fn)
    y.sum().backward()
    del y
    gc.collect()
    assert watch() is None


def test_second_derivative_is_refused():
    given = Case("batch_norm_squeeze_excite").draw(0)
    y = functional.batch_norm_squeeze_excite(**given)
    (gradient,) = torch.autograd.grad(y.square().sum(), given["x"], create_graph=True)
    with pytest.raises(RuntimeError, match=r"second derivatives.*use_backend\('reference'\)"):
        torch.autograd.grad(gradient.sum(), given["x"])
    with backends.use_backend("reference"):
        y = functional.batch_norm_squeeze_excite(**given)
        (gradient,) = torch.autograd.grad(y.square().sum(), given["x"], create_graph=True)
        torch.autograd.grad(gradient.sum(), given["x"])


def test_float64_goes_through_the_reference():
    given = Case("batch_norm_squeeze_excite", dtype=torch.float64, parameter_dtype=torch.float64).draw(0)
    y = functional.batch_norm_squeeze_excite(**given)
    assert y.dtype == torch.float64
    assert torch.equal(y, reference.batch_norm_squeeze_excite(**given))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast(x_dtype, layout):
    """Under autocast, y has x's dtype, or the promoted one if residual differs, as in eager; parameters are float32."""
    given = Case("batch_norm_squeeze_excite", parameter_dtype=torch.float32, layout=layout, drop_path=False).draw(0)
    given["x"] = given["x"].detach().to(x_dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        mine, truth = (f.batch_norm_squeeze_excite(**given) for f in (functional, reference))
    assert mine.dtype == truth.dtype
    torch.testing.assert_close(mine, truth, rtol=2e-2, atol=5e-2)
    gradients = torch.autograd.grad(mine.float().sum(), [given["x"], given["fc1_weight"], given["residual"]])
    assert [g.dtype for g in gradients] == [x_dtype, torch.float32, torch.float32]


FORMS = {
    "float64": lambda name, t: t.double(),
    "several-dtypes": lambda name, t: t.bfloat16() if name in ("fc1_weight", "bn_bias", "running_var") else t,
    "strides": lambda name, t: t.T.contiguous().T if t.dim() == 2 else t,
}


@pytest.mark.grid(quick=2)
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("form", FORMS)
def test_parameters_in_any_form(form, training):
    """Results with parameters and statistics in float64, in several dtypes, or with strides are those with contiguous
    float32; gradients and statistics have the dtypes that were given."""
    given = Case("batch_norm_squeeze_excite", training=training).draw(0)
    formed = {k: FORMS[form](k, v.detach()) for k, v in given.items() if k.startswith(("running", "bn", "fc"))}
    results = []
    for change in (torch.clone, lambda t: t.float().contiguous().clone()):
        parameters = {k: change(t).requires_grad_(not k.startswith("running")) for k, t in formed.items()}
        with backends.use_backend("cpu"):
            y = functional.batch_norm_squeeze_excite(**(given | parameters))
        y.square().sum().backward()
        results.append({"y": y} | {k: t if t.grad is None else t.grad for k, t in parameters.items()})
    for name, found in results[0].items():
        torch.testing.assert_close(found, results[1][name].to(found.dtype))
        assert name == "y" or found.dtype == formed[name].dtype


def test_conv_shaped_weights_in_any_memory_format():
    x = torch.randn(2, 6, 5, 5)
    w1, w2 = torch.randn(3, 6), torch.randn(6, 3)
    flat = functional.squeeze_excite(x, w1, None, w2, None)
    for form in (torch.contiguous_format, torch.channels_last):
        conv = [w[:, :, None, None].contiguous(memory_format=form).requires_grad_() for w in (w1, w2)]
        y = functional.squeeze_excite(x, conv[0], None, conv[1], None)
        assert torch.equal(y, flat)
        y.sum().backward()
        assert [w.grad.shape for w in conv] == [(3, 6, 1, 1), (6, 3, 1, 1)]


def test_layout_helper_makes_what_it_says():
    assert to_layout(torch.randn(2, 3, 4, 5), "channels_last").is_contiguous(memory_format=torch.channels_last)
