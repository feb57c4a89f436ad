"""Random calls for the op contract. hypothesis draws them, and simplifies a failing call before it reports it."""

import pytest
import torch

pytest.importorskip("hypothesis", reason="hypothesis is in the extra se_fused[test]")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from se_fused import reference
from se_fused._formats import DTYPES, LAYOUTS
from se_fused.testing.verify import OPS, Case
from support import contract

ABSENT = ("fc1_bias", "fc2_bias", "bn_weight", "bn_bias")


@st.composite
def cases(draw: st.DrawFn, largest: int) -> Case:
    """A call whose map has at most ``largest`` elements."""
    op = draw(st.sampled_from(OPS))
    channels = draw(st.integers(1, 80))
    rank = draw(st.integers(1, 3))
    room = max(largest // channels, 1)
    spatial = []
    for _ in range(rank):
        spatial.append(draw(st.integers(1, max(1, min(room, 70)))))
        room = max(room // spatial[-1], 1)
    samples = draw(st.integers(1, max(1, min(room, 19))))
    positions = samples * int(torch.Size(spatial).numel())
    absent = tuple(name for name in draw(st.sets(st.sampled_from(ABSENT))))
    if draw(st.booleans()):
        absent += ("running_mean", "running_var")
    training = "batch_norm" in op and positions > 1 and draw(st.booleans())
    return Case(
        op,
        (samples, channels, *spatial),
        draw(st.sampled_from(list(DTYPES.values()))),
        draw(st.sampled_from(list(LAYOUTS))),
        training=training,
        # with one hidden unit and one sample, all elements of fc2's gradient have one common rounding error
        hidden=draw(st.integers(4, 40)),
        act=draw(st.sampled_from(list(reference.ACTIVATIONS))),
        gate=draw(st.sampled_from(list(reference.GATES))),
        out_act=draw(st.sampled_from(list(reference.OUT_ACTIVATIONS))),
        residual=draw(st.booleans()),
        residual_grad=draw(st.booleans()),
        drop_path=draw(st.booleans()),
        # statistics can be absent where they are not read
        absent=tuple(a for a in absent if training or not a.startswith("running")),
        mean=draw(st.sampled_from([0.0, 1.0, 10.0])),
    )


def every_call_is_right(backend: str, device: str, tier: str, largest: int, examples: int, nightly: int) -> None:
    """Hold random calls, whose maps have at most ``largest`` elements, to the contract.

    Before the tier "nightly" they are ``examples``, the same in each run. There, they are ``nightly``, new ones in each
    run; a failure prints what reproduces it.
    """

    @settings(
        max_examples=nightly if tier == "nightly" else examples,
        derandomize=tier != "nightly",
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(largest))
    def run(case: Case) -> None:
        try:
            contract.passes(case, backend, device, seeds=range(3))
        except AssertionError:
            # Gradients are held to eager's error as a median over draws. Few draws of a small map are chance, and among
            # many cases some are unlucky; a fault stays.
            contract.passes(case, backend, device, seeds=range(40))

    run()
