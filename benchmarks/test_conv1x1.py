"""Benchmarks of conv3 + SE + add + ReLU in inference, channels_last.

The candidates are ``product`` (one product with everything fused), ``separate`` (convolution and fused block),
``se_fused`` (the library's own choice between them), ``eager`` (plain PyTorch), ``convolution`` (the convolution
without SE, for the cost of SE) and ``cublaslt`` (the product by NVIDIA's library, see cublaslt.py, after two launches
of this library that compute the gate).
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from cases import sizes
from cublaslt import bytes_moved, cublaslt_conv1x1
from harness import Bench, Contender, WorkloadSpec
from torch import Tensor

from se_fused import backends, functional, reference
from se_fused._formats import DTYPES
from se_fused._params import NO_BATCH_NORM, ExcitationParams
from se_fused.bench.workloads.base import Candidate, Workload

WAYS = {"product": "product", "separate": "convolution and block"}


def gate(x: Tensor, folded: tuple[Tensor, ...], fc2_weight: Tensor, fc2_bias: Tensor) -> Tensor:
    """The gate (N, C), float32, by the two launches that also precede this library's product."""
    from se_fused.backends.triton.batch_norm_squeeze_excite import coefficients

    weight, bias = folded
    return coefficients(x, NO_BATCH_NORM, ExcitationParams(weight, bias, fc2_weight, fc2_bias), None, False).scale


@contextmanager
def forced(name: str) -> Iterator[None]:
    """Force Triton's convolution to use one of ``WAYS``, whatever is faster; other names change nothing."""
    if name not in WAYS:
        yield
        return
    from se_fused.backends.triton import conv1x1_squeeze_excite as triton_conv

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(triton_conv, "fastest", lambda key, ways, device: WAYS[name]))
        stack.enter_context(mock.patch.object(backends, "_forced", "triton"))  # auto may choose another backend
        yield


class Conv1x1Workload(Workload):
    """The third convolution of a bottleneck block and the operations after it; ``plain``: only the convolution."""

    mode, layout, layouts, draws, seconds = "infer", "channels_last", ("channels_last",), 1, 2.0
    baseline = "se_fused.reference (plain PyTorch)"

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: str, plain: bool) -> None:
        self.title = "conv3" if plain else "conv3+SE+add+ReLU"
        self.shape, self.dtype, self.device, self.plain = shape, dtype, torch.device(device), plain
        n, c, h, w = shape
        k, r = c // 4, max(c // 16, 8)
        generator = torch.Generator().manual_seed(0)

        def draw(*size: int, scale: float = 1.0) -> Tensor:
            t = (torch.randn(size, generator=generator) * scale).to(device, dtype)
            return t.to(memory_format=torch.channels_last) if len(size) == 4 else t

        self.x, self.residual = draw(n, k, h, w), draw(n, c, h, w)
        self.conv = draw(c, k, 1, 1, scale=k**-0.5), draw(c)
        self.fc = draw(r, c, scale=c**-0.5), draw(r), draw(c, r, scale=r**-0.5), draw(c)
        self.folded = functional.fold_squeeze(*self.conv, *self.fc[:2])

    def _plain(self, x: Tensor, conv: tuple[Tensor, ...], fc: tuple[Tensor, ...], residual: Tensor) -> Tensor:
        if self.plain:
            return reference.conv1x1(x, *conv)
        return reference.conv1x1_squeeze_excite(x, *conv, *fc, residual, out_act="relu")

    def truth(self) -> dict[str, Tensor]:
        x, residual = self.x.double(), self.residual.double()
        return {"y": self._plain(x, *(tuple(t.double() for t in given) for given in (self.conv, self.fc)), residual)}

    @torch.no_grad()
    def _run(self, name: str, x: Tensor, residual: Tensor) -> Tensor:
        if name in ("eager", "convolution"):
            return self._plain(x, self.conv, self.fc, residual)
        if name == "cublaslt":  # the other candidates use the TF32 setting of convolutions for float32
            opened = gate(x, self.folded, *self.fc[2:])
            return cublaslt_conv1x1(x, *self.conv, opened, residual, tf32=torch.backends.cudnn.allow_tf32)
        with forced(name):
            return functional.conv1x1_squeeze_excite(
                x, *self.conv, *self.fc, residual, out_act="relu", folded=self.folded
            )

    def candidate(self, name: str, layout: str) -> Candidate:
        def once() -> Tensor:
            return self._run(name, self.x, self.residual)

        def rotate(sets: int) -> list[Callable[[], Any]]:
            copies = [(self.x, self.residual), *((self.x.clone(), self.residual.clone()) for _ in range(sets - 1))]
            return [lambda given=given: self._run(name, *given) for given in copies]  # type: ignore[misc]

        return Candidate(name, layout, once, lambda: {"y": once()}, lambda: None, (), rotate=rotate)

    def counted(self) -> tuple[int, int]:
        """Bytes of the convolution; with SE also of the residual, and of reading the input again."""
        weights = sum(t.nbytes for t in self.conv)
        own = self.x.nbytes + self.residual.nbytes + weights  # the result is as large as the residual
        n, c, h, w = self.shape
        counted = own if self.plain else bytes_moved(n, c, c // 4, h * w, self.dtype.itemsize, scaled_weights=False)
        return counted, own + (0 if self.plain else self.residual.nbytes)

    def flops(self) -> int:
        n, c, h, w = self.shape
        return 2 * n * c * (c // 4) * h * w


def test_conv1x1(bench: Bench, stage: str, dtype: str, candidate: str) -> None:
    if candidate == "cublaslt" and torch.version.cuda is None:
        pytest.skip("cuBLASLt needs an NVIDIA GPU")
    n, c, h, w = sizes(stage)
    group = f"conv3+SE+add+ReLU inference {stage} {dtype}"

    def spec(plain: bool) -> WorkloadSpec:
        return WorkloadSpec(
            f"{group} {plain}", lambda: Conv1x1Workload((n, c, h, w), DTYPES[dtype], bench.settings.device, plain)
        )

    bench.workloads.start_group(group)
    mine = Contender(spec(candidate == "convolution"), candidate, "channels_last")
    bench.run(mine, Contender(spec(False), "se_fused", "channels_last"), kind="conv1x1", group=group)
