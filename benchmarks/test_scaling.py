"""Scaling studies: speed over batch size, image size, channels and positions, one of them varied at a time.

They show for which sizes se_fused is not ahead. The blocks are channels_last in float32, in inference and training. The
fixed sizes are a 14x14 map of 512 channels (axis batch), the first stage of ResNet-50 (image), batch 8 at 14x14
(channels), and two samples of 16 channels (positions); they are larger on GPUs. The axis "samples" is the worst case:
2048 channels with one position, so that the two fully connected layers are all the work.
"""

from block import block_benchmark
from harness import Bench, Contender, WorkloadSpec

from se_fused._formats import DTYPES
from se_fused.bench.workloads.network import ImageBatch, ModelWorkload

# height and width for each number of positions
PLANES = {1: (1, 1), 10: (2, 5), 100: (10, 10), 1000: (25, 40), 10_000: (100, 100), 100_000: (250, 400),
          1_000_000: (1000, 1000)}  # fmt: skip


def shape_of(axis: str, value: int, gpu: bool) -> tuple[int, int, int, int]:
    """The map of one point of a study."""
    if axis == "batch":
        return value, 512, 14, 14
    if axis == "image":  # in the first stage, height and width are a quarter of the image's
        return 32 if gpu else 2, 256, value // 4, value // 4
    if axis == "channels":
        return 128 if gpu else 8, value, 14, 14
    if axis == "samples":
        return value, 2048, 1, 1
    return 2, 64 if gpu else 16, *PLANES[value]


def test_scaling(
    bench: Bench,
    axis: str,
    value: str,
    block: str,
    dtype: str,
    candidate: str,
) -> None:
    shape = shape_of(axis, int(value), bench.settings.device != "cpu")
    study = {"study": {"axis": axis, "value": int(value)}}
    block_benchmark(bench, shape, block, dtype, "channels_last", candidate, study)


def test_network_scaling(
    bench: Bench,
    axis: str,
    value: str,
    network: str,
    dtype: str,
    candidate: str,
    layout: str,
) -> None:
    """A network in inference, over the batch size at the usual image size, and over the image size at a fixed batch.

    The fixed batch is 1, or 8 on a GPU.
    """
    usual = 64 if bench.settings.preset == "smoke" else 224
    batch, size = (int(value), usual) if axis == "batch" else (8 if bench.settings.device != "cpu" else 1, int(value))
    group = f"{network} infer {batch}x{size} {dtype} by {axis}"
    spec = WorkloadSpec(
        group,
        lambda: ModelWorkload(network, "infer", DTYPES[dtype], bench.settings.device, data=ImageBatch(batch, size)),
    )
    bench.workloads.start_group(group)
    info = {"network": network, "study": {"axis": axis, "value": int(value)}}
    mine, to = Contender(spec, candidate, layout), Contender(spec, "se_fused optimized", "channels_last")
    bench.run(mine, to, kind="network", group=group, info=info)
