"""Expected speeds on an H100, for comparison with measurements. These are estimates, not measurements.

They are computed from counts of instructions, bytes and waves in sm_90 machine code (0.16 us for each hit in L2, 1.8
GHz, a copy at 3.0 TB/s), for N = 128 in bfloat16; plus or minus 30 %.
"""

__all__ = ["CUDA_SHARE", "EXCITATION_MICROSECONDS", "expected"]

CUDA_SHARE: dict[tuple[str, str], tuple[int, int, int, int]] = {
    ("moments", "channels_last"): (80, 82, 55, 45),
    ("moments", "contiguous"): (85, 40, 10, 10),
    ("scale_shift_act", "channels_last"): (88, 86, 75, 72),
    ("scale_shift_act", "contiguous"): (88, 88, 65, 65),
    ("moments_backward", "channels_last"): (83, 82, 60, 50),
    ("moments_backward", "contiguous"): (85, 75, 40, 35),
    ("scale_shift_act_backward", "channels_last"): (83, 82, 72, 67),
    ("scale_shift_act_mean", "channels_last"): (75, 75, 60, 45),
    ("cluster_fused", "channels_last"): (80, 77, 60, 40),
    ("cluster_fused", "contiguous"): (80, 75, 45, 33),
}
"""Percentage of the speed of a copy on counted bytes, in ResNet-50's four stages, by kernel and layout."""

EXCITATION_MICROSECONDS = {"excitation": (38, 35, 26, 17), "excitation_backward": (22, 21, 21, 35)}
"""Microseconds of the CUDA kernels in the four stages."""


def expected(backend: str, kernel: str, layout: str, stage: int) -> tuple[str, int] | None:
    """Estimate for the largest batch: ("percent" of a copy's speed or "us", value); None without an estimate.

    Args:
        backend, kernel, layout: the measured kernel; only "cuda" has estimates.
        stage: stage of ResNet-50, 0 to 3.
    """
    if backend != "cuda" or stage > 3:
        return None
    if kernel in EXCITATION_MICROSECONDS:
        return "us", EXCITATION_MICROSECONDS[kernel][stage]
    shares = CUDA_SHARE.get((kernel, layout))
    return None if shares is None else ("percent", shares[stage])
