"""A 1x1 convolution followed by squeeze-excite, as one matrix product with an epilogue (inference, channels_last).

Averaging commutes with a 1x1 convolution, so the squeeze of u = W3 h + b3 comes from the mean of h, which has fewer
channels. With FC1 folded into W3 (``se_fused.functional.fold_squeeze``) the gate is known before the product starts:

    s = gate(W2 act((W1 W3) mean(h) + (W1 b3 + b1)) + b2),   y = out_act(s * (W3 h + b3) + residual)

There are three launches: means of h, excitation, product. In addition to the convolution's traffic they read h once: a
quarter of a pass over u in ResNet's bottlenecks, compared with three to five passes for the fused block after the
convolution.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._params import NO_BATCH_NORM, BlockOptions, Conv1x1Params, ExcitationParams
from ...activations import OUT_ACT_CODES
from ...reference import conv1x1
from ..convolution_bias import bias_as_batch_norm
from .activations import activate
from .arguments import Epilogue
from .batch_norm_squeeze_excite import batch_norm_squeeze_excite_inference, coefficients, contiguous
from .launch import launch
from .launch_configs import cdiv, device_of, power_of_two
from .passes import map_of
from .tuning import fastest

__all__ = ["conv1x1_squeeze_excite", "gated_conv1x1"]


@dataclass(frozen=True)
class Product:
    """Launch shape of the convolution's matrix product."""

    m: int  # BLOCK_M: positions
    n: int  # BLOCK_N: channels
    k: int  # BLOCK_K
    warps: int
    stages: int

    def blocks(self) -> dict[str, int]:
        """Constants of the kernel."""
        return {"BLOCK_M": self.m, "BLOCK_N": self.n, "BLOCK_K": self.k}

    def options(self) -> dict[str, int]:
        """Options of the launch."""
        return {"num_warps": self.warps, "num_stages": self.stages}


def product_config(s: int, c: int, k: int, itemsize: int, exact: bool) -> Product:
    """The launch shape of the matrix product for S positions per sample and C channels from K.

    Tiles of 128 x 128 outputs with 8 warps keep the tensor cores of sm_80 and later busy; samples with few positions
    get fewer rows. float32 in full precision (``exact``) runs without tensor cores and needs smaller tiles, because its
    sums would not fit into registers.
    """
    rows = 128 if s > 64 else 64
    if exact:
        return Product(32, 64, 32, 4, 2)
    # 64 columns in float32: with 128 the epilogue's residual spills on sm_100 (255 registers and 64 bytes).
    columns = max(min(power_of_two(c), 128 if itemsize == 2 else 64), 16)
    depth = max(min(power_of_two(k), 128 // itemsize), 16)
    return Product(rows, columns, depth, 8 if rows * columns >= 16384 else 4, 3)


@triton.jit
def conv1x1_kernel(
    h, gate, weight, epilogue, y, inner_k, inner_c, positions, ALIGN_K: tl.constexpr, ALIGN_C: tl.constexpr,
    OUT_ACT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """y[n, p, c] = out_act(scale[n, c] * sum_k h[n, p, k] weight[c, k] + shift[n, c] + residual[n, p, c]).

    With a gate (N, K) the sum is of gate[n, k] h[n, p, k] weight[c, k]. The product gate * h is computed in float32 and
    rounded to h's dtype, because tensor cores need it, and because a scaled map in memory would hold the same values.
    Without scale and shift, bias (C,) is added instead.

    A tile's rows are positions of one sample, so scale and shift are vectors. Consecutive tiles have the same positions
    and read the same h, while the whole weight (2 MB at most in ResNet-50) stays in L2.

    WIDEN: multiply in float32, because the interpreter's bfloat16 product is wrong.
    """
    k_count = inner_k * ALIGN_K
    channels = inner_c * ALIGN_C
    c_tiles = tl.cdiv(channels, BLOCK_N)
    m_tiles = tl.cdiv(positions, BLOCK_M)
    tile = tl.program_id(0)
    rest = tile // c_tiles
    sample = rest // m_tiles
    position = (rest % m_tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = (tile % c_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_p = position < positions
    in_c = channel < channels
    row = sample.to(tl.int64) * positions + position
    lane = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, k_count, BLOCK_K):
        in_k = k + lane < k_count
        left = tl.load(h + row[:, None] * k_count + (k + lane)[None, :], mask=in_p[:, None] & in_k[None, :], other=0)
        right = tl.load(
            weight + channel[:, None] * k_count + (k + lane)[None, :], mask=in_c[:, None] & in_k[None, :], other=0
        )
        if gate is not None:
            factor = tl.load(gate + sample * k_count + k + lane, mask=in_k, other=0)
            left = (left.to(tl.float32) * factor[None, :]).to(h.dtype.element_ty)
        if WIDEN:
            left = left.to(tl.float32)
            right = right.to(tl.float32)
        total = tl.dot(left, tl.trans(right), total, input_precision=PRECISION)
    exists = in_p[:, None] & in_c[None, :]
    offsets = row[:, None] * channels + channel[None, :]
    t = total
    if epilogue.scale is not None:
        vector = sample * channels + channel
        a = tl.load(epilogue.scale + vector, mask=in_c, other=0)
        b = tl.load(epilogue.shift + vector, mask=in_c, other=0)
        t = t * a[None, :] + b[None, :]
    if epilogue.bias is not None:
        t += tl.load(epilogue.bias + channel, mask=in_c, other=0).to(tl.float32)[None, :]
    if epilogue.residual is not None:
        t += tl.load(epilogue.residual + offsets, mask=exists, other=0, eviction_policy="evict_first").to(tl.float32)
    t = activate(t, OUT_ACT)
    tl.store(y + offsets, t.to(y.dtype.element_ty), mask=exists)


def _conv_precision() -> str:
    """The precision that PyTorch's settings allow float32 convolutions, "tf32" or "ieee", in PyTorch's order of
    inheritance."""
    cudnn: Any = torch.backends.cudnn
    for level in (cudnn.conv, cudnn, torch.backends):
        if level.fp32_precision != "none":
            return "tf32" if level.fp32_precision == "tf32" else "ieee"
    return "ieee"


def _launch(h: Tensor, weight: Tensor, epilogue: Epilogue, out_act: str = "none", gate: Tensor | None = None) -> Tensor:
    """Launches the matrix product alone. h: channels_last, 4-D or 5-D."""
    m, (c, k) = map_of(h), weight.shape[:2]
    y = torch.empty(
        (m.n, c, *h.shape[2:]), dtype=h.dtype, device=h.device,
        memory_format=torch.channels_last if h.dim() == 4 else torch.channels_last_3d,
    )  # fmt: skip
    exact = h.dtype == torch.float32 and (_conv_precision() == "ieee" or not device_of(h.device).is_nvidia)
    config = product_config(m.s, c, k, h.element_size(), exact)
    align_k, align_c = gcd(k, 16), gcd(c, 16)
    launch(
        conv1x1_kernel, m.n * cdiv(m.s, config.m) * cdiv(c, config.n), h.device, config.options(), h=h, gate=gate,
        weight=weight.reshape(c, k).contiguous(), epilogue=epilogue, y=y, inner_k=k // align_k, inner_c=c // align_c,
        positions=m.s, ALIGN_K=align_k, ALIGN_C=align_c, OUT_ACT=OUT_ACT_CODES[out_act],
        PRECISION="ieee" if exact else "tf32", WIDEN=h.device.type == "cpu", **config.blocks(),
    )  # fmt: skip
    return y


def product(h: Tensor, conv: Conv1x1Params, folded: ExcitationParams, options: BlockOptions) -> Tensor:
    """conv1x1_squeeze_excite in three launches: means of h, excitation, product."""
    found = coefficients(h, NO_BATCH_NORM, folded, None, False, contiguous(conv.bias))
    return _launch(h, conv.weight, Epilogue(None, options.residual, found.scale, found.shift), options.out_act)


def conv1x1_squeeze_excite(
    h: Tensor,
    conv: Conv1x1Params,
    fc: ExcitationParams,
    folded: ExcitationParams,
    options: BlockOptions,
    *,
    block: Any = batch_norm_squeeze_excite_inference,
    block_name: str = "triton",
) -> Tensor:
    """A 1x1 convolution with squeeze-excite: y (N, C, *spatial) from h (N, K, *spatial), channels_last, 4-D or 5-D.
    Arguments as in se_fused/ops/conv1x1_squeeze_excite.py.

    Runs the product above, or cuDNN's convolution followed by the fused block: whichever was faster when this shape was
    first seen. ``block`` is the function of the fused block, of the backend ``block_name``.
    """

    def separate() -> Tensor:
        u = conv1x1(h, conv.weight, None)
        block(u, bias_as_batch_norm(conv.bias), fc, options, u)
        return u

    ways = {"product": lambda: product(h, conv, folded, options), "convolution and block": separate}
    key = (
        f"conv1x1_squeeze_excite {tuple(h.shape)} -> {conv.weight.shape[0]} {h.dtype} {_conv_precision()} "
        f"r={fc.squeezed} residual={options.residual is not None} block={block_name} "
        f"torch={torch.__version__}"
    )
    return ways[fastest(key, ways, h.device)]()


def gated_product(y: Tensor, gate: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """gated_conv1x1 in one launch, the product with a gate."""
    return _launch(y, weight, Epilogue(contiguous(bias)), gate=gate)


def gated_conv1x1(
    y: Tensor, gate: Tensor, weight: Tensor, bias: Tensor | None, otherwise: Callable[[], Tensor]
) -> Tensor:
    """A 1x1 convolution of a gated map: (N, D, *spatial) from y (N, C, *spatial), channels_last, 4-D or 5-D, and the
    gate (N, C). Arguments as in se_fused/ops/gated_conv1x1.py.

    Runs the product above or ``otherwise``: whichever was faster when this shape was first seen.
    """
    ways = {"product": lambda: gated_product(y, gate, weight, bias), "otherwise": otherwise}
    key = (
        f"gated_conv1x1 {tuple(y.shape)} -> {weight.shape[0]} {y.dtype} {_conv_precision()} bias={bias is not None} "
        f"torch={torch.__version__}"
    )
    return ways[fastest(key, ways, y.device)]()
