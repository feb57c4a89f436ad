"""Benchmarks of the single passes over memory that a block consists of, against the bandwidth of a copy.

The counted bytes of a pass are those that it must move: each of its maps once, and the mask. A group of the report is
one map.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from cases import PASSES, sizes
from harness import Bench, Contender, WorkloadSpec
from torch import Tensor

from se_fused import backends
from se_fused._formats import DTYPES, LAYOUTS
from se_fused.activations import OUT_ACT_CODES
from se_fused.bench.workloads.base import Candidate, Workload
from se_fused.ops.layout import mask_numel, pack_mask
from se_fused.ops.moments import moments, moments_backward
from se_fused.ops.scale_shift_act import scale_shift_act, scale_shift_act_backward
from se_fused.ops.scale_shift_act_mean import scale_shift_act_mean, scale_shift_act_mean_backward
from se_fused.testing.generators import generator_on

RELU, SILU = OUT_ACT_CODES["relu"], OUT_ACT_CODES["silu"]  # SiLU for the two kernels of EfficientNet's blocks


class Definition:
    """The passes in plain PyTorch: in float64 the expected results, in the measured dtype the eager baseline."""

    moments, moments_backward = staticmethod(moments), staticmethod(moments_backward)
    scale_shift_act, scale_shift_act_backward = staticmethod(scale_shift_act), staticmethod(scale_shift_act_backward)
    scale_shift_act_mean, scale_shift_act_mean_backward = (
        staticmethod(scale_shift_act_mean),
        staticmethod(scale_shift_act_mean_backward),
    )


class PassWorkload(Workload):
    """One pass of one backend on one map."""

    baseline, mode, draws, seconds = "the definition in plain PyTorch", "infer", 1, 1.0

    def __init__(
        self, kernel: str, backend: str, shape: tuple[int, ...], dtype: torch.dtype, layout: str, device: str
    ) -> None:
        self.kernel, self.backend = kernel, backends.BACKENDS[backend]
        self.title, self.shape, self.dtype, self.layout = f"{kernel} ({backend})", shape, dtype, layout
        self.device, self.layouts = torch.device(device), (layout,)
        generator = generator_on(device, 0)

        def draw(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, device=generator.device)

        maps = [draw(*shape).to(dtype).to(memory_format=LAYOUTS[layout]) for _ in range(2)]
        self.inputs = {"x": maps[0], "other": maps[1], **{name: draw(*shape[:2]) for name in "abk"}}
        self.inputs["mask"] = pack_mask(maps[1] * maps[0] > 0)

    def _run(self, passes: Any, given: dict[str, Tensor]) -> Sequence[Tensor]:
        x, other, a, b, k, mask = (given[name] for name in ("x", "other", "a", "b", "k", "mask"))
        nothing = x.new_empty(0, dtype=a.dtype)
        calls: dict[str, Callable[[], Any]] = {
            "moments": lambda: passes.moments(x),
            "scale_shift_act": lambda: passes.scale_shift_act(x, other, a, b, RELU, True),
            "moments_backward": lambda: passes.moments_backward(other, x, None, mask, k, a, b, RELU, True),
            "scale_shift_act_backward": lambda: (passes.scale_shift_act_backward(other, x, nothing, k, a, b, k),),
            "scale_shift_act_mean": lambda: passes.scale_shift_act_mean(x, a, b, SILU),
            "scale_shift_act_mean_backward": lambda: passes.scale_shift_act_mean_backward(other, k, x, a, a, b, SILU),
        }
        outputs: Sequence[Tensor] = calls[self.kernel]()
        return outputs

    def _results(self, passes: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = self._run(passes, given)
        return {str(i): t for i, t in enumerate(outputs) if t.dtype != torch.uint8 and t.numel()}

    def truth(self) -> dict[str, Tensor]:
        double = {k: t if k == "mask" else t.double() for k, t in self.inputs.items()}
        return self._results(Definition, double)

    def candidate(self, name: str, layout: str) -> Candidate:
        passes = self.backend if name == "se_fused" else Definition

        def rotate(sets: int) -> list[Callable[[], Any]]:
            copies = [self.inputs, *({k: t.clone() for k, t in self.inputs.items()} for _ in range(sets - 1))]
            return [lambda given=given: self._run(passes, given) for given in copies]  # type: ignore[misc]

        return Candidate(
            name, layout, lambda: self._run(passes, self.inputs), lambda: self._results(passes, self.inputs),
            lambda: None, (), rotate=rotate,
        )  # fmt: skip

    def counted(self) -> tuple[int, int]:
        reads, writes, masks, _ = PASSES[self.kernel]
        x = self.inputs["x"]
        counted = (reads + writes) * x.nbytes + masks * mask_numel(x)
        return counted, counted

    def flops(self) -> int:
        return PASSES[self.kernel][3] * self.inputs["x"].numel()


def test_pass(
    bench: Bench,
    stage: str,
    dtype: str,
    layout: str,
    backend: str,
    kernel: str,
) -> None:
    if (reason := backends.why_not(backends.BACKENDS[backend], bench.settings.device, DTYPES[dtype])) is not None:
        pytest.skip(f"{backend}: {reason}")
    shape = sizes(stage)
    group = f"passes {stage} {dtype} {layout}"
    spec = WorkloadSpec(
        f"{group} {backend} {kernel}",
        lambda: PassWorkload(kernel, backend, shape, DTYPES[dtype], layout, bench.settings.device),
    )
    bench.workloads.start_group(spec.key)
    mine = Contender(spec, "se_fused", layout)
    bench.run(mine, mine, kind="pass", group=group)
