"""Triton's kernels where the rule would not choose them: for the tests, and for benchmarks/gpu."""

from collections.abc import Callable
from typing import Any


def grouping_of(elements: int, kept: int, group: int, programs: int | None = None) -> Callable[[Any, Any], Any]:
    """What stands for ``tail.grouping`` and groups the samples of every map.

    Args:
        elements: of a tile.
        kept: of them along the axis that is not summed, at most.
        group: samples of a group, at most.
        programs: of the launch; None: eight for each multiprocessor, more than run at once, which wait for each other.
    """
    from se_fused.backends.triton import launch_configs as configs

    def plan(m: configs.Map, device: configs.Device) -> configs.Grouping:
        of_kept, positions = configs.tile_shape(m, elements)
        stream = configs.Stream(min(of_kept, kept), positions, positions, 4)
        return configs.Grouping(stream, min(group, m.n), programs or 8 * device.multiprocessors)

    return plan
