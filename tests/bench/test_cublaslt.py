"""Tests of benchmarks/cublaslt.py without a GPU: numbers, layouts, descriptors, messages.

cuBLASLt is emulated as in its manual: D = op(A) op(B) + beta C + bias on column-major views of memory, strided over the
batch. A layout that describes other memory than the op's gives another result, or reads outside the tensor.
"""

import ctypes
import re
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.paths import ROOT
from torch import Tensor

from se_fused import functional, reference
from se_fused.testing.error_bounds import relative_error
from se_fused.testing.verify import to_layout

SITE = Path(torch.__file__).parent.parent
HEADERS = next(iter(sorted(path.parent for path in SITE.glob("nvidia/*/include/cublasLt.h"))), None)
needs_headers = pytest.mark.skipif(HEADERS is None, reason="cublasLt.h is not installed")


def load() -> Any:
    path = ROOT / "benchmarks" / "cublaslt.py"
    spec = spec_from_file_location("cublaslt", path)
    module = sys.modules["cublaslt"] = module_from_spec(spec)  # dataclasses look up their module
    spec.loader.exec_module(module)
    return module


cublaslt = load()
try:
    cublaslt.library()
    no_library = None
except RuntimeError as error:
    no_library = str(error)
needs_library = pytest.mark.skipif(no_library is not None, reason=str(no_library))


# ---- comparison with NVIDIA's headers
def enumerators() -> dict[str, int]:
    """Every ``NAME = value`` of the three headers; a value consists of numbers and earlier names joined by |."""
    known: dict[str, int] = {}
    for header in ("library_types.h", "cublas_api.h", "cublasLt.h"):
        text = re.sub(r"/\*.*?\*/|//[^\n]*", "", (HEADERS / header).read_text(errors="replace"), flags=re.S)
        for name, value in re.findall(r"^\s*(CU\w+)\s*=\s*([^,}\n]+)", text, flags=re.M):
            terms = [term.strip() for term in value.strip(" ()").split("|")]
            if all(term.isdigit() or term in known for term in terms):
                known[name] = 0
                for term in terms:
                    known[name] |= int(term) if term.isdigit() else known[term]
    return known


@needs_headers
def test_numbers_are_those_of_the_headers() -> None:
    mine = {k: v for k, v in vars(cublaslt).items() if re.match(r"CUBLAS|CUDA_R_", k)}
    theirs = enumerators()
    assert len(mine) == 22  # fewer would mean that a misspelled name is not compared
    assert mine == {name: theirs.get(name) for name in mine}
    assert theirs["CUBLASLT_EPILOGUE_RELU_BIAS"] == theirs["CUBLASLT_EPILOGUE_RELU"] | theirs["CUBLASLT_EPILOGUE_BIAS"]
    first = theirs["CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES"]
    assert [theirs[f"CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_{m}_BYTES"] - first for m in "ABCD"] == [0, 1, 2, 3]


@needs_headers
def test_result_structure_is_that_of_the_header() -> None:
    text = re.sub(r"/\*.*?\*/", "", (HEADERS / "cublasLt.h").read_text(errors="replace"), flags=re.S)
    body = re.search(r"typedef struct \{([^}]*)\} cublasLtMatmulHeuristicResult_t;", text)
    fields = [(kind, name, int(many or 1)) for kind, name, many in re.findall(r"(\w+) (\w+)(?:\[(\d+)\])?;", body[1])]
    assert re.search(r"typedef struct \{\s*uint64_t data\[8\];\s*\} cublasLtMatmulAlgo_t;", text)
    types = {
        "cublasLtMatmulAlgo_t": ctypes.c_uint64 * 8,
        "size_t": ctypes.c_size_t,
        "cublasStatus_t": ctypes.c_int32,
        "float": ctypes.c_float,
        "int": ctypes.c_int32,
    }
    expected = [(name, types[kind] if many == 1 else types[kind] * many) for kind, name, many in fields]
    assert [tuple(field) for field in cublaslt.HeuristicResult._fields_] == expected
    assert ctypes.sizeof(cublaslt.HeuristicResult) == 96  # the size given by a C compiler


# ---- layouts
def view(memory: Tensor, matrix: Any, batch: int) -> Tensor:
    """The matrices (batch, rows, cols) of a column-major description in memory; it must not exceed the memory."""
    assert matrix.ld >= matrix.rows, "cuBLASLt refuses that"
    assert (batch - 1) * matrix.batch_stride + (matrix.cols - 1) * matrix.ld + matrix.rows <= memory.numel()
    return memory.as_strided((batch, matrix.rows, matrix.cols), (matrix.batch_stride, 1, matrix.ld), 0)


def emulate(
    problem: Any,
    weight: Tensor,
    h: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    y: Tensor,
    relu: bool,
    tf32: bool,
) -> None:
    """``cublaslt.multiply`` on a CPU: products and sums in float64, rounded once."""
    p = problem
    a, b, d = view(weight, p.a, p.batch), view(h, p.b, p.batch), view(y, p.d, p.batch)
    a = a.mT if p.trans_a == cublaslt.CUBLAS_OP_T else a
    b = b.mT if p.trans_b == cublaslt.CUBLAS_OP_T else b
    total = a.double() @ b.double()
    if residual is not None:
        total = total + view(residual, p.c, p.batch)
    if bias is not None:
        total = total + bias.as_strided((p.batch, p.d.rows, 1), (p.bias_stride, 1, 1))
    d.copy_(total.relu() if relu else total)


SHAPES = {  # (N, K, C, R, (H, W))
    "odd": (3, 5, 24, 8, (9, 7)),
    "K > C": (2, 12, 7, 4, (3, 5)),
    "square": (4, 6, 6, 2, (2, 3)),
    "one": (1, 1, 1, 1, (1, 1)),
    "S=1": (5, 12, 16, 4, (1, 1)),
    "N=1": (1, 8, 32, 2, (4, 4)),
}


def draw(shape: tuple, dtype: torch.dtype) -> dict[str, Tensor]:
    n, k, c, r, spatial = shape

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*size) * scale).to(dtype)

    return {
        "h": to_layout(normal(n, k, *spatial) + 2 * normal(n, k, 1, 1), "channels_last"),
        "conv_weight": normal(c, k, 1, 1, scale=k**-0.5),
        "conv_bias": normal(c),
        "fc1_weight": normal(r, c, scale=c**-0.5),
        "fc1_bias": normal(r),
        "fc2_weight": normal(c, r, scale=r**-0.5),
        "fc2_bias": normal(c),
        "residual": to_layout(normal(n, c, *spatial), "channels_last"),
    }


def gate(given: dict[str, Tensor | None]) -> Tensor:
    """The gate s (N, C) from the means of h, computed as the kernels do, but in h's dtype."""
    names = ("conv_weight", "conv_bias", "fc1_weight", "fc1_bias")
    weight, bias = (t.to(given["h"].dtype) for t in functional.fold_squeeze(*(given[name] for name in names)))
    hidden = torch.relu(given["h"].mean((2, 3)) @ weight.T + bias)
    return torch.sigmoid(hidden @ given["fc2_weight"].T + given["fc2_bias"])


def difference(given: dict[str, Tensor], relu: bool = True, drop: str | None = None) -> float:
    """Relative error of cublaslt_conv1x1 with the emulation, against the reference in float64."""
    given = {name: None if name == drop else t for name, t in given.items()}
    wide = {name: None if t is None else t.double() for name, t in given.items()}
    scale = gate(wide)
    y = cublaslt.cublaslt_conv1x1(given["h"], given["conv_weight"], given["conv_bias"], scale, given["residual"], relu)
    truth = reference.conv1x1_squeeze_excite(**wide, out_act="relu" if relu else None)
    assert y.shape == truth.shape and y.dtype == given["h"].dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    return relative_error(y, truth)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("drop", [None, "residual", "conv_bias"])
@pytest.mark.parametrize("relu", [True, False])
def test_described_product_is_the_op(
    monkeypatch: pytest.MonkeyPatch, shape: tuple, drop: str | None, relu: bool
) -> None:
    monkeypatch.setattr(cublaslt, "multiply", emulate)
    assert difference(draw(shape, torch.float64), relu, drop) < 1e-6  # folded weights are float32


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3), (torch.float32, 1e-6)])
def test_rounded_scaled_weights_pass_the_benchmark(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, bound: float
) -> None:
    """With weights rounded after the gate, errors meet the benchmark's limit for timing (1e-2 in bfloat16)."""
    monkeypatch.setattr(cublaslt, "multiply", emulate)
    assert difference(draw((2, 64, 256, 16, (14, 14)), dtype)) < bound


WRONG: dict[str, Callable[[Any], Any]] = {
    "A not transposed": lambda p: replace(p, trans_a=cublaslt.CUBLAS_OP_N),
    "A read as (C, K)": lambda p: replace(p, trans_a=cublaslt.CUBLAS_OP_N, a=replace(p.a, rows=24, cols=5, ld=24)),
    "A's batch stride": lambda p: replace(p, a=replace(p.a, batch_stride=p.b.batch_stride)),
    "A is one for all": lambda p: replace(p, a=replace(p.a, batch_stride=0)),
    "B read as (S, K)": lambda p: replace(p, b=replace(p.b, rows=63, cols=5, ld=63), trans_b=cublaslt.CUBLAS_OP_T),
    "B's ld": lambda p: replace(p, b=replace(p.b, ld=p.b.ld + 1)),
    "C's ld": lambda p: replace(p, c=replace(p.c, ld=p.c.cols)),
    "D row-major": lambda p: replace(p, d=replace(p.d, ld=p.d.cols)),
    "D's batch stride": lambda p: replace(p, d=replace(p.d, batch_stride=p.b.batch_stride)),
    "one bias for all": lambda p: replace(p, bias_stride=0),
    "operands exchanged": lambda p: replace(p, a=p.b, b=p.a),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_layout_is_seen(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    right = cublaslt.layout_of_problem
    monkeypatch.setattr(cublaslt, "multiply", emulate)
    monkeypatch.setattr(cublaslt, "layout_of_problem", lambda *sizes: WRONG[wrong](right(*sizes)))
    given = draw(SHAPES["odd"], torch.float64)
    assert gate(given).std(0).max() > 0.1  # gates differ between samples; otherwise strides of 0 would not matter
    try:
        error = difference(given)
    except (AssertionError, RuntimeError):  # outside the memory, or mismatched sizes
        return
    assert error > 1e-2


def test_counted_bytes() -> None:
    n, c, k, s = 3, 24, 5, 63
    given = draw(SHAPES["odd"], torch.bfloat16)
    scaled, _ = cublaslt.scaled_parameters(given["conv_weight"], None, torch.ones(n, c))
    parts = {name: given[name].nbytes for name in ("h", "conv_weight", "residual")}
    one_kernel = 2 * parts["h"] + parts["conv_weight"] + 2 * parts["residual"]
    assert cublaslt.bytes_moved(n, c, k, s, 2, scaled_weights=False) == one_kernel
    assert cublaslt.bytes_moved(n, c, k, s, 2) == one_kernel + 2 * scaled.nbytes
    assert scaled.dtype == torch.bfloat16  # although the gate is float32


# ---- the library: descriptors need no GPU
def attribute(kind: str, descriptor: ctypes.c_void_p, number: int, like: type) -> int | None:
    value, written = like(), ctypes.c_size_t()
    cublaslt.call(
        f"cublasLt{kind}GetAttribute", descriptor, number, ctypes.byref(value),
        ctypes.c_size_t(ctypes.sizeof(value)), ctypes.byref(written),
    )  # fmt: skip
    return value.value


@needs_library
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tf32", "numbers"),
    [
        (torch.float32, True, ("CUDA_R_32F", "CUBLAS_COMPUTE_32F_FAST_TF32")),
        (torch.float32, False, ("CUDA_R_32F", "CUBLAS_COMPUTE_32F_PEDANTIC")),
        (torch.float16, False, ("CUDA_R_16F", "CUBLAS_COMPUTE_32F")),
        (torch.bfloat16, True, ("CUDA_R_16BF", "CUBLAS_COMPUTE_32F")),
    ],
)
def test_descriptors_say_what_was_planned(dtype: torch.dtype, tf32: bool, numbers: tuple, relu: bool, bias: bool):
    problem = cublaslt.layout_of_problem(3, 24, 5, 63)
    operation, *layouts = cublaslt.descriptors(problem, dtype, bias, relu, tf32)
    i32, u32, i64, u64 = ctypes.c_int32, ctypes.c_uint32, ctypes.c_int64, ctypes.c_uint64
    # 0 CUBLASLT_MATMUL_DESC_COMPUTE_TYPE, 1 _SCALE_TYPE, 2 _POINTER_MODE (0: host), then those that are set
    asked = ((0, i32), (1, i32), (2, i32), (3, i32), (4, i32), (7, u32), (10, i64))
    epilogue = ("DEFAULT", "RELU", "BIAS", "RELU_BIAS")[relu + 2 * bias]
    assert [attribute("MatmulDesc", operation, *one) for one in asked] == [
        getattr(cublaslt, numbers[1]), cublaslt.CUDA_R_32F, 0, problem.trans_a, problem.trans_b,
        getattr(cublaslt, f"CUBLASLT_EPILOGUE_{epilogue}"), 24 * bias,
    ]  # fmt: skip
    # 0 CUBLASLT_MATRIX_LAYOUT_TYPE, 1 _ORDER (0: column-major), 2 _ROWS, 3 _COLS, 4 _LD, 5 _BATCH_COUNT, 6 _OFFSET
    asked = ((0, u32), (1, i32), (2, u64), (3, u64), (4, i64), (5, i32), (6, i64))
    for layout, m in zip(layouts, (problem.a, problem.b, problem.c, problem.d), strict=True):
        expected = [getattr(cublaslt, numbers[0]), 0, m.rows, m.cols, m.ld, problem.batch, m.batch_stride]
        assert [attribute("MatrixLayout", layout, *one) for one in asked] == expected


@needs_library
@pytest.mark.parametrize("with_residual", [True, False])
def test_operands_go_where_the_header_has_them(monkeypatch: pytest.MonkeyPatch, with_residual: bool) -> None:
    """The arguments of cublasLtMatmul are in the header's order.

    The call itself is intercepted; its tensors only claim to be on a GPU, and nothing is multiplied.
    """

    class Claim:
        dtype, is_cuda, device = torch.bfloat16, True, torch.device("cpu")

        def __init__(self, address: int) -> None:
            self.address = address

        def data_ptr(self) -> int:
            return self.address

    weight, h, bias, residual, y = (Claim(0x1000 * i) for i in range(1, 6))
    calls: list[tuple] = []
    result = cublaslt.HeuristicResult(workspaceSize=512)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0x77))
    monkeypatch.setattr(cublaslt, "handle", lambda device: "handle")
    monkeypatch.setattr(cublaslt, "plan", lambda device, alignments, *described: calls.append(alignments) or result)
    problem = cublaslt.layout_of_problem(3, 24, 5, 63)
    operation, *layouts = cublaslt.descriptors(problem, torch.bfloat16, True, True, False)
    call = cublaslt.call
    monkeypatch.setattr(cublaslt, "call", lambda *a: calls.append(a) if a[0] == "cublasLtMatmul" else call(*a))
    cublaslt.multiply(problem, weight, h, bias, residual if with_residual else None, y, True, False)
    assert calls[0] == (256,) * 5
    name, *given = calls[1]
    plain = [getattr(a, "_obj", a) for a in given]  # the objects that byref refers to
    c = residual if with_residual else y
    assert name == "cublasLtMatmul" and len(plain) == 16
    # handle, operation, alpha, A, layout, B, layout, beta, C, layout, D, layout, algorithm, workspace, its size, stream
    assert plain[:2] == ["handle", operation]
    assert (plain[2].value, plain[7].value) == (1.0, 1.0 if with_residual else 0.0)
    assert [plain[i].value for i in (3, 5, 8, 10)] == [t.address for t in (weight, h, c, y)]
    assert [plain[i] for i in (4, 6, 9, 11)] == layouts
    assert bytes(plain[12]) == bytes(result.algo) and (plain[14].value, plain[15].value) == (512, 0x77)
    assert attribute("MatmulDesc", operation, 8, ctypes.c_void_p) == bias.address


# ---- messages
def arguments(dtype: torch.dtype = torch.float32) -> tuple:
    given = draw(SHAPES["odd"], dtype)
    return given["h"], given["conv_weight"], given["conv_bias"], torch.ones(3, 24), given["residual"]


def said(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_says_that_it_needs_a_gpu() -> None:
    with pytest.raises(RuntimeError) as error:
        cublaslt.cublaslt_conv1x1(*arguments())
    assert said(error) == "cuBLASLt needs tensors on an NVIDIA GPU, got cpu"


def test_says_which_order_it_needs() -> None:
    h, *rest = arguments()
    with pytest.raises(ValueError, match="channels_last") as error:
        cublaslt.cublaslt_conv1x1(h.contiguous(), *rest)
    said(error)


def test_says_that_there_is_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(RuntimeError, match="no cuBLASLt with PyTorch") as error:
        cublaslt.library.__wrapped__()
    said(error)


@needs_library
def test_says_which_call_failed() -> None:
    operation = cublaslt.create("cublasLtMatmulDescCreate", cublaslt.CUBLAS_COMPUTE_32F, cublaslt.CUDA_R_32F)
    with pytest.raises(RuntimeError) as error:  # four bytes, but the stride has eight
        cublaslt.put("MatmulDesc", operation, cublaslt.CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, ctypes.c_int32(1))
    assert said(error) == "cublasLtMatmulDescSetAttribute: CUBLAS_STATUS_INVALID_VALUE (7)"


@needs_library
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_says_that_a_handle_needs_a_gpu() -> None:
    with pytest.raises(RuntimeError) as error:
        cublaslt.handle(0)
    assert said(error) == "cublasLtCreate: CUBLAS_STATUS_NOT_INITIALIZED (1)"
