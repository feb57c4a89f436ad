"""Forced launch configurations of Triton kernels, for the tests and for benchmarks/gpu."""

from collections.abc import Callable
from typing import Any


def l2_grouped_config_of(
    elements: int, channels: int, group: int, programs: int | None = None
) -> Callable[[Any, Any], Any]:
    """A replacement for ``l2_grouped_config`` that groups the samples of every map.

    Args:
        elements: elements of a tile.
        channels: largest number of them along the channel axis.
        group: largest number of samples in a group.
        programs: programs of the launch. None: eight for each multiprocessor, which is more than run at once, so that
            they wait for each other.
    """
    from se_fused.backends.triton import launch_configs

    def plan(m: launch_configs.Map, device: launch_configs.Device) -> launch_configs.L2GroupedConfig:
        of_rule, positions = launch_configs.tile_shape(m, elements)
        passes = launch_configs.PassConfig(min(of_rule, channels), positions, positions, 4)
        return launch_configs.L2GroupedConfig(passes, min(group, m.n), programs or 8 * device.multiprocessors)

    return plan
