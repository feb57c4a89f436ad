"""Tests of the operators as PyTorch sees them: schemas, mutations, fake implementations, autograd registration.

The calls come from support/operators.py. PyTorch's own ``opcheck`` takes a part of them, because it traces each of them
several times; the comparison of fake with real results takes all.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from support import shim_library
from support.cpu_operators import CPU_CALLS
from support.operators import BY_OPERATOR, FAMILIES, Call, Family
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from se_fused import backends
from se_fused.ops.operators import schema

pytestmark = pytest.mark.quick

ON_GPU = torch.cuda.is_available()
# Strength of the covering array by tier; 0 for no call. Triton's interpreter and the CUDA kernels on the CPU are slow.
COMPARED = {
    "cpu": {"quick": 1, "test": 2, "nightly": 3},
    "triton": {"quick": 0, "test": 1, "nightly": 2},
    "cuda": {"quick": 0, "test": 1, "nightly": 2},
}
CHECKED = {"quick": 1, "test": 2, "nightly": 2}
CHECKED_AXES = {"shape": ("odd", "one-position", "3-D"), "act": ("silu",), "layout": ("channels_last", "contiguous")}
"""Values of the calls that ``opcheck`` takes; the other axes have all of theirs."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """List the calls of the tier."""
    tier = metafunc.config.getoption("tier")
    if "compared" in metafunc.fixturenames:
        metafunc.parametrize("compared", [
            pytest.param((backend, family, values), id=f"{backend}-{name}")
            for backend, strengths in COMPARED.items()
            for family in FAMILIES
            for name, values in family.covering(strengths[tier])
        ])  # fmt: skip
    if "checked" in metafunc.fixturenames:
        metafunc.parametrize("checked", [
            pytest.param((family, values), id=name)
            for family in FAMILIES
            for name, values in family.covering(CHECKED[tier], CHECKED_AXES)
        ])  # fmt: skip


@contextmanager
def on(backend: str) -> Iterator[None]:
    """Run operators on this backend, with new tensors on its device."""
    before = backends.BACKENDS["cuda"]
    if backend == "cuda" and not ON_GPU:
        if (reason := shim_library.why_not()) is not None:
            pytest.skip(reason)
        from support import cuda_backend

        backends.BACKENDS["cuda"] = shim = cuda_backend.on_cpu(shim_library.library())
        assert shim.load() is None
        cuda_backend.stand_in()
    device = "cuda" if ON_GPU and backend != "cpu" else "cpu"
    try:
        if (reason := backends.BACKENDS[backend].can_use(device, torch.float32)) is not None:
            pytest.skip(reason)
        with backends.use_backend(backend), torch.device(device):
            yield
    finally:
        backends.BACKENDS["cuda"] = before


# ---- schemas
SCHEMAS = """
add_input_gradient(Tensor(a!) dr, Tensor dy, Tensor weight) -> ()
batch_norm_act_squeeze(Tensor x, Tensor? running_mean, Tensor? running_var, Tensor? bn_weight, Tensor? bn_bias, \
bool batch_stats, float eps, str out_act) -> (Tensor y, Tensor squeezed, Tensor mean, Tensor stats)
batch_norm_act_squeeze_backward(Tensor dy, Tensor dsqueezed, Tensor x, Tensor mean, Tensor stats, Tensor? bn_weight, \
Tensor? bn_bias, bool batch_stats, float eps, str out_act) -> (Tensor dx, Tensor dbn_weight, Tensor dbn_bias)
batch_norm_act_squeeze_train(Tensor x, Tensor(a!) running_mean, Tensor(b!) running_var, Tensor? bn_weight, \
Tensor? bn_bias, bool batch_stats, float eps, str out_act, float momentum) -> (Tensor y, Tensor squeezed, \
Tensor mean, Tensor stats)
batch_norm_squeeze_excite_backward(Tensor dy, Tensor x, Tensor? residual, Tensor mask, Tensor mean, Tensor factor, \
Tensor hidden, Tensor stats, Tensor? bn_weight, Tensor? bn_bias, Tensor? fc1_weight, Tensor? fc2_weight, \
Tensor? drop_path_scale, bool batch_stats, float eps, str act, str gate, str out_act, bool want_dr) -> (Tensor dx, \
Tensor dr, Tensor dbn_weight, Tensor dbn_bias, Tensor dfc1_weight, Tensor dfc1_bias, Tensor dfc2_weight, \
Tensor dfc2_bias)
batch_norm_squeeze_excite_forward(Tensor x, Tensor? residual, Tensor? running_mean, Tensor? running_var, \
Tensor? bn_weight, Tensor? bn_bias, Tensor? fc1_weight, Tensor? fc1_bias, Tensor? fc2_weight, Tensor? fc2_bias, \
Tensor? drop_path_scale, bool batch_stats, float eps, str act, str gate, str out_act, bool save) -> (Tensor y, \
Tensor mask, Tensor mean, Tensor factor, Tensor hidden, Tensor stats)
batch_norm_squeeze_excite_train(Tensor x, Tensor? residual, Tensor(a!) running_mean, Tensor(b!) running_var, \
Tensor? bn_weight, Tensor? bn_bias, Tensor? fc1_weight, Tensor? fc1_bias, Tensor? fc2_weight, Tensor? fc2_bias, \
Tensor? drop_path_scale, bool batch_stats, float eps, str act, str gate, str out_act, bool save, float momentum) -> \
(Tensor y, Tensor mask, Tensor mean, Tensor factor, Tensor hidden, Tensor stats)
conv1x1_squeeze_excite(Tensor h, Tensor conv_weight, Tensor? conv_bias, Tensor fc1_weight, Tensor? fc1_bias, \
Tensor fc2_weight, Tensor? fc2_bias, Tensor folded_weight, Tensor folded_bias, Tensor? packed, Tensor? residual, \
str act, str gate, str out_act) -> Tensor
gated_conv1x1(Tensor y, Tensor gate, Tensor weight, Tensor? bias) -> Tensor
rescale(Tensor x, Tensor? residual, Tensor factor, str out_act, bool save) -> (Tensor y, Tensor mask)
rescale_backward(Tensor dy, Tensor x, Tensor? residual, Tensor mask, Tensor mean, Tensor factor, str out_act) \
-> (Tensor dr, Tensor p, Tensor q)
squeeze(Tensor x) -> Tensor
squeeze_backward(Tensor dr, Tensor factor, Tensor shift) -> Tensor
"""


def registered(namespace: str) -> dict[str, Any]:
    """The schemas of all overloads of a namespace's operators, by name."""
    prefix = f"{namespace}::"
    found = {}
    for each in torch._C._jit_get_all_schemas():
        if each.name.startswith(prefix):
            overload = f".{each.overload_name}" if each.overload_name else ""
            found[each.name.removeprefix(prefix) + overload] = each
    return found


def test_schemas_are_those_of_exported_programs() -> None:
    """Exported programs contain the operators' names and arguments, so a change of a schema breaks saved files."""
    printed = sorted(str(each).removeprefix("se_fused::") for each in registered("se_fused").values())
    assert printed == SCHEMAS.strip().splitlines()


def test_every_operator_has_calls() -> None:
    assert registered("se_fused").keys() == BY_OPERATOR.keys()
    assert registered("se_fused_cpu").keys() == CPU_CALLS.keys()
    for family in FAMILIES:
        made = {call.operator for _, values in family.covering(1) for call in family.calls(values)}
        assert made == set(family.operators)


class Given(NamedTuple):
    x: Tensor
    residual: Tensor | None
    save: bool
    eps: float
    act: str


class Returned(NamedTuple):
    y: Tensor
    mask: Tensor


def test_a_schema_has_the_fields_of_its_records() -> None:
    arguments = "(Tensor x, Tensor? residual, bool save, float eps, str act)"
    assert schema("f", Given, Tensor) == f"f{arguments} -> Tensor"
    assert schema("f", Given, Returned) == f"f{arguments} -> (Tensor y, Tensor mask)"
    assert str(torch._C.parse_schema(schema("f", Given, Returned))) == schema("f", Given, Returned)


@pytest.mark.parametrize("unknown", [int, Tensor | int, list[Tensor], float | None], ids=str)
def test_a_schema_of_an_unknown_type_is_an_error(unknown: Any) -> None:
    class Unknown(NamedTuple):
        x: Tensor
        other: unknown

    with pytest.raises(KeyError) as caught:
        schema("f", Unknown, Tensor)
    assert caught.value.args == (unknown,)


# ---- PyTorch's own checks
def test_opcheck(checked: tuple[Family, dict[str, Any]]) -> None:
    """Schema, fake implementation, autograd registration, and AOT dispatch with dynamic shapes."""
    family, values = checked
    for call in family.calls(values):
        torch.library.opcheck(call.overload, call.arguments)


def tensors_in(values: Any) -> list[Tensor]:
    return [t for t in tree_leaves(values) if isinstance(t, Tensor)]


@pytest.mark.parametrize("name", CPU_CALLS)
def test_mutations_and_aliases_of_the_cpu_library(name: str) -> None:
    """An operator writes to the arguments that its schema says, and to no other. Its results are new memory."""
    overload = getattr(torch.ops.se_fused_cpu, name).default
    declared = [a.alias_info is not None and a.alias_info.is_write for a in overload._schema.arguments]
    written = [False] * len(declared)
    for arguments in CPU_CALLS[name]():
        before = [[t.clone() for t in tensors_in(a)] for a in arguments]
        results = overload(*arguments)
        changed = [not all(map(torch.equal, a, tensors_in(b))) for a, b in zip(before, arguments, strict=True)]
        written = [now or then for now, then in zip(changed, written, strict=True)]
        given = {t.untyped_storage().data_ptr() for t in tensors_in(arguments)}
        made = tensors_in(results)
        assert not given & {t.untyped_storage().data_ptr() for t in made if t.numel()}
        # Absent results share one empty tensor, which opcheck takes for an alias.
        if sum(t.numel() == 0 for t in made) < 2:
            torch.library.opcheck(overload, arguments, test_utils="test_schema")
    assert written == declared[: len(written)]


def test_the_whole_block_leaves_running_statistics_as_they_are() -> None:
    """``batch_norm_squeeze_excite_forward`` says that it writes nothing; a batch with an infinity shows a write of
    old + 0 * (batch - old)."""
    x = torch.randn(3, 4, 5, 5)
    x[0, 0, 0, 0] = float("inf")
    mean, var = torch.zeros(4), torch.ones(4)
    for save in (True, False):
        torch.ops.se_fused.batch_norm_squeeze_excite_forward(
            x, None, mean, var, *[None] * 7, True, 1e-5, "relu", "sigmoid", "none", save
        )
    assert torch.equal(mean, torch.zeros(4)) and torch.equal(var, torch.ones(4))
    assert mean._version == var._version == 0


# ---- fake and real results
def listed(results: Any) -> list[Tensor]:
    """The results of an operator that has none, one, or several."""
    return [results] if isinstance(results, Tensor) else list(results or ())


def form(results: Any) -> list[tuple[Any, ...]]:
    """Shape, strides, dtype and device of each result. Strides of at most one element mean nothing, and PyTorch's own
    fake ``empty_like`` has other ones."""
    tensors = listed(results)
    return [(tuple(t.shape), t.stride() if t.numel() > 1 else None, t.dtype, t.device) for t in tensors]


def fake_form(call: Call) -> list[tuple[Any, ...]]:
    with FakeTensorMode() as mode:
        return form(call.overload(*(mode.from_tensor(t) if isinstance(t, Tensor) else t for t in call.arguments)))


def test_fake_results_have_the_form_of_real_ones(compared: tuple[str, Family, dict[str, Any]]) -> None:
    backend, family, values = compared
    with on(backend):
        for call in family.calls(values):
            with torch.no_grad():
                real = call.overload(*call.arguments)
                assert fake_form(call) == form(real), call.operator
            # PyTorch refuses an operator that returns one tensor twice.
            assert len({id(t) for t in listed(real)}) == len(listed(real))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.operators[0])
def test_results_of_an_empty_map_are_zero(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over no elements, such as the parameters' gradients, are zero and not what new memory holds."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)  # NaN, or the largest integer
    _, values = next(family.covering(1))
    torch.use_deterministic_algorithms(True)
    try:
        with torch.no_grad():
            for call in family.calls(values | {"shape": "no-samples"}):
                for t in listed(call.overload(*call.arguments)):
                    assert t.count_nonzero() == 0, call.operator
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.operators[0])
def test_float64_has_no_operator(family: Family) -> None:
    """Maps in float64 run in plain PyTorch, so no operator with kernels gets one."""
    if family.operators == ("add_input_gradient",):
        return  # a product of PyTorch's
    _, values = next(family.covering(1))
    with pytest.raises(backends.BackendUnavailable, match="float64"):
        for call in family.calls(values | {"dtype": torch.float64}):
            call.overload(*call.arguments)
