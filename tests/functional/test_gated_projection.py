"""Tests of batch_norm_act_squeeze and gated_conv1x1 against float64: CPU backend, plain PyTorch and Triton."""

from typing import Any

import pytest
import torch
from support.contract import SHAPES, keeps_order
from support.squeeze import DEVICE, Given, double, draw, passes
from torch import Tensor

from se_fused import backends, functional, reference
from se_fused._formats import DTYPES, LAYOUTS
from se_fused.backends import BackendUnavailable
from se_fused.functional import batch_norm_act_squeeze, gated_conv1x1
from se_fused.ops.gated_conv1x1 import scales_weight
from se_fused.testing.error_bounds import EPS, GRADIENT_FLOOR, relative_error, ulp
from se_fused.testing.verify import Case, to_layout

pytestmark = pytest.mark.quick

HAS_TRITON = backends.BACKENDS["triton"].can_use(DEVICE, torch.float32) is None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton does not run on this device")
BACKENDS = ["auto", pytest.param("triton", marks=needs_triton)]

each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


# ---- batch_norm_act_squeeze
OPTIONS: dict[str, Given] = {
    **{
        f"{name}-{mode}": {"out_act": name, "training": mode == "train"}
        for name in reference.OUT_ACTIVATIONS
        for mode in ("train", "eval")
    },
    "no-affine": {"absent": ("bn_weight", "bn_bias"), "out_act": "silu"},
    "no-running-statistics": {"absent": ("running_mean", "running_var"), "out_act": "hard_swish"},
    "large-mean": {"mean": 100.0, "shape": (4, 16, 12, 12), "dtype": torch.float32, "out_act": "silu"},
}


@each_backend
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(options: Given, backend: str) -> None:
    for layout, dtype in zip(LAYOUTS, (torch.float32, torch.bfloat16), strict=True):
        given = {"shape": (4, 24, 5, 3), "dtype": dtype, "layout": layout, "device": DEVICE}
        passes(Case("batch_norm_act", **given | options), backend)


@each_backend
@each_layout
@each_dtype
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes(shape: tuple, dtype: torch.dtype, layout: str, backend: str) -> None:
    passes(Case("batch_norm_act", shape, dtype, layout, DEVICE, out_act="silu"), backend)


@each_layout
@pytest.mark.parametrize("uses", ["y", "squeezed"])
def test_either_result_alone_has_its_gradient(uses: str, layout: str) -> None:
    passes(Case("batch_norm_act", layout=layout, device=DEVICE, out_act="hard_swish"), "auto", uses)


@pytest.mark.skipif(DEVICE == "cuda", reason="compares CPU threads")
@each_layout
def test_threads_and_chunks_change_no_bit(layout: str) -> None:
    """Results are bit-identical for one and two threads, with more positions than a chunk and rows for two threads."""
    given = draw(Case("batch_norm_act", (2, 40, 40, 41), layout=layout, out_act="silu"), 0)
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append(batch_norm_act_squeeze(**given))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
    passes(Case("batch_norm_act", (2, 40, 40, 41), layout=layout, out_act="silu"), "auto", seeds=1)


@each_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_large_results(dtype: torch.dtype, layout: str) -> None:
    """Results above 4 MB, which the CPU stores past its caches, are right."""
    passes(Case("batch_norm_act", (2, 64, 160, 112), dtype, layout, DEVICE, out_act="silu"), "auto", seeds=1)


on_cpu = pytest.mark.skipif(DEVICE == "cuda", reason="tests the CPU library")


@on_cpu
@each_dtype
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("composed", [True, False])
def test_vectors_may_be_views(
    composed: bool, training: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch norm's parameters and statistics may have a step, and sizes of 1 after the channels."""
    if composed:
        monkeypatch.setattr(backends.BACKENDS["cpu"], "batch_norm_act_squeeze", None)
    given = draw(Case("batch_norm_act", out_act="silu", training=training), 0)
    vectors = {k: v.detach().to(dtype) for k, v in given.items() if k.startswith(("running", "bn"))}
    for function in (batch_norm_act_squeeze, functional.batch_norm_act):
        found = []
        for view in (Tensor.clone, lambda t: torch.stack((t, t), 1)[:, 0], lambda t: t.clone()[:, None, None]):
            mine = {k: view(v) for k, v in vectors.items()}
            results = function(**given | mine)
            running = (mine[k].flatten() for k in ("running_mean", "running_var"))
            found.append([results, *running] if isinstance(results, Tensor) else [*results, *running])
        for other in found[1:]:
            torch.testing.assert_close(found[0], other)  # PyTorch updates statistics with a step, and rounds otherwise


@on_cpu
@pytest.mark.parametrize("training", [True, False])
def test_the_cpu_library_runs_it_in_one_call(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def composed(*given: Any) -> None:
        raise AssertionError("composed of passes")

    for name in ("compose_squeeze", "compose_squeeze_backward"):
        monkeypatch.setattr(f"se_fused.ops.batch_norm_act_squeeze.{name}", composed)
    given = draw(Case("batch_norm_act", out_act="silu", training=training), 0)
    y, squeezed = batch_norm_act_squeeze(**given)
    (y.sum() + squeezed.sum()).backward()
    with torch.no_grad():  # nothing is saved
        assert all(torch.equal(*pair) for pair in zip(batch_norm_act_squeeze(**given), (y, squeezed), strict=True))


def test_plain_pytorch_where_no_kernel_can_run() -> None:
    given = double(draw(Case("batch_norm_act", device=DEVICE, out_act="silu"), 0))
    given["running_mean"] = given["running_var"] = None
    names = ("x", "bn_weight", "bn_bias")

    def call(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return batch_norm_act_squeeze(**given | dict(zip(names, tensors, strict=True)))

    assert call(*(given[k] for k in names))[1].dtype == torch.float64
    small = [given[names[0]][:2, :3, :2, :2].detach().requires_grad_(), *(given[k][:3] for k in names[1:])]
    assert torch.autograd.gradcheck(call, small) and torch.autograd.gradgradcheck(call, small)
    given = draw(Case("batch_norm_act", device=DEVICE, out_act="silu", training=False), 0)

    def total(x: Tensor) -> Tensor:
        y, squeezed = batch_norm_act_squeeze(**given | {"x": x})
        return y.sum() + squeezed.sum()

    x = given["x"].detach()
    wanted = torch.autograd.grad(total(given["x"]), given["x"])[0]
    torch.testing.assert_close(torch.func.grad(total)(x), wanted)
    y, squeezed = batch_norm_act_squeeze(**given | {"x": x[:0]})
    assert y.shape == x[:0].shape and squeezed.shape == (0, x.shape[1])


def test_second_derivatives_are_refused() -> None:
    given = draw(Case("batch_norm_act", device=DEVICE, out_act="silu"), 0)
    y, squeezed = batch_norm_act_squeeze(**given)
    (gradient,) = torch.autograd.grad(y.sum() + squeezed.square().sum(), given["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        gradient.sum().backward()


@each_backend
@pytest.mark.parametrize("training", [True, False])
def test_compiles_without_a_break(training: bool, backend: str) -> None:
    given = draw(Case("batch_norm_act", device=DEVICE, out_act="hard_swish", training=training), 0)
    results = []
    with backends.use_backend(backend):
        compiled = torch.compile(batch_norm_act_squeeze, fullgraph=True, backend="aot_eager")
        for call in (compiled, batch_norm_act_squeeze):
            mine = {k: v.clone() if k.startswith("running") else v for k, v in given.items()}
            y, squeezed = call(**mine)
            gradients = torch.autograd.grad(y.sum() + squeezed.square().sum(), [given["x"], given["bn_weight"]])
            results.append((y, squeezed, *gradients, mine["running_mean"], mine["running_var"]))
    graph, eager = results
    assert all(torch.equal(a, b) for a, b in zip(graph[:4], eager[:4], strict=True))
    for a, b in zip(graph[4:], eager[4:], strict=True):  # PyTorch updates them in a graph, and kernels in eager mode
        torch.testing.assert_close(a, b)


def test_autocast_is_eager_modes() -> None:
    given = draw(Case("batch_norm_act", dtype=torch.bfloat16, device=DEVICE, out_act="silu"), 0)
    with torch.autocast(DEVICE, torch.bfloat16):
        mine, eager = (m.batch_norm_act_squeeze(**given) for m in (functional, reference))
    assert [t.dtype for t in mine] == [t.dtype for t in eager] == [torch.bfloat16, torch.float32]


# ---- gated_conv1x1. (N, C, D, spatial): the weights are scaled if D < S, otherwise the map; some have both orders
GATED = {
    "weights": (3, 20, 6, (9, 7)),
    "map": (3, 20, 40, (5, 3)),
    "ones": (1, 1, 1, (1, 1)),
    "C=1": (2, 1, 3, (3, 4)),
    "D=1": (2, 5, 1, (3, 4)),
    "S=1": (5, 12, 16, (1, 1)),
    "tiles": (2, 70, 130, (12, 6)),
    "3-D": (2, 6, 5, (11,)),
    "5-D": (2, 6, 5, (3, 2, 3)),
}


def gated(shape: tuple, dtype: torch.dtype, layout: str, bias: bool = True) -> Given:
    n, c, d, spatial = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*size, generator=generator) * scale).to(DEVICE, dtype)

    return {
        "y": to_layout(normal(n, c, *spatial) + 0.5, layout),
        "gate": torch.rand(n, c, generator=generator).to(DEVICE),
        "weight": normal(d, c, *(1,) * len(spatial), scale=c**-0.5),
        "bias": normal(d) if bias else None,
    }


def excess(given: Given, out: Tensor) -> float:
    """Largest ratio of error to bound: one rounding of each product's factors to the dtype, C float32 additions."""
    wide = {k: None if v is None else v.double() for k, v in given.items()}
    truth = reference.gated_conv1x1(**wide)
    magnitudes = {k: None if v is None else v.abs() for k, v in wide.items()}
    c = given["y"].shape[1]
    tf32 = 2.0**-11 if DEVICE == "cuda" and out.dtype == torch.float32 else 0.0  # cuDNN's default
    terms = (torch.finfo(out.dtype).eps / 2 + 2 * tf32 + EPS * (c**0.5 + 2)) * reference.gated_conv1x1(**magnitudes)
    return ((out.double() - truth).abs() / (terms + 4 * ulp(truth, out.dtype))).max().item()


@pytest.mark.isa
@each_backend
@each_layout
@each_dtype
@pytest.mark.parametrize("shape", GATED.values(), ids=GATED)
def test_gated_convolution(shape: tuple, dtype: torch.dtype, layout: str, backend: str) -> None:
    for bias in (True, False):
        given = gated(shape, dtype, layout, bias)
        with backends.use_backend(backend), torch.no_grad():
            out = gated_conv1x1(**given)
        eager = reference.gated_conv1x1(**given)
        assert excess(given, out) <= 1
        assert out.dtype == dtype and out.stride() == eager.stride()
        assert keeps_order(out, given["y"])


@pytest.mark.isa
@each_layout
@pytest.mark.parametrize("dtype", [*DTYPES.values(), torch.float64], ids=[*DTYPES, "float64"])
@pytest.mark.parametrize("shape", ["weights", "map", "5-D"])
def test_the_gated_convolution_keeps_the_order(shape: str, dtype: torch.dtype, layout: str) -> None:
    """The result has y's memory order on every path and for every order of the weight.

    No CPU convolves volumes in float64 by oneDNN, so that case takes another path.
    """
    given = gated(GATED[shape], dtype, layout)
    memory_format = torch.channels_last if given["y"].dim() == 4 else torch.channels_last_3d
    given["weight"] = given["weight"].to(memory_format=memory_format)
    assert keeps_order(gated_conv1x1(**given), given["y"])
    assert keeps_order(reference.gated_conv1x1(**given), given["y"])
    wanted = given | {"weight": given["weight"].clone().requires_grad_()}
    assert keeps_order(gated_conv1x1(**wanted).detach(), given["y"])
    with torch.autocast(DEVICE, torch.bfloat16), torch.no_grad():
        assert keeps_order(gated_conv1x1(**given), given["y"])


@pytest.mark.parametrize("with_bias", [True, False])
def test_weights_are_scaled_where_that_moves_less(with_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are scaled instead of the map where that reads and writes fewer elements."""
    for c, d, s in ((96, 24, 12544), (1152, 320, 49), (20, 15, 15), (7, 5, 9)):
        weights = 2 * d * c + (2 * d * s if with_bias else 0)
        assert scales_weight(c, d, s, with_bias) == (weights < 2 * c * s)
    cpu = backends.BACKENDS["cpu"]
    scaled_maps = []
    monkeypatch.setattr(cpu, "scale_shift_act", lambda *a, f=cpu.scale_shift_act: (scaled_maps.append(1), f(*a))[1])
    with torch.no_grad(), backends.use_backend("cpu" if DEVICE == "cpu" else "auto"):
        for name, passes_over_y in (("weights", 0), ("map", 1)):
            scaled_maps.clear()
            gated_conv1x1(**gated(GATED[name], torch.float32, "contiguous", with_bias))
            assert DEVICE != "cpu" or len(scaled_maps) == passes_over_y


@needs_triton
def test_the_gated_product_is_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    from se_fused.backends.triton.launch import recording

    for dtype in DTYPES.values():
        for name in ("weights", "tiles", "5-D"):
            given = gated(GATED[name], dtype, "channels_last")
            for way, launches_wanted in (("product", ["conv1x1_kernel"]), ("otherwise", None)):
                monkeypatch.setattr(
                    "se_fused.backends.triton.conv1x1_squeeze_excite.fastest", lambda key, ways, device, way=way: way
                )
                with backends.use_backend("triton"), torch.no_grad(), recording() as launches:
                    out = gated_conv1x1(**given)
                assert launches_wanted is None or [launch.name for launch in launches] == launches_wanted
                assert excess(given, out) <= 1


@each_backend
@each_layout
@each_dtype
def test_gradients_of_the_gated_convolution(dtype: torch.dtype, layout: str, backend: str) -> None:
    given = gated(GATED["weights"], dtype, layout)
    results = []
    for module, wide in ((functional, False), (reference, False), (reference, True)):
        tensors = {k: (v.double() if wide else v.clone()).requires_grad_() for k, v in given.items()}
        with backends.use_backend(backend):
            out = module.gated_conv1x1(**tensors)
            results.append(torch.autograd.grad(out.square().sum(), list(tensors.values())))
    for mine, eager, truth in zip(*results, strict=True):
        assert mine.dtype == eager.dtype and mine.shape == eager.shape
        assert relative_error(mine, truth) <= 2 * relative_error(eager, truth) + GRADIENT_FLOOR


def test_second_derivatives_of_the_gated_convolution() -> None:
    given = gated(GATED["weights"], torch.float32, "contiguous")
    results = []
    for module in (functional, reference):
        tensors = {k: v.clone().requires_grad_() for k, v in given.items()}
        out = module.gated_conv1x1(**tensors).square().sum()
        first = torch.autograd.grad(out, list(tensors.values()), create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), list(tensors.values())))
    for mine, eager in zip(*results, strict=True):
        torch.testing.assert_close(mine, eager, rtol=1e-4, atol=1e-3)


@each_backend
@each_layout
def test_the_gated_convolution_compiles(backend: str, layout: str) -> None:
    for name in ("weights", "map", "C=1"):
        given = gated(GATED[name], torch.float32, layout)
        with backends.use_backend(backend), torch.no_grad():
            compiled = torch.compile(gated_conv1x1, fullgraph=True, backend="aot_eager")
            assert torch.equal(compiled(**given), gated_conv1x1(**given))


def test_autocast_of_the_gated_convolution() -> None:
    given = gated(GATED["weights"], torch.float32, "contiguous")
    with torch.autocast(DEVICE, torch.bfloat16), torch.no_grad():
        mine, eager = (m.gated_conv1x1(**given) for m in (functional, reference))
    assert mine.dtype == eager.dtype == torch.bfloat16
    torch.testing.assert_close(mine, eager, rtol=2e-2, atol=2e-2)


BAD = {
    "y is 2-D": ("y", torch.randn(3, 20), ValueError, r"y must be \(N, C, \*spatial\)"),
    "gate of C alone": ("gate", torch.rand(20), ValueError, r"gate must be \(N, C\) = \(3, 20\), got \(20,\)"),
    "gate is no tensor": ("gate", 1.0, TypeError, "gate must be a torch.Tensor, got float"),
    "3x3": ("weight", torch.randn(6, 20, 3, 3), ValueError, r"weight must be \(D, C\) = \(6, 20\)"),
    "weight's dtype": ("weight", torch.randn(6, 20).half(), TypeError, "weight must have y's dtype.*weight.to"),
    "bias": ("bias", torch.randn(5), ValueError, r"bias must be \(D,\) = \(6,\), got \(5,\)"),
}


@pytest.mark.parametrize(("name", "value", "kind", "message"), BAD.values(), ids=BAD)
def test_bad_input(name: str, value: Any, kind: type[Exception], message: str) -> None:
    given = {k: v.cpu() for k, v in gated(GATED["weights"], torch.float32, "contiguous").items()}
    with pytest.raises(kind, match=message):
        gated_conv1x1(**given | {name: value})


def test_bad_input_of_the_squeeze() -> None:
    given = draw(Case("batch_norm_act", device=DEVICE), 0)
    for change, kind, message in (
        ({"out_act": "softmax"}, ValueError, "out_act must be one of 'none', .*got 'softmax'"),
        ({"training": 1}, TypeError, "training must be True or False, got 1"),
        ({"running_mean": None}, ValueError, "must both be tensors"),
        ({"x": given["x"][0, 0]}, ValueError, "x must be"),
    ):
        with pytest.raises(kind, match=message):
            batch_norm_act_squeeze(**given | change)
    with pytest.raises(BackendUnavailable, match="float64"), backends.use_backend("triton" if HAS_TRITON else "cpu"):
        batch_norm_act_squeeze(**double(given))
