"""Tests of conv1x1_squeeze_excite against float64: CPU backend, plain PyTorch, and one product in Triton."""

from typing import Any

import pytest
import torch
from support.contract import keeps_order
from torch import Tensor

from se_fused import backends, functional, reference
from se_fused._formats import DTYPES, LAYOUTS
from se_fused.functional import conv1x1_squeeze_excite, fold_squeeze, pack_conv1x1
from se_fused.testing.error_bounds import conv_bound
from se_fused.testing.verify import to_layout

pytestmark = pytest.mark.quick

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HAS_TRITON = backends.BACKENDS["triton"].can_use(DEVICE, torch.float32) is None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton does not run on this device")
BACKENDS = ["auto", pytest.param("triton", marks=needs_triton)]
Given = dict[str, Any]

# (N, K, C, R, spatial): odd spatial sizes, each size one, several tiles in each dimension
SHAPES = {
    "odd": (3, 5, 24, 3, (9, 7)),
    "ones": (1, 1, 1, 1, (1, 1)),
    "K=1": (2, 1, 9, 2, (3, 4)),
    "S=1": (5, 12, 16, 4, (1, 1)),
    "tiles": (2, 40, 130, 17, (12, 6)),
    "3-D": (2, 6, 10, 3, (11,)),
    "5-D": (2, 6, 10, 3, (3, 2, 3)),
}


def draw(shape: tuple, dtype: torch.dtype, layout: str, seed: int = 0) -> Given:
    n, k, c, r, spatial = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*size, generator=generator) * scale).to(DEVICE, dtype)

    return {
        "h": to_layout(normal(n, k, *spatial) + 0.5, layout),
        "conv_weight": normal(c, k, *(1,) * len(spatial), scale=k**-0.5), "conv_bias": normal(c),
        "fc1_weight": normal(r, c, scale=c**-0.5), "fc1_bias": normal(r), "fc2_weight": normal(c, r, scale=r**-0.5),
        "fc2_bias": normal(c), "residual": to_layout(normal(n, c, *spatial), layout),
    }  # fmt: skip


def double(given: Given) -> Given:
    return {k: v.double() if isinstance(v, Tensor) else v for k, v in given.items()}


def error(given: Given, y: Tensor, stored: bool = True, **options: Any) -> float:
    """Largest ratio of error to bound."""
    wide = double(given)
    truth = reference.conv1x1_squeeze_excite(**wide, **options)
    names = {"act": "relu", "gate": "sigmoid", **options}
    # On GPUs, cuDNN and our kernel multiply float32 in TF32 unless PyTorch's settings forbid it.
    tf32 = 2.0**-11 if DEVICE == "cuda" and y.dtype == torch.float32 else 0.0
    bound = conv_bound({**wide, **names}, truth, y.dtype, tf32, stored)
    return ((y.double() - truth).abs() / bound).max().item()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_against_float64(shape: tuple, dtype: torch.dtype, layout: str, backend: str) -> None:
    given = draw(shape, dtype, layout)
    with backends.use_backend(backend), torch.no_grad():
        y = conv1x1_squeeze_excite(**given, out_act="relu")
        folded = fold_squeeze(*(given[k] for k in ("conv_weight", "conv_bias", "fc1_weight", "fc1_bias")))
        assert torch.equal(conv1x1_squeeze_excite(**given, out_act="relu", folded=folded), y)
    assert error(given, y, out_act="relu") <= 1
    assert y.dtype == dtype
    assert keeps_order(y, given["h"]) and y.stride() == reference.conv1x1_squeeze_excite(**given).stride()


@pytest.mark.isa
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*DTYPES.values(), torch.float64], ids=[*DTYPES, "float64"])
@pytest.mark.parametrize("shape", [SHAPES["odd"], SHAPES["5-D"]], ids=["odd", "5-D"])
def test_the_result_is_in_hs_order(shape: tuple, dtype: torch.dtype, layout: str) -> None:
    """The result has h's memory order on every path and for every order of the weight.

    No CPU convolves volumes in float64 by oneDNN, so that case takes another path.
    """
    given = draw(shape, dtype, layout)
    memory_format = torch.channels_last if given["h"].dim() == 4 else torch.channels_last_3d
    given["conv_weight"] = given["conv_weight"].to(memory_format=memory_format)
    assert keeps_order(conv1x1_squeeze_excite(**given).detach(), given["h"])
    assert keeps_order(reference.conv1x1_squeeze_excite(**given), given["h"])
    wanted = given | {"conv_weight": given["conv_weight"].clone().requires_grad_()}
    assert keeps_order(conv1x1_squeeze_excite(**wanted), given["h"])
    with torch.autocast(DEVICE, torch.bfloat16), torch.no_grad():
        assert keeps_order(conv1x1_squeeze_excite(**given), given["h"])
    for like in (given["h"], given["residual"]):
        assert reference.keep_order(given["residual"], like) is given["residual"]
    with backends.use_backend("reference"), torch.no_grad():
        stacked = torch.func.vmap(lambda h: conv1x1_squeeze_excite(**given | {"h": h}))(torch.stack([given["h"]] * 2))
        assert stacked.shape[1:] == given["residual"].shape


OPTIONS = {
    "default": {"out_act": None},
    "gelu-hard": {"act": "gelu", "gate": "hard_sigmoid", "out_act": "relu"},
} | {out_act: {"out_act": out_act} for out_act in reference.OUT_ACTIVATIONS}
ABSENT = {"all": (), "no-residual": ("residual",), "no-biases": ("conv_bias", "fc1_bias", "fc2_bias")}


@needs_triton
@pytest.mark.parametrize("absent", ABSENT.values(), ids=ABSENT)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_product_alone(options: Given, absent: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's product kernel, forced, takes three launches and never rounds the convolution's result."""
    from se_fused.backends.triton.launch import recording

    monkeypatch.setattr("se_fused.backends.triton.conv1x1_squeeze_excite.fastest", lambda key, ways, device: "product")
    for dtype in DTYPES.values():
        given = draw((2, 40, 130, 17, (12, 6)), dtype, "channels_last") | dict.fromkeys(absent)
        with backends.use_backend("triton"), torch.no_grad(), recording() as launches:
            y = conv1x1_squeeze_excite(**given, **options)
        assert [launch.name for launch in launches] == ["moments_kernel", "excitation_kernel", "conv1x1_kernel"]
        assert error(given, y, stored=False, **options) <= 1


@needs_triton
def test_the_faster_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    from se_fused.backends.triton.launch import recording

    given = draw(SHAPES["odd"], torch.float32, "channels_last")
    asked = []
    for way, last in (("product", "conv1x1_kernel"), ("convolution and block", "scale_shift_act_kernel")):
        monkeypatch.setattr(
            "se_fused.backends.triton.conv1x1_squeeze_excite.fastest",
            lambda key, ways, device, way=way: (asked.append((key, set(ways))), way)[1],
        )
        with backends.use_backend("triton"), torch.no_grad(), recording() as launches:
            y = conv1x1_squeeze_excite(**given, out_act="relu")
        assert launches[-1].name == last
        assert error(given, y, out_act="relu") <= 1
    (key, ways), _ = asked
    assert ways == {"product", "convolution and block"}
    for part in ("(3, 5, 9, 7)", "24", "float32", "r=3"):
        assert part in key


CPU = pytest.mark.skipif(DEVICE != "cpu", reason="only the CPU backend packs weights")


def packed(given: Given) -> Given:
    return given | {"packed": pack_conv1x1(given["conv_weight"])}


@CPU
@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_packed_against_float64(shape: tuple, dtype: torch.dtype, instructions: str) -> None:
    """With packed weights, the convolution's result is never rounded to h's dtype, as one product's bound requires."""
    given = draw(shape, dtype, "channels_last")
    one_product = given["h"].dim() > 3 and not given["h"].is_contiguous()
    with torch.no_grad():
        y = conv1x1_squeeze_excite(**packed(given), out_act="relu")
    assert error(given, y, stored=not one_product, out_act="relu") <= 1
    assert y.dtype == dtype
    assert keeps_order(y, given["h"]) and y.stride() == reference.conv1x1_squeeze_excite(**given).stride()


@CPU
@pytest.mark.parametrize("absent", ABSENT.values(), ids=ABSENT)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_packed_options(options: Given, absent: tuple) -> None:
    for dtype in DTYPES.values():
        given = draw((2, 40, 130, 17, (12, 6)), dtype, "channels_last") | dict.fromkeys(absent)
        with torch.no_grad():
            y = conv1x1_squeeze_excite(**packed(given), **options)
        assert error(given, y, stored=False, **options) <= 1


@CPU
@pytest.mark.parametrize("rows", range(1, 30))
def test_packed_tiles_of_every_height(rows: int) -> None:
    given = draw((1, 7, 40, 3, (rows, 2)), torch.float32, "channels_last")
    with torch.no_grad():
        y = conv1x1_squeeze_excite(**packed(given))
    assert error(given, y, stored=False) <= 1


@CPU
def test_packed_over_the_residual() -> None:
    given = packed(draw((2, 40, 130, 17, (12, 6)), torch.float32, "channels_last"))
    with torch.no_grad():
        kept = given["residual"].clone()
        y = conv1x1_squeeze_excite(**given, out_act="relu")
        assert torch.equal(given["residual"], kept)
        over = conv1x1_squeeze_excite(**given, out_act="relu", inplace=True)
        assert over.data_ptr() == given["residual"].data_ptr() and torch.equal(over, y)
        # A residual in another order is copied; the result is written to the copy, not to the caller's tensor.
        other = given | {"residual": kept.contiguous()}
        assert torch.equal(conv1x1_squeeze_excite(**other, out_act="relu"), y)
        assert torch.equal(other["residual"], kept)


@CPU
def test_packed_number_of_threads_changes_no_bit() -> None:
    given = packed(draw((3, 48, 200, 17, (15, 14)), torch.float32, "channels_last"))
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with torch.no_grad():
                results.append(conv1x1_squeeze_excite(**given, out_act="relu"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_gradients_go_through_the_two_operations() -> None:
    given = draw(SHAPES["odd"], torch.float32, "contiguous")
    results = []
    for module in (functional, reference):
        tensors = {k: v.clone().requires_grad_() for k, v in given.items()}
        y = module.conv1x1_squeeze_excite(**tensors, out_act="relu")
        results.append(torch.autograd.grad(y.square().sum(), list(tensors.values())))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_a_break(backend: str, layout: str) -> None:
    given = draw(SHAPES["odd"], torch.float32, layout)
    with backends.use_backend(backend), torch.no_grad():
        compiled = torch.compile(conv1x1_squeeze_excite, fullgraph=True, backend="aot_eager")
        y = compiled(**given, out_act="relu")
        assert torch.equal(y, conv1x1_squeeze_excite(**given, out_act="relu"))
    assert error(given, y, out_act="relu") <= 1


def test_autocast() -> None:
    given = draw(SHAPES["odd"], torch.float32, "contiguous")
    with torch.autocast(DEVICE, torch.bfloat16), torch.no_grad():
        mine, truth = (m.conv1x1_squeeze_excite(**given, out_act="relu") for m in (functional, reference))
    assert mine.dtype == truth.dtype
    torch.testing.assert_close(mine, truth, rtol=2e-2, atol=5e-2)


BAD = {
    "h is no tensor": ("h", 3, TypeError, "h must be a torch.Tensor, got int"),
    "h is 2-D": ("h", torch.randn(3, 5), ValueError, r"h must be \(N, C, \*spatial\).*h.unsqueeze"),
    "3x3 weight": ("conv_weight", torch.randn(24, 5, 3, 3), ValueError, r"conv_weight must be \(C, K\) = \(24, 5\)"),
    "other K": ("conv_weight", torch.randn(24, 6, 1, 1), ValueError, r"conv_weight must be \(C, K\).*for h of shape"),
    "weight's dtype": ("conv_weight", torch.randn(24, 5).half(), TypeError, "conv_weight must have h's dtype.*to"),
    "1-D weight": ("conv_weight", torch.randn(24), ValueError, "conv_weight must be"),
    "bias": ("conv_bias", torch.randn(23), ValueError, r"conv_bias must be \(C,\) = \(24,\), got \(23,\)"),
    "fc1 for K": (
        "fc1_weight",
        torch.randn(3, 5),
        ValueError,
        r"fc1_weight must be \(R, C\) = \(3, 24\), got \(3, 5\)",
    ),
    "residual of h's shape": ("residual", torch.randn(3, 5, 9, 7), ValueError, r"result's shape \(3, 24, 9, 7\)"),
    "residual's dtype": ("residual", torch.randn(3, 24, 9, 7).half(), TypeError, "residual must have h's dtype"),
    "folded": ("folded", (torch.randn(3, 4), torch.randn(3)), ValueError, r"folded\[0\] must be \(R, K\) = \(3, 5\)"),
    "packed": ("packed", torch.randn(2, 24, 16), ValueError, r"packed must be .* = \(2, 5, 16\), got \(2, 24, 16\)"),
    "packed's dtype": ("packed", torch.randn(2, 5, 16).half(), TypeError, "packed must be float32 as pack_conv1x1"),
    "out_act": ("out_act", "softmax", ValueError, "out_act must be one of"),
}


@pytest.mark.parametrize(("name", "value", "kind", "message"), BAD.values(), ids=BAD)
def test_bad_input(name: str, value: Any, kind: type[Exception], message: str) -> None:
    given = draw(SHAPES["odd"], torch.float32, "contiguous") | {name: value}
    given = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in given.items()}
    with pytest.raises(kind, match=message):
        conv1x1_squeeze_excite(**given)
