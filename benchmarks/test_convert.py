"""Benchmarks of networks of timm, torchvision and MONAI before and after ``se_fused.convert``."""

from harness import Bench, Contender, WorkloadSpec

from se_fused._formats import DTYPES
from se_fused.bench.workloads.converted import ConvertWorkload
from se_fused.bench.workloads.network import ImageBatch


def test_convert(
    bench: Bench,
    model: str,
    mode: str,
    batch: str,
    size: str,
    dtype: str,
    layout: str,
    candidate: str,
) -> None:
    library, _, name = model.partition("-")
    group = f"{model} {mode} {batch}x{size} {dtype} {layout}"
    spec = WorkloadSpec(
        group,
        lambda: ConvertWorkload(
            name,
            library,
            mode,
            DTYPES[dtype],
            bench.settings.device,
            layouts=(layout,),
            data=ImageBatch(int(batch), int(size)),
        ),
    )
    bench.workloads.start_group(group)
    mine, to = Contender(spec, candidate, layout), Contender(spec, "converted", layout)
    bench.run(mine, to, kind="convert", group=group, info={"network": name})
