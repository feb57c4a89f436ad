"""Triton's kernels where the rule would not choose them: for the tests, and for benchmarks/gpu."""

from collections.abc import Callable
from typing import Any


def l2_grouped_config_of(
    elements: int, channels: int, group: int, programs: int | None = None
) -> Callable[[Any, Any], Any]:
    """What stands for ``l2_grouped_config`` and groups the samples of every map.

    Args:
        elements: of a tile.
        channels: of them along the channel axis, at most.
        group: samples of a group, at most.
        programs: of the launch; None: eight for each multiprocessor, more than run at once, which wait for each other.
    """
    from se_fused.backends.triton import launch_configs

    def plan(m: launch_configs.Map, device: launch_configs.Device) -> launch_configs.L2GroupedConfig:
        of_rule, positions = launch_configs.tile_shape(m, elements)
        passes = launch_configs.PassConfig(min(of_rule, channels), positions, positions, 4)
        return launch_configs.L2GroupedConfig(passes, min(group, m.n), programs or 8 * device.multiprocessors)

    return plan
