"""Tests of the Triton backend beside the op contract (tests/backends/test_contract.py): its passes, split sums, paths
and launches. They run on a GPU if there is one, otherwise in Triton's interpreter.

Interpreted programs take milliseconds each, so shapes are few and small. They cover odd, prime and single C, S and R,
rows of each alignment, split sums, several tiles in each direction, and groups of samples.
tests/backends/triton/test_compiled_code.py checks the compiled code of the same kernels.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support import contract
from support.kernels import (
    ACTIVATED,
    DERIVED,
    check_moments,
    check_moments_backward,
    check_nan_and_infinity,
    check_scale_shift_act,
    check_scale_shift_act_backward,
    check_scale_shift_act_mean,
    check_scale_shift_act_mean_backward,
    close,
)
from support.triton_groups import l2_grouped_config_of

from se_fused import backends, functional, reference
from se_fused._formats import DTYPES, LAYOUTS
from se_fused.activations import ACT_CODES, GATE_CODES, OUT_ACT_CODES
from se_fused.testing.verify import OPS, Case, to_layout

TRITON = backends.BACKENDS["triton"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if TRITON.can_use(DEVICE, torch.float32) is not None:
    pytest.skip(f"Triton cannot be used: {TRITON.can_use(DEVICE, torch.float32)}", allow_module_level=True)

import triton as triton_language  # noqa: E402
import triton.language as tl  # noqa: E402

from se_fused.backends.triton import activations, batch_norm_squeeze_excite, launch_configs, memory  # noqa: E402
from se_fused.backends.triton.launch import Launch, recording  # noqa: E402
from se_fused.backends.triton.passes import map_of  # noqa: E402

Shape = tuple[int, ...]


@pytest.fixture(autouse=True)
def triton() -> Iterator[None]:
    with backends.use_backend("triton"):
        yield


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use tiles so small that every shape has several in each direction and sums of over 16 positions are split. A lane
    has two values per step."""

    def small(
        m: launch_configs.Map, device: launch_configs.Device, tensors: int, sums: bool, registers: int | None = None
    ) -> launch_configs.PassConfig:
        channels, positions = (8, 4) if m.channels_last else (4, 8)
        return launch_configs.PassConfig(channels, positions, 2 * positions, 4)

    monkeypatch.setattr("se_fused.backends.triton.passes.pass_config", small)
    monkeypatch.setattr(launch_configs.PassConfig, "chunk", lambda config, m: 2)
    monkeypatch.setattr(launch_configs.Map, "unaligned", False)  # the unaligned kernels process a row in one step


# ---- the passes: S = 1, 13, 16, 35 (odd), 36 (rows aligned to 4); C = 3, 5, 8, 20, 33. Contiguous rows of 7 x 5 with
# C = 20 and of 6 x 6 share vectors (unaligned.py); 70 positions are two words of the mask.
PASS_SHAPES = [(2, 5, 1, 1), (1, 3, 13), (2, 8, 4, 4), (2, 33, 7, 5), (2, 20, 7, 5), (1, 20, 6, 6), (2, 12, 10, 7)]
PASS_SHAPES += [(1, 5, 3, 3, 4)]
passes_everywhere = [
    pytest.mark.quick,
    pytest.mark.parametrize("layout", LAYOUTS),
    pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES),
    pytest.mark.parametrize("shape", PASS_SHAPES, ids=["x".join(map(str, s)) for s in PASS_SHAPES]),
]


def everywhere(test: Any) -> Any:
    for mark in passes_everywhere:
        test = mark(test)
    return test


@everywhere
def test_moments(shape: Shape, dtype: torch.dtype, layout: str) -> None:
    check_moments(TRITON, shape, dtype, layout, DEVICE)


@everywhere
@pytest.mark.parametrize(("out_act", "with_residual"), ACTIVATED)
def test_scale_shift_act(shape: Shape, dtype: torch.dtype, layout: str, out_act: int, with_residual: bool) -> None:
    check_scale_shift_act(TRITON, shape, dtype, layout, out_act, with_residual, DEVICE)


@everywhere
@pytest.mark.parametrize(("out_act", "want_dr"), DERIVED)
def test_moments_backward(shape: Shape, dtype: torch.dtype, layout: str, out_act: int, want_dr: bool) -> None:
    check_moments_backward(TRITON, shape, dtype, layout, out_act, want_dr, DEVICE)


@everywhere
@pytest.mark.parametrize("out_act", OUT_ACT_CODES.values(), ids=OUT_ACT_CODES)
def test_scale_shift_act_mean(shape: Shape, dtype: torch.dtype, layout: str, out_act: int) -> None:
    check_scale_shift_act_mean(TRITON, shape, dtype, layout, out_act, DEVICE)
    check_scale_shift_act_mean_backward(TRITON, shape, dtype, layout, out_act, DEVICE)


@everywhere
@pytest.mark.parametrize(("masked", "with_x"), list(itertools.product([True, False], repeat=2)))
def test_scale_shift_act_backward(shape: Shape, dtype: torch.dtype, layout: str, masked: bool, with_x: bool) -> None:
    check_scale_shift_act_backward(TRITON, shape, dtype, layout, masked, with_x, DEVICE)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 5, 1, 1), (2, 20, 6, 7)], ids=str)
def test_nan_and_infinity_flow_as_in_pytorch(shape: Shape, layout: str) -> None:
    check_nan_and_infinity(TRITON, shape, torch.float32, layout, DEVICE)


@pytest.mark.usefixtures("split")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 20, 7, 5), (1, 3, 64)], ids=str)
def test_split_passes(shape: Shape, layout: str) -> None:
    relu = OUT_ACT_CODES["relu"]
    check_moments(TRITON, shape, torch.float32, layout, DEVICE)
    check_scale_shift_act(TRITON, shape, torch.bfloat16, layout, relu, True, DEVICE)
    check_moments_backward(TRITON, shape, torch.float32, layout, relu, True, DEVICE)
    check_scale_shift_act_backward(TRITON, shape, torch.float32, layout, True, True, DEVICE)
    check_scale_shift_act_mean(TRITON, shape, torch.float32, layout, OUT_ACT_CODES["hard_swish"], DEVICE)
    check_scale_shift_act_mean_backward(TRITON, shape, torch.bfloat16, layout, relu, DEVICE)


# ---- the whole op
def passes(case: Case, seeds: int = 3) -> None:
    contract.passes(case, "triton", DEVICE, range(seeds))


@pytest.mark.quick
@pytest.mark.parametrize("layout", LAYOUTS)
def test_several_tiles(layout: str) -> None:
    """The excitation's sums have several tiles of samples, channels and hidden units."""
    passes(Case("batch_norm_squeeze_excite", (18, 70, 2, 2), layout=layout, hidden=75))


@triton_language.jit
def scalar_kernel(x, value, slope, CODE: tl.constexpr, IS_GATE: tl.constexpr, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    t = tl.load(x + lane)
    if IS_GATE:
        result = activations.open_gate(t, CODE)
        tl.store(slope + lane, activations.gate_slope(result, CODE))
    else:
        result = activations.activate(t, CODE)
        tl.store(slope + lane, activations.activate_slope(t, CODE))
    tl.store(value + lane, result)


@pytest.mark.quick
@pytest.mark.parametrize("name", [*ACT_CODES, *GATE_CODES])
def test_scalar_functions(name: str) -> None:
    """Values and slopes equal PyTorch's from -30 to 30, at the corners (0, 3, 6) and near zero; NaN gives NaN."""
    special = torch.tensor([0.0, -3.0, 3.0, 6.0, -6.0, 1e-6, -1e-6, 0.2499, 0.2501, 20.0, 20.1, 25.0, -25.0, -30.0])
    x = torch.cat([torch.linspace(-12, 12, 512 - len(special)), special]).to(DEVICE)
    value, slope = torch.empty_like(x), torch.empty_like(x)
    is_gate = name in GATE_CODES
    code = (GATE_CODES if is_gate else ACT_CODES)[name]
    function = (reference.GATES if is_gate else reference.ACTIVATIONS)[name]
    scalar_kernel[(1,)](x, value, slope, CODE=code, IS_GATE=is_gate, BLOCK=512)
    wide = x.double().requires_grad_()
    truth = function(wide)
    (true_slope,) = torch.autograd.grad(truth.sum(), wide)
    # PyTorch's float64 hard sigmoid uses a float32 1/6 as its slope.
    close(value, truth.detach(), torch.float32, 1 + x.double().abs())
    close(slope, true_slope, torch.float32, 1 + x.double().abs())
    x.fill_(float("nan"))
    scalar_kernel[(1,)](x, value, slope, CODE=code, IS_GATE=is_gate, BLOCK=512)
    assert value.isnan().all()


@pytest.mark.usefixtures("split")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"training": False}, {"mean": 100.0}, {"out_act": "silu"}], ids=str)
def test_split_sums(options: dict[str, Any], layout: str) -> None:
    """The excitation kernels merge the parts of split sums."""
    shape = (2, 5, 6, 6)  # three splits, two tiles of channels
    passes(Case("batch_norm_squeeze_excite", shape, layout=layout, **options))
    if "mean" not in options:
        passes(Case("batch_norm_act", shape, layout=layout, **options))


@pytest.mark.quick
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(18, 40, 2, 2), (9, 64, 5, 5), (9, 16, 16, 16)], ids=str)
def test_groups_of_samples(shape: Shape, layout: str) -> None:
    """The last programs of pass 1 merge several groups of samples, and of channels (batch_statistics.py). They move the
    running statistics once, and leave their counters at zero."""
    for options in ({}, {"drop_path": True, "residual": False}, {"training": False}):
        passes(Case("batch_norm_act", shape, torch.bfloat16, layout, **options), seeds=1)
        assert not memory.kept_counters(torch.device(DEVICE), 1).any()
    x = torch.randn(shape).to(DEVICE)
    mean, var = torch.zeros(shape[1], device=DEVICE), torch.ones(shape[1], device=DEVICE)
    functional.batch_norm_act(to_layout(x, layout), mean, var, None, None, training=True, momentum=0.25)
    true_var, true_mean = torch.var_mean(x, (0, 2, 3))
    torch.testing.assert_close(mean, 0.25 * true_mean)
    torch.testing.assert_close(var, 0.75 + 0.25 * true_var)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("shape", "unaligned"), [((4, 24, 7, 5), True), ((3, 11, 7, 5), False), ((2, 20, 6, 6), None)])
def test_rows_that_start_anywhere(shape: Shape, unaligned: bool | None, dtype: torch.dtype) -> None:
    """Rows not aligned to 16 bytes use the kernels whose rows share vectors, if the map is a multiple of a vector."""
    m = map_of(torch.empty(shape, dtype=dtype))
    assert m.unaligned == (dtype.itemsize == 2 if unaligned is None else unaligned)
    with recording() as launches:
        for options in ({}, {"training": False}, {"out_act": "silu"}, {"out_act": None}, {"residual": False}):
            passes(Case("batch_norm_squeeze_excite", shape, dtype, **options), seeds=3)
    assert all("unaligned" in launch.name or "excitation" in launch.name for launch in launches) == m.unaligned


@pytest.mark.parametrize("inplace", [True, False])
def test_rows_that_share_vectors_in_place(inplace: bool) -> None:
    """Writing y over x is safe although neighbouring rows read and write the same vectors."""
    for op in OPS:
        case = Case(op, (5, 24, 7, 7), torch.bfloat16, "contiguous", DEVICE, training=False)
        error, launches, x, y = infer(case, inplace)
        assert error <= 1 and (y is x) == inplace and launches[-1].name == "scale_shift_act_unaligned_kernel"


@pytest.mark.usefixtures("split")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_bits_in_every_run(layout: str) -> None:
    case = Case("batch_norm_squeeze_excite", (3, 12, 6, 6), layout=layout, device=DEVICE, hidden=18)
    results = [contract.results(case) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def infer(case: Case, inplace: bool = False) -> tuple[float, list[Launch], torch.Tensor, torch.Tensor]:
    """(error / bound, launches, x, y) of a call without gradients."""
    with recording() as launches:
        error, x, y = contract.infer(case, inplace)
    return error, launches, x, y


@pytest.mark.quick
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_inference(op: str, dtype: torch.dtype, layout: str) -> None:
    case = Case(op, (3, 20, 7, 5), dtype, layout, DEVICE, training=False)
    for inplace in (False, True):
        error, launches, x, y = infer(case, inplace)
        assert error <= 1 and (y is x) == inplace
        assert len(launches) == (1 if op == "batch_norm_act" else 3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("group", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(7, 24, 7, 5), (9, 3, 5, 5), (8, 70, 3, 1), (6, 9, 1, 1)], ids=str)
def test_l2_grouped_inference(shape: Shape, group: int, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is right for groups that divide N or not, with one or several tiles per sample."""
    monkeypatch.setattr(batch_norm_squeeze_excite, "l2_grouped_config", l2_grouped_config_of(256, 64, group, 3))
    for op, dtype in (("squeeze_excite", torch.float32), ("batch_norm_squeeze_excite", torch.bfloat16)):
        case = Case(op, shape, dtype, layout, DEVICE, training=False, out_act="silu" if group == 2 else "relu")
        error, launches, _, _ = infer(case)
        assert error <= 1
        assert [launch.name for launch in launches] == ["l2_grouped_kernel"]
        assert infer(case, inplace=True)[0] <= 1


@pytest.mark.skipif(DEVICE != "cpu", reason="a GPU has a fixed size of L2")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_samples_are_grouped_where_x_does_not_stay_in_l2(layout: str) -> None:
    case = Case("squeeze_excite", (11, 96, 7, 5), layout=layout, training=False)
    for l2, name in ((600_000, "scale_shift_act"), (200_000, "l2_grouped"), (20_000, "scale_shift_act")):
        with launch_configs.standing_in(launch_configs.Device(1, l2)):
            error, launches, _, _ = infer(case)
        assert error <= 1 and launches[-1].name.startswith(name)


@pytest.mark.quick
def test_no_hidden_copies() -> None:
    for layout in LAYOUTS:
        given = Case("batch_norm_squeeze_excite", (2, 6, 4, 3), layout=layout, device=DEVICE).draw(0)
        with recording() as launches:
            y = functional.batch_norm_squeeze_excite(**given)
        assert launches[0].arguments["x"].data_ptr() == given["x"].data_ptr()
        assert launches[-1].arguments["residual"].data_ptr() == given["residual"].data_ptr()
        assert y.stride() == given["x"].stride()


def test_compiles_without_a_break() -> None:
    """torch.compile sees the operator as one node, and the kernels run inside it."""
    given = Case("batch_norm_squeeze_excite", (3, 8, 4, 3), device=DEVICE).draw(0)
    call = torch.compile(functional.batch_norm_squeeze_excite, fullgraph=True, backend="aot_eager")
    with recording() as launches:
        y = call(**given)
        (gradient,) = torch.autograd.grad(y.sum(), given["x"])
    assert [launch.name for launch in launches][::3] == ["moments_kernel", "moments_backward_kernel"]
    eager = functional.batch_norm_squeeze_excite(**given)
    assert torch.equal(y, eager)
    assert torch.equal(gradient, torch.autograd.grad(eager.sum(), given["x"])[0])


def test_views_and_odd_addresses() -> None:
    """Dense views give right results: one that does not start at a multiple of 16 bytes, and a transposed one."""
    x = torch.randn(2 * 6 * 8 + 1, device=DEVICE)[1:].view(2, 6, 4, 2)
    w1, w2 = torch.randn(3, 6, device=DEVICE), torch.randn(6, 3, device=DEVICE)
    truth = reference.squeeze_excite(x, w1, None, w2, None, x, out_act="relu")
    torch.testing.assert_close(functional.squeeze_excite(x, w1, None, w2, None, x, out_act="relu"), truth)
    transposed = to_layout(torch.randn(2, 6, 4, 2, device=DEVICE), "channels_last").transpose(2, 3)
    truth = reference.squeeze_excite(transposed, w1, None, w2, None)
    torch.testing.assert_close(functional.squeeze_excite(transposed, w1, None, w2, None), truth)
