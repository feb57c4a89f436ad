"""cuBLASLt as a candidate for "conv3 (1x1) + squeeze-excite + residual + ReLU" in inference, channels_last.

If the gate s (N, C) is known, the op is one strided batched product with a matrix per sample:

    y[n] (S, C) = relu(h[n] (S, K) (s[n] * W3)^T (K, C) + residual[n] (S, C) + s[n] * b3)

The weights are multiplied by the gate first. The N scaled copies are written and read, and rounded to the dtype of the
tensors like the scaled bias. A factor per row of D (CUBLASLT_MATMUL_DESC_ALPHA_VECTOR_BATCH_STRIDE) would avoid the
copies, but NVIDIA's manual documents it for int8 kernels only.

This code has not run on a GPU yet. tests/bench/test_cublaslt.py compares constants, layouts and descriptors with
NVIDIA's headers and library. Unknown are whether the heuristic finds a kernel for a shape, its accuracy and its speed.
"""

import ctypes
from ctypes import byref, c_float, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

# cublas_api.h: cublasStatus_t, cublasOperation_t, cublasComputeType_t; library_types.h: cudaDataType
CUBLAS_STATUS_SUCCESS, CUBLAS_OP_N, CUBLAS_OP_T = 0, 0, 1
CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_PEDANTIC, CUBLAS_COMPUTE_32F_FAST_TF32 = 68, 69, 77
CUDA_R_32F, CUDA_R_16F, CUDA_R_16BF = 0, 2, 14
# cublasLt.h: cublasLtMatmulDescAttributes_t: int32_t, int32_t, uint32_t; const void*, int64_t in elements
CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB, CUBLASLT_MATMUL_DESC_EPILOGUE = 3, 4, 7
CUBLASLT_MATMUL_DESC_BIAS_POINTER, CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE = 8, 10
# cublasLt.h: cublasLtMatrixLayoutAttribute_t: int32_t, int64_t in elements
CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET = 5, 6
# cublasLt.h: cublasLtMatmulPreferenceAttributes_t: uint64_t, uint32_t; B, C and D follow A
CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 1, 5
# cublasLt.h: cublasLtEpilogue_t
CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_RELU, CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_RELU_BIAS = 1, 2, 4, 6

DATA_TYPES = {torch.float32: CUDA_R_32F, torch.float16: CUDA_R_16F, torch.bfloat16: CUDA_R_16BF}
WORKSPACE = 32 * 2**20  # the workspace that PyTorch provides for cuBLAS on Hopper


class HeuristicResult(ctypes.Structure):  # cublasLt.h: cublasLtMatmulHeuristicResult_t
    _fields_ = (("algo", c_uint64 * 8), ("workspaceSize", c_size_t), ("state", c_int32), ("wavesCount", c_float),
                ("reserved", c_int32 * 4))  # fmt: skip


@dataclass(frozen=True)
class Matrix:  # column-major: element (i, j) of matrix n is at n * batch_stride + j * ld + i
    rows: int
    cols: int
    ld: int
    batch_stride: int


@dataclass(frozen=True)
class Problem:  # D = op(A) op(B) + C + bias for each matrix of the batch; the bias has a value per row of D
    a: Matrix
    b: Matrix
    c: Matrix
    d: Matrix
    batch: int
    trans_a: int
    trans_b: int
    bias_stride: int


def layout_of_problem(n: int, c: int, k: int, s: int) -> Problem:
    """The op's matrices for cuBLASLt, which is column-major: a row-major (P, Q) is a column-major (Q, P) with ld Q.

    The product is therefore computed transposed, y^T (C, S) = W (C, K) h^T (K, S). y and residual, row-major (S, C),
    are the matrices D and C: (C, S), ld C. Their rows are channels, which the bias requires. h, row-major (S, K), is
    B = h^T: (K, S), ld K. W, row-major (C, K), is A = W^T (K, C), ld K, which op transposes back.
    """
    image = Matrix(c, s, c, s * c)
    a, b = Matrix(k, c, k, c * k), Matrix(k, s, k, s * k)
    return Problem(a, b, image, image, n, CUBLAS_OP_T, CUBLAS_OP_N, bias_stride=c)


def bytes_moved(n: int, c: int, k: int, s: int, itemsize: int, scaled_weights: bool = True) -> int:
    """Bytes of the whole op: h twice (squeeze, product), W3, residual and y once, N scaled copies of W3 twice.

    With ``scaled_weights`` False, the product scales its result instead of the weights. Vectors and the weights of the
    gate do not count.
    """
    return (2 * n * s * k + c * k + 2 * n * s * c + scaled_weights * 2 * n * c * k) * itemsize


@cache
def library() -> ctypes.CDLL:  # PyTorch has loaded the library already, so it is found by name in any folder
    try:
        found = ctypes.CDLL(f"libcublasLt.so.{str(torch.version.cuda).split('.')[0]}")
    except OSError as error:
        raise RuntimeError(f"no cuBLASLt with PyTorch {torch.__version__}: {error}") from error
    found.cublasLtGetStatusName.restype = ctypes.c_char_p
    return found


def call(function: str, *arguments: object) -> None:
    status = getattr(library(), function)(*arguments)
    if status != CUBLAS_STATUS_SUCCESS:
        raise RuntimeError(f"{function}: {library().cublasLtGetStatusName(status).decode()} ({status})")


def create(function: str, *arguments: object) -> c_void_p:  # never destroyed, because a process creates only a few
    made = c_void_p()
    call(function, byref(made), *arguments)
    return made


def put(kind: str, target: c_void_p, attribute: int, value: object) -> None:  # the library checks the value's size
    call(f"cublasLt{kind}SetAttribute", target, attribute, byref(value), c_size_t(ctypes.sizeof(value)))


@cache
def handle(device: int) -> c_void_p:  # cuBLASLt uses the current device, which the caller has set to this one
    return create("cublasLtCreate")


@cache
def descriptors(problem: Problem, dtype: torch.dtype, has_bias: bool, relu: bool, tf32: bool) -> list[c_void_p]:
    """Descriptors of the operation and of the layouts of A, B, C and D; needs no GPU."""
    single = CUBLAS_COMPUTE_32F_FAST_TF32 if tf32 else CUBLAS_COMPUTE_32F_PEDANTIC
    compute = single if dtype == torch.float32 else CUBLAS_COMPUTE_32F
    operation = create("cublasLtMatmulDescCreate", compute, CUDA_R_32F)  # float32: alpha and beta
    epilogue = (CUBLASLT_EPILOGUE_RELU if relu else 0) | (CUBLASLT_EPILOGUE_BIAS if has_bias else 0)
    put("MatmulDesc", operation, CUBLASLT_MATMUL_DESC_TRANSA, c_int32(problem.trans_a))
    put("MatmulDesc", operation, CUBLASLT_MATMUL_DESC_TRANSB, c_int32(problem.trans_b))
    put("MatmulDesc", operation, CUBLASLT_MATMUL_DESC_EPILOGUE, c_uint32(epilogue or CUBLASLT_EPILOGUE_DEFAULT))
    put("MatmulDesc", operation, CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, c_int64(problem.bias_stride * has_bias))
    made = [operation]
    for m in (problem.a, problem.b, problem.c, problem.d):
        sizes = c_uint64(m.rows), c_uint64(m.cols), c_int64(m.ld)
        made.append(create("cublasLtMatrixLayoutCreate", DATA_TYPES[dtype], *sizes))
        put("MatrixLayout", made[-1], CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, c_int32(problem.batch))
        put("MatrixLayout", made[-1], CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, c_int64(m.batch_stride))
    return made


@cache
def plan(device: int, alignments: tuple[int, ...], *described: object) -> HeuristicResult:
    """The heuristic's first result for these descriptors, which NVIDIA estimates to be the fastest."""
    preference = create("cublasLtMatmulPreferenceCreate")
    put("MatmulPreference", preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, c_uint64(WORKSPACE))
    for i, alignment in enumerate(alignments[:4]):  # the fifth is the alignment of the bias, given by the descriptor
        put("MatmulPreference", preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES + i, c_uint32(alignment))
    result, count = HeuristicResult(), c_int32()
    how = (*descriptors(*described), preference, 1)
    call("cublasLtMatmulAlgoGetHeuristic", handle(device), *how, byref(result), byref(count))
    if count.value < 1 or result.state != CUBLAS_STATUS_SUCCESS:
        raise RuntimeError(f"cublasLtMatmulAlgoGetHeuristic: {count.value} algorithms, state {result.state}")
    return result


def multiply(
    problem: Problem, weight: Tensor, h: Tensor, bias: Tensor | None, residual: Tensor | None, y: Tensor, *how: bool
) -> None:
    """y (D) from weight (A), h (B), residual (C) and bias, on PyTorch's current stream; ``how``: relu, tf32."""
    if not y.is_cuda:
        raise RuntimeError(f"cuBLASLt needs tensors on an NVIDIA GPU, got {y.device}")
    described = (problem, y.dtype, bias is not None, *how)
    operation, *layouts = descriptors(*described)
    # without a residual, beta is 0: C is not read, but its pointer must be valid
    pointers = [t.data_ptr() for t in (weight, h, y if residual is None else residual, y)]
    (a, la), (b, lb), (c, lc), (d, ld) = zip(map(c_void_p, pointers), layouts, strict=True)
    if bias is not None:  # set the pointer before the heuristic runs, which uses its alignment
        pointers.append(bias.data_ptr())
        put("MatmulDesc", operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, c_void_p(pointers[4]))
    with torch.cuda.device(y.device):
        result = plan(y.device.index, tuple(min(p & -p, 256) for p in pointers), *described)
        work = torch.empty(result.workspaceSize, dtype=torch.uint8, device=y.device)  # aligned to 512 bytes
        end = c_void_p(work.data_ptr()), c_size_t(work.numel()), c_void_p(torch.cuda.current_stream().cuda_stream)
        operands = byref(c_float(1)), a, la, b, lb, byref(c_float(residual is not None)), c, lc, d, ld
        call("cublasLtMatmul", handle(y.device.index), operation, *operands, byref(result.algo), *end)


def scaled_parameters(weight: Tensor, bias: Tensor | None, scale: Tensor) -> tuple[Tensor, Tensor | None]:
    """s[n] * W3 (N, C, K) and s[n] * b3 (N, C) in the weight's dtype, each in one pass for any dtype of the gate."""
    n, c, k = len(scale), *weight.shape[:2]
    scaled = torch.mul(weight.reshape(c, k), scale[:, :, None], out=weight.new_empty(n, c, k))
    return scaled, None if bias is None else torch.mul(bias, scale, out=weight.new_empty(n, c))


@torch.no_grad()
def cublaslt_conv1x1(
    h: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    scale: Tensor,
    residual: Tensor | None,
    relu: bool = True,
    tf32: bool | None = None,
) -> Tensor:
    """relu(scale * (conv(h) + conv_bias) + residual), in h's dtype: float32, float16, bfloat16.

    h (N, K, H, W) and residual (N, C, H, W) are channels_last, conv_weight is (C, K) or (C, K, 1, 1), conv_bias (C,),
    scale (N, C) of any dtype. ``tf32``: whether float32 products may use TF32; None: PyTorch's setting for matrix
    products.
    """
    for t in (h, residual):
        if t is not None and not t.is_contiguous(memory_format=torch.channels_last):
            raise ValueError(f"h and residual must be channels_last, got strides {t.stride()}")
    (n, k, height, width), c = h.shape, len(conv_weight)
    y = h.new_empty(n, height, width, c).permute(0, 3, 1, 2)
    weight, bias = scaled_parameters(conv_weight, conv_bias, scale)
    tf32 = torch.backends.cuda.matmul.allow_tf32 if tf32 is None else tf32
    multiply(layout_of_problem(n, c, k, height * width), weight, h, bias, residual, y, relu, tf32)
    return y
