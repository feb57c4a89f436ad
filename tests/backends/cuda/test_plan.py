"""The path of the CUDA backend's inference if the device cannot place every cluster, or if a path is forced.

test_contract.py tests the choice on other devices and the result of each path.
"""

from typing import Any

import pytest
import torch
from support import contract
from support.contract import Shape
from support.cuda_backend import (  # noqa: F401 (fixtures)
    A100,
    DEVICE,
    H200,
    SEPARATE,
    cuda_alone,
    given_backend,
    infer,
    launched,
    on_cpu,
    on_shim,
    order_of_threads,
    stand_in,
)

from benchmarks.gpu.launches import recorded
from se_fused._formats import DTYPES, LAYOUTS
from se_fused.activations import OUT_ACT_CODES
from se_fused.backends.cuda import CudaBackend
from se_fused.testing.verify import Case

pytestmark = pytest.mark.quick


@on_shim
@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_clusters_that_the_device_cannot_place(backend: CudaBackend, layout: str) -> None:
    """A sample may need a multiprocessor for each of its 16 blocks, or leave room for other blocks."""
    of_two = (40000 + 1024) // 2 - 1024
    for positions, alone in ((26, True), (24, False)):
        case = Case("squeeze_excite", (2, 128, positions, positions), layout=layout, training=False, hidden=8)
        given = (2, 128, positions**2, layout == "channels_last", 4, 8)
        if not alone and layout == "channels_last":
            continue  # in this layout, column sums fill the other half
        stand_in((90, 8, 60 << 20, 40000))
        placed = backend.plan(*given)
        assert "1 sample(s) in 16 block(s)" in placed
        infer(case, ["cluster_fused"])
        stand_in((90, 8, 60 << 20, 40000, of_two))
        if not alone:
            assert backend.plan(*given) == placed
            infer(case, ["cluster_fused"])
            continue
        assert backend.plan(*given) == (
            "separate: x stays in L2 between the launches; not cluster_fused: "
            "the device cannot place a cluster of 16 blocks with so much shared memory"
        )
        infer(case, SEPARATE)


@on_shim
def test_a_device_without_large_clusters(backend: CudaBackend) -> None:
    """Of ResNet-50's stages, only stage 1 in float32 needs clusters on 16 multiprocessors."""
    plans = {}
    for large in (232448, 115712, 0):
        stand_in((*H200, large))
        for c, s in ((256, 56), (512, 28), (1024, 14), (2048, 7)):
            for item_bytes in (2, 4):
                plans[large, c, item_bytes] = backend.plan(128, c, s * s, True, item_bytes, c // 16)
    changed = {key[1:] for key, said in plans.items() if key[0] == 115712 and said != plans[232448, *key[1:]]}
    assert changed == {(256, 4)}
    assert "cannot place a cluster of 16 blocks" in plans[115712, 256, 4]
    for (large, _, _), said in plans.items():
        assert large or said.startswith("cluster_fused") != ("cannot place" in said)
        assert large or "in 16 block(s)" not in said


@on_shim
def test_weights_count_with_their_own_size(backend: CudaBackend) -> None:
    """Float32 weights of a 16-bit map are twice as many bytes, so that more samples share them."""
    stand_in((90, 8, 60 << 20, 232448))
    given = (64, 256, 64, True, 2, 8)
    assert "1 sample(s) in 1 block(s)" in backend.plan(*given)
    for weight_bytes, samples in ((2, 1), (4, 2)):
        said = backend.plan(*given, weight_bytes)
        assert f"; {samples} sample(s)" in said, said
        assert f"weights {64 // samples * 2 * 256 * 8 * weight_bytes} bytes in all" in said


# ---- pass 2
@on_shim
def test_blocks_of_pass_2_fill_whole_waves() -> None:
    """In channels_last, the busiest place for a block gets hardly more positions than the average one, and few samples
    are spread over the whole device. Its 33 multiprocessors with 32 samples have the waves of 132 with 128."""
    device, at_once = (90, 33, 60 << 20, 232448), {"scale_shift_act": 4 * 33, "scale_shift_act_backward": 3 * 33}
    for n, c, s in ((32, 256, 56), (32, 512, 28), (32, 1024, 14), (32, 2048, 7), (2, 256, 56), (2, 1024, 14)):
        x, one = torch.empty(n, c, s, s, dtype=torch.bfloat16).to(memory_format=torch.channels_last), torch.empty(n, c)
        nothing = torch.empty(0, dtype=torch.uint8)
        launches = recorded(
            lambda given: (
                given.scale_shift_act(x, None, one, one, OUT_ACT_CODES["relu"], True),  # noqa: B023
                given.scale_shift_act_backward(x, x, nothing, one, one, one, one),  # noqa: B023
            ),
            device,
        )
        assert [launch.name for launch in launches] == list(at_once)
        for launch in launches:
            units, places = n * c // 256, at_once[launch.name]  # of one sample and 256 channels
            span = -(-s * s // (launch.blocks // units))
            waves = -(-launch.blocks // places)
            share = units * s * s / (waves * places * span)
            assert share > (0.85 if n == 32 else 0.7), (launch.name, n, c, launch.blocks)
            assert n < 32 or (launch.name, c) == ("scale_shift_act_backward", 2048) or share > 0.95


# ---- forced paths
PATHS = {"cluster_fused": ["cluster_fused"], "l2_grouped": ["l2_grouped"], "separate": SEPARATE}


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("path", PATHS)
def test_forced_plans(backend: CudaBackend, path: str, dtype: torch.dtype, layout: str) -> None:
    """Each path can be forced for maps that the rule sends to cluster_fused, down to a single sample."""
    for shape in ((3, 24, 7, 5), (4, 24, 6, 8), (1, 64, 4, 4)):
        case = Case("batch_norm_squeeze_excite", shape, dtype, layout, DEVICE, training=False)
        given = (shape[0], shape[1], shape[2] * shape[3], layout == "channels_last", dtype.itemsize, 6)
        rule = backend.plan(*given)
        with backend.forced_plan(path):
            said = backend.plan(*given)
            assert said.startswith(f"{path}: forced"), said
            if DEVICE == "cuda" and "refused" in said:
                pytest.skip(said)
            for inplace in (False, True):
                infer(case, PATHS[path], inplace)
            with backend.forced_plan(""):
                assert backend.plan(*given) == rule
        assert backend.plan(*given) == rule
        infer(case, ["cluster_fused"])  # the rule's choice on the shim


@on_shim
def test_a_forced_plan_is_refused_with_its_reason(backend: CudaBackend) -> None:
    def refused(
        path: str, reason: str, shape: Shape, layout: str, dtype: torch.dtype = torch.float32, **more: Any
    ) -> None:
        case = Case("squeeze_excite", shape, dtype, layout, training=False, **more)
        with (
            backend.forced_plan(path),
            pytest.raises(RuntimeError, match=f"'{path}' is forced but cannot be used for this map: .*{reason}"),
        ):
            contract.infer(case)
        assert launched() == []
        infer(case, SEPARATE)

    stand_in(A100)
    refused("cluster_fused", "no clusters of thread blocks", (2, 16, 4, 4), "contiguous")
    with backend.forced_plan("cluster_fused"):
        said = backend.plan(2, 16, 16, True, 4, 8)
    assert said == "cluster_fused: forced but not possible: the device has no clusters of thread blocks"
    for path in ("cluster_fused", "l2_grouped"):
        stand_in()
        refused(path, "whole vectors of eight", (2, 16, 2, 3), "contiguous")
        refused(path, "whole vectors of eight", (2, 20, 4, 4), "channels_last")
        refused(path, "C is not a multiple of 8", (2, 20, 7, 5), "contiguous")
    stand_in((90, 8, 60 << 20, 40000, 0))
    refused("cluster_fused", "cannot place a cluster of 16", (2, 128, 26, 26), "contiguous")
    stand_in((90, 8, 60 << 20, 20000))
    refused("cluster_fused", "does not fit in a cluster", (2, 128, 26, 26), "contiguous")
    refused("l2_grouped", "neither float32 nor", (2, 128, 26, 26), "contiguous", parameter_dtype=torch.bfloat16)


@on_shim
def test_the_environment_forces_a_plan(backend: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("squeeze_excite", (4, 24, 6, 8), training=False)
    with backend.forced_plan(""):  # restores the rule afterwards
        monkeypatch.setenv("SE_FUSED_CUDA_PLAN", "separate")
        assert on_cpu(backend.library).load() is None
        infer(case, SEPARATE)
    infer(case, ["cluster_fused"])
    monkeypatch.setenv("SE_FUSED_CUDA_PLAN", "fast")
    wanted = "SE_FUSED_CUDA_PLAN must be one of cluster_fused, l2_grouped, separate, or empty for the rule; got 'fast'"
    with pytest.raises(ValueError, match=wanted):
        on_cpu(backend.library).load()


def test_an_unknown_plan_changes_nothing(backend: CudaBackend) -> None:
    with pytest.raises(ValueError, match="path must be one of cluster_fused"), backend.forced_plan("fast"):
        pass
    with pytest.raises(RuntimeError, match="'separate', got 'fast'"):
        backend._operators.force_plan("fast")
    with pytest.raises(ZeroDivisionError), backend.forced_plan("separate"):
        _ = 1 // 0
    assert backend._operators.force_plan("") == ""
